"""The job engine: submits, reconciles, watches and cancels jobs over a ledger and any provider.

    engine = Engine(Ledger.open(), registry.get, open_rows)
    job = engine.submit(spec, plan)
    engine.watch(job.id)

Only ``submit``, ``resume`` and ``reconcile(resume=True)`` can spend. Everything else reads, or cancels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path

from tuneport.core.errors import CredentialsError, DataError, LedgerError, MissingExtraError, TuneportError, UsageError, VendorClosedError
from tuneport.core.job import JobEvent, JobState
from tuneport.core.jobs import Job, OnUpdate, TunedModel, Update
from tuneport.core.keys import new_job_id
from tuneport.core.ledger import JobRecord, Ledger, Step
from tuneport.core.plan import Plan
from tuneport.core.provider import OpenRows, Provider
from tuneport.core.retry import retrying, verdict
from tuneport.core.spec import JobSpec
from tuneport.core.submission import (
    RESUME_FIX,
    Reconciled,
    Sleep,
    Submission,
    check_before_spending,
    check_sources,
    source_facts,
)

__all__ = ["Engine", "Job", "OnUpdate", "Reconciled", "TunedModel", "Update"]

FIRST_POLL_S = 1.0
LONGEST_POLL_S = 30.0
POLL_SHARE = 0.1
"""A job is looked at after a tenth of its age, within these bounds: the end is noticed at most 10 % late."""
DEFINITE_FAILURES = 5
"""So many definite refusals of a read in a row end a watch. The first few may be a vendor that does not list a new job yet."""


class Engine:
    """Runs jobs over one ledger. Safe beside other engines on the same ledger, in this process or others.

    ``provider`` gives a provider by name; ``open_rows`` gives the rows of a spec, so that a submission that was
    interrupted before its upload can be resumed. ``sleep`` is for tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        provider: Callable[[str], Provider],
        open_rows: Callable[[JobSpec], OpenRows],
        *,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.ledger = ledger
        self.provider = provider
        self._open_rows = open_rows
        self._sleep = sleep

    # Spending

    def submit(self, spec: JobSpec, plan: Plan, rows: OpenRows | None = None) -> Job:
        """Make a new job of ``plan``, exactly once. ``rows`` saves opening the spec's data again.

        Submitting the same spec twice makes two jobs; to finish an interrupted one use ``resume``.
        Raises RefusedError, BudgetError or SpecError before anything is written or sent; afterwards the provider's
        error: the job has then failed if that proves that nothing was made, else it stays resumable.
        """
        check_before_spending(spec, plan)
        spec = _with_absolute_paths(spec)
        provider = self.provider(plan.provider)
        rows = rows or self._open_rows(spec)
        self.reconcile()
        while True:
            job_id = new_job_id()
            with self.ledger.claim(job_id) as held:  # before the intent is visible, so that no reconcile gets in between
                if held is not None and self.ledger.add(job_id, spec, plan, source_facts(spec)):
                    Submission(self.ledger, provider, job_id, held, self._sleep).carry_out(rows)
                    return self.job(job_id)

    def resume(self, job_id: str) -> Job:
        """Finish a submission that was interrupted; a job that is already made is adopted. Harmless on any other job.

        Raises UsageError when its data has changed since, and what ``submit`` raises.
        """
        with self.ledger.claim(job_id) as held:
            record = self.ledger.get(job_id)
            if held is not None and record.ref is None and not record.state.terminal:
                submission = Submission(self.ledger, self.provider(record.provider), job_id, held, self._sleep)
                if submission.adopt(wait=False) is None:
                    check_sources(self.ledger, record)
                    submission.carry_out(self._open_rows(self.ledger.spec(job_id)))
        return self.job(job_id)

    def reconcile(self, *, resume: bool = False) -> list[Reconciled]:
        """Settle every submission that was interrupted: adopt what the provider has made.

        What was never made stays as it is, unless ``resume`` is set: then it is made now. Never raises for one job's
        provider: that is an outcome. Runs without ``resume`` at the start of every submit and watch.
        """
        return [self._reconcile(record, resume=resume) for record in self.ledger.unfinished_submissions()]

    # Reading

    def job(self, job_id: str) -> Job:
        """The handle of a job. Raises UsageError when the ledger has no such job."""
        return Job(self, self.ledger.get(job_id))

    def jobs(self, *, limit: int | None = 50, states: Collection[JobState] = (), provider: str | None = None) -> list[Job]:
        """The latest jobs as the ledger knows them, newest first; asks no provider."""
        return [Job(self, record) for record in self.ledger.latest(limit=limit, states=states, provider=provider)]

    def refresh(self, job_id: str) -> Job:
        """Ask the provider once and store the answer. A failed read keeps the last good state (``Job.freshness``)."""
        return Job(self, self._read(self.ledger.get(job_id), attempts=3)[0])

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """The job's events, oldest first. New ones are read from the provider where it can be reached, and kept."""
        self._sync_events(self.ledger.get(job_id), attempts=3)
        yield from self.ledger.events(job_id)

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
        """Look at the job until it ends; returns it whatever the end. Survives an unreachable provider.

        Looks after 1 s at first, then ever more rarely, at least every ``max_s`` seconds; obeys a vendor's rate limit.
        Raises UsageError when the job was never made, and the provider's error when it refuses reads for good.
        """
        self.reconcile()
        failures = refusals = 0
        while True:
            record = self.ledger.get(job_id)
            if record.ref is None and not record.state.terminal:
                record, error = self._await_creation(record), None
            else:
                record, error = self._read(record, attempts=1)
            new = self._sync_events(record, attempts=1) if error is None else []
            if on_update is not None:
                on_update(Update(record, tuple(new)))
            if record.state.terminal:
                return Job(self, record)
            failures = failures + 1 if error else 0
            refusals = refusals + 1 if error and verdict(error).kind == "no" else 0
            if error and (refusals >= DEFINITE_FAILURES or isinstance(error, (CredentialsError, MissingExtraError, VendorClosedError))):
                raise error
            self._sleep(self._pause(record, failures, error, max_s))

    # Cancelling

    def cancel(self, job_id: str) -> Job:
        """Ask the provider to stop the job; harmless on a job that has ended. One that was not made yet never will be.

        Raises ProviderError or CredentialsError when the provider cannot be asked.
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
            ref, provider = record.ref, self.provider(record.provider)
            record = self.ledger.observe(job_id, retrying(lambda: provider.cancel(ref), sleep=self._sleep), "cancel asked for")
        return Job(self, record)

    # Inner parts

    def _reconcile(self, record: JobRecord, *, resume: bool) -> Reconciled:
        with self.ledger.claim(record.id) as held:
            if held is None:
                return Reconciled(record.id, "busy", "another process is submitting it")
            record = self.ledger.get(record.id)  # it may have moved before the claim
            try:
                submission = Submission(self.ledger, self.provider(record.provider), record.id, held, self._sleep)
                return self._settle(record, submission, resume)
            except LedgerError:
                raise
            except TuneportError as error:
                now = self.ledger.get(record.id)
                if now.state is JobState.FAILED:
                    return Reconciled(record.id, "failed", now.message)
                if isinstance(error, (DataError, UsageError)):
                    self.ledger.note(record.id, str(error))
                    return Reconciled(record.id, "interrupted", str(error))
                self.ledger.read_failed(record.id, str(error))
                return Reconciled(record.id, "unreachable", str(error))

    def _settle(self, record: JobRecord, submission: Submission, resume: bool) -> Reconciled:
        if record.ref is not None or record.state.terminal:
            return Reconciled(record.id, "adopted", "another process finished it")
        may_exist = record.step is Step.CREATING
        # Looked for even where create was not called when resuming: a read costs nothing, a second job does.
        if (may_exist or resume) and submission.adopt(wait=False) is not None:
            return Reconciled(record.id, "adopted")
        if record.cancel_requested_at is not None and (not may_exist or submission.settled()):
            self.ledger.ended_unmade(record.id, JobState.CANCELLED, "cancelled before it was created")
            return Reconciled(record.id, "cancelled")
        if resume:
            check_sources(self.ledger, record)
            submission.carry_out(self._open_rows(self.ledger.spec(record.id)))
            return Reconciled(record.id, "resumed")
        if may_exist and not submission.settled():
            return Reconciled(record.id, "unsettled", f"{record.provider} shows no such job yet")
        self.ledger.note(record.id, f"interrupted before it was created; nothing exists at {record.provider}; {RESUME_FIX}")
        return Reconciled(record.id, "interrupted", RESUME_FIX)

    def _await_creation(self, record: JobRecord) -> JobRecord:
        """A job that is still being submitted. Raises UsageError when nobody is at it and it was not made."""
        found = self._reconcile(record, resume=False)
        if found.outcome == "interrupted":
            raise UsageError(f"job {record.id} was interrupted before {record.provider} made it; nothing was spent", fix=RESUME_FIX)
        return self.ledger.get(record.id)

    def _read(self, record: JobRecord, *, attempts: int) -> tuple[JobRecord, TuneportError | None]:
        """Poll and store; the error, if there was one, is stored beside the last good state."""
        bill_missing = record.state is JobState.SUCCEEDED and record.billed_usd is None and record.billed_tokens is None
        if record.ref is None or (record.state.terminal and not bill_missing):
            return record, None
        ref = record.ref
        try:
            provider = self.provider(record.provider)
            remote = retrying(lambda: provider.poll(ref), attempts=attempts, sleep=self._sleep)
        except LedgerError:
            raise
        except TuneportError as error:
            return self.ledger.read_failed(record.id, str(error)), error
        return self.ledger.observe(record.id, remote), None

    def _sync_events(self, record: JobRecord, *, attempts: int) -> list[JobEvent]:
        if record.ref is None:
            return []
        ref = record.ref
        try:
            provider = self.provider(record.provider)
            found = retrying(lambda: list(provider.events(ref)), attempts=attempts, sleep=self._sleep)
        except LedgerError:
            raise
        except TuneportError as error:
            self.ledger.read_failed(record.id, str(error))
            return []
        return self.ledger.add_events(record.id, found)

    def _cancel_unmade(self, job_id: str, held: Callable[[], bool]) -> None:
        record = self.ledger.get(job_id)
        if record.ref is not None or record.state.terminal:
            return
        if record.step is Step.CREATING:
            submission = Submission(self.ledger, self.provider(record.provider), job_id, held, self._sleep)
            if submission.adopt(wait=True) is not None:
                return
        self.ledger.ended_unmade(job_id, JobState.CANCELLED, "cancelled before it was created")

    def _pause(self, record: JobRecord, failures: int, error: TuneportError | None, max_s: float) -> float:
        asked = verdict(error).after if error else None
        if asked is not None:
            return asked
        if failures:
            return min(FIRST_POLL_S * 2.0 ** min(failures - 1, 10), max_s)
        age = (self.ledger.now() - record.created_at).total_seconds()
        pause = min(max(POLL_SHARE * age, FIRST_POLL_S), max_s)
        if record.seconds_left is not None:  # near the end the vendor's own estimate says how soon to look
            pause = min(pause, max(record.seconds_left / 2, FIRST_POLL_S))
        return pause


def _with_absolute_paths(spec: JobSpec) -> JobSpec:
    """The spec with its data paths absolute, so that the job can be resumed from any directory."""
    paths = {part: getattr(spec.data, part) for part in ("train", "validation", "test")}
    absolute = {part: str(Path(path).absolute()) for part, path in paths.items() if path is not None}
    return spec.model_copy(update={"data": spec.data.model_copy(update=absolute)})
