"""The command plan, and how plans are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import RefusedError, TuneportError, UsageError
from tuneport.core.terminal import JsonOption, SpecArgument

if TYPE_CHECKING:
    from rich.text import Text

    from tuneport.core.plan import FieldOutcome, Plan
    from tuneport.core.spec import JobSpec


def plan(
    spec: SpecArgument,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", "-p", help="Provider name (repeatable), or all (the default).")
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="List every field, also unset ones.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Ask each vendor for its limits and price too (reads; needs keys).")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Run ten real steps on this machine for local's time.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what each provider would do, its price and its time.

    Every field of the spec ends as sent, converted, left to the provider or refused. Sends nothing.
    """
    from tuneport.core.spec_file import load_spec

    loaded = load_spec(spec)
    plans, missing = plans_for(loaded, provider or ["all"], online=online)
    plans = as_billed(plans)
    if calibrate:
        plans = _calibrated(loaded, plans)
    if as_json:
        printed = {name: p.model_dump(mode="json") for name, p in plans.items()}
        terminal.print_json(printed | {name: {"provider": name, "unavailable": str(why)} for name, why in missing.items()})
    else:
        _show_plans(loaded, plans, missing, fields)
    if not plans:
        raise next(iter(missing.values()))
    if len(plans) + len(missing) == 1 and next(iter(plans.values())).refusals:
        raise typer.Exit(RefusedError.exit_code)  # the reasons are on the screen


def _calibrated(spec: JobSpec, plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans with local's time measured."""
    from functools import partial

    from tuneport.core.data.load import open_rows
    from tuneport.providers.local.calibrate import calibrated

    local = plans.get("local")
    if local is None:
        raise UsageError("--calibrate measures local training, and there is no plan for it", fix="add --provider local")
    return {**plans, "local": calibrated(local, partial(open_rows, spec))}


def plans_for(spec: JobSpec, wanted: Sequence[str], *, online: bool = False) -> tuple[dict[str, Plan], dict[str, TuneportError]]:
    """A plan for each wanted provider, and the error of each that has none (an unknown model there, say).

    ``online`` asks the vendors as well; one that cannot be asked keeps its plan, with a warning.
    """
    from tuneport.core.data.load import job_data_for
    from tuneport.core.errors import CatalogueError, CredentialsError, MissingExtraError, ProviderError
    from tuneport.core.plan import PlanWarning, compile_for
    from tuneport.providers import registry
    from tuneport.providers.online import asked

    names = registry.names() if "all" in wanted else tuple(dict.fromkeys(wanted))
    providers = {name: registry.get(name, spec.options.for_provider(name)) for name in names}
    data = job_data_for(spec)
    plans: dict[str, Plan] = {}
    missing: dict[str, TuneportError] = {}
    for name, place in providers.items():
        try:
            plans[name] = compile_for(place, spec, data(name))
            if online and "online" not in place.unoffered:
                plans[name] = asked(place, spec, plans[name])
        except (CredentialsError, ProviderError, MissingExtraError) as error:
            note = PlanWarning(code="online", message=f"could not be asked: {error}")
            plans[name] = plans[name].model_copy(update={"warnings": (*plans[name].warnings, note)})
        except CatalogueError as error:
            missing[name] = error
    return plans, missing


def as_billed(plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans with costs as earlier bills in the ledger correct them, for showing. Without a ledger, as they are."""
    from tuneport import engine
    from tuneport.core.calibration import calibrated
    from tuneport.core.errors import LedgerError

    try:
        ledger = engine(create=False)
    except LedgerError:
        return dict(plans)
    return {name: one.model_copy(update={"cost": calibrated(one.cost, ledger.calibration(name))}) for name, one in plans.items()}


def _show_plans(spec: JobSpec, plans: Mapping[str, Plan], missing: Mapping[str, TuneportError], every_field: bool) -> None:
    from rich.text import Text

    from tuneport.core.plan import HANDLED_BY_TUNEPORT

    console = terminal.console()
    overview = terminal.table("provider", "base model", "epochs", "training cost", "time", "ready")
    for name, one in plans.items():
        money, time = terminal.money(one.cost), terminal.duration(one.time)
        overview.add_row(name, one.vendor_model, _epochs(one), money, time, _verdict(spec, one))
    for name, why in missing.items():
        overview.add_row(name, Text("–", "dim"), "", "", "", Text(why.what, "red"))
    console.print(overview)
    told = {_epochs(one) for one in plans.values()}
    if len(told) > 1:
        fix = "set training.epochs to compare them" if spec.training.epochs is None else "overrides set them apart"
        console.print(f"[dim]cost and time are for different numbers of epochs: {fix}[/]", highlight=False)
    if not plans:
        return

    fields = terminal.table("field", "value", *plans)
    for column in fields.columns:
        column.no_wrap = column is not fields.columns[0]  # on a narrow terminal the long names fold, the marks do not
    for path, value in spec.fields():
        cells = [next((o for o in p.outcomes if o.path == path), None) for p in plans.values()]
        sent = any(c and c.wire != "(tuneport)" and c.value is not None for c in cells)
        if every_field or sent:
            shown = "by provider" if isinstance(value, dict) else "–" if value is None else terminal.short(value, 24)
            fields.add_row(path, shown, *(_mark(c, value) for c in cells))
    console.print(fields)
    own = [path for path in HANDLED_BY_TUNEPORT if any(o.path == path and o.value is not None for p in plans.values() for o in p.outcomes)]
    console.print(f"[dim]carried out by tuneport itself: {', '.join(own)}[/]", highlight=False)
    console.print("[dim]✓ sent   ~ sent in another form   · left to the provider   ✗ refused[/]", highlight=False)
    console.print("[dim]ready: nothing is refused; keys and rights are looked at by submit and doctor[/]", highlight=False)
    console.print("[dim]! look at this   $ what the price stands on   t what the time stands on[/]\n", highlight=False)
    for name, one in plans.items():
        _show_notes(name, one, every_field)
        if one.machines and (len(plans) == 1 or every_field):
            _show_machines(one)


def _epochs(one: Plan) -> str:
    """The epochs that cost and time are reckoned for."""
    if one.epochs is None:
        return "–"
    low, high = (f"{passes:.2g}" if passes < 10 else f"{passes:.0f}" for passes in (one.epochs.low, one.epochs.high))
    return low if low == high else f"{low} – {high}"


def _verdict(spec: JobSpec, one: Plan) -> Text:
    """Whether the plan can be submitted as it is: what keeps it from that, in two or three words."""
    from rich.text import Text

    codes = {warning.code for warning in one.warnings}
    limit, cost = spec.budget.max_usd, one.cost.usd
    if one.refusals:
        return Text("✗ refused", "red")
    if "closed" in codes:
        return Text("✗ closed", "red")
    if limit is not None and (cost is None or cost.high > limit):
        return Text("✗ cost unknown" if cost is None else "✗ over budget", "red")
    if "needed-to-submit" in codes:
        return Text("! options missing", "yellow")
    return Text("! unknown model", "yellow") if "unknown_model" in codes else Text("✓", "green")


def _mark(outcome: FieldOutcome | None, wanted: Any) -> Text:
    """One cell: what a provider makes of a field, with its value there where that differs from the spec's."""
    from rich.text import Text

    if outcome is None:
        return Text("")
    marks = {"mapped": ("✓", "green"), "converted": ("~", "yellow"), "defaulted": ("·", "dim"), "refused": ("✗", "red")}
    mark, colour = marks[outcome.outcome]
    own = outcome.value is not None and wanted is not None and not isinstance(wanted, dict) and outcome.value != wanted
    return Text(f"{mark} {terminal.short(outcome.value)}" if own else mark, colour)


def _show_notes(name: str, one: Plan, every_field: bool) -> None:
    """What a table has no room for: refusals, conversions, warnings, and what cost and time stand on."""
    from rich.padding import Padding
    from rich.text import Text

    def line(sign: str, colour: str, text: str, style: str = "") -> None:
        console.print(Padding(Text.assemble((f"{sign} ", colour), text, style=style), (0, 2)))

    console = terminal.console()
    console.print(Text(name, "bold"))
    for path, reason in one.refusals.items():
        line("✗", "red", f"{path}: {reason}")
    for warning in one.warnings:
        line("!", "yellow", warning.message)
    for o in one.outcomes:
        if o.outcome == "converted" and o.wire != "(tuneport)":
            line("~", "yellow", f"{o.path} → {o.wire} = {terminal.short(o.sent)}" + (f" ({o.note})" if o.note else ""), "dim")
        elif every_field and o.outcome == "mapped":
            line("✓", "green", f"{o.path} → {o.wire}", "dim")
        elif every_field and o.outcome == "defaulted":
            line("·", "", f"{o.path}: {o.note}", "dim")
    for item in one.cost.lines:
        line("$", "green", f"{item.item}: {item.basis}" + (f" [{item.stale}]" if item.stale else ""), "dim")
    line("t", "green", one.time.basis, "dim")


def _show_machines(one: Plan) -> None:
    """Which GPU does the job need?"""
    from rich.text import Text

    from tuneport.core.money import Duration

    table = terminal.table("GPU", "memory", "the job's peak", "time", "")
    marks = {True: ("fits", "green"), False: ("too small", "red"), None: ("close, or not known", "yellow")}
    for machine in one.machines:
        peak = f"{machine.peak_gib.low:.1f} to {machine.peak_gib.high:.1f} GiB" if machine.peak_gib else "–"
        time = terminal.duration(Duration(seconds=machine.seconds, basis="")) if machine.seconds else "–"
        name = f"{machine.name} (this machine)" if machine.here else machine.name
        verdict, colour = marks[machine.fits]
        if machine.peak_gib is None and machine.note:
            verdict = machine.note
        table.add_row(name, f"{machine.memory_gib:.0f} GiB", peak, time, Text(verdict, colour))
    terminal.console().print(table)
