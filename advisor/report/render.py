"""Renders a report: HTML (self-contained, no script, nothing loaded), Markdown in MADR 4.0 headings, and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tuneport.advisor.decide import VERDICT_WORDS
from tuneport.advisor.report.charts import accuracy_chart, cash_chart, tornado_chart
from tuneport.advisor.report.headline import deciding_comparison, tiles_of
from tuneport.advisor.report.model import Report
from tuneport.advisor.report.money import basis_of, money_rows, month_rows, sum_of, volume_of
from tuneport.advisor.report.pdf import render_pdf
from tuneport.advisor.report.words import FILTERS, plain
from tuneport.core.data.atomic import replacing
from tuneport.core.errors import DataError
from tuneport.core.sources import GRADES

SOURCES: Mapping[str, str] = {
    "S0": "practitioners' document 0 of five behind the advisor's rules",
    "S1": "practitioners' document 1 of five behind the advisor's rules",
    "S2": "practitioners' document 2 of five behind the advisor's rules",
    "S3": "practitioners' document 3 of five behind the advisor's rules",
    "S4": "practitioners' document 4 of five behind the advisor's rules",
    "E": "tuneport's notes on economics and statistics",
    "T": "a rule of tuneport itself",
}

SWITCH_BASIS = (
    "The model was run again over all draws with the one input moved until its median stands at the value named; money is discounted. The "
    "requests that pay it back (part 2) are of the likely case, undiscounted."
)

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~])")
_LINE_START = re.compile(r"^(\s?)(\d{0,9})((?<=\d)[.)](?=\s|$)|(?<!\d)(?:[-+](?=\s|$)|[-=]{2,}))")
"""What acts at the start of a line only: list marks, rules, underlines of headings."""


def render_html(report: Report) -> str:
    """The report as one HTML file without script. Raises MissingExtraError when the charts cannot be drawn."""
    charts = {
        "accuracy": accuracy_chart(report.evidence) if report.evidence and _has_metric(report) else "",
        "cash": cash_chart(report.cash_flow) if report.cash_flow else "",
        "tornado": tornado_chart(report.sensitivity) if report.sensitivity and report.sensitivity.swings else "",
    }
    style = Markup(files("tuneport.advisor.report").joinpath("style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return _environment(autoescape=True).get_template("report.html.j2").render(**_context(report), charts=charts, style=style)


def render_markdown(report: Report) -> str:
    """The report in MADR 4.0 headings, to drop into a folder of decision records."""
    environment = _environment(autoescape=False)
    environment.finalize = _markdown_text
    text = environment.get_template("report.md.j2").render(**_context(report))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def render_json(report: Report) -> str:
    """The report as JSON, the source of truth."""
    return report.model_dump_json(indent=2) + "\n"


def write_report(directory: str | Path, report: Report, *, pdf: bool = False) -> dict[str, Path]:
    """Write report.html, report.md and report.json, and report.pdf when asked; returns their paths by kind ("html", "md", ...).

    All are rendered before the first is written, and each replaces its predecessor in one step.
    Who may read them is for the umask: no row and no answer stands in them.
    Raises MissingExtraError when charts or PDF cannot be drawn, DataError when the folder cannot be made, and TuneportError
    when a file in it cannot be written.
    """
    folder = Path(directory)
    html = render_html(report)
    texts = {"html": html.encode(), "md": render_markdown(report).encode(), "json": render_json(report).encode()}
    if pdf:
        texts["pdf"] = render_pdf(html)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the report cannot be written to {folder} ({error.strerror})", fix="choose another folder") from None
    paths = {kind: folder / f"report.{kind}" for kind in texts}
    for kind, path in paths.items():
        with replacing(path) as file:
            file.write(texts[kind])
    return paths


def _has_metric(report: Report) -> bool:
    return report.evidence is not None and any(report.evidence.metric in a.metrics for a in report.evidence.arms)


def _misses(report: Report) -> str:
    """Why the money counts calls only; "" where it counts what wrong answers cost."""
    if any(o.economics and o.economics.misses_counted for o in report.offers):
        return ""
    quality = report.intake.quality
    if quality.rejected_answer_usd is None:
        return "what a wrong answer costs is not stated in the decision file"
    why = f"{plain(quality.metric)} is no mean over rows" if _has_metric(report) else "nothing was measured"
    return f"what a wrong answer costs is left out, because {why}"


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("tuneport.advisor.report"),
        autoescape=autoescape,  # noqa: S701 - the Markdown rendering escapes every value through finalize
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def _context(report: Report) -> dict[str, Any]:
    used = {note.grade for o in report.offers for note in o.prices} | {a.grade for a in report.assumptions} - {""}
    evidence, money = report.evidence, report.savings.economics
    names = evidence.metric if evidence else report.intake.quality.metric
    others = sorted({m for a in evidence.arms for m in a.metrics} - {names}) if evidence else []
    tags = sorted({tag for line in (*report.decision.trace, *report.decision.doubts) for tag in line.sources})
    return {
        "report": report,
        "misses": _misses(report),
        "verdict": VERDICT_WORDS[report.decision.verdict].capitalize(),
        "money_rows": money_rows(report),
        "month_rows": month_rows(report),
        "money_sum": sum_of(money),
        "money_basis": basis_of(money, report.reproducibility.draws),
        "likely_volume": volume_of(money.likely) if money else "",
        "switch_basis": SWITCH_BASIS,
        "chosen": next((o for o in report.offers if report.savings.offer == o.id), None),
        "tiles": tiles_of(report, deciding_comparison(report)),
        "chief": [c for c in evidence.comparisons if c.metric == names] if evidence else [],
        "minor": [c for c in evidence.comparisons if c.metric != names] if evidence else [],
        "other_metrics": others,
        "grades": {g: GRADES[g] for g in sorted(used) if g in GRADES},
        "tags": {tag: SOURCES[tag] for tag in tags if tag in SOURCES},
    }


def _markdown_text(value: Any) -> Any:
    """A value as plain text in Markdown: one line, with everything that Markdown or HTML would act on escaped.

    Space at either end becomes one space: expressions of the template such as ``", "`` part words with it.
    """
    if value is None or isinstance(value, Markup):
        return value
    return _LINE_START.sub(r"\1\2\\\3", _MARKDOWN.sub(r"\\\1", re.sub(r"\s+", " ", str(value))))
