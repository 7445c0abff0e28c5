"""The ledger's looks at sealed test sets. Each method is one transaction; a look is never changed or removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime

from sqlalchemy import Connection, insert, select

from tuneport.core.ledger.records import LookRecord
from tuneport.core.ledger.tables import looks
from tuneport.core.secrets import redact

Connections = Callable[[], AbstractContextManager[Connection]]


class LookStore:
    """Looks of one ledger: ``Ledger.looks``. Raises LedgerError when the database fails; stores no secrets."""

    def __init__(self, read: Connections, write: Connections, now: Callable[[], datetime]) -> None:
        self._read, self._write, self._now = read, write, now

    def add(self, suite_sha256: str, suite: str, arms: Iterable[tuple[str, str, str]], rows: int) -> None:
        """Write down, all or none, that arms (name, provider, model) were scored on these test rows now."""
        now = self._now()
        shared = {"at": now, "suite_sha256": suite_sha256, "suite": redact(suite), "rows": rows}
        lines = [{**shared, "arm": redact(arm), "provider": provider, "model": redact(model)} for arm, provider, model in arms]
        if lines:
            with self._write() as connection:
                connection.execute(insert(looks), lines)

    def of(self, suite_sha256: str) -> list[LookRecord]:
        """Every look at these test rows, oldest first."""
        query = select(looks).where(looks.c.suite_sha256 == suite_sha256).order_by(looks.c.id)
        names = ("at", "suite_sha256", "suite", "arm", "provider", "model", "rows")
        with self._read() as connection:
            return [LookRecord(*(getattr(row, name) for name in names)) for row in connection.execute(query)]
