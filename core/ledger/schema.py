"""Brings the schema of a ledger up to date, by alembic. ``migrations/versions`` holds the schema and every step to it.

``schema.sql`` is what they end in, for a new SQLite file: loading alembic and SQLAlchemy takes longer than a command on the ledger may.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tuneport.core.errors import LedgerError
from tuneport.core.ledger.database import Database
from tuneport.core.ledger.locks import Locks

SCRIPTS = Path(__file__).parent / "migrations"
NEWEST = Path(__file__).parent / "schema.sql"
HEAD = "0004"
"""The newest revision in ``migrations/versions``. A constant, so that an up-to-date ledger opens without alembic."""
_KEPT_LOG = "PRAGMA journal_mode=WAL"
"""Stays with the file; readers never block the writer."""


def upgrade(database: Database, locks: Locks, *, scripts: Path = SCRIPTS, head: str = HEAD) -> None:
    """Migrate to ``head``, one process at a time, in one transaction. Raises LedgerError when the ledger is newer or damaged."""
    if _revision(database) == head:
        return
    with locks.hold("migration"):
        found = _revision(database)
        if found != head:
            with database.faults():
                if found is None and database.dialect == "sqlite" and (scripts, head) == (SCRIPTS, HEAD):
                    _create(database)
                else:
                    _migrate(database, found, scripts, head)


def _revision(database: Database) -> str | None:
    """The schema version; None for a database without one."""
    with database.transaction() as connection:
        if not connection.run(database.find_table, {"name": "alembic_version"}):
            return None
        found = connection.run("SELECT version_num FROM alembic_version")
        return str(found[0][0]) if found else None


def _create(database: Database) -> None:
    with closing(database.connect()) as raw:
        raw.execute(_KEPT_LOG)
        raw.execute(database.begin_write)
        for statement in NEWEST.read_text(encoding="utf-8").split(";\n"):
            raw.execute(statement)
        raw.execute("COMMIT")


def _migrate(database: Database, found: str | None, scripts: Path, head: str) -> None:
    # An old ledger, or a new one in PostgreSQL, alone pays for loading these.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from sqlalchemy import StaticPool, create_engine  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    config = Config(attributes={})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise LedgerError(
            f"the ledger {database.name} has version {found}, which is newer than this tuneport knows ({head})",
            fix="install the newer tuneport that wrote it",
        )
    sqlite = database.dialect == "sqlite"
    raw = database.connect()
    engine = create_engine(f"{database.dialect}://", creator=lambda: raw, poolclass=StaticPool)
    try:
        if sqlite:  # both must be said outside a transaction
            raw.execute(_KEPT_LOG)
            raw.execute("PRAGMA foreign_keys=OFF")  # a table that is rebuilt is dropped for a moment
        with engine.connect() as connection, connection.begin():
            raw.execute(database.begin_write)  # neither driver begins by itself
            config.attributes["connection"] = connection
            command.upgrade(config, head)
            if sqlite and raw.execute("PRAGMA foreign_key_check").fetchone() is not None:
                raise LedgerError(
                    f"the ledger {database.name} holds rows of jobs that it does not have, and was left at version {found}",
                    fix="put a backup in its place, or move it away to begin a new one (the vendors keep their jobs)",
                )
    except DBAPIError as error:
        raise (error.orig or error) from error
    finally:
        engine.dispose()
