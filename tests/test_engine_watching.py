"""Watching many jobs at once, within each provider's rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.engine import Update
from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.job import JobEvent, JobState, RemoteJob
from tuneport.core.watching import READS_PER_MINUTE
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import FakeProvider, FakeVendor, make_plan


class PacedProvider(FakeProvider):
    """Notes by the fake clock when it is read."""

    def __init__(self, bench: Bench, name: str, reads_per_minute: float | None, script: list[str]) -> None:
        super().__init__(FakeVendor(None, script=script))
        self.name, self.bench = name, bench
        self.read_at: list[float] = []
        self.polled: Counter[str] = Counter()
        if reads_per_minute is not None:
            self.reads_per_minute = reads_per_minute

    def poll(self, ref: str) -> RemoteJob:
        self.read_at.append(self.bench.clock.seconds())
        self.polled[ref] += 1
        return super().poll(ref)

    def events(self, ref: str) -> Iterator[JobEvent]:
        self.read_at.append(self.bench.clock.seconds())
        return super().events(ref)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def add(bench: Bench, name: str, count: int, *, rate: float | None, script: list[str] | None = None) -> tuple[PacedProvider, list[str]]:
    """A provider with jobs that were submitted in an instant."""
    provider = PacedProvider(bench, name, rate, script or ["waiting", "training", "training", "done"])
    bench.providers[name] = provider
    plan = make_plan(bench.spec).model_copy(update={"provider": name})
    return provider, [bench.engine.submit(bench.spec, plan).id for _ in range(count)]


def most_in(read_at: list[float], seconds: float) -> int:
    """The most reads within any stretch of so many seconds."""
    return max(sum(start <= at < start + seconds for at in read_at) for start in read_at)


def test_sixty_jobs_stay_within_the_rate_and_none_is_left_behind(bench: Bench) -> None:
    provider, ids = add(bench, "slow", 60, rate=30)
    jobs = bench.engine.watch_many(ids)
    assert [job.id for job in jobs] == ids
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    assert most_in(provider.read_at, 60) <= 31
    assert set(provider.polled.values()) == {3}
    assert [len(bench.ledger.events(job_id)) for job_id in ids] == [4] * 60  # the end brings them all
    spans = [b - a for a, b in zip(provider.read_at, provider.read_at[1:], strict=False)]
    assert max(spans) <= 4.001  # the time that is allowed is used


def test_jobs_take_turns(bench: Bench) -> None:
    _, ids = add(bench, "slow", 25, rate=60)
    looks: list[str] = []
    bench.engine.watch_many(ids, lambda update: looks.append(update.job.id))
    assert looks == ids * 3


def test_a_provider_that_declares_no_rate_is_read_at_the_cautious_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeProvider, "reads_per_minute")
    provider, ids = add(bench, "silent", 65, rate=None)
    bench.engine.watch_many(ids)
    assert most_in(provider.read_at, 60) <= READS_PER_MINUTE + 1


def test_few_jobs_have_their_events_read_at_every_look(bench: Bench) -> None:
    provider, ids = add(bench, "slow", 2, rate=60)
    bench.engine.watch_many(ids)
    assert len(provider.read_at) == 2 * sum(provider.polled.values())
    assert most_in(provider.read_at, 60) <= 61


def test_a_slow_provider_does_not_hold_up_a_fast_one(bench: Bench) -> None:
    slow, slow_ids = add(bench, "slow", 20, rate=2)
    fast, fast_ids = add(bench, "fast", 20, rate=600)
    ended: dict[str, float] = {}

    def note(update: Update) -> None:
        if update.job.state.terminal:
            ended[update.job.id] = bench.clock.seconds()

    bench.engine.watch_many([*slow_ids, *fast_ids], note)
    assert max(ended[job_id] for job_id in fast_ids) < 60
    assert min(ended[job_id] for job_id in slow_ids) > 600
    assert most_in(slow.read_at, 60) <= 3
    assert fast.polled.keys() == {f"ft-{number}" for number in range(20)}


def test_a_request_to_slow_down_holds_up_the_whole_lane(bench: Bench) -> None:
    provider, ids = add(bench, "busy", 10, rate=600)
    began = bench.clock.seconds()
    provider.faults["poll"] = ["ok", "ok", "rate_limit"]
    bench.engine.watch_many(ids)
    after_third = provider.read_at.index(next(at for at in provider.read_at if at >= began + 7))
    assert after_third <= 6  # at most three polls and their events
    assert provider.read_at[after_third] - provider.read_at[after_third - 1] >= 6.9


def test_an_outage_is_outlived_by_all(bench: Bench) -> None:
    provider, ids = add(bench, "away", 10, rate=600)
    provider.faults["poll"] = ["reset_before"] * 35
    told: list[str] = []

    def note(update: Update) -> None:
        if update.error:
            told.append(update.job.freshness(bench.clock.now()))

    assert {job.state for job in bench.engine.watch_many(ids, note)} == {JobState.SUCCEEDED}
    assert len(told) == 35
    assert all("vendor unreachable: fake cannot be reached" in text for text in told)


def test_one_job_that_is_refused_does_not_end_the_watch_of_the_others(bench: Bench) -> None:
    provider, ids = add(bench, "picky", 5, rate=6000)
    gone = bench.ledger.get(ids[2]).ref
    poll = provider.poll

    def picky(ref: str) -> RemoteJob:
        if ref == gone:
            raise ProviderError("no such job (404)", retry="no")
        return poll(ref)

    provider.poll = picky  # type: ignore[method-assign]
    jobs = bench.engine.watch_many(ids)
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2 + [JobState.QUEUED] + [JobState.SUCCEEDED] * 2
    assert "vendor refused to answer: no such job (404)" in jobs[2].freshness


def test_a_wrong_key_gives_up_its_provider_at_once_and_no_other(bench: Bench) -> None:
    locked, locked_ids = add(bench, "locked", 50, rate=60)
    _, open_ids = add(bench, "open", 3, rate=600)
    locked.faults["poll"] = ["credentials"] * 99
    errors: dict[str, object] = {}

    def note(update: Update) -> None:
        if update.error:
            errors[update.job.id] = update.error

    jobs = bench.engine.watch_many([*locked_ids, *open_ids], note)
    assert errors.keys() == set(locked_ids)
    assert len(locked.read_at) == 1
    assert [job.state for job in jobs[50:]] == [JobState.SUCCEEDED] * 3
    assert all("does not accept the key" in job.freshness for job in jobs[:50])


def test_jobs_that_were_never_made_or_are_over_or_paused_hold_up_nothing(bench: Bench) -> None:
    provider, ids = add(bench, "mixed", 3, rate=6000)
    bench.engine.watch(ids[0])
    bench.engine.pause(ids[1])
    provider.faults["upload"] = ["reset_before"] * 5
    with pytest.raises(ProviderError):
        add_one(bench, "mixed")
    unmade = next(r.id for r in bench.ledger.latest() if r.state is JobState.SUBMITTING)
    jobs = bench.engine.watch_many([*ids, unmade, ids[2]])
    assert [job.state.value for job in jobs] == ["succeeded", "paused", "succeeded", "submitting", "succeeded"]
    with pytest.raises(UsageError, match="no job 'j-nope'"):
        bench.engine.watch_many(["j-nope"])
    assert bench.engine.watch_many([]) == []


def add_one(bench: Bench, name: str) -> Any:
    return bench.engine.submit(bench.spec, make_plan(bench.spec).model_copy(update={"provider": name}))


def test_a_provider_on_this_machine_is_not_paced(bench: Bench) -> None:
    provider, ids = add(bench, "near", 40, rate=float("inf"))
    bench.engine.watch_many(ids)
    assert max(provider.read_at) - min(provider.read_at) < 30


def test_watching_survives_a_clock_that_does_not_move(bench: Bench) -> None:
    _, ids = add(bench, "slow", 10, rate=60)
    slept: list[float] = []
    engine = type(bench.engine)(bench.ledger, bench.get, lambda _spec: None, sleep=slept.append, clock=lambda: 0.0)  # type: ignore[arg-type, return-value]
    assert {job.state for job in engine.watch_many(ids)} == {JobState.SUCCEEDED}
    assert 0 < max(slept) <= 31
