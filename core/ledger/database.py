"""The ledger's database: SQLite or PostgreSQL, asked in one SQL over the bare driver. Names what is wrong when that fails.

SQLAlchemy serves the migrations alone (``schema.py``): loading it takes longer than a whole command on the ledger may.
"""

from __future__ import annotations

import os
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tuneport.core.errors import LedgerError, MissingExtraError, NoLedgerError
from tuneport.core.ledger.rows import Rows, stored

DEFAULT_PATH = Path(".tuneport") / "ledger.db"
ENVIRONMENT = "TUNEPORT_LEDGER"
BUSY_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 10

_Record = TypeVar("_Record")


def database_at(location: str | Path | None, *, create: bool) -> Database:
    """The database at a path or URL; the folder of a SQLite file is made where it is missing.

    ``location`` defaults to TUNEPORT_LEDGER, then to ``.tuneport/ledger.db`` in the working directory.
    Raises NoLedgerError when a file is missing and ``create`` is False, MissingExtraError without PostgreSQL's driver, LedgerError
    when no ledger can be there.
    """
    spelled = str(location or os.environ.get(ENVIRONMENT) or DEFAULT_PATH)
    scheme, separator, rest = spelled.partition("://")
    if not separator:
        return _file(Path(spelled).expanduser().absolute(), create=create)
    kind = scheme.partition("+")[0]
    if kind in ("postgresql", "postgres"):
        return PostgreSQL(f"postgresql://{rest}")
    path = rest.removeprefix("/")
    if kind == "sqlite" and path and path != ":memory:" and "?" not in path:
        return _file(Path(path), create=create)
    what = f"{ENVIRONMENT} names no database that can hold a ledger ({kind or 'nothing'}://)"
    raise LedgerError(what, fix="use a file path, sqlite:///path or postgresql+psycopg://user@host/database")


def _file(path: Path, *, create: bool) -> SQLite:
    if not create and not path.exists():
        raise NoLedgerError(f"there is no ledger at {path}", fix=f"submit a job first, or point {ENVIRONMENT} at the ledger")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(str(path), error.strerror or str(error)) from error
    return SQLite(path)


class Connection:
    """A transaction on the ledger. SQL names its values (``:id``); tables and columns in it are names in our code."""

    def __init__(self, database: Database, raw: Any) -> None:
        self._database, self._raw = database, raw

    def run(self, sql: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run one statement; the rows that it gives, if any."""
        cursor = self._raw.execute(self._database.spelled(sql), self._bound(values or {}))
        return cursor.fetchall() if cursor.description else []

    def all(self, rows: Rows[_Record], where: str, **values: Any) -> list[_Record]:
        """The records that ``where`` (what stands behind FROM) selects."""
        return [rows.record(row) for row in self.run(f"{rows.select} {where}", values)]

    def one(self, rows: Rows[_Record], row_id: str, *, to_change: bool = False) -> _Record | None:
        """The record of that id; one that is read ``to_change`` it stays locked to the end of the transaction."""
        found = self.all(rows, f"WHERE id = :id{self._database.row_lock if to_change else ''}", id=row_id)
        return found[0] if found else None

    def value(self, table: str, column: str, row_id: str) -> tuple[Any] | None:
        """One column of the row of that id, in a tuple; None when there is no such row."""
        found = self.run(f"SELECT {column} FROM {table} WHERE id = :id", {"id": row_id})
        return (found[0][0],) if found else None

    def insert(self, table: str, *rows: Mapping[str, Any], conflict: str = "") -> None:
        """Insert rows of the same columns; ``conflict`` is an ON CONFLICT clause."""
        names = ", ".join(rows[0])
        places = ", ".join(f":{name}" for name in rows[0])
        sql = self._database.spelled(f"INSERT INTO {table} ({names}) VALUES ({places}) {conflict}")
        self._raw.cursor().executemany(sql, [self._bound(row) for row in rows])

    def update(self, table: str, row_id: str, **values: Any) -> None:
        """Change columns of the row of that id."""
        changes = ", ".join(f"{name} = :{name}" for name in values)
        self.run(f"UPDATE {table} SET {changes} WHERE id = :id", {**values, "id": row_id})

    def _bound(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._database.moment(value) if isinstance(value, datetime) else stored(value) for name, value in values.items()}


class Database(ABC):
    """Where the ledger's tables are. ``name`` is a path, or a URL without password. Safe to use from several threads."""

    dialect: ClassVar[str]  # as SQLAlchemy calls it
    begin_read: ClassVar[str]  # begins a transaction that will only read
    begin_write: ClassVar[str]
    row_lock: ClassVar[str]  # ends a SELECT of rows that will be changed
    find_table: ClassVar[str]  # a query that gives a row when the table ``:name`` exists
    errors: type[Exception]  # base of the driver's errors

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def connect(self) -> Any:
        """A new connection of the driver that begins no transactions by itself."""

    @abstractmethod
    def lend(self) -> Any:
        """A context manager that lends a connection for one transaction."""

    @abstractmethod
    def spelled(self, sql: str) -> str:
        """The SQL with its values named in the driver's way."""

    @abstractmethod
    def moment(self, value: datetime) -> Any:
        """A timezone-aware moment as it is stored."""

    @abstractmethod
    def close(self) -> None:
        """Give back connections that are kept."""

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """All of it is kept, or nothing. Raises LedgerError when the database fails."""
        with self.faults(), self.lend() as raw:
            connection = Connection(self, raw)
            connection.run(self.begin_write if write else self.begin_read)
            try:
                yield connection
                connection.run("COMMIT")
            except BaseException:
                with suppress(self.errors):  # the first error says what is wrong
                    raw.execute("ROLLBACK")
                raise

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turns errors of the driver and the file system into one sentence."""
        try:
            yield
        except self.errors as error:
            said = str(error).strip().splitlines()
            raise _named(self.name, said[0] if said else type(error).__name__) from error
        except OSError as error:
            if error.errno is None:
                raise
            raise _cannot_write(self.name, error.strerror or str(error)) from error


class SQLite(Database):
    """One file. A connection lasts one transaction: opening it costs 0.2 ms, and none is left open to leak or to survive a fork."""

    dialect = "sqlite"
    begin_read = "BEGIN"
    # A writer takes its lock at once: two that read first and write later would otherwise fail as "locked".
    begin_write = "BEGIN IMMEDIATE"
    row_lock = ""
    find_table = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = :name"
    errors = sqlite3.Error

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.name, isolation_level=None)  # None: the driver begins no transactions
        try:
            connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=FULL")  # an intent survives a power failure, not only a crash
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def lend(self) -> closing[sqlite3.Connection]:
        return closing(self.connect())

    def close(self) -> None:
        pass

    def spelled(self, sql: str) -> str:
        return sql

    def moment(self, value: datetime) -> str:
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


class PostgreSQL(Database):
    """A server. Connections are kept for the next transaction and asked whether they still live, since connecting takes long."""

    dialect = "postgresql+psycopg"
    begin_read = "BEGIN READ ONLY"
    begin_write = "BEGIN"
    row_lock = " FOR UPDATE"
    find_table = "SELECT 1 WHERE to_regclass(:name) IS NOT NULL"

    def __init__(self, url: str) -> None:
        if find_spec("psycopg") is None:
            raise MissingExtraError("a ledger in PostgreSQL needs psycopg", "postgres")
        import psycopg  # noqa: PLC0415 - an extra
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        self.errors = psycopg.Error
        self._connect = psycopg.connect
        self._idle: list[psycopg.Connection[Any]] = []
        try:
            known = conninfo_to_dict(url)
        except psycopg.Error as error:
            raise LedgerError(f"{ENVIRONMENT} is no database URL", fix="write postgresql+psycopg://user@host/database") from error
        self._arguments: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, **known}
        user, port = (f"{known[part]}" if known.get(part) else "" for part in ("user", "port"))
        host, database = known.get("host") or "localhost", known.get("dbname") or user
        super().__init__(f"postgresql://{user}{'@' if user else ''}{host}{':' if port else ''}{port}/{database}")

    def connect(self) -> Any:
        return self._connect(**self._arguments, autocommit=True)

    @contextmanager
    def lend(self) -> Iterator[Any]:
        connection = self._living() or self.connect()
        try:
            yield connection
        finally:
            if connection.closed or connection.info.transaction_status:  # 0: idle
                connection.close()
            else:
                self._idle.append(connection)

    def _living(self) -> Any:
        """A connection that was kept and still answers, if any."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            try:
                connection.execute("SELECT 1")
            except self.errors:
                connection.close()
            else:
                return connection

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def spelled(self, sql: str) -> str:
        return _percent(sql)

    def moment(self, value: datetime) -> datetime:
        return value.astimezone(UTC)


@lru_cache(maxsize=256)
def _percent(sql: str) -> str:
    return re.sub(r"(?<!:):(\w+)", r"%(\1)s", sql.replace("%", "%%"))


def _named(name: str, cause: str) -> LedgerError:
    low = cause.lower()
    if "disk is full" in low or "no space left" in low:
        return LedgerError(
            f"the disk that holds the ledger {name} is full", fix="free some space and run again; what was recorded before is safe"
        )
    if "not a database" in low or "malformed" in low:
        return LedgerError(
            f"the ledger {name} is damaged or no ledger at all ({cause})",
            fix="put a backup in its place, or move it away to begin a new one (the vendors keep their jobs)",
        )
    if "unable to open" in low or "readonly" in low or "permission denied" in low:
        return _cannot_write(name, cause)
    if "locked" in low:
        return LedgerError(
            f"the ledger {name} has been held by another process for {BUSY_TIMEOUT_MS // 1000} s", fix="wait for it to end, then run again"
        )
    return LedgerError(f"the ledger {name} failed ({cause})", fix=f"check that {ENVIRONMENT} names the right database")


def _cannot_write(name: str, why: str) -> LedgerError:
    return LedgerError(
        f"the ledger {name} cannot be opened for writing ({why})",
        fix=f"run in a directory that you may write to, or point {ENVIRONMENT} at one",
    )
