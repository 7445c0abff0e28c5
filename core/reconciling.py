"""Settles submissions that were interrupted: what the provider has made is adopted, never made twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tuneport.core.errors import DataError, LedgerError, TuneportError, UsageError
from tuneport.core.job import JobState
from tuneport.core.ledger import JobRecord, Ledger, Step
from tuneport.core.ledger.records import unread
from tuneport.core.provider import OpenRows, Provider
from tuneport.core.submission import RESUME_FIX, Reconciled, Sleep, Submission, check_sources

if TYPE_CHECKING:
    from tuneport.core.spec import JobSpec


class Reconciler:
    """Settles one submission after another over one ledger; one that another process works on is left to it."""

    def __init__(
        self, ledger: Ledger, provider_of: Callable[[JobRecord], Provider], open_rows: Callable[[JobSpec], OpenRows], sleep: Sleep
    ) -> None:
        self._ledger, self._provider_of, self._open_rows, self._sleep = ledger, provider_of, open_rows, sleep

    def settle(self, record: JobRecord, *, resume: bool) -> Reconciled:
        """What became of one submission; with ``resume``, one that was never made is made now. Raises LedgerError alone."""
        with self._ledger.claim(record.id) as held:
            if held is None:
                return Reconciled(record.id, "busy", "another process is submitting it")
            record = self._ledger.get(record.id)  # it may have moved before the claim
            try:
                submission = Submission(self._ledger, self._provider_of(record), record.id, held, self._sleep)
                return self._settle(record, submission, resume)
            except LedgerError:
                raise
            except TuneportError as error:
                now = self._ledger.get(record.id)
                if now.state is JobState.FAILED:
                    return Reconciled(record.id, "failed", now.message)
                if isinstance(error, (DataError, UsageError)):
                    self._ledger.note(record.id, str(error))
                    return Reconciled(record.id, "interrupted", str(error))
                self._ledger.read_failed(record.id, unread(error))
                return Reconciled(record.id, "unreachable", str(error))

    def _settle(self, record: JobRecord, submission: Submission, resume: bool) -> Reconciled:
        if record.ref is not None or record.state.terminal:
            return Reconciled(record.id, "adopted", "another process finished it")
        may_exist = record.step is Step.CREATING
        # Looked for even where create was not called when resuming: a read costs nothing, a second job does.
        if (may_exist or resume) and submission.adopt(wait=False) is not None:
            return Reconciled(record.id, "adopted")
        if record.cancel_requested_at is not None and (not may_exist or submission.settled()):
            self._ledger.ended_unmade(record.id, JobState.CANCELLED, "cancelled before it was created")
            return Reconciled(record.id, "cancelled")
        if resume:
            check_sources(self._ledger, record)
            submission.carry_out(self._open_rows(self._ledger.spec(record.id)))
            return Reconciled(record.id, "resumed")
        if may_exist and not submission.settled():
            return Reconciled(record.id, "unsettled", f"{record.provider} shows no such job yet")
        self._ledger.note(record.id, f"interrupted before it was created; nothing exists at {record.provider}; {RESUME_FIX}")
        return Reconciled(record.id, "interrupted", RESUME_FIX)

    def await_creation(self, record: JobRecord) -> JobRecord:
        """A job that is still being submitted. Raises UsageError when nobody is at it and it was not made."""
        found = self.settle(record, resume=False)
        if found.outcome == "interrupted":
            raise UsageError(f"job {record.id} was interrupted before {record.provider} made it; nothing was spent", fix=RESUME_FIX)
        return self._ledger.get(record.id)
