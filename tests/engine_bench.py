"""What the tests of the engine share."""

from __future__ import annotations

from pathlib import Path

from tuneport.core.engine import Engine, Job
from tuneport.core.ledger import JobRecord, Ledger
from tuneport.core.ledger.database import SQLite
from tuneport.core.provider import Provider
from tuneport.tests.fake_provider import Clock, FakeProvider, FakeVendor, make_plan, make_spec, open_rows
from tuneport.tests.stores import on_connecting


class Bench:
    """An engine, a vendor and a clock in one folder."""

    def __init__(self, folder: Path, where: str | None = None, **vendor: object) -> None:
        self.folder = folder
        self.reached_by: list[object] = []  # the options with which the engine asked for a provider
        self.clock = Clock()
        self.vendor = FakeVendor(folder / "vendor.json", **vendor)  # type: ignore[arg-type]
        self.provider = FakeProvider(self.vendor)
        self.providers: dict[str, FakeProvider] = {}  # others, by name
        self.ledger = Ledger.open(where or folder / "ledger.db", now=self.clock.now)
        if isinstance(self.ledger.database, SQLite):
            on_connecting(self.ledger.database, "PRAGMA synchronous=OFF")  # no power fails during a test
        self.engine = Engine(self.ledger, self.get, open_rows, sleep=self.clock.sleep, clock=self.clock.seconds)
        self.spec = make_spec(folder)
        self.plan = make_plan(self.spec)

    def get(self, name: str, options: object) -> Provider:
        self.reached_by.append(options)
        return self.providers.get(name, self.provider)

    def submit(self) -> Job:
        return self.engine.submit(self.spec, self.plan)

    def only_record(self) -> JobRecord:
        (record,) = self.ledger.latest()
        return record
