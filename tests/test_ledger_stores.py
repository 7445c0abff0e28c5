"""The ledger in SQLite and in a real PostgreSQL: what it keeps, how it migrates, which index answers what, who holds a claim."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.errors import LedgerError, UsageError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.ledger import Ledger, Step
from tuneport.core.ledger.database import Connection, Database, PostgreSQL, SQLite, database_at
from tuneport.core.ledger.locks import locks_of
from tuneport.core.ledger.records import DeploymentChange, DeploymentRecord, JobRecord, LookRecord, Transition
from tuneport.core.ledger.schema import HEAD, SCRIPTS, upgrade
from tuneport.core.money import Range
from tuneport.tests.fake_provider import make_plan, make_spec
from tuneport.tests.stores import STORES, place

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(params=STORES)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a ledger is, or may be made."""
    with place(request.param, tmp_path) as location:
        yield location


@pytest.fixture(params=STORES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a ledger may be made; there is none yet."""
    with place(request.param, tmp_path, empty=True) as location:
        yield location


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    ledger = Ledger.open(where)
    yield ledger
    ledger.close()


def add(ledger: Ledger, folder: Path, job_id: str = "j-aaaaaa") -> str:
    spec = make_spec(folder)
    assert ledger.add(job_id, spec, make_plan(spec), {})
    return job_id


def columns(database: Database, table: str) -> list[str]:
    """The columns of a table, in their order."""
    query = f"SELECT name FROM pragma_table_info('{table}')"
    if isinstance(database, PostgreSQL):
        query = f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}' ORDER BY ordinal_position"
    with database.transaction() as connection:
        return [name for (name,) in connection.run(query)]


def names(record: type[Any], *others: str) -> set[str]:
    return {field.name for field in fields(record)} | set(others)


SCHEMA = {
    "jobs": names(JobRecord, "sources", "spec", "plan"),
    "transitions": names(Transition, "id", "job_id"),
    "events": names(JobEvent, "event_id", "job_id"),
    "checkpoints": names(Checkpoint, "job_id"),
    "deployments": names(DeploymentRecord, "plan"),
    "deployment_changes": names(DeploymentChange, "id", "deployment_id"),
    "looks": names(LookRecord, "id"),
}


def schema(database: Database) -> dict[str, set[str]]:
    """The columns of every table of the ledger."""
    return {table: set(columns(database, table)) for table in SCHEMA}


# Migrations


def test_a_new_ledger_has_the_schema_of_the_code(empty: str) -> None:
    ledger = Ledger.open(empty)
    assert schema(ledger.database) == SCHEMA
    ledger.close()


def test_a_new_sqlite_ledger_is_what_the_migrations_make(tmp_path: Path) -> None:
    """When it fails: write ``core/ledger/schema.sql`` anew from the statements of the migrated file."""

    def stored(name: str) -> tuple[set[str], list[Any]]:
        with closing(sqlite3.connect(tmp_path / name)) as file:
            statements = {" ".join(sql.split()) for (sql,) in file.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
            return statements, [file.execute(f"PRAGMA {what}").fetchall() for what in ("journal_mode", "user_version")] + [
                file.execute("SELECT * FROM alembic_version").fetchall()
            ]

    at_revision(str(tmp_path / "migrated.db"), "0001").close()
    for name in ("migrated.db", "new.db"):
        Ledger.open(tmp_path / name).close()
    assert stored("new.db") == stored("migrated.db")


def at_revision(where: str, revision: str) -> Database:
    """A database with the schema of an older tuneport."""
    database = database_at(where, create=True)
    upgrade(database, locks_of(database), head=revision)
    return database


def test_a_ledger_of_the_first_version_keeps_its_jobs(empty: str, tmp_path: Path) -> None:
    database = at_revision(empty, "0001")
    spec = make_spec(tmp_path)
    plan = make_plan(spec)
    row = {
        "id": "j-aaaaaa", "key": "tp-aaaaaa-x9k3m2qa", "provider": "fake", "model": "tiny", "method": "cpt", "state": "running",
        "raw_state": "training", "step": "created", "ref": "ft-0", "message": "", "estimate_low_usd": 1.0, "estimate_high_usd": 2.0,
        "billed_tokens": 2**40, "created_at": NOW, "updated_at": NOW, "last_seen_at": NOW, "uploads": {"train": "file-1"}, "sources": {},
        "spec": spec.model_dump(mode="json"), "plan": plan.model_dump(mode="json"),
    }  # fmt: skip
    with database.transaction(write=True) as connection:
        connection.insert("jobs", row)
        for table in ("transitions", "events"):
            other = {"job_id": "j-aaaaaa", "at": NOW}
            own = {"state": "running", "raw_state": "training", "note": "created"} if table == "transitions" else {
                "event_id": "ev-1", "level": "info", "message": "step 1", "metrics": {"loss": 1.5}}  # fmt: skip
            connection.insert(table, other | own)
    database.close()
    ledger = Ledger.open(empty)
    assert schema(ledger.database) == SCHEMA
    record = ledger.get("j-aaaaaa")
    assert (record.state, record.ref, record.billed_tokens, record.created_at) == (JobState.RUNNING, "ft-0", 2**40, NOW)
    assert record.planned_usd == record.estimate_usd == Range(low=1, high=2)
    assert (ledger.spec(record.id), ledger.plan(record.id)) == (spec, plan)
    assert [t.note for t in ledger.transitions(record.id)] == ["created"]
    assert [e.metrics for e in ledger.events(record.id)] == [{"loss": 1.5}]
    twin = {**row, "id": "j-bbbbbb"}  # the key stays unique, and rows of unknown jobs stay refused, in the new table
    with pytest.raises(LedgerError, match=r"(?i)unique"), ledger.database.transaction(write=True) as connection:
        connection.insert("jobs", twin)
    with pytest.raises(LedgerError, match=r"(?i)foreign key"), ledger.database.transaction(write=True) as connection:
        connection.insert("events", {**other, **own, "job_id": "j-nobody"})
    assert ledger.observe(record.id, RemoteJob("ft-0", JobState.SUCCEEDED, "done")).state is JobState.SUCCEEDED
    ledger.close()


def _scripts_with(folder: Path, body: str) -> Path:
    scripts = folder / "migrations"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    head = f"import sqlalchemy as sa\nfrom alembic import op\nrevision = 'next'\ndown_revision = {HEAD!r}\n"
    (scripts / "versions" / "9999_next.py").write_text(f"{head}def upgrade():\n    {body}\n")
    return scripts


def test_an_older_ledger_is_migrated_with_its_jobs_and_then_refused_by_older_code(tmp_path: Path, where: str, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    scripts = _scripts_with(tmp_path, "op.add_column('jobs', sa.Column('colour', sa.Text))")
    upgrade(ledger.database, locks_of(ledger.database), scripts=scripts, head="next")
    assert ledger.get(job_id).id == job_id
    with ledger.database.transaction() as connection:
        assert connection.run("SELECT colour FROM jobs") == [(None,)]
    with pytest.raises(LedgerError, match="version next, which is newer than this tuneport"):
        Ledger.open(where)


def test_a_migration_that_fails_half_way_changes_nothing(tmp_path: Path, where: str, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    scripts = _scripts_with(tmp_path, "op.add_column('jobs', sa.Column('colour', sa.Text)); op.drop_table('nowhere')")
    with pytest.raises(LedgerError, match="nowhere"):
        upgrade(ledger.database, locks_of(ledger.database), scripts=scripts, head="next")
    again = Ledger.open(where)
    assert again.get(job_id).id == job_id
    assert schema(ledger.database) == SCHEMA
    again.close()


def test_a_migration_never_leaves_rows_of_unknown_jobs(tmp_path: Path) -> None:
    where = str(tmp_path / "ledger.db")  # SQLite alone checks them afterwards: it cannot while it rebuilds a table
    database = at_revision(where, "0001")
    with closing(database.connect()) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("INSERT INTO transitions (job_id, at, state, raw_state, note) VALUES ('j-lost', '2026-11-22', '', '', '')")
    with pytest.raises(LedgerError, match="left at version 0001"):
        Ledger.open(where)
    assert columns(database, "checkpoints") == []


def test_many_can_open_a_new_ledger_at_once(empty: str) -> None:
    faults: list[BaseException] = []

    def open_it() -> None:
        try:
            ledger = Ledger.open(empty)
            ledger.latest()
            ledger.close()
        except BaseException as error:  # noqa: BLE001 -- shown by the assertion
            faults.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


# What is kept


def test_an_id_is_taken_only_once(tmp_path: Path, ledger: Ledger) -> None:
    add(ledger, tmp_path)
    spec = make_spec(tmp_path)
    assert not ledger.add("j-aaaaaa", spec, make_plan(spec), {})
    assert len(ledger.latest()) == 1


def test_spec_and_plan_come_back_as_they_were(tmp_path: Path, ledger: Ledger) -> None:
    spec = make_spec(tmp_path, options={"openai": {"base_url": "https://example.org/v1"}, "acme": {"zone": 3}})
    ledger.add("j-aaaaaa", spec, make_plan(spec), {spec.data.train: (18, 1_700_000_000_123_456_789)})
    assert ledger.spec("j-aaaaaa") == spec
    assert ledger.options("j-aaaaaa") == spec.options
    assert ledger.options("j-aaaaaa").for_provider("acme") == {"zone": 3}
    assert ledger.plan("j-aaaaaa") == make_plan(spec)
    assert ledger.sources("j-aaaaaa") == {spec.data.train: (18, 1_700_000_000_123_456_789)}
    with pytest.raises(UsageError):
        ledger.spec("j-other")


def test_what_the_provider_does_not_say_stays_known(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    ledger.observe(job_id, RemoteJob("r", JobState.RUNNING, "running", progress=0.4, billed_tokens=10))
    record = ledger.observe(job_id, RemoteJob("r", JobState.RUNNING, "running"))
    assert (record.progress, record.billed_tokens, record.step) == (0.4, 10, Step.CREATED)
    ledger.observe(job_id, RemoteJob("r", JobState.SUCCEEDED, "done", tuned_model="m"))
    late = ledger.observe(job_id, RemoteJob("r", JobState.RUNNING, "running", billed_usd=3.5))  # a slow answer, and a bill
    assert (late.state, late.raw_state, late.tuned_model, late.billed_usd) == (JobState.SUCCEEDED, "done", "m", 3.5)
    assert [t.state.value for t in ledger.transitions(job_id)] == ["submitting", "running", "succeeded"]


def test_moments_come_back_in_utc(tmp_path: Path, where: str) -> None:
    east = NOW.astimezone(tz=datetime.now().astimezone().tzinfo)
    ledger = Ledger.open(where, now=lambda: east)
    record = ledger.get(add(ledger, tmp_path))
    assert record.created_at == NOW
    assert record.created_at.tzinfo is UTC
    ledger.close()


def test_events_are_ordered_and_unique(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    late, early = (JobEvent(i, NOW + timedelta(seconds=s), "info", i, {"loss": 1.0}) for i, s in (("late", 9), ("early", 1)))
    assert ledger.add_events(job_id, [late, early, late]) == [late, early]
    assert ledger.add_events(job_id, [early]) == []
    assert ledger.events(job_id) == [early, late]


def test_checkpoints_are_kept_by_step(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    ledger.add_checkpoints(job_id, [Checkpoint(20, "m:20", {"loss": 1.0}), Checkpoint(10, "m:10")])
    ledger.add_checkpoints(job_id, [Checkpoint(20, "m:20b", {"loss": 0.9})])
    ledger.add_checkpoints(job_id, [])
    assert ledger.checkpoints(job_id) == [Checkpoint(10, "m:10"), Checkpoint(20, "m:20b", {"loss": 0.9})]


def test_what_was_asked_for_stands_in_the_history(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    ledger.observe(job_id, RemoteJob("r", JobState.RUNNING, "running"))
    ledger.asked(job_id, "pause asked for", pause=True)
    assert ledger.get(job_id).pausing
    ledger.asked(job_id, "resume asked for", resume=True)
    assert not ledger.get(job_id).pausing
    assert [(t.state.value, t.note) for t in ledger.transitions(job_id)[1:]] == [
        ("running", ""), ("running", "pause asked for"), ("running", "resume asked for")
    ]  # fmt: skip


def test_no_secret_reaches_the_ledger(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VENDOR_TOKEN", "open-sesame-42")
    secrets = ["open-sesame-42", "sk-proj-abcdefghijklmnop1234", "hf_abcdefghijklmnopqrst", "AKIAABCDEFGHIJKLMNOP"]
    said = "vendor said: " + " and ".join(secrets)
    job_id = add(ledger, tmp_path)
    ledger.note(job_id, said)
    ledger.not_created(job_id, said)
    ledger.read_failed(job_id, said)
    ledger.observe(job_id, RemoteJob("r", JobState.RUNNING, said, message=said), note=said)
    ledger.add_events(job_id, [JobEvent("1", NOW, "error", said)])
    ledger.asked(job_id, said)
    other = add(ledger, tmp_path, "j-bbbbbb")
    ledger.ended_unmade(other, JobState.FAILED, said)
    with ledger.database.transaction() as connection:
        rows = [row for table in SCHEMA for row in connection.run(f"SELECT * FROM {table}")]
    stored = "\n".join(map(str, rows))
    assert stored.count("vendor said: [secret] and [secret]") >= 8
    assert not any(secret in stored for secret in secrets)


def test_rows_of_unknown_jobs_are_refused_by_the_database(ledger: Ledger) -> None:
    with pytest.raises(UsageError):
        ledger.add_events("j-none", [JobEvent("1", NOW, "info", "x")])
    with pytest.raises(UsageError):
        ledger.note("j-none", "x")
    row = {"job_id": "no", "event_id": "1", "at": NOW, "level": "", "message": "", "metrics": {}}
    with pytest.raises(LedgerError, match=r"(?i)foreign key"), ledger.database.transaction(write=True) as connection:
        connection.insert("events", row)


# Claims


def test_a_claim_has_one_holder(where: str, ledger: Ledger) -> None:
    other = Ledger.open(where)
    with ledger.claim("j-1") as one, other.claim("j-1") as two, ledger.claim("j-2") as three:
        assert one is not None
        assert one()
        assert two is None
        assert three is not None
    with other.claim("j-1") as again:
        assert again is not None
    other.close()


def test_a_claim_whose_session_the_server_ends_is_noticed(tmp_path: Path) -> None:
    with place("postgresql", tmp_path) as where:
        ledger, other = Ledger.open(where), Ledger.open(where)
        with ledger.claim("j-1") as held:
            assert held is not None
            with other.database.transaction() as connection:
                connection.run("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            assert not held()
            with other.claim("j-1") as taken:
                assert taken is not None
        ledger.close()
        other.close()


def test_a_connection_that_the_server_ends_is_replaced_and_a_broken_transaction_keeps_nothing(tmp_path: Path) -> None:
    with place("postgresql", tmp_path) as where:
        ledger, other = Ledger.open(where), Ledger.open(where)
        job_id = add(ledger, tmp_path)
        end_others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with other.database.transaction() as connection:
            connection.run(end_others)
        assert ledger.get(job_id).id == job_id  # over a new connection

        def change() -> None:
            with ledger.database.transaction(write=True) as mine:
                mine.update("jobs", job_id, message="half a change")
                with other.database.transaction() as connection:
                    connection.run(end_others)
                mine.update("jobs", job_id, message="the other half")

        with pytest.raises(LedgerError, match="failed"):
            change()
        assert ledger.get(job_id).message == ""
        ledger.close()
        other.close()


# 100,000 jobs


def fill(ledger: Ledger, folder: Path, count: int) -> None:
    """Copies of a real row, spec and plan and all: every 1,000th still runs, every 100th is of a second provider."""
    add(ledger, folder)
    if isinstance(ledger.database, SQLite):
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count - 1}) "
        moment = "datetime('2026-01-01', '+' || i || ' minutes') || '.000000'"
    else:
        numbers = f"WITH n(i) AS (SELECT generate_series(1, {count - 1})) "
        moment = "timestamptz '2026-01-01Z' + i * interval '1 minute'"
    new = {
        "id": "'j-' || i", "key": "'tp-' || i", "created_at": moment, "billed_usd": "1.5", "planned_high_usd": "2.0",
        "state": "CASE WHEN i % 1000 = 0 THEN 'running' ELSE 'succeeded' END",
        "provider": "CASE WHEN i % 100 = 1 THEN 'rare' ELSE 'fake' END",
    }  # fmt: skip
    rest = sorted(SCHEMA["jobs"] - set(new))
    statement = f"INSERT INTO jobs ({', '.join([*new, *rest])}) {numbers}"
    with ledger.database.transaction(write=True) as connection:
        connection.run(f"{statement} SELECT {', '.join([*new.values(), *rest])} FROM n, jobs")
        connection.run("ANALYZE")


QUERIES = {
    "the latest": lambda ledger: ledger.latest(limit=50),
    "the latest of a provider": lambda ledger: ledger.latest(limit=50, provider="rare"),
    "the latest in a state": lambda ledger: ledger.latest(limit=50, states=[JobState.RUNNING]),
    "unfinished submissions": lambda ledger: ledger.unfinished_submissions(),
    "the latest bills": lambda ledger: ledger.billed("rare", 100),
    "one job": lambda ledger: [ledger.get("j-77")],
}


@pytest.mark.parametrize("store", STORES)
def test_listing_many_jobs_takes_an_index_and_sorts_nothing(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with place(store, tmp_path) as where:
        ledger = Ledger.open(where)
        fill(ledger, tmp_path, 20_000)
        asked: list[tuple[str, Any]] = []
        run = Connection.run

        def noted(connection: Connection, sql: str, values: Any = None) -> Any:
            asked.append((sql, values))
            return run(connection, sql, values)

        monkeypatch.setattr(Connection, "run", noted)
        for name, query in QUERIES.items():
            asked.clear()
            assert query(ledger), name
            (statement, parameters) = next(pair for pair in asked if "FROM jobs" in pair[0])
            explain = "EXPLAIN QUERY PLAN" if store == "sqlite" else "EXPLAIN"
            with ledger.database.transaction() as connection:
                plan = "\n".join(str(row) for row in connection.run(f"{explain} {statement}", parameters))
            assert "USING INDEX" in plan or "Index Scan" in plan or "sqlite_autoindex" in plan, f"{name}: {plan}"
            assert "TEMP B-TREE" not in plan and "Seq Scan" not in plan and "Sort" not in plan, f"{name}: {plan}"
        ledger.close()


def test_what_is_listed_lies_before_what_is_large(ledger: Ledger) -> None:
    if isinstance(ledger.database, SQLite):  # it reads a row from its start
        assert columns(ledger.database, "jobs")[-4:] == ["uploads", "sources", "spec", "plan"]
