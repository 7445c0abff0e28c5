"""Opens the ledger's database, brings its schema up to date, and names what is wrong when that fails."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, Pool, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tuneport.core.errors import LedgerError, MissingExtraError, NoLedgerError
from tuneport.core.ledger.locks import Locks, database_locks

DEFAULT_PATH = Path(".tuneport") / "ledger.db"
ENVIRONMENT = "TUNEPORT_LEDGER"
BUSY_TIMEOUT_MS = 30_000

SCRIPTS = Path(__file__).parent / "migrations"
HEAD = "0004"
"""The newest revision in ``migrations/versions``. A constant, so that an up-to-date ledger opens without alembic (0.25 s)."""

WRITES = "tuneport_writes"  # execution option of transactions that will write


def open_database(location: str | Path | None, *, create: bool) -> tuple[Engine, Locks, str]:
    """The engine, the locks and the printable name of the ledger at a path or URL, migrated to ``HEAD``.

    ``location`` defaults to TUNEPORT_LEDGER, then to ``.tuneport/ledger.db`` in the working directory.
    Raises LedgerError when the ledger cannot be opened, is damaged, or is newer than this version of tuneport.
    """
    url = _url(location or os.environ.get(ENVIRONMENT) or DEFAULT_PATH)
    if url.drivername.startswith("sqlite"):
        path = Path(url.database or "")
        if not create and not path.exists():
            raise NoLedgerError(f"there is no ledger at {path}", fix=f"submit a job first, or point {ENVIRONMENT} at the ledger")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(str(path), error.strerror or str(error)) from error
        name, engine = str(path), _sqlite(url)
    else:
        name, engine = url.render_as_string(hide_password=True), _postgresql(url)
    try:
        with ledger_errors(name):
            locks = database_locks(engine, name)
            upgrade(engine, locks, name)
    except LedgerError:
        engine.dispose()
        raise
    return engine, locks, name


def upgrade(engine: Engine, locks: Locks, name: str, *, scripts: Path = SCRIPTS, head: str = HEAD) -> None:
    """Migrate to ``head``, one process at a time, in one transaction. Raises LedgerError on a newer ledger."""
    if _revision(engine) == head:
        return
    with locks.hold("migration"):
        if engine.dialect.name == "sqlite":
            raw = engine.raw_connection()  # outside any transaction, as SQLite demands
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # stays with the file; readers never block the writer
            finally:
                raw.close()
        found = _revision(engine)
        if found != head:
            _migrate(engine, name, found, scripts, head)


def _migrate(engine: Engine, name: str, found: str | None, scripts: Path, head: str) -> None:
    from alembic import command  # noqa: PLC0415 -- 0.25 s that only a new or old ledger pays
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config(attributes={})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise LedgerError(
            f"the ledger {name} has version {found}, which is newer than this tuneport knows ({head})",
            fix="install the newer tuneport that wrote it",
        )
    sqlite = engine.dialect.name == "sqlite"
    with engine.execution_options(**{WRITES: True}).connect() as connection:
        if sqlite:  # a table that is rebuilt is dropped for a moment; it must be said before the transaction begins
            connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, head)
            if sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise LedgerError(
                    f"the ledger {name} holds rows of jobs that it does not have, and was left at version {found}",
                    fix="put a backup in its place, or move it away to begin a new one (the vendors keep their jobs)",
                )


def _revision(engine: Engine) -> str | None:
    """The schema version; None for a database without one."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if revision is None else str(revision)


def _url(location: str | Path) -> URL:
    spelled = str(location)
    if "://" not in spelled:
        return URL.create("sqlite", database=str(Path(spelled).expanduser().absolute()))
    fix = "use a file path, sqlite:///path or postgresql+psycopg://user@host/database"
    try:
        url = make_url(spelled)
    except ArgumentError as error:
        raise LedgerError(f"{ENVIRONMENT} is no database URL", fix=fix) from error
    if url.get_backend_name() in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        return url
    raise LedgerError(f"a ledger cannot live in {url.render_as_string(hide_password=True)}", fix=fix)


def _sqlite(url: URL, pool: type[Pool] = NullPool) -> Engine:
    # One connection per operation: opening costs 0.2 ms, and nothing is left open to leak or to survive a fork.
    engine = create_engine(url, poolclass=pool)

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own; _begin does
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")  # an intent survives a power failure, not only a crash

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes its lock at once: two that read first and write later would otherwise fail as "locked".
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    if find_spec("psycopg") is None:
        raise MissingExtraError("a ledger in PostgreSQL needs psycopg", "postgres")
    arguments: dict[str, Any] = {} if "connect_timeout" in url.query else {"connect_timeout": 10}
    return create_engine(url, pool_pre_ping=True, connect_args=arguments)


@contextmanager
def ledger_errors(name: str) -> Iterator[None]:
    """Turns the database's errors into one sentence. ``name`` is the ledger's path, or its URL without password."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        low = cause.lower()
        if "disk is full" in low or "no space left" in low:
            raise LedgerError(
                f"the disk that holds the ledger {name} is full", fix="free some space and run again; what was recorded before is safe"
            ) from error
        if "not a database" in low or "malformed" in low:
            raise LedgerError(
                f"the ledger {name} is damaged or no ledger at all ({cause})",
                fix="put a backup in its place, or move it away to begin a new one (the vendors keep their jobs)",
            ) from error
        if "unable to open" in low or "readonly" in low or "permission denied" in low:
            raise _cannot_write(name, cause) from error
        if "locked" in low:
            raise LedgerError(
                f"the ledger {name} has been held by another process for {BUSY_TIMEOUT_MS // 1000} s",
                fix="wait for it to end, then run again",
            ) from error
        raise LedgerError(f"the ledger {name} failed ({cause})", fix=f"check that {ENVIRONMENT} names the right database") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise _cannot_write(name, error.strerror or str(error)) from error


def _cannot_write(name: str, why: str) -> LedgerError:
    return LedgerError(
        f"the ledger {name} cannot be opened for writing ({why})",
        fix=f"run in a directory that you may write to, or point {ENVIRONMENT} at one",
    )
