"""Commands of the advisor: advise, compare, and the published schemas. Those that measure stand in ``measure_commands``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import DataError, UsageError
from tuneport.core.terminal import escape


def advise(
    decision: Annotated[Path, typer.Argument(help="What is to be decided: volumes, costs, constraints (YAML).", metavar="DECISION")],
    spec: Annotated[Path | None, typer.Option("--spec", help="Job spec; its plans become the offers.")] = None,
    measurement: Annotated[Path | None, typer.Option("--measurement", help="What baseline and evaluate measured.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html, report.md and report.json.")] = Path("."),
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Ask the questions first and write DECISION.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write report.pdf.")] = False,
) -> None:
    """Decide whether and where to fine-tune, and write the report."""
    import tuneport
    from tuneport.advisor.measurement import load_measurement
    from tuneport.advisor.report.render import write_report

    if interactive:
        _interview(decision, spec)
    elif not decision.exists():
        raise DataError(f"{decision} does not exist", fix=f"make it by answering questions: tuneport advise {decision} --interactive")
    measured = load_measurement(measurement) if measurement else None
    report = tuneport.advise(decision, spec=spec, measurement=measured)
    written = write_report(out, report, pdf=pdf)
    console = terminal.console()
    console.print(f"\n[bold]{escape(report.decision.sentence)}[/]\n", highlight=False)
    console.print(escape(report.decision.because), highlight=False)
    for warning in report.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)
    for clash in report.diagnosis.contradictions:
        console.print(f"[yellow]![/] {escape(clash.statement)} Read as: {escape(clash.read_as)}.", highlight=False)
    console.print(f"next: {escape(report.decision.next_steps[0])}", highlight=False)
    for path in written.values():
        console.print(f"wrote [bold]{escape(str(path))}[/]", highlight=False)


def _interview(decision: Path, spec: Path | None) -> None:
    """Ask on the terminal and write the decision file; an earlier one gives the defaults and is kept as .bak."""
    import yaml

    from tuneport.advisor.questionnaire import Question, defaults_of, flatten, interview
    from tuneport.core.data.load import load_job_data
    from tuneport.core.spec_file import load_spec, read_document

    console = terminal.console()
    earlier = read_document(decision)[0] if decision.exists() else {}
    known = {}
    if spec is not None:
        loaded = load_spec(spec)
        known = defaults_of(loaded, load_job_data(loaded))
    known |= flatten(earlier)

    def ask(question: Question) -> str:
        if question.choices:
            console.print("  " + "  ".join(f"[dim]{n}[/] {c}" for n, c in enumerate(question.choices, 1)), highlight=False)
        shown = "" if question.default is None else f" [{_shown(question.default)}]"
        optional = " (Enter: not known)" if question.optional and question.default is None else ""
        typed: str = typer.prompt(f"{question.text}{shown}{optional}", default="", show_default=False, prompt_suffix=" ")
        return typed

    console.print("One number, or two (10th and 90th percentile). Enter takes what stands in brackets.", highlight=False, markup=False)
    def keep(document: dict[str, Any]) -> None:
        if decision.exists():
            decision.replace(decision.with_name(decision.name + ".bak"))
        terminal.write(decision, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
        console.print(f"wrote [bold]{escape(str(decision))}[/]", highlight=False)

    answered: dict[str, Any] = {}
    try:
        document = interview(ask, lambda why: console.print(f"[yellow]![/] {escape(why)}", highlight=False), known, earlier,
                             answered.update)  # fmt: skip
    except (typer.Abort, KeyboardInterrupt):  # the end of the input, or Ctrl-C
        if answered:
            keep(answered)
            console.print("not all questions are answered; give the same command again to go on", highlight=False)
        raise
    keep(document)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(str(v) for v in value)
    if isinstance(value, dict):
        return " ".join(str(v) for v in value.values())
    return str(value)


def compare(
    before: Annotated[Path, typer.Argument(help="An earlier report.json.", metavar="BEFORE")],
    after: Annotated[Path, typer.Argument(help="A later report.json.", metavar="AFTER")],
    json: terminal.JsonOption = False,
) -> None:
    """Show what has changed from one report to the next, the decision first."""
    from tuneport.advisor.report.compare import compare_reports, load_report

    found = compare_reports(load_report(before), load_report(after))
    if json:
        terminal.print_json(found.model_dump(mode="json"))
        return
    console = terminal.console()
    stays = "The decision stands." if found.same_verdict else "The decision has changed."
    console.print(f"[bold]{stays}[/] {'The inputs are the same.' if found.same_inputs else ''}".rstrip(), highlight=False)
    if not found.changes:
        console.print("Nothing differs.")
        return
    table = terminal.table("", "", escape(found.before), escape(found.after))
    part = ""
    for change in found.changes:
        table.add_row(change.part if change.part != part else "", *(escape(text) for text in (change.what, change.before, change.after)))
        part = change.part
    console.print(table)


def schema(
    what: Annotated[str, typer.Argument(help="spec, plan, decision, measurement, report, models or prices.", metavar="WHAT")] = "spec",
) -> None:
    """Print a JSON Schema, for editors and programs."""
    terminal.print_json(_schemas(what))


def _schemas(what: str) -> dict[str, Any]:
    if what == "spec":
        from tuneport.core.spec_file import spec_schema

        return spec_schema()
    if what == "models":
        from tuneport.core.catalogue import catalogue_schema

        return catalogue_schema()
    if what == "prices":
        from tuneport.core.prices import prices_schema

        return prices_schema()
    if what == "plan":
        from tuneport.core.plan import Plan

        return Plan.model_json_schema(mode="serialization")
    if what == "decision":
        from tuneport.advisor.intake import Intake

        return Intake.model_json_schema()
    if what == "measurement":
        from tuneport.advisor.measurement import Measurement

        return Measurement.model_json_schema(mode="serialization")
    if what == "report":
        from tuneport.advisor.report.model import report_schema

        return report_schema()
    raise UsageError(f"there is no schema {what!r}", fix="choose spec, plan, decision, measurement, report, models or prices")
