"""The ledger's looks at sealed test sets. Each method is one transaction; a look is never changed or removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from tuneport.core.ledger.database import Database
from tuneport.core.ledger.records import LookRecord
from tuneport.core.ledger.rows import Rows
from tuneport.core.secrets import redact

_LOOKS = Rows(LookRecord, "looks")


class LookStore:
    """Looks of one ledger: ``Ledger.looks``. Raises LedgerError when the database fails; stores no secrets."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database, self._now = database, now

    def add(self, suite_sha256: str, suite: str, arms: Iterable[tuple[str, str, str]], rows: int) -> None:
        """Write down, all or none, that arms (name, provider, model) were scored on these test rows now."""
        now = self._now()
        shared = {"at": now, "suite_sha256": suite_sha256, "suite": redact(suite), "rows": rows}
        lines = [{**shared, "arm": redact(arm), "provider": provider, "model": redact(model)} for arm, provider, model in arms]
        if lines:
            with self._database.transaction(write=True) as connection:
                connection.insert("looks", *lines)

    def of(self, suite_sha256: str) -> list[LookRecord]:
        """Every look at these test rows, oldest first."""
        with self._database.transaction() as connection:
            return connection.all(_LOOKS, "WHERE suite_sha256 = :suite ORDER BY id", suite=suite_sha256)
