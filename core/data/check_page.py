"""Renders check reports as one HTML page: self-contained, everything escaped, no script, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from tuneport.core.data.atomic import write_text
from tuneport.core.data.check_report import ROW_FAULTS, CheckReport

_SHOWN_LABELS = 50


def verdict(reports: Sequence[CheckReport]) -> str:
    """The result in one sentence."""
    counts = {severity: sum(f.severity == severity for r in reports for f in r.findings) for severity in ("error", "warning", "info")}
    rows = sum(report.rows for report in reports)
    if counts["error"]:
        kinds = f"{counts['error']} kind{'s' if counts['error'] > 1 else ''}"
        bad = sum(report.rows - report.good_rows for report in reports)
        if bad and all(f.code in ROW_FAULTS for r in reports for f in r.findings if f.severity == "error"):
            return f"{bad:,} of {rows:,} rows {'has' if bad == 1 else 'have'} faults of {kinds}: mend before training."
        return f"Errors of {kinds} in {rows:,} rows: mend before training."
    if counts["warning"]:
        kinds = f"{counts['warning']} kind{'s' if counts['warning'] > 1 else ''} of warning"
        return f"{_use(reports)} can be used; {kinds} deserve{'' if counts['warning'] > 1 else 's'} a look first."
    return f"{_use(reports)} are ready."


def _use(reports: Sequence[CheckReport]) -> str:
    """How many rows of each part there are: test rows are never trained on."""
    counts = {part: sum(report.rows for report in reports if report.part == part) for part in dict.fromkeys(r.part for r in reports)}
    *others, last = (f"{rows:,} {'training' if part == 'train' else part} rows" for part, rows in counts.items())
    return f"{', '.join(others)} and {last}" if others else last


def render_page(reports: Sequence[CheckReport]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - only a page needs it

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("tuneport.core.data").joinpath("check_page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(reports=reports, verdict=verdict(reports), shown_labels=_SHOWN_LABELS)


def write_page(path: str | Path, reports: Sequence[CheckReport]) -> None:
    """Write the page, in one step. Raises TuneportError when the place cannot be written."""
    write_text(Path(path), render_page(reports))
