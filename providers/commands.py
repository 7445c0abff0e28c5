"""Commands on providers: plan, prepare, providers, doctor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import RefusedError, TuneportError, UsageError
from tuneport.core.terminal import METHODS_HELP, ROW_FORMATS, ROW_FORMATS_HELP, JsonOption, SpecArgument, escape

if TYPE_CHECKING:
    from rich.text import Text

    from tuneport.core.data.card import DataCard
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
    from tuneport.core.data.load import load_job_data
    from tuneport.core.errors import CatalogueError, CredentialsError, MissingExtraError, ProviderError
    from tuneport.core.plan import PlanWarning, compile_for
    from tuneport.providers import registry
    from tuneport.providers.online import asked

    names = registry.names() if "all" in wanted else tuple(dict.fromkeys(wanted))
    providers = {name: registry.get(name, spec.options.for_provider(name)) for name in names}
    data = load_job_data(spec)
    plans: dict[str, Plan] = {}
    missing: dict[str, TuneportError] = {}
    for name, place in providers.items():
        try:
            plans[name] = compile_for(place, spec, data)
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
    overview = terminal.table("provider", "base model", "training cost", "time", "ready")
    for name, one in plans.items():
        overview.add_row(name, one.vendor_model, terminal.money(one.cost), terminal.duration(one.time), _verdict(spec, one))
    for name, why in missing.items():
        overview.add_row(name, Text("–", "dim"), "", "", Text(why.what, "red"))
    console.print(overview)
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
    console.print("[dim]! look at this   $ what the price stands on   t what the time stands on[/]\n", highlight=False)
    for name, one in plans.items():
        _show_notes(name, one, every_field)
        if one.machines and (len(plans) == 1 or every_field):
            _show_machines(one)


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


def prepare(
    data: Annotated[Path, typer.Argument(help="Data file.", metavar="DATA")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the parts, the rejected rows and the data card.")],
    method: Annotated[str, typer.Option(help=METHODS_HELP)] = "sft",
    data_format: Annotated[str, typer.Option("--format", help=ROW_FORMATS_HELP)] = "auto",
    to: Annotated[str | None, typer.Option("--to", help=f"Row format to write: {ROW_FORMATS}.")] = None,
    file_type: Annotated[str, typer.Option("--file-type", help="jsonl, json, csv (each also .gz, .zst) or parquet.")] = "jsonl",
    shapes: Annotated[
        list[str] | None, typer.Option("--for", help="Provider's record shape to write too, e.g. openai-chat (repeatable).")
    ] = None,
    no_mend: Annotated[bool, typer.Option("--no-mend", help="Change nothing inside rows; reject what is faulty.")] = False,
    system_prompt: Annotated[str | None, typer.Option("--system-prompt", help="Put this before rows that have none.")] = None,
    replace_prompt: Annotated[bool, typer.Option("--replace-system-prompt", help="Put it in the place of other prompts too.")] = False,
    dedupe: Annotated[str, typer.Option("--dedupe", help="none, exact or near.")] = "none",
    near: Annotated[float, typer.Option("--near", help="Jaccard similarity of near duplicates.")] = 0.8,
    exclude: Annotated[
        list[Path] | None, typer.Option("--exclude", help="Leave out rows of this file, e.g. a benchmark (repeatable).")
    ] = None,
    redact: Annotated[
        list[str] | None, typer.Option("--redact", help="all, or kinds: email, phone, card, iban, ssn, ip, secret, names (repeatable).")
    ] = None,
    redaction_map: Annotated[Path | None, typer.Option("--redaction-map", help="Write the map that undoes it here, outside --out.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Shares of train, validation, test in percent, e.g. 80/10/10.")] = None,
    by: Annotated[str, typer.Option("--by", help="random, label, group, time or hard (a harder test set).")] = "random",
    column: Annotated[str | None, typer.Option("--column", help="Column to split by.")] = None,
    class_column: Annotated[str | None, typer.Option("--class-column", help="Column that holds the class.")] = None,
    cap: Annotated[int | None, typer.Option("--cap", min=1, help="Most rows of one class.")] = None,
    balance: Annotated[
        str, typer.Option("--balance", help="none, down (cut to the smallest class) or up (repeat training rows).")
    ] = "none",
    mix: Annotated[Path | None, typer.Option("--mix", help="File of general rows to mix into training.")] = None,
    mix_share: Annotated[float, typer.Option("--mix-share", help="Their share afterwards.")] = 0.25,
    review: Annotated[int, typer.Option("--review", min=0, help="Rows to draw for human review, evenly over the classes.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Mend, clean, split and convert data.

    What was done is written down beside it (card.json, card.md).
    """
    from tuneport.core.data.prepare import options_of
    from tuneport.core.data.prepare import prepare as prepare_data
    from tuneport.providers.shapes import record_shapes

    shares = _shares(split)
    given: dict[str, Any] = {
        "method": method, "format": data_format, "to": to, "file_type": file_type, "shapes": tuple(shapes or ()),
        "system_prompt": system_prompt, "replace_system_prompt": replace_prompt,
        "dedupe": dedupe, "near": near, "exclude": tuple(map(str, exclude or ())),
        "redact": tuple(redact or ()), "redaction_map": str(redaction_map) if redaction_map else None,
        "validation": shares[0], "test": shares[1], "by": by, "column": column,
        "class_column": class_column, "cap": cap, "balance": balance, "mix": str(mix) if mix else None,
        "mix_share": mix_share, "review": review, "seed": seed,
    }  # fmt: skip
    options = options_of(given | ({"mends": ()} if no_mend else {}), _spelled)
    with terminal.progress_bar() as on_progress:
        card = prepare_data(str(data), out, options, converters=record_shapes(), on_progress=on_progress)
    if as_json:
        terminal.print_json(card.model_dump(mode="json"))
        return
    _show_card(card, out)


def _show_card(card: DataCard, out: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    listing = Table.grid(padding=(0, 1))
    listing.add_column(no_wrap=True)
    listing.add_column(overflow="fold")
    for step, said in card.summary():
        listing.add_row(Text(step, "yellow" if step in ("rejected", "refused") else "dim"), Text(said))
    terminal.console().print(listing)
    terminal.console().print(f"[bold]Prepared data lies in {escape(str(out))}[/]", highlight=False)


def _spelled(option: str) -> str:
    """An option of ``PrepareOptions`` as it is typed."""
    other = {"shapes": "--for", "mends": "--no-mend", "validation": "--split", "test": "--split"}
    return other.get(option) or f"--{option.replace('_', '-')}"


def _shares(split: str | None) -> tuple[float, float]:
    """(validation, test) of "80/10/10"; (0, 0) without a split."""
    if split is None:
        return 0.0, 0.0
    try:
        train, validation, test = (float(share) for share in split.split("/"))
    except ValueError:
        raise UsageError(f"--split {split!r} is not three shares", fix="write train/validation/test in percent, e.g. 80/10/10") from None
    if abs(train + validation + test - 100) > 1e-6 or min(train, validation, test) < 0:
        raise UsageError(f"--split {split!r} does not add up to 100", fix="write train/validation/test in percent, e.g. 80/10/10")
    if max(validation, test) >= 50:
        raise UsageError(f"--split {split!r} holds out half of the rows or more", fix="keep validation and test below 50 percent each")
    return validation / 100, test / 100


def providers(as_json: JsonOption = False) -> None:
    """List the providers and what each needs: SDK, keys."""
    from importlib.util import find_spec

    from tuneport.providers import registry

    rows: list[dict[str, Any]] = [
        {
            "name": e.name, "title": e.title, "installed": find_spec(e.sdk) is not None, "extra": e.extra,
            "environment": {name: any(v in os.environ for v in name.split(" or ")) for name in e.environment}, "note": e.note,
        }
        for e in registry.entries().values()
    ]
    if as_json:
        terminal.print_json(rows)
        return
    listing = terminal.table("provider", "", "to submit, install", "credentials", "note")
    for row in rows:
        needs = "[green]✓[/] installed" if row["installed"] else escape(f"pip install 'tuneport[{row['extra']}]'")
        keys = ", ".join(f"[green]✓[/] {n}" if there else f"[dim]{n}[/]" for n, there in row["environment"].items())
        listing.add_row(row["name"], row["title"], needs, keys or "none needed", row["note"])
    terminal.console().print(listing)


def doctor(
    provider: Annotated[str, typer.Argument(help="Provider to look into.")],
    spec: Annotated[Path | None, typer.Option("--spec", help="Take model, role, bucket, region and address from this spec.")] = None,
) -> None:
    """Say which key, permission, role or setting is missing.

    By reads that change nothing. Exit code 1 when something is missing.
    """
    from tuneport.core.catalogue import load_catalogue
    from tuneport.core.spec_file import load_spec
    from tuneport.providers.doctor import diagnose

    loaded = load_spec(spec) if spec else None
    options = loaded.options.for_provider(provider) if loaded else None
    model = load_catalogue().offering(loaded, provider).vendor_id if loaded else None
    missing = False
    for finding in diagnose(provider, options, os.environ, model=model):
        missing |= finding.state == "missing"
        colour = {"ok": "green", "missing": "red", "unknown": "yellow"}[finding.state]
        said = escape(str(finding).removeprefix(finding.state).lstrip())
        terminal.console().print(f"[{colour}]{finding.state:8}[/]{said}", highlight=False)
    if missing:
        raise typer.Exit(1)
