"""The ledger's deployments. Each method is one transaction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, Select, insert, select, update

from tuneport.core.deployment import DeploymentState, RemoteDeployment
from tuneport.core.errors import LedgerError, UsageError
from tuneport.core.keys import new_key
from tuneport.core.ledger.records import DeploymentChange, DeploymentRecord, Step
from tuneport.core.ledger.tables import deployment_changes, deployments
from tuneport.core.secrets import redact

if TYPE_CHECKING:  # loads pydantic, which listing does not need
    from tuneport.core.deployment_plan import DeploymentPlan

_RECORD: Select[Any] = select(*[column for column in deployments.c if column.name != "plan"])
_ENDED = [state.value for state in DeploymentState if not state.standing]

Connections = Callable[[], AbstractContextManager[Connection]]


class DeploymentStore:
    """Deployments of one ledger: ``Ledger.deployments``. Raises LedgerError when the database fails; stores no secrets."""

    def __init__(self, name: str, read: Connections, write: Connections, now: Callable[[], datetime]) -> None:
        self._name, self._read, self._write, self._now = name, read, write, now

    # Writes

    def add(self, deployment_id: str, job_id: str, plan: DeploymentPlan, *, ttl_s: float | None, stands_on: str | None) -> bool:
        """Write down the intent to deploy. False, and nothing is written, when the id is taken."""
        now, price = self._now(), plan.usd_per_hour
        row = {
            "id": deployment_id,
            "key": new_key(deployment_id),
            "job_id": job_id,
            "provider": plan.provider,
            "model": plan.model,
            "mode": plan.mode,
            "state": DeploymentState.DEPLOYING.value,
            "raw_state": "",
            "step": Step.INTENT.value,
            "message": "",
            "low_usd_per_hour": price.low if price else None,
            "high_usd_per_hour": price.high if price else None,
            "committed_hours": plan.committed_hours,
            "may_idle": plan.may_idle,
            "stands_on": stands_on,
            "created_at": now,
            "updated_at": now,
            "expires_at": now + timedelta(seconds=ttl_s) if ttl_s is not None else None,
            "plan": plan.model_dump(mode="json"),
        }
        with self._write() as connection:
            if connection.execute(select(deployments.c.id).where(deployments.c.id == deployment_id)).first() is not None:
                return False
            connection.execute(insert(deployments), row)
            self._change(connection, deployment_id, DeploymentState.DEPLOYING, "", "intent written down")
        return True

    def creating(self, deployment_id: str) -> bool:
        """Create is about to be called. False, and nothing changes, when undeploying was asked for meanwhile."""
        with self._write() as connection:
            if self._locked(connection, deployment_id).undeploy_requested_at is not None:
                return False
            self._update(connection, deployment_id, step=Step.CREATING.value, create_called_at=self._now(), message="")
        return True

    def not_created(self, deployment_id: str, why: str) -> None:
        """The provider refused for now and made nothing, so that create may be called again later."""
        with self._write() as connection:
            self._locked(connection, deployment_id)
            self._update(connection, deployment_id, step=Step.INTENT.value, create_called_at=None, message=redact(why))

    def ended_unmade(self, deployment_id: str, why: str) -> None:
        """It ended before the provider made anything: nothing exists there, nothing was spent."""
        with self._write() as connection:
            row = self._locked(connection, deployment_id)
            if row.ref is not None or not DeploymentState(row.state).standing:
                return
            state, note = DeploymentState.REFUSED, redact(why)
            self._update(connection, deployment_id, state=state.value, message=note, ended_at=self._now(), read_error=None)
            self._change(connection, deployment_id, state, "", note)

    def observe(self, deployment_id: str, remote: RemoteDeployment, note: str = "") -> DeploymentRecord:
        """Store what the provider just said. What it does not say stays; what is gone stays gone.

        Once undeploying was asked for, a provider that still shows the deployment changes nothing but its raw state.
        """
        with self._write() as connection:
            row, now = self._locked(connection, deployment_id), self._now()
            before, state = DeploymentState(row.state), remote.state
            if before.standing:
                if row.undeploy_requested_at is not None and state is not DeploymentState.UNDEPLOYED:
                    state = DeploymentState.UNDEPLOYING
                raw, message = redact(remote.raw_state), redact(remote.message)
                changed = (before, row.raw_state) != (state, raw)
                price = remote.usd_per_hour
                values: dict[str, Any] = {
                    "state": state.value,
                    "raw_state": raw,
                    "ref": remote.ref,
                    "step": Step.CREATED.value,
                    "message": message if message or changed else row.message,
                    "call_as": remote.call_as or row.call_as,
                    "ready_at": row.ready_at or (now if state.serving else None),
                    "ended_at": None if state.standing else now,
                    "last_seen_at": now,
                    "read_error": None,
                    "read_error_at": None,
                }
                if price is not None:
                    values |= {"low_usd_per_hour": price.low, "high_usd_per_hour": price.high}
                self._update(connection, deployment_id, **values)
                if changed:
                    self._change(connection, deployment_id, state, raw, redact(note) or message)
        return self.get(deployment_id)

    def request_undeploy(self, deployment_id: str, why: str) -> DeploymentRecord:
        """Remember that it shall be taken down, for whoever works on it next."""
        with self._write() as connection:
            row = self._locked(connection, deployment_id)
            if DeploymentState(row.state).standing and row.undeploy_requested_at is None:
                self._update(connection, deployment_id, undeploy_requested_at=self._now())
                self._change(connection, deployment_id, DeploymentState(row.state), row.raw_state, redact(why))
        return self.get(deployment_id)

    def note(self, deployment_id: str, message: str) -> None:
        """Say why it stands where it stands."""
        self._set(deployment_id, message=redact(message))

    def read_failed(self, deployment_id: str, why: str) -> DeploymentRecord:
        """The provider could not be asked: the last good state stays, and its age becomes visible."""
        self._set(deployment_id, read_error=redact(why), read_error_at=self._now())
        return self.get(deployment_id)

    # Reads

    def get(self, deployment_id: str) -> DeploymentRecord:
        """One deployment. Raises UsageError when the ledger has no such deployment."""
        with self._read() as connection:
            row = connection.execute(_RECORD.where(deployments.c.id == deployment_id)).one_or_none()
        if row is None:
            raise self._no_such(deployment_id)
        return _record(row)

    def latest(self, *, standing: bool = False, job_id: str | None = None, limit: int | None = None) -> list[DeploymentRecord]:
        """Deployments, newest first; only those that stand where ``standing``, only one job's where ``job_id``."""
        query = _RECORD.order_by(deployments.c.created_at.desc(), deployments.c.id.desc()).limit(limit)
        if standing:
            query = query.where(deployments.c.state.not_in(_ENDED))
        if job_id is not None:
            query = query.where(deployments.c.job_id == job_id)
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def plan(self, deployment_id: str) -> DeploymentPlan:
        """The plan as it was agreed to."""
        from pydantic import ValidationError  # noqa: PLC0415

        from tuneport.core.deployment_plan import DeploymentPlan  # noqa: PLC0415

        with self._read() as connection:
            row = connection.execute(select(deployments.c.plan).where(deployments.c.id == deployment_id)).one_or_none()
        if row is None:
            raise self._no_such(deployment_id)
        try:
            return DeploymentPlan.model_validate(row[0])
        except ValidationError as error:
            what = f"the plan of deployment {deployment_id} in {self._name} cannot be read by this version of tuneport"
            raise LedgerError(what, fix="use the version that deployed it") from error

    def changes(self, deployment_id: str) -> list[DeploymentChange]:
        """Its changes of state and what was asked for, oldest first."""
        query = select(deployment_changes).where(deployment_changes.c.deployment_id == deployment_id).order_by(deployment_changes.c.id)
        with self._read() as connection:
            return [DeploymentChange(row.at, DeploymentState(row.state), row.raw_state, row.note) for row in connection.execute(query)]

    # Inner parts

    def _set(self, deployment_id: str, **values: Any) -> None:
        with self._write() as connection:
            self._locked(connection, deployment_id)
            self._update(connection, deployment_id, **values)

    def _update(self, connection: Connection, deployment_id: str, **values: Any) -> None:
        connection.execute(update(deployments).where(deployments.c.id == deployment_id).values(**values, updated_at=self._now()))

    def _locked(self, connection: Connection, deployment_id: str) -> Row[Any]:
        row = connection.execute(_RECORD.where(deployments.c.id == deployment_id).with_for_update()).one_or_none()
        if row is None:
            raise self._no_such(deployment_id)
        return row

    def _change(self, connection: Connection, deployment_id: str, state: DeploymentState, raw_state: str, note: str) -> None:
        row = {"deployment_id": deployment_id, "at": self._now(), "state": state.value, "raw_state": raw_state, "note": note}
        connection.execute(insert(deployment_changes), row)

    def _no_such(self, deployment_id: str) -> UsageError:
        what = f"there is no deployment {deployment_id!r} in the ledger {self._name}"
        return UsageError(what, fix="list them with: tuneport deployments --all")


def _record(row: Row[Any]) -> DeploymentRecord:
    values = dict(row._mapping)
    return DeploymentRecord(**{**values, "state": DeploymentState(values["state"]), "step": Step(values["step"])})
