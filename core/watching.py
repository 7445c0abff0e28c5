"""Watches any number of jobs from one thread, within the rate that each provider allows.

A job is looked at after a tenth of its age, within bounds, so its end is noticed at most 10 % late. All jobs of a provider
share one lane: its reads are spaced evenly, and a request to slow down holds up the whole lane. Lanes do not wait for
each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tuneport.core.errors import CredentialsError, LedgerError, MissingExtraError, TuneportError, UsageError, VendorClosedError
from tuneport.core.job import JobEvent, JobState
from tuneport.core.jobs import OnUpdate, Update
from tuneport.core.ledger import JobRecord, Ledger
from tuneport.core.ledger.records import unread
from tuneport.core.provider import Provider
from tuneport.core.reading import Reader, readable
from tuneport.core.retry import verdict
from tuneport.core.submission import SETTLE_S, Sleep

READS_PER_MINUTE = 60.0
"""Calls of ``poll`` and ``events`` per minute for a provider that declares no ``reads_per_minute``. Assumed: no vendor publishes
a limit for reading fine-tuning jobs (vendors.md: rate-limit headers on these endpoints are unknown), and one request a second is
far below any published limit of theirs (OpenAI's file upload: 1,000 a minute). A provider whose poll makes several requests, or
whose account is shared by many, declares less; one that reads this machine's disk declares ``inf``."""

FIRST_POLL_S = 1.0
LONGEST_POLL_S = 30.0
POLL_SHARE = 0.1
DEFINITE_FAILURES = 5
"""So many definite refusals of a read in a row end a job's watch. The first few may be a vendor that does not list a new job yet."""
FOR_ALL = (CredentialsError, MissingExtraError, VendorClosedError)
"""Errors that every other job of the provider would meet too."""


@dataclass(order=True, slots=True)
class _Watched:
    due: float
    turn: int  # first come, first served among those due at once
    job_id: str = field(compare=False)
    failures: int = field(default=0, compare=False)  # in a row
    refusals: int = field(default=0, compare=False)  # in a row


@dataclass(slots=True)
class _Lane:
    """The jobs of one provider, and when it may be read next."""

    paced: bool = False  # whether the next two are the provider's
    interval: float = 0.0  # seconds between reads
    settle_s: float = SETTLE_S
    free_at: float = 0.0
    queue: list[_Watched] = field(default_factory=list)
    frugal: bool = False  # too many jobs to read each one's events at every look

    @property
    def next_at(self) -> float:
        return max(self.queue[0].due, self.free_at)


class Watcher:
    """One watch. ``await_creation`` settles a job that is still being submitted, and raises UsageError if it never will be."""

    def __init__(
        self,
        ledger: Ledger,
        provider_of: Callable[[JobRecord], Provider],
        await_creation: Callable[[JobRecord], JobRecord],
        *,
        sleep: Sleep,
        clock: Callable[[], float],
        on_update: OnUpdate | None = None,
        max_s: float = LONGEST_POLL_S,
    ) -> None:
        self._ledger, self._make, self._await_creation = ledger, provider_of, await_creation
        self._sleep, self._clock, self._on_update, self._max_s = sleep, clock, on_update, max_s
        self._reader = Reader(ledger, self._provider_of, sleep)
        self._providers: dict[str, Provider] = {}  # by name and options
        self._reach: dict[str, Provider] = {}  # by job
        self._lanes: dict[str, _Lane] = {}
        self._reached = 0.0
        self.errors: dict[str, TuneportError] = {}
        """Jobs whose watch was given up, by id, each with the reason."""

    def run(self, job_ids: Iterable[str]) -> None:
        """Look at the jobs until each has ended, is paused, or was given up."""
        self._line_up(list(dict.fromkeys(job_ids)))
        while waiting := [lane for lane in self._lanes.values() if lane.queue]:
            lane = min(waiting, key=lambda one: one.next_at)
            self._sleep_until(lane.next_at)
            one = heapq.heappop(lane.queue)
            if self._look(one, lane):
                heapq.heappush(lane.queue, one)

    def _line_up(self, job_ids: list[str]) -> None:
        now = self._now()
        for turn, job_id in enumerate(job_ids):
            record = self._ledger.get(job_id)
            lane = self._lanes.setdefault(record.provider, _Lane(free_at=now))
            heapq.heappush(lane.queue, _Watched(now, turn, job_id))

    def _look(self, one: _Watched, lane: _Lane) -> bool:
        """Look at a job once, and say when next; False when there is no next time."""
        before = self._ledger.get(one.job_id)
        self._set_pace(lane, before)
        error: TuneportError | None = None
        reads = 1
        if before.ref is None and not before.state.terminal:
            try:
                record = self._await_creation(before)
            except UsageError as never:
                record, error = before, never
        else:
            reads = int(readable(before))
            record, error = self._reader.state(before, attempts=1)
        new: list[JobEvent] = []
        changed = (before.state, before.raw_state) != (record.state, record.raw_state)
        if error is None and (changed or not lane.frugal) and self._has_events(record):
            new, reads = self._reader.events(record, attempts=1), reads + 1
        now = self._now()
        lane.free_at = max(lane.free_at, now) + reads * lane.interval
        self._tell(record, new, error)
        if record.state.terminal or (error is None and self._rests(record, lane)):
            return False
        one.failures = one.failures + 1 if error else 0
        one.refusals = one.refusals + 1 if error and verdict(error).kind == "no" else 0
        if error is not None and isinstance(error, FOR_ALL):
            self._give_up([one, *lane.queue], error)
            lane.queue.clear()
            return False
        if error is not None and (one.refusals >= DEFINITE_FAILURES or isinstance(error, UsageError)):
            self.errors[one.job_id] = error
            return False
        pause = self._pause(record, one.failures, error)
        if error is not None and verdict(error).kind == "rate_limit":
            lane.free_at = max(lane.free_at, now + pause)
        one.due = now + pause
        return True

    def _set_pace(self, lane: _Lane, record: JobRecord) -> None:
        """Take over the provider's rate with the first job, once it is made (its SDK or key may be missing: the look will say so)."""
        if lane.paced:
            return
        try:
            provider = self._provider_of(record)
        except LedgerError:
            raise
        except TuneportError:
            return
        lane.paced = True
        lane.interval = 60.0 / float(getattr(provider, "reads_per_minute", READS_PER_MINUTE))
        lane.settle_s = provider.settle_seconds
        lane.frugal = 2 * (len(lane.queue) + 1) * lane.interval > self._max_s

    def _has_events(self, record: JobRecord) -> bool:
        try:
            return record.ref is not None and "events" not in self._provider_of(record).unoffered
        except FOR_ALL:  # of a job that is over: no reason to fail its watch
            return False

    def _rests(self, record: JobRecord, lane: _Lane) -> bool:
        """Paused, and not because the provider is slow to show that it goes on."""
        if record.state is not JobState.PAUSED:
            return False
        resumed = record.resumed_at
        return resumed is None or (self._ledger.now() - resumed).total_seconds() > lane.settle_s

    def _give_up(self, jobs: list[_Watched], error: TuneportError) -> None:
        self.errors[jobs[0].job_id] = error
        for one in jobs[1:]:
            self.errors[one.job_id] = error
            self._tell(self._ledger.read_failed(one.job_id, unread(error)), [], error)

    def _tell(self, record: JobRecord, new: list[JobEvent], error: TuneportError | None) -> None:
        if self._on_update is not None:
            self._on_update(Update(record, tuple(new), error))

    def _pause(self, record: JobRecord, failures: int, error: TuneportError | None) -> float:
        asked = verdict(error).after if error else None
        if asked is not None:
            return asked
        if failures:
            return min(FIRST_POLL_S * 2.0 ** min(failures - 1, 10), self._max_s)
        age = (self._ledger.now() - record.created_at).total_seconds()
        pause = min(max(POLL_SHARE * age, FIRST_POLL_S), self._max_s)
        if record.seconds_left is not None:  # near the end the vendor's own estimate says how soon to look
            pause = min(pause, max(record.seconds_left / 2, FIRST_POLL_S))
        return pause

    def _provider_of(self, record: JobRecord) -> Provider:
        """One provider for all jobs that reach it by the same options: a client, with its connections, is dear to make."""
        if record.id not in self._reach:
            key = f"{record.provider} {self._ledger.options(record.id).for_provider(record.provider)!r}"
            if key not in self._providers:
                self._providers[key] = self._make(record)
            self._reach[record.id] = self._providers[key]
        return self._reach[record.id]

    def _now(self) -> float:
        return max(self._clock(), self._reached)

    def _sleep_until(self, at: float) -> None:
        left = at - self._now()
        if left > 0:
            self._sleep(left)
        self._reached = max(self._reached, at)
