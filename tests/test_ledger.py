"""The ledger: opening, migrating, bad databases, speed, secrets."""

from __future__ import annotations

import os
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from tuneport.core.errors import LedgerError
from tuneport.core.job import JobState
from tuneport.core.ledger import Ledger
from tuneport.core.ledger import database as database_module
from tuneport.core.ledger.schema import HEAD, SCRIPTS
from tuneport.tests.fake_provider import make_plan, make_spec
from tuneport.tests.stores import on_connecting

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger.db")


def add(ledger: Ledger, folder: Path, job_id: str = "j-aaaaaa") -> str:
    spec = make_spec(folder)
    assert ledger.add(job_id, spec, make_plan(spec), {})
    return job_id


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

    on_connecting(ledger.database, "PRAGMA max_page_count=1")  # SQLite then behaves as on a full disk

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


