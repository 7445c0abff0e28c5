"""Reads of a provider that are stored: a failed one leaves the last good state and says how old it is.

Reads never spend and never change the provider's side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tuneport.core.errors import LedgerError, ProviderError, TuneportError
from tuneport.core.job import JobEvent, JobState
from tuneport.core.ledger import JobRecord, Ledger
from tuneport.core.ledger.records import unread
from tuneport.core.provider import Provider, not_offered
from tuneport.core.retry import retrying

T = TypeVar("T")


def offered(provider: Provider, call: str) -> Provider:
    """The provider, if it offers this call of the protocol. Raises ProviderError with its reason if not."""
    if call in provider.unoffered:
        raise not_offered(provider, call)
    return provider


class Reader:
    """Reads jobs of one ledger. ``provider_of`` gives the provider of a job as its spec's options reach it."""

    def __init__(self, ledger: Ledger, provider_of: Callable[[JobRecord], Provider], sleep: Callable[[float], None]) -> None:
        self._ledger, self._provider_of, self._sleep = ledger, provider_of, sleep

    def state(self, record: JobRecord, *, attempts: int) -> tuple[JobRecord, TuneportError | None]:
        """The job after asking for its state; with the error if that failed, which is stored beside the last good state."""
        ref = record.ref
        if ref is None or not readable(record):
            return record, None
        remote, error = self._read(record, "poll", lambda provider: provider.poll(ref), attempts)
        if remote is None:
            return self._ledger.get(record.id), error
        return self._ledger.observe(record.id, remote), None

    def events(self, record: JobRecord, *, attempts: int) -> list[JobEvent]:
        """The events that are new since the last read; none where they cannot be read. ProviderError if the provider has none."""
        ref = record.ref
        if ref is None or record.deleted_at is not None:
            return []
        found, _ = self._read(record, "events", lambda provider: list(provider.events(ref)), attempts)
        return self._ledger.add_events(record.id, found or ())

    def checkpoints(self, record: JobRecord, *, attempts: int) -> None:
        """Store the checkpoints as they are now; what is stored stays where they cannot be read. ProviderError if there are never any."""
        ref = record.ref
        if ref is None or record.deleted_at is not None:
            return
        found, _ = self._read(record, "checkpoints", lambda provider: provider.checkpoints(ref), attempts)
        self._ledger.add_checkpoints(record.id, found or ())

    def _read(
        self, record: JobRecord, name: str, call: Callable[[Provider], T], attempts: int
    ) -> tuple[T | None, TuneportError | None]:
        never: ProviderError | None = None
        try:
            provider = self._provider_of(record)
            if name not in provider.unoffered:
                return retrying(lambda: call(provider), attempts=attempts, sleep=self._sleep), None
            never = not_offered(provider, name)
        except LedgerError:
            raise
        except TuneportError as error:
            self._ledger.read_failed(record.id, unread(error))
            return None, error
        raise never


def readable(record: JobRecord) -> bool:
    """Whether the provider may have news of the job: it is not over, or its bill has not come yet."""
    if record.ref is None or record.deleted_at is not None:
        return False
    bill_missing = record.state is JobState.SUCCEEDED and record.billed_usd is None and record.billed_tokens is None
    return not record.state.terminal or bill_missing
