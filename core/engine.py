"""The job engine: submits, reconciles, watches and controls jobs over a ledger and any provider.

    engine = Engine(Ledger.open(), registry.get, open_rows)
    job = engine.submit(spec, plan)
    engine.watch(job.id)

Only ``submit``, ``resume``, ``deployments.deploy`` and ``reconcile(resume=True)`` can spend. ``cancel``, ``pause``, ``delete`` and
``deployments.undeploy`` change what exists; everything else reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.core.deployments import Deployments
from tuneport.core.errors import LedgerError, ProviderError, UsageError
from tuneport.core.export_folder import claim
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.jobs import Job, OnUpdate, TunedModel, Update, no_model
from tuneport.core.keys import new_job_id
from tuneport.core.ledger import JobRecord, Ledger, Step
from tuneport.core.provider import OnProgress, OpenRows, Provider
from tuneport.core.reading import Reader, offered
from tuneport.core.reconciling import Reconciler
from tuneport.core.retry import retrying, verdict
from tuneport.core.submission import (
    Reconciled,
    Sleep,
    Submission,
    check_before_spending,
    check_sources,
    source_facts,
    with_absolute_paths,
)
from tuneport.core.watching import LONGEST_POLL_S, Watcher

if TYPE_CHECKING:  # what knows specs, plans and money loads pydantic, 0.2 s that listing jobs does not need
    from tuneport.core.calibration import Calibration, JobCost
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec

__all__ = ["Engine", "Job", "OnUpdate", "Reconciled", "TunedModel", "Update"]

SWEEP_S = 60.0
"""How often a watch takes down the deployments whose time is up, in seconds."""

GetProvider = Callable[[str, Any], Provider]
"""Gives a provider by its name and its options, i.e. what stands in the spec under ``options.<name>``: an address, a region or an
account may be there, and a job can only be reached where it was sent."""


class Engine:
    """Runs jobs over one ledger. Safe beside other engines on the same ledger, in this process or others.

    ``open_rows`` gives the rows of a spec, so that a submission that was interrupted before its upload can be resumed.
    ``sleep`` and ``clock`` (seconds, never running backwards) are for tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        provider: GetProvider,
        open_rows: Callable[[JobSpec], OpenRows],
        *,
        sleep: Sleep = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = ledger
        self._get_provider = provider
        self._open_rows = open_rows
        self._sleep = sleep
        self._clock = clock
        self._reader = Reader(ledger, self.provider_of, sleep)
        self._reconciler = Reconciler(ledger, self.provider_of, open_rows, sleep)
        self.deployments = Deployments(ledger, self.provider_of, sleep=sleep, clock=clock)

    def provider_of(self, record: JobRecord) -> Provider:
        """The provider of a job, as the options in its spec reach it."""
        return self._get_provider(record.provider, self.ledger.options(record.id).for_provider(record.provider))

    # Spending

    def submit(self, spec: JobSpec, plan: Plan, rows: OpenRows | None = None, *, on_progress: OnProgress | None = None) -> Job:
        """Make a new job of ``plan``, exactly once. ``rows`` saves opening the spec's data again; ``on_progress`` follows the upload.

        Give the plan as it was compiled: the engine itself corrects its cost by earlier bills (``calibration``), holds the result
        against the budget and stores both.
        Submitting the same spec twice makes two jobs; to finish an interrupted one use ``resume``.
        Raises RefusedError, BudgetError or SpecError before anything is written or sent; afterwards the provider's
        error: the job has then failed if that proves that nothing was made, else it stays resumable.
        """
        from tuneport.core.calibration import calibrated  # noqa: PLC0415 - see the head of this file

        cost = calibrated(plan.cost, self.calibration(plan.provider))
        check_before_spending(spec, plan.model_copy(update={"cost": cost}))
        spec = with_absolute_paths(spec)
        provider = self._get_provider(plan.provider, spec.options.for_provider(plan.provider))
        rows = rows or self._open_rows(spec)
        self.reconcile()
        while True:
            job_id = new_job_id()
            with self.ledger.claim(job_id) as held:  # before the intent is visible, so that no reconcile gets in between
                if held is not None and self.ledger.add(job_id, spec, plan, source_facts(spec), estimate=cost.usd):
                    Submission(self.ledger, provider, job_id, held, self._sleep, on_progress).carry_out(rows)
                    return self.job(job_id)

    def twins(self, spec: JobSpec, provider: str) -> list[Job]:
        """Jobs made there of the very same spec and data that have a model or may still get one: among the latest 50, newest first."""
        sought, facts = with_absolute_paths(spec), source_facts(with_absolute_paths(spec))
        found = []
        for record in self.ledger.latest(limit=50):
            ended = record.state in (JobState.FAILED, JobState.CANCELLED)
            if record.provider == provider and not ended and self.ledger.sources(record.id) == facts:
                with suppress(LedgerError):  # the spec of another version
                    if self.ledger.spec(record.id) == sought:
                        found.append(self.job(record.id))
        return found

    def resume(self, job_id: str) -> Job:
        """Go on with a paused job, or finish a submission that was interrupted (one that is made is adopted, and goes on). Else harmless.

        Raises UsageError when an unfinished job's data has changed since, ProviderError when the provider cannot be asked or does
        not resume, and what ``submit`` raises.
        """
        with self.ledger.claim(job_id) as held:
            record = self.ledger.get(job_id)
            if held is not None and not record.state.terminal:
                made: JobRecord | None = record
                if record.ref is None:
                    submission = Submission(self.ledger, self.provider_of(record), job_id, held, self._sleep)
                    made = submission.adopt(wait=False)
                    if made is None:
                        check_sources(self.ledger, record)
                        submission.carry_out(self._open_rows(self.ledger.spec(job_id)))
                if made is not None and made.ref is not None:
                    self._resume_paused(made, made.ref)
        return self.job(job_id)

    def reconcile(self, *, resume: bool = False) -> list[Reconciled]:
        """Settle every submission and deployment that was interrupted: adopt what the provider has made.

        What was never made stays as it is, unless ``resume`` is set: then it is made now. Never raises for one job's
        provider: that is an outcome. Runs without ``resume`` at the start of every submit and watch.
        """
        jobs = [self._reconciler.settle(record, resume=resume) for record in self.ledger.unfinished_submissions()]
        return jobs + self.deployments.reconcile(resume=resume)

    # Reading

    def job(self, job_id: str) -> Job:
        """The handle of a job. Raises UsageError when the ledger has no such job."""
        return Job(self, self.ledger.get(job_id))

    def jobs(self, *, limit: int | None = 50, states: Collection[JobState] = (), provider: str | None = None) -> list[Job]:
        """The latest jobs as the ledger knows them, newest first; asks no provider."""
        return [Job(self, record) for record in self.ledger.latest(limit=limit, states=states, provider=provider)]

    def refresh(self, job_id: str) -> Job:
        """Ask the provider once and store the answer. A failed read keeps the last good state (``Job.freshness``)."""
        return Job(self, self._reader.state(self.ledger.get(job_id), attempts=3)[0])

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """The job's events, oldest first. New ones are read from the provider where it can be reached, and kept.

        Raises ProviderError when the provider has no events at all.
        """
        self._reader.events(self.ledger.get(job_id), attempts=3)
        yield from self.ledger.events(job_id)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The job's checkpoints, by step; those that are known where the provider cannot be reached.

        Raises ProviderError when the provider has no checkpoints at all.
        """
        self._reader.checkpoints(self.ledger.get(job_id), attempts=3)
        return self.ledger.checkpoints(job_id)

    def logs(self, job_id: str) -> Iterator[str]:
        """Changes of state and events as lines of text, in order of time. Reads only the ledger."""
        lines: list[tuple[datetime, str]] = []
        for change in self.ledger.transitions(job_id):
            raw = f" ({change.raw_state})" if change.raw_state and change.raw_state != change.state.value else ""
            note = f": {change.note}" if change.note else ""
            lines.append((change.at, f"state    {change.state.value}{raw}{note}"))
        for event in self.ledger.events(job_id):
            metrics = " ".join(f"{name}={value:g}" for name, value in event.metrics.items())
            lines.append((event.at, f"{event.level:8} {event.message} {metrics}".rstrip()))
        for at, line in sorted(lines, key=lambda pair: pair[0]):
            yield f"{at:%Y-%m-%d %H:%M:%S}Z {line}"

    def watch(self, job_id: str, on_update: OnUpdate | None = None, *, max_s: float = LONGEST_POLL_S) -> Job:
        """Look at the job until it ends or is paused; returns it whatever the end. Survives an unreachable provider.

        A paused job does not move by itself: ``resume`` it and watch again. Looks after 1 s at first, then ever more rarely, at
        least every ``max_s`` seconds where the provider's rate allows it; obeys a vendor's rate limit.
        Raises UsageError when the job was never made, and the provider's error when it refuses reads for good.
        """
        watcher = self._watch([job_id], on_update, max_s)
        if job_id in watcher.errors:
            raise watcher.errors[job_id]
        return self.job(job_id)

    def watch_many(self, job_ids: Iterable[str], on_update: OnUpdate | None = None, *, max_s: float = LONGEST_POLL_S) -> list[Job]:
        """Look at many jobs until each has ended or is paused, within the rate that each provider allows; returns them in order.

        A job whose reads are refused for good is given up without holding up the others: its last update carries the error, and it
        is returned in the state it was last seen in. Raises UsageError when the ledger has no such job.
        """
        wanted = list(job_ids)
        self._watch(wanted, on_update, max_s)
        return [self.job(job_id) for job_id in wanted]

    def _watch(self, job_ids: list[str], on_update: OnUpdate | None, max_s: float) -> Watcher:
        self.reconcile()
        self.deployments.sweep()
        swept = self._clock()

        def looked(update: Update) -> None:
            nonlocal swept
            if self._clock() - swept >= SWEEP_S:
                swept = self._clock()
                self.deployments.sweep()
            if on_update is not None:
                on_update(update)

        watcher = Watcher(
            self.ledger, self.provider_of, self._reconciler.await_creation,
            sleep=self._sleep, clock=self._clock, on_update=looked, max_s=max_s,
        )
        watcher.run(job_ids)
        return watcher

    # Estimates and bills

    def calibration(self, provider: str) -> Calibration | None:
        """What the bills of a provider in this ledger teach about its estimates; None while there are fewer than 3.

        For ``tuneport.core.calibration.calibrated(plan.cost, ...)``.
        """
        from tuneport.core.accounts import calibration_of  # noqa: PLC0415 - see the head of this file

        return calibration_of(self.ledger, provider)

    def costs(self, *, limit: int | None = 50, provider: str | None = None) -> list[JobCost]:
        """The latest jobs' estimates beside their bills, newest first. ``tuneport.core.calibration.totals`` adds them up."""
        from tuneport.core.accounts import job_costs  # noqa: PLC0415 - see the head of this file

        return job_costs(self.ledger, self.ledger.latest(limit=limit, provider=provider))

    # Changing what exists

    def cancel(self, job_id: str) -> Job:
        """Ask the provider to stop the job; harmless on a job that has ended. One that was not made yet never will be.

        Raises ProviderError or CredentialsError when the provider cannot be asked, or does not cancel.
        """
        record = self.ledger.get(job_id)
        if record.ref is None and not record.state.terminal:
            self.ledger.request_cancel(job_id)
            with self.ledger.claim(job_id) as held:
                if held is None:  # the process that submits it sees the request before it calls create, or after
                    return self.job(job_id)
                self._cancel_unmade(job_id, held)
            record = self.ledger.get(job_id)
        if record.ref is not None and not (record.state.terminal or record.state is JobState.CANCELLING):
            ref, provider = record.ref, offered(self.provider_of(record), "cancel")
            record = self.ledger.observe(job_id, retrying(lambda: provider.cancel(ref), sleep=self._sleep), "cancel asked for")
        return Job(self, record)

    def pause(self, job_id: str) -> Job:
        """Ask the provider to halt the job, so that ``resume`` can go on from there; harmless on a paused job.

        Raises UsageError when the job has ended or is not made, ProviderError when the provider cannot be asked or does not pause.
        """
        record = self.ledger.get(job_id)
        if record.ref is None or record.state.terminal:
            raise UsageError(f"job {job_id} is {record.state.value}, so there is nothing to pause", fix=f"see: tuneport status {job_id}")
        if record.state is not JobState.PAUSED:
            ref, provider = record.ref, offered(self.provider_of(record), "pause")
            self.ledger.asked(job_id, "pause asked for", pause=True)
            remote = self._ask(lambda: provider.pause(ref), lambda: provider.poll(ref), lambda state: state is JobState.PAUSED)
            record = self.ledger.observe(job_id, remote)
        return Job(self, record)

    def download(self, job_id: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:
        """Bring the tuned weights into ``folder``; goes on where an earlier call broke off. Returns the files.

        The folder is the job's own (``core.export_folder``). Raises UsageError when it holds anything else, JobFailedError when
        there is no tuned model (any more), ProviderError when the provider cannot be asked or does not give weights away.
        """
        record = self.ledger.get(job_id)
        ref = _finished(record)
        provider = offered(self.provider_of(record), "download")
        claim(folder, record.id, record.key)
        files = retrying(lambda: provider.download(ref, folder, on_progress), sleep=self._sleep)
        self.ledger.asked(job_id, f"{len(files)} files downloaded into {folder}")
        return files

    def delete(self, job_id: str, *, dry_run: bool = False) -> list[str]:
        """Remove what an ended job left at the provider, its tuned model first of all; returns the names. The ledger keeps the job.

        With ``dry_run`` nothing is removed, and the names are those of what would be.
        Raises UsageError when the job still runs, was never made or its model is deployed, ProviderError when the provider cannot be
        asked or deletes nothing.
        """
        record = self.ledger.get(job_id)
        if not record.state.terminal:
            fix = f"stop it first: tuneport cancel {job_id}"
            raise UsageError(f"job {job_id} is {record.state.value}, so it cannot be deleted", fix=fix)
        if record.ref is None:
            left = ", ".join((record.uploads or {}).values())
            raise UsageError(
                f"job {job_id} was never made at {record.provider}, so there is nothing of it to delete",
                fix=f"what it uploaded can be removed there: {left}" if left else "nothing needs to be done",
            )
        if standing := [found.id for found in self.deployments.latest(job_id=job_id)]:
            fix = f"undeploy first: tuneport undeploy {' '.join(standing)}"
            raise UsageError(f"job {job_id}'s model is deployed as {', '.join(standing)}", fix=fix)
        ref, provider = record.ref, offered(self.provider_of(record), "delete")
        if dry_run:
            return retrying(lambda: provider.delete(ref, dry_run=True), sleep=self._sleep)
        self.ledger.asked(job_id, "deletion asked for")
        names = retrying(lambda: provider.delete(ref), sleep=self._sleep)
        self.ledger.asked(job_id, f"deleted at {record.provider}: {', '.join(names) or 'nothing was left'}", deleted=True)
        return names

    # Inner parts

    def _resume_paused(self, record: JobRecord, ref: str) -> None:
        record, error = self._reader.state(record, attempts=3)
        if error is not None:
            raise error
        if record.state.terminal or not (record.state is JobState.PAUSED or record.pausing):
            return
        provider = offered(self.provider_of(record), "resume")
        self.ledger.asked(record.id, "resume asked for", resume=True)
        remote = self._ask(lambda: provider.resume(ref), lambda: provider.poll(ref), lambda state: state is not JobState.PAUSED)
        self.ledger.observe(record.id, remote)

    def _ask(self, call: Callable[[], RemoteJob], poll: Callable[[], RemoteJob], done: Callable[[JobState], bool]) -> RemoteJob:
        """Call; a refusal is none when the job is where the call would bring it (the answer of an earlier try was lost)."""
        try:
            return retrying(call, sleep=self._sleep)
        except ProviderError as error:
            if verdict(error).kind != "no":
                raise
            remote = retrying(poll, sleep=self._sleep)
            if not done(remote.state):
                raise
            return remote

    def _cancel_unmade(self, job_id: str, held: Callable[[], bool]) -> None:
        record = self.ledger.get(job_id)
        if record.ref is not None or record.state.terminal:
            return
        if record.step is Step.CREATING:
            submission = Submission(self.ledger, self.provider_of(record), job_id, held, self._sleep)
            if submission.adopt(wait=True) is not None:
                return
        self.ledger.ended_unmade(job_id, JobState.CANCELLED, "cancelled before it was created")


def _finished(record: JobRecord) -> str:
    """The ref of a job that has a tuned model. Raises JobFailedError when it has none (any more)."""
    if record.ref is None or record.tuned_model is None or record.deleted_at is not None:
        raise no_model(record)
    return record.ref
