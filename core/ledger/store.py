"""Ledger: every read and write of the durable store. Each method is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tuneport.core.errors import LedgerError, UsageError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.keys import new_key
from tuneport.core.ledger.database import Connection, Database, database_at
from tuneport.core.ledger.deployments import DeploymentStore
from tuneport.core.ledger.locks import Locks, StillHeld, locks_of
from tuneport.core.ledger.looks import LookStore
from tuneport.core.ledger.records import JobRecord, Step, Transition
from tuneport.core.ledger.rows import Rows, document
from tuneport.core.ledger.schema import upgrade
from tuneport.core.secrets import redact

if TYPE_CHECKING:  # pydantic and its models take 0.2 s to load, and listing jobs needs none
    from pydantic import BaseModel

    from tuneport.core.money import Range
    from tuneport.core.options import ProviderOptions
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec

_Model = TypeVar("_Model", bound="BaseModel")
_JOBS = Rows(JobRecord, "jobs")
_TRANSITIONS = Rows(Transition, "transitions")
_EVENTS = Rows(JobEvent, "events", id="event_id")
_CHECKPOINTS = Rows(Checkpoint, "checkpoints")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """The store of all jobs. Safe to use from several processes and threads at once.

    Every method raises LedgerError when the database fails. Free text is stored without secrets.
    """

    def __init__(self, database: Database, locks: Locks, now: Callable[[], datetime] = _utc_now) -> None:
        self.database = database
        self.name = database.name  # path, or URL without password
        self.now = now
        self._locks = locks
        self.deployments = DeploymentStore(database, lambda: self.now())  # noqa: PLW0108 -- a test may set it
        self.looks = LookStore(database, lambda: self.now())  # noqa: PLW0108

    @classmethod
    def open(cls, location: str | Path | None = None, *, create: bool = True, now: Callable[[], datetime] = _utc_now) -> Ledger:
        """The ledger at a path or a database URL, migrated to the newest schema.

        ``location`` defaults to TUNEPORT_LEDGER, then to ``.tuneport/ledger.db`` in the working directory.
        Raises LedgerError when it cannot be opened, is damaged, is newer than this tuneport, or is missing and ``create`` is False.
        """
        database = database_at(location, create=create)
        locks = locks_of(database)
        try:
            upgrade(database, locks)
        except LedgerError:
            database.close()
            raise
        return cls(database, locks, now)

    def close(self) -> None:
        """Give back all connections."""
        self.database.close()

    @contextmanager
    def claim(self, job_id: str) -> Iterator[StillHeld | None]:
        """Try to be the only one who submits this job; yields None when another process or thread is at it.

        Yields a function otherwise, which says whether the claim still holds. It ends with the process.
        """
        with ExitStack() as stack:
            with self.database.faults():
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
            "state": JobState.SUBMITTING,
            "raw_state": "",
            "step": Step.INTENT,
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
        with self.database.transaction(write=True) as connection:
            if connection.one(_JOBS, job_id) is not None:
                return False
            connection.insert("jobs", row)
            self._transition(connection, job_id, JobState.SUBMITTING, "", "intent written down")
        return True

    def uploaded(self, job_id: str, files: Mapping[str, str]) -> None:
        """The files are at the provider; ``files`` is {role: file id}."""
        self._set(job_id, step=Step.UPLOADED, uploads=dict(files))

    def creating(self, job_id: str) -> bool:
        """Create is about to be called. False, and nothing changes, when cancelling was asked for meanwhile."""
        with self.database.transaction(write=True) as connection:
            row = self._locked(connection, job_id)
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
        with self.database.transaction(write=True) as connection:
            row = self._locked(connection, job_id)
            self._update(connection, job_id, **{name: self.now() for name, happened in moments.items() if happened})
            self._transition(connection, job_id, row.state, row.raw_state, redact(what))

    def ended_unmade(self, job_id: str, state: JobState, message: str) -> None:
        """The job ended before the provider made it: nothing exists there, nothing was spent."""
        with self.database.transaction(write=True) as connection:
            row = self._locked(connection, job_id)
            if row.ref is not None or row.state.terminal:
                return
            note = redact(message)
            self._update(connection, job_id, state=state, message=note, read_error=None, read_error_at=None)
            self._transition(connection, job_id, state, "", note)

    def observe(self, job_id: str, remote: RemoteJob, note: str = "") -> JobRecord:
        """Store what the provider just said. What it does not say stays as it was; a terminal state never changes."""
        with self.database.transaction(write=True) as connection:
            row = self._locked(connection, job_id)
            said: dict[str, Any] = {
                "tuned_model": remote.tuned_model,
                "billed_tokens": remote.billed_tokens,
                "billed_usd": remote.billed_usd,
            }
            raw, message, before = redact(remote.raw_state), redact(remote.message), row.state
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
        with self.database.transaction(write=True) as connection:
            self._locked(connection, job_id)
            known = {event.id for event in connection.all(_EVENTS, "WHERE job_id = :job", job=job_id)}
            new = list({e.id: e for e in clean if e.id not in known}.values())
            rows = [
                {"job_id": job_id, "event_id": e.id, "at": e.at, "level": e.level, "message": e.message, "metrics": e.metrics} for e in new
            ]
            if rows:
                connection.insert("events", *rows, conflict="ON CONFLICT (job_id, event_id) DO NOTHING")
        return new

    def add_checkpoints(self, job_id: str, found: Iterable[Checkpoint]) -> None:
        """Store checkpoints; one of a step that is known replaces it."""
        rows = [{"job_id": job_id, "step": c.step, "model": c.model, "metrics": c.metrics} for c in found]
        if not rows:
            return
        newer = "ON CONFLICT (job_id, step) DO UPDATE SET model = excluded.model, metrics = excluded.metrics"
        with self.database.transaction(write=True) as connection:
            self._locked(connection, job_id)
            connection.insert("checkpoints", *rows, conflict=newer)

    # Reads

    def get(self, job_id: str) -> JobRecord:
        """One job. Raises UsageError when the ledger has no such job."""
        with self.database.transaction() as connection:
            found = connection.one(_JOBS, job_id)
        if found is None:
            raise self._no_such(job_id)
        return found

    def latest(self, *, limit: int | None = 50, states: Collection[JobState] = (), provider: str | None = None) -> list[JobRecord]:
        """The latest jobs, newest first. ``limit`` None means all; no ``states`` means every state."""
        wanted = {f"state_{number}": state for number, state in enumerate(states)}
        conditions = [f"state IN ({', '.join(f':{name}' for name in wanted)})"] if wanted else []
        if provider is not None:
            conditions.append("provider = :provider")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        order = "ORDER BY created_at DESC, id DESC" + ("" if limit is None else " LIMIT :limit")
        with self.database.transaction() as connection:
            return connection.all(_JOBS, f"{where} {order}", **wanted, provider=provider, limit=limit)

    def unfinished_submissions(self) -> list[JobRecord]:
        """Jobs written down whose creation is not recorded, oldest first."""
        query = "WHERE state = :state AND ref IS NULL ORDER BY created_at, id"
        with self.database.transaction() as connection:
            return connection.all(_JOBS, query, state=JobState.SUBMITTING)

    def billed(self, provider: str, limit: int) -> list[JobRecord]:
        """The latest jobs of a provider that succeeded, whose cost was estimated, and that the vendor has billed; newest first."""
        query = (
            "WHERE provider = :provider AND state = :state AND (billed_usd IS NOT NULL OR billed_tokens IS NOT NULL) "
            "AND planned_high_usd IS NOT NULL ORDER BY created_at DESC, id DESC LIMIT :limit"
        )
        with self.database.transaction() as connection:
            return connection.all(_JOBS, query, provider=provider, state=JobState.SUCCEEDED, limit=limit)

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
        with self.database.transaction() as connection:
            return connection.all(_TRANSITIONS, "WHERE job_id = :job ORDER BY id", job=job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        """The stored events, oldest first."""
        with self.database.transaction() as connection:
            return connection.all(_EVENTS, "WHERE job_id = :job ORDER BY at, id", job=job_id)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The stored checkpoints, by step."""
        with self.database.transaction() as connection:
            return connection.all(_CHECKPOINTS, "WHERE job_id = :job ORDER BY step", job=job_id)

    # Inner parts

    def _set(self, job_id: str, **values: Any) -> None:
        with self.database.transaction(write=True) as connection:
            self._locked(connection, job_id)
            self._update(connection, job_id, **values)

    def _update(self, connection: Connection, job_id: str, **values: Any) -> None:
        connection.update("jobs", job_id, **values, updated_at=self.now())

    def _locked(self, connection: Connection, job_id: str) -> JobRecord:
        found = connection.one(_JOBS, job_id, to_change=True)
        if found is None:
            raise self._no_such(job_id)
        return found

    def _transition(self, connection: Connection, job_id: str, state: JobState, raw_state: str, note: str) -> None:
        row = {"job_id": job_id, "at": self.now(), "state": state, "raw_state": raw_state, "note": note}
        connection.insert("transitions", row)

    def _document(self, job_id: str, column: str, model: type[_Model], part: str | None = None) -> _Model:
        from pydantic import ValidationError  # noqa: PLC0415 - see the head of this file

        found = self._column(job_id, column)
        try:
            return model.model_validate(found if part is None else found.get(part, {}))
        except ValidationError as error:
            raise LedgerError(
                f"the {column} of job {job_id} in {self.name} cannot be read by this version of tuneport",
                fix="use the version that submitted it (tuneport jobs still shows the job)",
            ) from error

    def _column(self, job_id: str, column: str) -> Any:
        with self.database.transaction() as connection:
            found = connection.value("jobs", column, job_id)
        if found is None:
            raise self._no_such(job_id)
        return document(found[0])

    def _no_such(self, job_id: str) -> UsageError:
        return UsageError(f"there is no job {job_id!r} in the ledger {self.name}", fix="list the jobs with: tuneport jobs")
