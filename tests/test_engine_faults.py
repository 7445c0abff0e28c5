"""Thousands of random lives of a ledger: faults at every call, kills at every call and commit, a second process at work meanwhile.

1,000 sequences by default, always the same ones; TUNEPORT_FAULT_SEQUENCES=100000 draws so many new ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tuneport.core.engine import Engine
from tuneport.core.errors import TuneportError
from tuneport.core.job import JobState
from tuneport.core.ledger import Ledger, Step
from tuneport.core.ledger.database import Database, SQLite
from tuneport.core.ledger.locks import locks_of
from tuneport.tests.fake_provider import Clock, Died, FakeProvider, FakeVendor, make_plan, make_spec, open_rows
from tuneport.tests.stores import before_commits, on_connecting, place

SEQUENCES = int(os.environ.get("TUNEPORT_FAULT_SEQUENCES", "1000"))
LOST = ["reset_before", "reset_after", "die_before", "die_after", "rate_limit"]
FAULTS = st.sampled_from(["ok", "ok", "ok", *LOST, "refuse", "credentials"])
CALLS = ("upload", "find", "poll", "cancel", "pause", "resume", "events")
ACTIONS = st.sampled_from(["submit", "submit", "reconcile", "finish", "resume", "watch", "refresh", "cancel", "pause"])
FAULTS_BY_CALL = st.fixed_dictionaries(
    {call: st.lists(FAULTS, max_size=3) for call in CALLS} | {"create": st.lists(st.sampled_from(LOST) | FAULTS, max_size=4)}
)


class KeptOpen(SQLite):
    """Connections stay open: opening them would take most of the time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._idle: list[Any] = []

    @contextmanager
    def lend(self) -> Iterator[Any]:  # type: ignore[override]
        connection = self._idle.pop() if self._idle else self.connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Store:
    """A database that is used again and again."""

    def __init__(self, database: Database) -> None:
        self.database, self.locks = database, locks_of(database)
        self.commits_left: int | None = None  # of the process that is at work; it dies at its last one

        def die_at_the_last() -> None:
            if self.commits_left is not None:
                self.commits_left -= 1
                if self.commits_left == 0:
                    raise Died

        before_commits(database, die_at_the_last)

    def clear(self) -> None:
        """Forget all jobs."""
        self.commits_left = None
        with self.database.transaction(write=True) as connection:
            for table in ("transitions", "events", "checkpoints", "jobs"):
                connection.run(f"DELETE FROM {table}")


class World:
    """One vendor and one ledger, and processes that come and go: each is an engine that may die at a call or a commit."""

    def __init__(
        self, store: Store, folder: Path, faults: dict[str, list[str]], lives: list[int | None], lag: int, meddler: bool
    ) -> None:
        store.clear()
        self.store, self.faults, self.lives, self.meddler = store, faults, list(lives), meddler
        self.clock = Clock()
        self.vendor = FakeVendor(None, list_lag=lag)
        self.spec = make_spec(folder)
        self.plan = make_plan(self.spec)
        self.deaths = 0
        self.engine = self.mortal()

    def process(self, provider: FakeProvider | None = None) -> Engine:
        """A new process, without faults of its own."""
        ledger = Ledger(self.store.database, self.store.locks, self.clock.now)
        provider = provider or FakeProvider(self.vendor)
        return Engine(ledger, lambda _name, _options: provider, open_rows, sleep=self.clock.sleep, clock=self.clock.seconds)

    def mortal(self) -> Engine:
        """A new process whose calls meet the faults, and which dies at the commit that its life gives it."""
        provider = FakeProvider(self.vendor)
        provider.faults = self.faults  # shared by all lives: what one has met, the next does not
        self.store.commits_left = self.lives.pop(0) if self.lives else None
        if self.meddler:
            self._meddle(provider)
        return self.process(provider)

    def _meddle(self, provider: FakeProvider) -> None:
        """While this process creates, a second one settles whatever it finds."""
        create = provider.create

        def create_with_company(*arguments: Any) -> Any:
            mine, self.store.commits_left = self.store.commits_left, None
            self.process().reconcile(resume=True)
            self.store.commits_left = mine
            return create(*arguments)

        provider.create = create_with_company  # type: ignore[method-assign]

    def act(self, action: str) -> None:
        try:
            known = self.engine.ledger.latest()
            match action:
                case "submit":
                    self.engine.submit(self.spec, self.plan)
                case "reconcile":
                    self.engine.reconcile()
                case "finish":
                    self.engine.reconcile(resume=True)
                case "watch" if known:
                    self.engine.watch(known[0].id)
                case "resume" if known:
                    self.engine.resume(known[-1].id)
                case "refresh" if known:
                    self.engine.refresh(known[0].id)
                case "cancel" if known:
                    self.engine.cancel(known[-1].id)
                case "pause" if known:
                    self.engine.pause(known[0].id)
        except TuneportError:
            pass
        except Died:
            self.deaths += 1
            self.engine = self.mortal()

    def assert_consistent(self) -> None:
        """After a calm reconcile every job at the vendor stands in the ledger once, and the ledger tells one story."""
        self.store.commits_left = None
        calm = self.process()
        calm.reconcile(resume=True)
        assert calm.ledger.unfinished_submissions() == []
        made, records = self.vendor.jobs, calm.ledger.latest(limit=None)
        assert len({job["key"] for job in made}) == len(made), "a job was made twice"
        recorded = {record.key: record.ref for record in records if record.ref is not None}
        assert {job["key"]: job["ref"] for job in made} == recorded, "an orphan at the vendor, or a job that is not there"
        for record in records:
            assert (record.ref is not None) == (record.step is Step.CREATED)
            assert record.ref is not None or record.state in (JobState.FAILED, JobState.CANCELLED)
            history = calm.ledger.transitions(record.id)
            assert history[0].state is JobState.SUBMITTING
            assert (history[-1].state, history[-1].raw_state) == (record.state, record.raw_state)
            assert all(not change.state.terminal for change in history[:-1]), "a terminal state changed"
            assert calm.ledger.spec(record.id) == self.spec
        for job in calm.watch_many([record.id for record in records]):
            assert job.state.terminal or job.state is JobState.PAUSED
        assert len(self.vendor.jobs) == len(made), "watching made a job"


def live(store: Store, folder: Path, **chosen: Any) -> World:
    actions = chosen.pop("actions")
    world = World(store, folder, **chosen)
    for action in ["submit", *actions]:
        world.act(action)
    world.assert_consistent()
    return world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def sqlite(folder: Path) -> Iterator[Store]:
    Ledger.open(folder / "ledger.db")
    database = KeptOpen(folder / "ledger.db")
    on_connecting(database, "PRAGMA synchronous=OFF")  # no power fails here; the processes that die are this one
    yield Store(database)
    database.close()


@pytest.fixture(scope="module")
def postgresql(folder: Path) -> Iterator[Store]:
    with place("postgresql", folder) as where:
        ledger = Ledger.open(where)
        yield Store(ledger.database)
        ledger.close()


CHOICES = {
    "faults": FAULTS_BY_CALL,
    "actions": st.lists(ACTIONS, max_size=6),
    "lives": st.lists(st.none() | st.integers(1, 14), max_size=4),
    "lag": st.integers(0, 3),
    "meddler": st.booleans(),
}


# Without shrinking, which would take minutes here: the sequences are short as they are.
@settings(max_examples=SEQUENCES, derandomize=SEQUENCES <= 1000, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(**CHOICES)
def test_random_faults_and_kills_leave_no_duplicate_and_no_orphan(sqlite: Store, folder: Path, **chosen: Any) -> None:
    live(sqlite, folder, **chosen)


@settings(max_examples=max(60, SEQUENCES // 20), derandomize=SEQUENCES <= 1000, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(**CHOICES)
def test_random_faults_and_kills_with_a_ledger_in_postgresql(postgresql: Store, folder: Path, **chosen: Any) -> None:
    live(postgresql, folder, **chosen)


def test_the_sequences_do_meet_what_they_are_for(sqlite: Store, folder: Path) -> None:
    deaths = adopted = 0
    for at in range(1, 15):
        faults = {"create": ["reset_after"], "find": ["reset_before"] * 3}
        world = live(sqlite, folder, faults=faults, actions=["finish", "watch"], lives=[at, at], lag=1, meddler=bool(at % 2))
        deaths += world.deaths
        ledger = world.process().ledger
        adopted += sum("adopted" in change.note for record in ledger.latest() for change in ledger.transitions(record.id))
    assert deaths > 5
    assert adopted > 5
