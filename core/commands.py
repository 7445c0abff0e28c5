"""Commands on data and on facts: check, models, prices."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import DataError, UsageError
from tuneport.core.terminal import METHODS_HELP, ROW_FORMATS_HELP, JsonOption, escape

if TYPE_CHECKING:
    from tuneport.core.data.check import CheckReport
    from tuneport.core.money import Range


def check(
    paths: Annotated[
        list[Path], typer.Argument(help="A spec, or data files (.jsonl .json .csv .parquet, also .gz and .zst).", metavar="SPEC|DATA...")
    ],
    data_format: Annotated[str, typer.Option("--format", help=ROW_FORMATS_HELP)] = "auto",
    method: Annotated[str, typer.Option(help=METHODS_HELP)] = "sft",
    system_prompt: Annotated[
        str | None, typer.Option("--system-prompt", help="Production system prompt that every row should have.")
    ] = None,
    schema: Annotated[Path | None, typer.Option("--schema", help="JSON Schema that every answer must satisfy.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="The only right answers, separated by commas.")] = None,
    near: Annotated[float, typer.Option("--near", help="Jaccard similarity from which rows are near duplicates.")] = 0.8,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", help="duplicates, near-duplicates, personal-data or tokens (repeatable).")
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="Look for names and places too (extra pii; slow).")] = False,
    count_tokens: Annotated[
        bool, typer.Option("--count-tokens", help="Count with o200k_base instead of estimating (extra tokens).")
    ] = False,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Set rows against this model's limits (repeatable).")] = None,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", "-p", help="Set rows against this provider's limits (repeatable).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; by default one for each core when a file is large.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write the result as an HTML page too.")] = None,
    fail_on: Annotated[str, typer.Option("--fail-on", help="Severity that fails the command: error, warning or never.")] = "error",
    as_json: JsonOption = False,
) -> None:
    """Find every fault in training data before anyone pays. Exit code 4 when a finding is an error (see --fail-on).

    Two or three data files are taken as train, test or train, validation, test, and compared with each other.
    """
    from tuneport.core.data.check import CheckOptions, check_files, check_spec
    from tuneport.core.data.check_page import verdict, write_page
    from tuneport.core.spec import DataFormat, Method

    if fail_on not in ("error", "warning", "never"):
        raise UsageError(f"--fail-on {fail_on!r} is not known", fix="choose one of error, warning, never")
    left_out: Any = skip or ()  # CheckOptions says which names there are
    options = CheckOptions(
        skip=frozenset(left_out),
        near=near,
        names=names,
        count_tokens=count_tokens,
        labels=tuple(label.strip() for label in labels.split(",")) if labels else None,
        models=tuple(model or ()),
        providers=tuple(provider or ()),
        workers=workers,
    )
    shape, how = terminal.one_of("--format", data_format, DataFormat), terminal.one_of("--method", method, Method)
    json_schema = terminal.read_schema(schema)
    with terminal.progress_bar() as on_progress:
        if len(paths) == 1 and paths[0].suffix in (".yaml", ".yml"):
            from tuneport.core.spec_file import load_spec

            found = check_spec(
                load_spec(paths[0]), system_prompt=system_prompt, json_schema=json_schema, options=options, on_progress=on_progress
            )
        else:
            if len(paths) > 3:
                raise UsageError(f"{len(paths)} files are too many", fix="give train, test or train, validation, test; check others apart")
            train, *others = map(str, paths)
            validation, test = (None, *others) if len(others) == 1 else (*others, None, None)[:2]
            found = check_files(
                train, validation, test, format=shape, method=how, system_prompt=system_prompt, json_schema=json_schema, options=options,
                on_progress=on_progress,
            )
    reports = list(found.values())
    if as_json:
        terminal.print_json([r.model_dump(mode="json") for r in reports])
    else:
        for report in reports:
            _show_check(report)
        if any(_SOURCES.search(finding.message) for report in reports for finding in report.findings):
            told = "S0 to S4: the practitioners' documents that a threshold comes from (docs/data.md)"
            terminal.console().print(f"[dim]{told}[/]", highlight=False)
        terminal.console().print(f"[bold]{escape(verdict(reports))}[/]", highlight=False)
    if page:
        write_page(page, reports)
    failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[fail_on]
    faulty = [r.file for r in reports if r.worst in failing]
    if faulty:
        raise DataError(f"faults in {', '.join(faulty)}", fix="mend the rows listed above (tuneport prepare) and check again")


_SOURCES = re.compile(r"\bS[0-4]\b")


def _show_check(report: CheckReport) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = terminal.console()
    tokens = "tokens not counted" if report.good_rows else "no readable rows"
    if report.tokens:
        count = f"{report.tokens.low:,}" if report.tokens.exact else f"{report.tokens.low:,} – {report.tokens.high:,}"
        tokens = f"{count} tokens ({report.tokens.tokenizer})"
    good = "" if report.good_rows == report.rows else f", {report.good_rows:,} of them good"
    facts = f"{report.part}: {report.rows:,} rows{good}, {report.format or 'unknown format'}"
    console.print(f"[bold]{escape(report.file)}[/]  {facts}", highlight=False)
    console.print(f"  [dim]{escape(tokens)}[/]", highlight=False)
    if report.lengths:
        median, longest = report.lengths[0], report.lengths[-1]
        console.print(f"  [dim]row length: median up to {median.high:,} tokens, longest up to {longest.high:,}[/]", highlight=False)
    if not report.findings:
        console.print("  [green]✓ no faults found[/]")
        return
    listing = Table.grid(padding=(0, 1))  # what wraps stays under its message
    listing.add_column(no_wrap=True)
    listing.add_column(overflow="fold")
    for finding in report.findings:
        colour = {"error": "red", "warning": "yellow", "info": "cyan"}[finding.severity]
        named = len(finding.lines) == 1 and f":{finding.lines[0]}:" in finding.message
        where = f"line{'s' if len(finding.lines) > 1 else ''} {', '.join(map(str, finding.lines))}"
        lines = f" ({where}{' …' if finding.count > len(finding.lines) > 1 else ''})" if finding.lines and not named else ""
        listing.add_row(Text(finding.severity, colour), Text.assemble(finding.message, (lines, "dim")))
        if finding.examples:
            listing.add_row("", Text(f"e.g. {'; '.join(finding.examples[:3])}", "dim"))
    console.print(Padding(listing, (0, 0, 0, 2), expand=False))


def init(path: Annotated[Path, typer.Argument(help="File to write.", metavar="FILE")] = Path("spec.yaml")) -> None:
    """Write a commented spec to start from."""
    if path.exists():
        raise UsageError(f"{path} exists already", fix="give another name; nothing was written")
    terminal.write(path, (Path(__file__).parent / "starter.yaml").read_text(encoding="utf-8"))
    terminal.console().print(f"wrote {escape(str(path))}: name your model and data in it, then run tuneport plan {escape(str(path))}")


def models(
    name: Annotated[str, typer.Argument(help="Only models whose name or vendor id holds this.", metavar="NAME")] = "",
    provider: Annotated[str | None, typer.Option("--provider", "-p", help="Only this provider.")] = None,
    method: Annotated[str | None, typer.Option(help="Only models that this method is known to tune.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the base models: where, how, until when tunable."""
    from tuneport.core.catalogue import closed, load_catalogue
    from tuneport.core.sources import staleness
    from tuneport.core.spec import Method

    if method is not None:
        terminal.one_of("--method", method, Method)
    found = [
        o
        for o in load_catalogue().models()
        if provider in (None, o.provider)
        and (method is None or method in (o.methods or ()))
        and name.lower() in f"{o.model} {o.vendor_id}".lower()
    ]
    if not found:
        raise UsageError("the catalogue has no such model", fix="ask for less: tuneport models [NAME] [--provider P] [--method M]")
    today = date.today()
    if as_json:
        terminal.print_json([terminal.plain(o) | {"closed": closed(o, today)} for o in found])
        return
    listing = terminal.table("model", "provider", "vendor id", "methods", "tuning", "tunable until", "source")
    for o in found:
        end = o.lifetime.training_closes
        until = f"[yellow]{end}[/]" if end else "[dim]no date known[/]"
        if closed(o, today):
            until = f"[red]closed[/] {o.lifetime.inference_ends or end or ''}"
        stale = staleness(o.source, today)
        source = f"{o.source.observed_on} {o.source.grade}" if o.source else "unknown"
        listed = [", ".join(sorted(x)) if x else "[dim]unknown[/]" for x in (o.methods, o.tunings)]
        listing.add_row(o.model, o.provider, o.vendor_id, *listed, until, f"{source} [yellow]{stale}[/]" if stale else source)
    terminal.console().print(listing)


def prices(
    provider: Annotated[str | None, typer.Option("--provider", "-p", help="Only this provider.")] = None, as_json: JsonOption = False
) -> None:
    """List the price book.

    Each price has its source, date and grade; old ones are marked.
    """
    from tuneport.core.prices import load_prices
    from tuneport.core.sources import staleness

    found = [p for p in load_prices().prices() if provider in (None, p.provider)]
    if not found:
        raise UsageError(f"the price book has no prices of {provider!r}", fix="see `tuneport providers`")
    if as_json:
        terminal.print_json([terminal.plain(p) for p in found])
        return
    listing = terminal.table("provider", "what", "applies to", "USD", "unit", "observed", "source")
    sources: dict[str, int] = {}
    for p in found:
        band = f"{p.above_b or 0:g}–{p.upto_b:g}B" if p.upto_b else f">{p.above_b:g}B" if p.above_b else ""
        whose = "" if p.tuned is None else "tuned" if p.tuned else "base"
        kept = f"kept {_exactly(p.ttl_minutes)} min" if p.ttl_minutes else ""
        applies = (p.model or "", band, p.gpu or "", *sorted(p.methods or ()), *sorted(p.tunings or ()), whose, p.variant, kept)
        stale = staleness(p.source, date.today())
        age = f"{p.source.observed_on} {p.source.grade}" + (f" [yellow]{stale}[/]" if stale else "")
        number = sources.setdefault(p.source.title, len(sources) + 1)
        listing.add_row(p.provider, p.kind, " ".join(filter(None, applies)), f"${_exactly(p.amount)}", p.unit, age, f"({number})")
    terminal.console().print(listing)
    for title, number in sources.items():
        terminal.console().print(f"[dim]({number}) {escape(title)}[/]", highlight=False)


def _exactly(amount: Range) -> str:
    """A figure of the price book, or a range of them, unrounded."""
    return f"{amount.low:g}" if amount.low == amount.high else f"{amount.low:g}–{amount.high:g}"
