"""The ledger: opening, migrating, bad databases, speed, secrets."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, insert

from tuneport.core.errors import LedgerError, UsageError
from tuneport.core.job import JobEvent, JobState, RemoteJob
from tuneport.core.ledger import Ledger, Step
from tuneport.core.ledger import database as database_module
from tuneport.core.ledger.database import HEAD, SCRIPTS, upgrade
from tuneport.core.ledger.locks import FileLocks
from tuneport.core.ledger.tables import jobs, metadata
from tuneport.tests.fake_provider import make_plan, make_spec

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger.db")


def add(ledger: Ledger, folder: Path, job_id: str = "j-aaaaaa") -> str:
    spec = make_spec(folder)
    assert ledger.add(job_id, spec, make_plan(spec), {})
    return job_id


def test_a_new_ledger_has_the_schema_of_the_code(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_default_place_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNEPORT_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Ledger.open().name == str(tmp_path / ".tuneport" / "ledger.db")
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "other.db"))
    assert Ledger.open().name == str(tmp_path / "other.db")
    monkeypatch.setenv("TUNEPORT_LEDGER", f"sqlite:///{tmp_path}/third.db")
    assert Ledger.open().name == f"{tmp_path}/third.db"


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    assert Ledger.open(tmp_path / "ledger.db").latest() == []


def _scripts_with(folder: Path, body: str) -> Path:
    scripts = folder / "migrations"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    head = f"import sqlalchemy as sa\nfrom alembic import op\nrevision = 'next'\ndown_revision = {HEAD!r}\n"
    (scripts / "versions" / "9999_next.py").write_text(f"{head}def upgrade():\n    {body}\n")
    return scripts


def test_an_older_ledger_is_migrated_with_its_jobs_and_then_refused_by_older_code(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    scripts = _scripts_with(tmp_path, "op.add_column('jobs', sa.Column('colour', sa.Text))")
    locks = FileLocks(tmp_path / "locks")
    upgrade(ledger.engine, locks, ledger.name, scripts=scripts, head="next")
    assert ledger.get(job_id).id == job_id
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("SELECT colour FROM jobs").fetchall() == [(None,)]
    connection.close()
    with pytest.raises(LedgerError, match="version next, which is newer than this tuneport"):
        Ledger.open(tmp_path / "ledger.db")


def test_a_migration_that_fails_half_way_changes_nothing(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    scripts = _scripts_with(tmp_path, "op.add_column('jobs', sa.Column('colour', sa.Text)); op.drop_table('nowhere')")
    with pytest.raises(Exception, match="nowhere"):
        upgrade(ledger.engine, FileLocks(tmp_path / "locks"), ledger.name, scripts=scripts, head="next")
    assert Ledger.open(tmp_path / "ledger.db").get(job_id).id == job_id
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_many_can_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    faults: list[BaseException] = []

    def open_it() -> None:
        try:
            Ledger.open(tmp_path / "ledger.db").latest()
        except BaseException as error:  # noqa: BLE001 -- shown by the assertion
            faults.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_missing_ledger_is_not_made_for_readers(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger") as caught:
        Ledger.open(tmp_path / "sub" / "ledger.db", create=False)
    assert caught.value.fix
    assert not (tmp_path / "sub").exists()


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough to look like one " * 40, b"\x00" * 5000])
def test_a_damaged_file_gives_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.db").write_bytes(content)
    with pytest.raises(LedgerError, match="damaged or no ledger"):
        Ledger.open(tmp_path / "ledger.db")


def test_a_damaged_page_gives_one_sentence(tmp_path: Path, ledger: Ledger) -> None:
    for number in range(40):
        add(ledger, tmp_path, f"j-{number:06}")
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    path = tmp_path / "ledger.db"
    path.write_bytes(path.read_bytes()[:8192] + b"\xff" * (path.stat().st_size - 8192))
    with pytest.raises(LedgerError, match="damaged or no ledger"):
        ledger.latest()


def test_places_that_cannot_hold_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "ledger.db").mkdir()
    for location in (tmp_path / "file" / "ledger.db", tmp_path / "ledger.db"):
        with pytest.raises(LedgerError, match="cannot be opened for writing") as caught:
            Ledger.open(location)
        assert "TUNEPORT_LEDGER" in caught.value.fix


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_read_only_directory_gives_one_sentence(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root may write anywhere but in the kernel's own file system
        if not Path("/proc/self").exists():
            pytest.skip("needs /proc to find a directory that root cannot write to")
        place = Path("/proc/tuneport")
    else:
        place = tmp_path / "closed"
        place.mkdir(mode=0o500)
    with pytest.raises(LedgerError, match="cannot be opened for writing"):
        Ledger.open(place / "ledger.db")


@pytest.mark.parametrize("location", ["mysql://host/db", "sqlite://", "nonsense://", "://"])
def test_other_databases_are_refused(location: str) -> None:
    with pytest.raises(LedgerError):
        Ledger.open(location)


def test_the_password_of_a_url_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open("mysql://me:hunter2hunter2@host/db")
    assert "hunter2" not in str(caught.value)


def test_a_full_disk_keeps_what_was_recorded(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)

    @event.listens_for(ledger.engine, "connect")
    def _no_room(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # SQLite then behaves as on a full disk

    def fill() -> None:
        for number in range(100):
            add(ledger, tmp_path, f"j-{number:06}")

    with pytest.raises(LedgerError, match="is full") as caught:
        fill()
    assert "free some space" in caught.value.fix
    assert ledger.get(job_id).state is JobState.SUBMITTING


def test_a_lasting_lock_gives_one_sentence(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = add(ledger, tmp_path)
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 50)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="held by another process"):
        ledger.note(job_id, "x")
    assert ledger.get(job_id).id == job_id  # readers are not held up
    other.close()


def test_an_id_is_taken_only_once(tmp_path: Path, ledger: Ledger) -> None:
    add(ledger, tmp_path)
    spec = make_spec(tmp_path)
    assert not ledger.add("j-aaaaaa", spec, make_plan(spec), {})
    assert len(ledger.latest()) == 1


def test_spec_and_plan_come_back_as_they_were(tmp_path: Path, ledger: Ledger) -> None:
    spec = make_spec(tmp_path)
    ledger.add("j-aaaaaa", spec, make_plan(spec), {spec.data.train: (18, 1_700_000_000_123_456_789)})
    assert ledger.spec("j-aaaaaa") == spec
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


def test_moments_come_back_in_utc(tmp_path: Path) -> None:
    east = NOW.astimezone(tz=datetime.now().astimezone().tzinfo)
    ledger = Ledger.open(tmp_path / "ledger.db", now=lambda: east)
    record = ledger.get(add(ledger, tmp_path))
    assert record.created_at == NOW
    assert record.created_at.tzinfo is UTC


def test_events_are_ordered_and_unique(tmp_path: Path, ledger: Ledger) -> None:
    job_id = add(ledger, tmp_path)
    late, early = (JobEvent(i, NOW + timedelta(seconds=s), "info", i, {"loss": 1.0}) for i, s in (("late", 9), ("early", 1)))
    assert ledger.add_events(job_id, [late, early, late]) == [late, early]
    assert ledger.add_events(job_id, [early]) == []
    assert ledger.events(job_id) == [early, late]


def test_a_claim_has_one_holder(ledger: Ledger) -> None:
    with ledger.claim("j-1") as one, ledger.claim("j-1") as two, ledger.claim("j-2") as other:
        assert one is not None
        assert one()
        assert two is None
        assert other is not None
    with ledger.claim("j-1") as again:
        assert again is not None


def test_no_secret_reaches_the_ledger(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VENDOR_TOKEN", "open-sesame-42")
    secrets = ["open-sesame-42", "sk-proj-abcdefghijklmnop1234", "hf_abcdefghijklmnopqrst", "AKIAABCDEFGHIJKLMNOP"]
    text = "vendor said: " + " and ".join(secrets)
    job_id = add(ledger, tmp_path)
    ledger.note(job_id, text)
    ledger.not_created(job_id, text)
    ledger.read_failed(job_id, text)
    ledger.observe(job_id, RemoteJob("r", JobState.RUNNING, text, message=text), note=text)
    ledger.add_events(job_id, [JobEvent("1", NOW, "error", text)])
    other = add(ledger, tmp_path, "j-bbbbbb")
    ledger.ended_unmade(other, JobState.FAILED, text)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        stored = "\n".join(connection.iterdump())
    connection.close()
    assert stored.count("vendor said: [secret] and [secret]") >= 6
    assert not any(secret in stored for secret in secrets)


def test_the_latest_of_100_000_jobs_are_listed_at_once(tmp_path: Path, ledger: Ledger) -> None:
    add(ledger, tmp_path)
    columns = ", ".join(c.name for c in jobs.c if c.name not in ("id", "key", "created_at", "state"))
    with sqlite3.connect(tmp_path / "ledger.db") as connection:  # copies of a real row, plan and all
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 99999) "
            f"INSERT INTO jobs (id, key, created_at, state, {columns}) SELECT 'j-' || i, 'tp-' || i, "
            f"datetime('2026-01-01', '+' || i || ' minutes') || '.000000', iif(i % 1000, 'succeeded', 'running'), {columns} FROM n, jobs"
        )
    connection.close()
    started = time.perf_counter()
    latest = Ledger.open(tmp_path / "ledger.db").latest(limit=50)
    running = ledger.latest(limit=50, states=[JobState.RUNNING])
    unfinished = ledger.unfinished_submissions()
    seconds = time.perf_counter() - started
    assert [len(latest), len(running), len(unfinished)] == [50, 50, 1]
    assert latest == sorted(latest, key=lambda r: r.created_at, reverse=True)
    assert seconds < 0.5


def test_rows_of_unknown_jobs_are_refused_by_the_database(ledger: Ledger) -> None:
    with pytest.raises(UsageError):
        ledger.add_events("j-none", [JobEvent("1", NOW, "info", "x")])
    with pytest.raises(UsageError):
        ledger.note("j-none", "x")
    row = {"job_id": "no", "event_id": "1", "at": NOW, "level": "", "message": "", "metrics": {}}
    with pytest.raises(Exception, match="FOREIGN KEY"), ledger.engine.begin() as connection:
        connection.execute(insert(metadata.tables["events"]), row)
