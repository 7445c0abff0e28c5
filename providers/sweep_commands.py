"""The command that tries many settings of one job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import RefusedError, UsageError
from tuneport.core.terminal import SpecArgument, YesOption, consent, escape

if TYPE_CHECKING:
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec


def sweep(
    spec: SpecArgument,
    over: Annotated[list[str], typer.Option("--over", help="Field and values to try: training.learning_rate=1e-4,3e-4. Repeatable.")],
    provider: Annotated[str, typer.Option("--provider", "-p", help="Where to train.")] = "local",
    halving: Annotated[bool, typer.Option("--halving/--full", help="Short runs first, longer ones for the better; or whole runs.")] = True,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Jobs at a time.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the spec with the best values here.")] = None,
    yes: YesOption = False,
) -> None:
    """Try many settings of one job, and tell which has the lowest validation loss.

    Every run is a job in the ledger. Given again, the command goes on where it was broken off.
    """
    import yaml

    from tuneport import engine
    from tuneport.core.money import Cost
    from tuneport.core.spec_file import load_spec
    from tuneport.providers.plan_commands import as_billed
    from tuneport.providers.sweep import Sweep, best_document

    loaded = load_spec(spec)
    made = Sweep(loaded, dict(_values(text) for text in over), halving=halving)
    plan = _planner(loaded, provider)
    plans = [plan(made.spec_of(trial, 0)) for trial in made.trials]
    last = len(made.levels) - 1
    whole = [plan(made.spec_of(trial, last)) for trial in made.trials]
    for one in (*plans, *whole):
        if one.refusals:
            raise RefusedError(provider, one.refusals)
    console = terminal.console()
    jobs = sum(level.count for level in made.levels)
    lines = [line for one in plans for line in as_billed({provider: one})[provider].cost.lines]
    costs = [as_billed({provider: one})[provider].cost for one in whole]
    dearest = max(costs, key=lambda cost: cost.usd.high if cost.usd else float("inf"))
    lines += [line for level in made.levels[1:] for _ in range(level.count) for line in dearest.lines]
    price = terminal.money(Cost(lines=tuple(lines)))
    console.print(f"{len(made.trials)} settings in {jobs} jobs at {provider}: at most {price}")
    consent(f"Run the sweep for {price}?", yes, "sweeping")
    best = made.run(engine(), provider, plan, lambda line: console.print(escape(line)), at_once)
    table = terminal.table("setting", *(f"{level.share:.0%}" for level in made.levels), "job")
    for trial in sorted(made.trials, key=lambda trial: (-len(trial.losses), trial.losses[-1])):
        losses = [f"{loss:.4f}" for loss in trial.losses] + [""] * (len(made.levels) - len(trial.losses))
        table.add_row(escape(trial.shown), *losses, trial.jobs[-1])
    console.print(table)
    console.print(f"best: {escape(best.shown)}, validation loss {best.losses[-1]:.4f} ({best.jobs[-1]})")
    if out is not None:
        terminal.write(out, yaml.safe_dump(best_document(loaded, best), sort_keys=False, allow_unicode=True))


def _planner(spec: JobSpec, provider: str) -> Any:
    """Plans of variations of one spec: their rows are read once."""
    from tuneport.core.data.load import job_data_for
    from tuneport.core.plan import compile_for
    from tuneport.providers import registry

    place = registry.get(provider, spec.options.for_provider(provider))
    data = job_data_for(spec)(provider)

    def plan(one: JobSpec) -> Plan:
        return compile_for(place, one, data)

    return plan


def _values(text: str) -> tuple[str, list[Any]]:
    """"path=1,2" as (path, [1, 2]). Raises UsageError for any other form."""
    path, equals, listed = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--over {text} is not of the form FIELD=VALUE,VALUE", fix="e.g. --over training.learning_rate=1e-4,3e-4")
    return path.strip(), [_value(value.strip()) for value in listed.split(",") if value.strip()]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)
