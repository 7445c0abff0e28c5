"""The command watch, and how jobs that run are shown."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tuneport
from tuneport.core import terminal
from tuneport.core.errors import JobFailedError, NoLedgerError, UsageError
from tuneport.core.job import JobState
from tuneport.core.terminal import escape
from tuneport.providers.job_commands import find_job

if TYPE_CHECKING:
    from tuneport.core.engine import Engine, Job
    from tuneport.core.jobs import Update
    from tuneport.core.ledger import JobRecord

_QUIET_S = 20.0
"""Seconds between two lines on how far a job is, where there is no terminal for a bar."""
_SHOWN = ("loss", "eval_loss", "tokens_per_second")  # metrics beside the progress bar


def watch(
    jobs: Annotated[list[str] | None, typer.Argument(help="Job ids, or `last`; or one deployment.", metavar="JOB...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every job that has not ended.")] = False,
) -> None:
    """Follow one job or many until each has ended, or a deployment until it serves and its --ttl is over.

    Exit code 9 when a job ends without a model.
    """
    if everything == bool(jobs):
        raise UsageError("what to watch is not clear", fix="name jobs, or give --all")
    if jobs and len(jobs) == 1 and jobs[0].startswith("d-"):
        from tuneport.providers.deployment_commands import follow

        follow(tuneport.engine(create=False).deployments, jobs[0], stay=True)
        return
    with suppress(NoLedgerError):
        for expired in tuneport.engine(create=False).deployments.sweep():
            terminal.console().print(f"{expired.record.id} has outlived its --ttl and is {expired.record.state}", highlight=False)
    if jobs and len(jobs) == 1:
        follow_job(find_job(jobs[0]))
        return
    found = [find_job(name) for name in jobs or ()]
    if everything:
        with suppress(NoLedgerError):
            found = tuneport.engine(create=False).jobs(limit=None, states=[state for state in JobState if not state.terminal])
    if found:
        _follow_many(tuneport.engine(create=False), found)
    else:
        terminal.console().print("no job is under way")


def follow_job(job: Job) -> None:
    """Wait for one job: a live progress bar on a terminal, a line per change elsewhere."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = terminal.console()
    percent, metric = TextColumn("{task.percentage:>3.0f} %"), TextColumn("[cyan]{task.fields[metrics]}")
    state, remaining = TextColumn("{task.fields[state]}"), TextColumn("{task.fields[left]}")
    columns = (SpinnerColumn(), state, BarColumn(), percent, TimeElapsedColumn(), remaining, metric)
    last, told = ("", ""), monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(job.id, total=1.0, state=str(job.state), left="", metrics="")

        def show(update: Any) -> None:
            nonlocal last, told
            record = update.job
            for event in update.events:
                shown = "  ".join(f"{k} {v:.4g}" for k, v in event.metrics.items() if k in _SHOWN)
                if shown:
                    bar.update(task, metrics=shown)
                    if not console.is_terminal and monotonic() - told >= _QUIET_S:
                        told = monotonic()
                        console.print(f"[dim]{event.at:%H:%M:%S}[/] {job.id} {escape(event.message)}  {shown}", highlight=False)
            stands = f"{record.state} {record.freshness(datetime.now(UTC))}".strip()
            left = f"{terminal.span(record.seconds_left)} left" if record.seconds_left else ""
            bar.update(task, completed=record.progress or 0.0, state=stands, left=left)
            if (now := _standing(record)) != last:
                last = now
                message = f": {escape(record.message)}" if record.message else ""
                console.print(f"[dim]{record.updated_at:%H:%M:%S}[/] {job.id} {record.state}{message}", highlight=False)

        job.wait(show, max_s=2.0 if job.provider == "local" else 30.0)
    console.print(f"[green]✓[/] {job.id} {job.state}: call it as [bold]{escape(job.tuned_model or '')}[/]", highlight=False)


def _standing(record: JobRecord) -> tuple[str, str]:
    """What is told when it changes: the state, and of a queued job its place in the line."""
    return str(record.state), record.message if record.state is JobState.QUEUED else ""


def _follow_many(engine: Engine, jobs: list[Job]) -> None:
    """A line for each change, and on a terminal a bar of how many have ended."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = terminal.console()
    states = {job.id: _standing(job.record) for job in jobs}
    ended = {job.id for job in jobs if job.state.terminal}
    columns = (TextColumn("jobs ended"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(jobs), completed=len(ended))

        def show(update: Update) -> None:
            record = update.job
            if record.state.terminal:
                ended.add(record.id)
            bar.update(task, completed=len(ended))
            said = f": {escape(record.message)}" if record.message else ""
            if update.error is not None:
                said += f" [yellow]({escape(record.freshness(datetime.now(UTC)))})[/]"
            if (now := _standing(record)) != states[record.id]:
                states[record.id] = now
                at = f"[dim]{record.updated_at:%H:%M:%S}[/]"
                console.print(f"{at} {record.id} {record.provider} {record.state}{said}", highlight=False)

        found = engine.watch_many(list(states), show)
    without = [f"{job.id} {job.state}" for job in found if job.state is not JobState.SUCCEEDED]
    console.print(f"{len(found) - len(without)} of {len(found)} jobs have a model")
    if without:
        raise JobFailedError(f"no model from {', '.join(without)}", fix="see: tuneport logs JOB")
