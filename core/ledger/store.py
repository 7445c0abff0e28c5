"""Ledger: every read and write of the durable store. Each method is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, Row, Select, Table, insert, select, update

from tuneport.core.errors import LedgerError, UsageError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.keys import new_key
from tuneport.core.ledger.database import WRITES, ledger_errors, open_database
from tuneport.core.ledger.deployments import DeploymentStore
from tuneport.core.ledger.locks import Locks, StillHeld
from tuneport.core.ledger.looks import LookStore
from tuneport.core.ledger.records import JobRecord, Step, Transition
from tuneport.core.ledger.tables import checkpoints, events, jobs, transitions
from tuneport.core.secrets import redact

_RECORD = [column for column in jobs.c if column.name not in ("sources", "spec", "plan")]
_JOBS: Select[Any] = select(*_RECORD)
if TYPE_CHECKING:  # pydantic and its models take 0.2 s to load, and listing jobs needs none
    from pydantic import BaseModel

    from tuneport.core.money import Range
    from tuneport.core.options import ProviderOptions
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec

_Model = TypeVar("_Model", bound="BaseModel")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """The store of all jobs. Safe to use from several processes and threads at once.

    Every method raises LedgerError when the database fails. Free text is stored without secrets.
    """

    def __init__(self, engine: Engine, locks: Locks, name: str, now: Callable[[], datetime] = _utc_now) -> None:
        self.engine = engine
        self.name = name  # path, or URL without password
        self.now = now
        self._locks = locks
        self._writer = engine.execution_options(**{WRITES: True})
        self.deployments = DeploymentStore(name, self._read, self._write, lambda: self.now())  # noqa: PLW0108 -- a test may set it
        self.looks = LookStore(self._read, self._write, lambda: self.now())  # noqa: PLW0108

    @classmethod
    def open(cls, location: str | Path | None = None, *, create: bool = True, now: Callable[[], datetime] = _utc_now) -> Ledger:
        """The ledger at a path or a SQLAlchemy URL, migrated to the newest schema.

        ``location`` defaults to TUNEPORT_LEDGER, then to ``.tuneport/ledger.db`` in the working directory.
        Raises LedgerError when it cannot be opened, is newer than this tuneport, or is missing and ``create`` is False.
        """
        return cls(*open_database(location, create=create), now)

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    @contextmanager
    def claim(self, job_id: str) -> Iterator[StillHeld | None]:
        """Try to be the only one who submits this job; yields None when another process or thread is at it.

        Yields a function otherwise, which says whether the claim still holds. It ends with the process.
        """
        with ExitStack() as stack:
            with ledger_errors(self.name):
                held = stack.enter_context(self._locks.claim(job_id))
            yield held

    # Writes

    def add(
        self, job_id: str, spec: JobSpec, plan: Plan, sources: Mapping[str, tuple[int, int]], *, estimate: Range | None = None
    ) -> bool:
        """Write down the intent to submit, in state submitting. False, and nothing is written, when the id is taken.

        ``sources`` is {path: (bytes, time of change in ns)} of the data files; ``estimate`` is the cost in USD that the
        user was told, where it is not the plan's own.
        """
        now = self.now()
        planned = plan.cost.usd
        estimate = estimate or planned
        row = {
            "id": job_id,
            "key": new_key(job_id),
            "provider": plan.provider,
            "model": plan.model,
            "method": spec.method,
            "state": JobState.SUBMITTING.value,
            "raw_state": "",
            "step": Step.INTENT.value,
            "message": "",
            "estimate_low_usd": estimate.low if estimate else None,
            "estimate_high_usd": estimate.high if estimate else None,
            "planned_low_usd": planned.low if planned else None,
            "planned_high_usd": planned.high if planned else None,
            "created_at": now,
            "updated_at": now,
            "sources": {path: list(facts) for path, facts in sources.items()},
            "spec": spec.model_dump(mode="json"),
            "plan": plan.model_dump(mode="json"),
        }
        with self._write() as connection:
            if connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).first() is not None:
                return False
            connection.execute(insert(jobs), row)
            self._transition(connection, job_id, JobState.SUBMITTING, "", "intent written down")
        return True

    def uploaded(self, job_id: str, files: Mapping[str, str]) -> None:
        """The files are at the provider; ``files`` is {role: file id}."""
        self._set(job_id, step=Step.UPLOADED, uploads=dict(files))

    def creating(self, job_id: str) -> bool:
        """Create is about to be called. False, and nothing changes, when cancelling was asked for meanwhile."""
        with self._write() as connection:
            row = self._locked_row(connection, job_id)
            if row.cancel_requested_at is not None:
                return False
            self._update(connection, job_id, step=Step.CREATING, create_called_at=self.now(), message="")
        return True

    def not_created(self, job_id: str, why: str) -> None:
        """The provider refused for now and made nothing, so that create may be called again later."""
        self._set(job_id, step=Step.UPLOADED, create_called_at=None, message=redact(why))

    def note(self, job_id: str, message: str) -> None:
        """Say why the job stands where it stands."""
        self._set(job_id, message=redact(message))

    def request_cancel(self, job_id: str) -> None:
        """Remember that the job shall be cancelled, for whoever is submitting it."""
        self._set(job_id, cancel_requested_at=self.now())

    def asked(self, job_id: str, what: str, *, pause: bool = False, resume: bool = False, deleted: bool = False) -> None:
        """Put into the job's history that something is asked of the provider, or was done; its state stays what it is."""
        moments = {"pause_requested_at": pause, "resumed_at": resume, "deleted_at": deleted}
        with self._write() as connection:
            row = self._locked_row(connection, job_id)
            self._update(connection, job_id, **{name: self.now() for name, happened in moments.items() if happened})
            self._transition(connection, job_id, JobState(row.state), row.raw_state, redact(what))

    def ended_unmade(self, job_id: str, state: JobState, message: str) -> None:
        """The job ended before the provider made it: nothing exists there, nothing was spent."""
        with self._write() as connection:
            row = self._locked_row(connection, job_id)
            if row.ref is not None or JobState(row.state).terminal:
                return
            note = redact(message)
            self._update(connection, job_id, state=state, message=note, read_error=None, read_error_at=None)
            self._transition(connection, job_id, state, "", note)

    def observe(self, job_id: str, remote: RemoteJob, note: str = "") -> JobRecord:
        """Store what the provider just said. What it does not say stays as it was; a terminal state never changes."""
        with self._write() as connection:
            row = self._locked_row(connection, job_id)
            said: dict[str, Any] = {
                "tuned_model": remote.tuned_model,
                "billed_tokens": remote.billed_tokens,
                "billed_usd": remote.billed_usd,
            }
            raw, message, before = redact(remote.raw_state), redact(remote.message), JobState(row.state)
            if not before.terminal:
                changed = (before, row.raw_state) != (remote.state, raw)
                said |= {"progress": remote.progress, "seconds_left": 0.0 if remote.state.terminal else remote.seconds_left}
                said |= {"message": message if message or changed else None, "ref": remote.ref, "step": Step.CREATED}
                said |= {"state": remote.state, "raw_state": raw}
                if changed:
                    self._transition(connection, job_id, remote.state, raw, redact(note) or message)
            said = {name: value for name, value in said.items() if value is not None}
            self._update(connection, job_id, **said, last_seen_at=self.now(), read_error=None, read_error_at=None)
        return self.get(job_id)

    def read_failed(self, job_id: str, why: str) -> JobRecord:
        """The provider could not be read: the last good state stays, and its age becomes visible."""
        self._set(job_id, read_error=redact(why), read_error_at=self.now())
        return self.get(job_id)

    def add_events(self, job_id: str, found: Iterable[JobEvent]) -> list[JobEvent]:
        """Store events, each once however often it is read; returns those that were new."""
        clean = [JobEvent(e.id, e.at, e.level, redact(e.message), e.metrics) for e in found]
        if not clean:
            return []
        with self._write() as connection:
            self._locked_row(connection, job_id)
            known = set(connection.scalars(select(events.c.event_id).where(events.c.job_id == job_id)))
            new = list({e.id: e for e in clean if e.id not in known}.values())
            if new:
                rows = [
                    {"job_id": job_id, "event_id": e.id, "at": e.at, "level": e.level, "message": e.message, "metrics": e.metrics}
                    for e in new
                ]
                connection.execute(self._upsert(events).on_conflict_do_nothing(index_elements=["job_id", "event_id"]), rows)
        return new

    def add_checkpoints(self, job_id: str, found: Iterable[Checkpoint]) -> None:
        """Store checkpoints; one of a step that is known replaces it."""
        rows = [{"job_id": job_id, "step": c.step, "model": c.model, "metrics": c.metrics} for c in found]
        if not rows:
            return
        upsert = self._upsert(checkpoints)
        newer = {"model": upsert.excluded.model, "metrics": upsert.excluded.metrics}
        with self._write() as connection:
            self._locked_row(connection, job_id)
            connection.execute(upsert.on_conflict_do_update(index_elements=["job_id", "step"], set_=newer), rows)

    # Reads

    def get(self, job_id: str) -> JobRecord:
        """One job. Raises UsageError when the ledger has no such job."""
        with self._read() as connection:
            row = connection.execute(_JOBS.where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise self._no_such(job_id)
        return _record(row)

    def latest(self, *, limit: int | None = 50, states: Collection[JobState] = (), provider: str | None = None) -> list[JobRecord]:
        """The latest jobs, newest first. ``limit`` None means all; no ``states`` means every state."""
        query: Select[Any] = _JOBS.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_([state.value for state in states]))
        if provider is not None:
            query = query.where(jobs.c.provider == provider)
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def unfinished_submissions(self) -> list[JobRecord]:
        """Jobs written down whose creation is not recorded, oldest first."""
        query = _JOBS.where(jobs.c.state == JobState.SUBMITTING.value, jobs.c.ref.is_(None))
        query = query.order_by(jobs.c.created_at, jobs.c.id)
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def billed(self, provider: str, limit: int) -> list[JobRecord]:
        """The latest jobs of a provider that succeeded, whose cost was estimated, and that the vendor has billed; newest first."""
        bill = jobs.c.billed_usd.is_not(None) | jobs.c.billed_tokens.is_not(None)
        query = _JOBS.where(jobs.c.provider == provider, jobs.c.state == JobState.SUCCEEDED.value, bill)
        query = query.where(jobs.c.planned_high_usd.is_not(None)).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def spec(self, job_id: str) -> JobSpec:
        """The spec as submitted."""
        from tuneport.core.spec import JobSpec  # noqa: PLC0415 - see the head of this file

        return self._document(job_id, "spec", JobSpec)

    def plan(self, job_id: str) -> Plan:
        """The plan as submitted."""
        from tuneport.core.plan import Plan  # noqa: PLC0415 - see the head of this file

        return self._document(job_id, "plan", Plan)

    def options(self, job_id: str) -> ProviderOptions:
        """The options part of the spec as submitted: what it takes to reach the provider that the job was sent to."""
        from tuneport.core.options import ProviderOptions  # noqa: PLC0415 - see the head of this file

        return self._document(job_id, "spec", ProviderOptions, "options")

    def sources(self, job_id: str) -> dict[str, tuple[int, int]]:
        """{path: (bytes, time of change in ns)} of the data files when the job was submitted."""
        return {path: (size, changed) for path, (size, changed) in self._column(job_id, "sources").items()}

    def transitions(self, job_id: str) -> list[Transition]:
        """The job's changes of state and what was asked for, oldest first."""
        query = select(transitions).where(transitions.c.job_id == job_id).order_by(transitions.c.id)
        with self._read() as connection:
            return [Transition(row.at, JobState(row.state), row.raw_state, row.note) for row in connection.execute(query)]

    def events(self, job_id: str) -> list[JobEvent]:
        """The stored events, oldest first."""
        query = select(events).where(events.c.job_id == job_id).order_by(events.c.at, events.c.id)
        with self._read() as connection:
            return [JobEvent(row.event_id, row.at, row.level, row.message, row.metrics) for row in connection.execute(query)]

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The stored checkpoints, by step."""
        query = select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step)
        with self._read() as connection:
            return [Checkpoint(row.step, row.model, row.metrics) for row in connection.execute(query)]

    # Inner parts

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with ledger_errors(self.name), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with ledger_errors(self.name), self._writer.begin() as connection:
            yield connection

    def _upsert(self, table: Table) -> Any:
        """An INSERT with the dialect's ON CONFLICT. The other dialect's module is not loaded: it takes 0.1 s."""
        return import_module(f"sqlalchemy.dialects.{self.engine.dialect.name}").insert(table)

    def _set(self, job_id: str, **values: Any) -> None:
        with self._write() as connection:
            self._locked_row(connection, job_id)
            self._update(connection, job_id, **values)

    def _update(self, connection: Connection, job_id: str, **values: Any) -> None:
        plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in values.items()}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(**plain, updated_at=self.now()))

    def _locked_row(self, connection: Connection, job_id: str) -> Row[Any]:
        row = connection.execute(_JOBS.where(jobs.c.id == job_id).with_for_update()).one_or_none()
        if row is None:
            raise self._no_such(job_id)
        return row

    def _transition(self, connection: Connection, job_id: str, state: JobState, raw_state: str, note: str) -> None:
        row = {"job_id": job_id, "at": self.now(), "state": state.value, "raw_state": raw_state, "note": note}
        connection.execute(insert(transitions), row)

    def _document(self, job_id: str, column: str, model: type[_Model], part: str | None = None) -> _Model:
        from pydantic import ValidationError  # noqa: PLC0415 - see the head of this file

        document = self._column(job_id, column)
        try:
            return model.model_validate(document if part is None else document.get(part, {}))
        except ValidationError as error:
            raise LedgerError(
                f"the {column} of job {job_id} in {self.name} cannot be read by this version of tuneport",
                fix="use the version that submitted it (tuneport jobs still shows the job)",
            ) from error

    def _column(self, job_id: str, column: str) -> Any:
        with self._read() as connection:
            row = connection.execute(select(jobs.c[column]).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise self._no_such(job_id)
        return row[0]

    def _no_such(self, job_id: str) -> UsageError:
        return UsageError(f"there is no job {job_id!r} in the ledger {self.name}", fix="list the jobs with: tuneport jobs")


def _record(row: Row[Any]) -> JobRecord:
    values = dict(row._mapping)
    return JobRecord(**{**values, "state": JobState(values["state"]), "step": Step(values["step"])})
