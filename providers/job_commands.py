"""Commands on jobs: submit, jobs, status, events, logs, cancel, pause, resume, reconcile, checkpoints, export, delete."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tuneport
from tuneport.core import terminal
from tuneport.core.errors import NoLedgerError, RefusedError, UsageError
from tuneport.core.terminal import JobArgument, JsonOption, SpecArgument, YesOption, consent, escape
from tuneport.providers import registry

if TYPE_CHECKING:
    from tuneport.core.engine import Engine, Job


class GGUF(StrEnum):
    """Precision of the matrices in a GGUF file."""

    bf16 = "bf16"
    q8_0 = "q8_0"
    f32 = "f32"


class Quantized(StrEnum):
    """How weights are rounded: to 8 bits, or to 4 by AWQ, which calibrates on the job's training rows."""

    int8 = "int8"
    awq = "awq"


def submit(
    spec: SpecArgument,
    provider: Annotated[str, typer.Option("--provider", "-p", help="Where to train.")],
    yes: YesOption = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the job is made; follow it later with watch.")] = False,
) -> None:
    """Make the job, exactly once. Asks before it spends.

    It is written to the ledger before the provider hears of it.
    """
    from tuneport.core.spec_file import load_spec
    from tuneport.core.submission import check_before_spending
    from tuneport.providers.plan_commands import as_billed, plans_for

    loaded = load_spec(spec)
    plans, missing = plans_for(loaded, [provider])
    if missing:
        raise missing[provider]
    one = plans[provider]
    if one.refusals:
        raise RefusedError(provider, one.refusals)
    console = terminal.console()
    shown = as_billed({provider: one})[provider]  # the engine corrects by itself what it is given
    price, time = terminal.money(shown.cost), terminal.duration(one.time)
    console.print(f"{provider} will train [bold]{escape(one.vendor_model)}[/] by {loaded.method}: {price}, {time}", highlight=False)
    for warning in one.warnings:
        console.print(f"[yellow]![/] {escape(warning.message)}", highlight=False)
    with suppress(NoLedgerError):
        for twin in _engine(create=False).twins(loaded, provider):
            console.print(f"[yellow]![/] {twin.id} was made of the same spec and is {twin.state}: this makes another job", highlight=False)
    registry.require(provider)  # nobody is asked about a job that cannot be made
    check_before_spending(loaded, shown)
    consent(f"Submit for {price}?", yes, "submitting")
    with terminal.progress_bar() as on_progress:
        job = _engine().submit(loaded, one, on_progress=on_progress)
    console.print(f"job [bold]{job.id}[/] is {job.state} at {provider}" + (f" as {escape(job.ref)}" if job.ref else ""))
    if job.message:  # e.g. how long OpenAI will serve the model
        console.print(f"[yellow]![/] {escape(job.message)}", highlight=False)
    if detach:
        console.print(f"follow it with: tuneport watch {job.id}")
    else:
        from tuneport.providers.watch_commands import follow_job

        follow_job(job)


def jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    costs: Annotated[bool, typer.Option("--costs", help="Estimates beside bills, and how far they were off.")] = False,
    at: Annotated[
        str | None, typer.Option("--at", help="The jobs of the account there, known to this ledger or not.", metavar="PROVIDER")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs in the ledger. Asks no vendor, but for --at."""
    if costs and at is not None:
        raise UsageError("--costs and --at do not go together", fix="bills are compared with estimates of this ledger; leave --at out")
    if at is not None:
        _show_account(at, limit, as_json)
        return
    if costs:
        _show_costs(limit, as_json)
        return
    found = tuneport.jobs(limit)
    if as_json:
        terminal.print_json([_job_facts(job) for job in found])
        return
    if not found:
        terminal.console().print("no jobs yet: make one with tuneport submit SPEC --provider NAME", highlight=False)
        return
    listing = terminal.table("job", "provider", "model", "method", "state", "estimate", "billed", "submitted (UTC)", "tuned model")
    for job in found:
        r = job.record
        low, high = r.estimate_low_usd, r.estimate_high_usd
        estimate = "unknown" if low is None or high is None else terminal.usd_range(low, high)
        billed = "–" if r.billed_usd is None else terminal.usd(r.billed_usd)
        submitted = f"{r.created_at:%Y-%m-%d %H:%M}"
        listing.add_row(r.id, r.provider, r.model, r.method, _state(job), estimate, billed, submitted, r.tuned_model or "–")
    terminal.console().print(listing)
    if any(not job.state.terminal for job in found):
        told = "states are as last seen; ask again with tuneport status JOB, or follow all with tuneport watch --all"
        terminal.console().print(f"[dim]{told}[/]", highlight=False)


def _show_account(name: str, limit: int, as_json: bool) -> None:
    """The latest jobs at a provider, whoever made them, beside this ledger's ids."""
    from tuneport.core.reading import offered
    from tuneport.core.retry import retrying

    place = offered(registry.get(name), "list_jobs")
    there = retrying(lambda: list(place.list_jobs(limit)))
    known: dict[str | None, str] = {}
    with suppress(NoLedgerError):
        known = {job.ref: job.id for job in _engine(create=False).jobs(limit=None, provider=name)}
    if as_json:
        terminal.print_json([terminal.plain(one) | {"id": known.get(one.ref)} for one in there])
        return
    listing = terminal.table("at the provider", "base model", "state", "made (UTC)", "tuned model", "in this ledger")
    for one in there:
        made = f"{one.created_at:%Y-%m-%d %H:%M}" if one.created_at else "–"
        row = (one.ref, one.base_model or "–", f"{one.state} ({one.raw_state})", made, one.tuned_model or "–")
        listing.add_row(*map(escape, row), known.get(one.ref, "[yellow]no[/]"))
    terminal.console().print(listing if there else f"there are no jobs at {name}")


def _show_costs(limit: int, as_json: bool) -> None:
    from tuneport.core.calibration import totals

    found = _engine(create=False).costs(limit=limit)
    if as_json:
        terminal.print_json([terminal.plain(c) | {"error": c.error, "inside": c.inside} for c in found])
        return
    listing = terminal.table("job", "provider", "model", "state", "estimate", "billed", "off by", "inside the range", "basis of the bill")
    for c in found:
        money = ["unknown" if r is None else terminal.usd_range(r.low, r.high) for r in (c.estimate, c.billed)]
        off = "–" if c.error is None else f"{c.error:+.0%}"
        inside = "–" if c.inside is None else "[green]yes[/]" if c.inside else "[yellow]no[/]"
        listing.add_row(c.job_id, c.provider, c.model, str(c.state), *money, off, inside, escape(c.basis))
    terminal.console().print(listing)
    for t in totals(found):
        if t.compared:
            estimated, billed = (terminal.usd_range(r.low, r.high) for r in (t.estimate, t.billed))
            sums = f"estimated {estimated}, billed {billed}"
            terminal.console().print(f"{t.provider}: {t.compared} of {t.jobs} jobs compared, {t.inside} inside; {sums}", highlight=False)


def status(job: JobArgument, as_json: JsonOption = False) -> None:
    """Ask the provider about a job once.

    When it cannot be read, the last good state is shown with its age.
    """
    handle = find_job(job).refresh()
    if as_json:
        terminal.print_json(_job_facts(handle))
    else:
        _show_job(handle)


def events(job: JobArgument, as_json: JsonOption = False) -> None:
    """The job's events so far, oldest first."""
    handle = find_job(job)
    found = list(handle.events())
    if as_json:
        terminal.print_json([{"at": e.at.isoformat(), "level": e.level, "message": e.message, "metrics": e.metrics} for e in found])
        return
    if not found:
        terminal.console().print(f"{handle.provider} has told nothing yet; what happened here: tuneport logs {handle.id}", highlight=False)
    for event in found:
        metrics = "  ".join(f"{k} {v:.4g}" for k, v in event.metrics.items() if k != "step" or "step" not in event.message)
        terminal.console().print(f"[dim]{event.at:%H:%M:%S}[/] {escape(event.message)} [cyan]{metrics}[/]", highlight=False)


def logs(job: JobArgument) -> None:
    """A job's changes of state and events as plain lines."""
    for line in find_job(job).logs():
        print(line)


def cancel(job: JobArgument) -> None:
    """Ask the provider to stop a job."""
    handle = find_job(job)
    if handle.state.terminal:
        raise UsageError(f"job {handle.id} has ended as {handle.state} and cannot be cancelled", fix="see: tuneport jobs")
    _show_job(handle.cancel())


def pause(job: JobArgument) -> None:
    """Halt a job until `resume`, where the provider can."""
    _show_job(find_job(job).pause())


def resume(job: JobArgument) -> None:
    """Go on with an interrupted or paused job."""
    from tuneport.providers.watch_commands import follow_job

    handle = find_job(job)
    follow_job(_engine().resume(handle.id))


def reconcile(yes: Annotated[bool, typer.Option("--yes", "-y", help="Also make jobs that were never made (this spends).")] = False) -> None:
    """Settle submissions that a crash interrupted.

    What the vendor has made is adopted, never made twice.
    """
    outcomes = _engine().reconcile(resume=yes)
    if not outcomes:
        terminal.console().print("nothing to settle")
    for one in outcomes:
        terminal.console().print(f"{one.job_id}: {one.outcome}" + (f" ({escape(one.note)})" if one.note else ""))


def checkpoints(job: JobArgument, as_json: JsonOption = False) -> None:
    """A job's checkpoints with their metrics."""
    found = find_job(job).checkpoints()
    if as_json:
        terminal.print_json([terminal.plain(c) for c in found])
        return
    listing = terminal.table("step", "model", "metrics")
    for c in found:
        listing.add_row(str(c.step), c.model, "  ".join(f"{k} {v:.4g}" for k, v in c.metrics.items()))
    terminal.console().print(listing)


def export(
    job: JobArgument,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the weights; default: one named by the job.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also a whole model, adapter and base in one, in OUT/merged.")] = False,
    gguf: Annotated[GGUF | None, typer.Option("--gguf", help="Also one GGUF file for llama.cpp, in this precision.")] = None,
    quantize: Annotated[Quantized | None, typer.Option("--quantize", help="Also a whole model with rounded weights.")] = None,
) -> None:
    """Download the tuned weights, where the provider gives them.

    The folder is new, empty, or that of an earlier export of this job, which goes on where it broke off. Merged weights are compared
    with the adapter's answers before they are kept; of rounded ones it is said how far their answers are.
    """
    handle = find_job(job)
    folder = out or Path(handle.id)
    if out is None:
        typer.echo(f"into the folder {folder} (another: --out)", err=True)
    for path in handle.download(folder):
        print(path)
    if merge or gguf or quantize:
        from tuneport.local_backend.process import run_export

        trust = bool(handle.spec.options.local.trust_remote_code)
        rows = Path(handle.ref) if handle.provider == "local" and handle.ref else None
        made, notes = run_export(
            folder, folder, merge=merge, gguf=gguf.value if gguf else None,
            quantize=quantize.value if quantize else None, job=rows, trust=trust,
        )  # fmt: skip
        for path in made:
            print(path)
        for note in notes:
            typer.echo(note, err=True)


def delete(job: JobArgument, yes: YesOption = False) -> None:
    """Remove a tuned model and its files at the provider.

    Says first what will go, and asks. The ledger keeps the job.
    """
    handle = find_job(job)
    going = handle.deletable()
    for name in going:
        print(f"will delete {name}")
    if not going:
        print(f"nothing of {handle.id} is left at {handle.provider}")
    else:
        consent(f"Delete this at {handle.provider}? It cannot be undone", yes, "deleting")
    for name in handle.delete():
        print(f"deleted {name}")


def _engine(*, create: bool = True) -> Engine:
    from tuneport import engine

    return engine(create=create)


def find_job(name: str) -> Job:
    """The job of that id, or the newest for ``last``. Raises UsageError or LedgerError when there is none."""
    engine = _engine(create=False)
    if name != "last":
        return engine.job(name)
    newest = engine.jobs(limit=1)
    if not newest:
        raise UsageError("the ledger holds no job yet", fix="make one with: tuneport submit SPEC --provider NAME")
    return newest[0]


def _show_job(job: Job) -> None:
    record = job.record
    listing = terminal.table("", "", header=False)
    for name, value in _job_lines(job).items():
        if value is not None:
            listing.add_row(name, escape(value))
    terminal.console().print(listing)
    if record.read_error and not record.state.terminal:
        terminal.console().print(f"[yellow]![/] {escape(job.freshness)}")


def _job_lines(job: Job) -> dict[str, str | None]:
    """What a person wants to know of a job."""
    r = job.record
    low, high = r.estimate_low_usd, r.estimate_high_usd
    raw = f" ({r.raw_state})" if r.raw_state and r.raw_state != str(r.state) else ""
    return {
        "job": r.id,
        "provider": r.provider,
        "model": r.model,
        "method": r.method,
        "state": f"{r.state}{raw}",
        "said": r.message or None,
        "progress": None if r.progress is None else f"{r.progress:.0%}",
        "time left": f"about {terminal.span(r.seconds_left)}, by the provider" if r.seconds_left and not r.state.terminal else None,
        "there known as": r.ref,
        "tuned model": r.tuned_model,
        "estimate": "unknown" if low is None or high is None else terminal.usd_range(low, high),
        "billed": None if r.billed_usd is None else terminal.usd(r.billed_usd),
        "tokens billed": None if r.billed_tokens is None else f"{r.billed_tokens:,}",
        "submitted": f"{r.created_at:%Y-%m-%d %H:%M} UTC",
        "seen": f"{r.last_seen_at:%Y-%m-%d %H:%M} UTC" if r.last_seen_at else None,
    }


def _job_facts(job: Job) -> dict[str, Any]:
    r = job.record
    return {
        "id": r.id, "provider": r.provider, "model": r.model, "method": r.method, "state": str(r.state), "raw_state": r.raw_state or None,
        "ref": r.ref, "message": r.message or None, "progress": r.progress, "tuned_model": r.tuned_model,
        "estimate_low_usd": r.estimate_low_usd, "estimate_high_usd": r.estimate_high_usd, "billed_usd": r.billed_usd,
        "billed_tokens": r.billed_tokens, "created_at": r.created_at.isoformat(), "updated_at": r.updated_at.isoformat(),
        "last_seen_at": r.last_seen_at.isoformat() if r.last_seen_at else None, "freshness": job.freshness or None,
    }


def _state(job: Job) -> Any:
    from rich.text import Text

    colours = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}
    raw = f" ({job.raw_state})" if job.state == "unknown" else ""
    if job.state == "queued" and job.message.startswith("place "):
        raw = f": {job.message}"
    shown = Text(f"{job.state}{raw}", colours.get(str(job.state), ""))
    if not job.state.terminal:
        shown.append(f"\n{job.record.seen(datetime.now(UTC))}", "dim")
    return shown
