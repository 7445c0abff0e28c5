"""Commands of the advisor: baseline, evaluate, advise, and the published schemas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import UsageError
from tuneport.core.terminal import SpecArgument, escape
from tuneport.providers.job_commands import find_job

if TYPE_CHECKING:
    from tuneport.advisor.measurement import Measurement
    from tuneport.core.spec import JobSpec

OutOption = Annotated[Path, typer.Option("--out", "-o", help="Measurement file; arms already in it are kept.")]
SchemaOption = Annotated[Path | None, typer.Option("--json-schema", help="JSON Schema that answers must fulfil.")]


def baseline(
    spec: SpecArgument,
    provider: Annotated[str, typer.Option("--provider", "-p", help="Where the base model runs.")],
    out: OutOption = Path("measurement.json"),
    shots: Annotated[
        list[int] | None, typer.Option("--shots", min=0, help="Examples in the prompt (repeatable); 0 is zero-shot. Default: 0 and 6.")
    ] = None,
    instruction: Annotated[
        Path | None, typer.Option("--instruction", help="Text file with the prompt to measure, in place of the rows' system prompt.")
    ] = None,
    json_schema: SchemaOption = None,
) -> None:
    """Measure how far prompting gets the base model.

    On the held-out rows: the bar that tuning must beat.
    """
    from tuneport.core.catalogue import load_catalogue
    from tuneport.core.spec_file import load_spec

    loaded = load_spec(spec)
    model = load_catalogue().offering(loaded, provider).vendor_id
    words = terminal.read(instruction).strip() if instruction else None
    arms = [
        {"name": f"few-shot ({k})" if k else "zero-shot", "shots": k, "kind": "prompted", "instruction": words} for k in shots or (0, 6)
    ]
    _measure(loaded, provider, model, arms, out, json_schema)


def evaluate(
    spec: SpecArgument,
    job: Annotated[str, typer.Option("--job", help="Job that made the tuned model, or last.")],
    out: OutOption = Path("measurement.json"),
    json_schema: SchemaOption = None,
) -> None:
    """Measure a tuned model, paired with the baselines."""
    from tuneport.core.spec_file import load_spec

    handle = find_job(job)
    model = handle.model.name
    _measure(load_spec(spec), handle.provider, model, [{"name": "tuned", "kind": "tuned", "job": handle.id}], out, json_schema)


def _measure(spec: JobSpec, provider: str, model: str, arms: list[dict[str, Any]], out: Path, json_schema: Path | None) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tuneport.advisor.arm import run_arm
    from tuneport.advisor.measure import measure
    from tuneport.advisor.measurement import Measurement
    from tuneport.advisor.suite import load_suite
    from tuneport.providers import registry

    suite = load_suite(spec, schema=json_schema)
    known = Measurement.model_validate_json(out.read_text(encoding="utf-8")) if out.exists() else None
    names = {a["name"] for a in arms}
    kept = [a for a in known.arms if a.name not in names] if known and known.suite_sha256 == suite.sha256 else []
    console = terminal.console()
    place = registry.get(provider)
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        for arm in arms:
            task = bar.add_task(arm["name"], total=len(suite))

            def show(progress: Any, task: Any = task) -> None:
                bar.update(task, completed=progress.done)

            kept.append(run_arm(place, model, suite, cache=out.parent / "answers", on_progress=show, **arm))
    result = measure(suite, kept)
    terminal.write(out, result.model_dump_json(indent=1))
    _show_measurement(result)


def _show_measurement(result: Measurement) -> None:
    console = terminal.console()
    metrics = list(dict.fromkeys(m for arm in result.arms for m in arm.metrics))
    listing = terminal.table(f"{result.power.n} held-out rows", *(arm.name for arm in result.arms))
    for metric in metrics:
        cells = [f"{e.value:.0%} [dim]{e.low:.0%}–{e.high:.0%}[/]" if (e := arm.metrics.get(metric)) else "–" for arm in result.arms]
        listing.add_row(metric, *cells)
    console.print(listing)
    for c in result.comparisons:
        if c.metric == result.primary_metric:
            d, p = c.difference, f", exact McNemar p = {c.p_value:.2g}" if c.p_value is not None else ""
            points = f"{d.value * 100:+.1f} points ({d.low * 100:+.1f} to {d.high * 100:+.1f})"
            console.print(f"{c.challenger} – {c.baseline}: {points}{p}", highlight=False)
    console.print(f"[dim]{escape(result.power.statement)}[/]", highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)


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
