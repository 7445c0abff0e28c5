"""Commands of the advisor: advise, and the published schemas. Those that measure stand in ``measure_commands``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import UsageError
from tuneport.core.terminal import escape


def advise(
    decision: Annotated[Path, typer.Argument(help="What is to be decided: volumes, costs, constraints (YAML).", metavar="DECISION")],
    spec: Annotated[Path | None, typer.Option("--spec", help="Job spec; its plans become the offers.")] = None,
    measurement: Annotated[Path | None, typer.Option("--measurement", help="What baseline and evaluate measured.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html, report.md and report.json.")] = Path("."),
) -> None:
    """Decide whether and where to fine-tune, and write the report."""
    import tuneport
    from tuneport.advisor.measurement import Measurement
    from tuneport.advisor.report.render import write_report

    measured = Measurement.model_validate_json(terminal.read(measurement)) if measurement else None
    report = tuneport.advise(decision, spec=spec, measurement=measured)
    written = write_report(out, report)
    console = terminal.console()
    console.print(f"\n[bold]{escape(report.decision.sentence)}[/]\n", highlight=False)
    console.print(escape(report.decision.because), highlight=False)
    for path in written.values():
        console.print(f"wrote [bold]{escape(str(path))}[/]", highlight=False)


def schema(
    what: Annotated[str, typer.Argument(help="spec, plan, decision, report, models or prices.", metavar="WHAT")] = "spec",
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
    if what == "report":
        from tuneport.advisor.report.model import Report

        return Report.model_json_schema(mode="serialization")
    raise UsageError(f"there is no schema {what!r}", fix="choose spec, plan, decision, report, models or prices")
