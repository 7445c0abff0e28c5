"""The ledger's deployments. Each method is one transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tuneport.core.deployment import DeploymentState, RemoteDeployment
from tuneport.core.errors import LedgerError, UsageError
from tuneport.core.keys import new_key
from tuneport.core.ledger.database import Connection, Database
from tuneport.core.ledger.records import DeploymentChange, DeploymentRecord, Step
from tuneport.core.ledger.rows import Rows, document
from tuneport.core.secrets import redact

if TYPE_CHECKING:  # loads pydantic, which listing does not need
    from tuneport.core.deployment_plan import DeploymentPlan

_DEPLOYMENTS = Rows(DeploymentRecord, "deployments")
_CHANGES = Rows(DeploymentChange, "deployment_changes")
_ENDED = ", ".join(f"'{state.value}'" for state in DeploymentState if not state.standing)


class DeploymentStore:
    """Deployments of one ledger: ``Ledger.deployments``. Raises LedgerError when the database fails; stores no secrets."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database, self._now = database, now

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
            "state": DeploymentState.DEPLOYING,
            "raw_state": "",
            "step": Step.INTENT,
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
        with self._database.transaction(write=True) as connection:
            if connection.one(_DEPLOYMENTS, deployment_id) is not None:
                return False
            connection.insert("deployments", row)
            self._change(connection, deployment_id, DeploymentState.DEPLOYING, "", "intent written down")
        return True

    def creating(self, deployment_id: str) -> bool:
        """Create is about to be called. False, and nothing changes, when undeploying was asked for meanwhile."""
        with self._database.transaction(write=True) as connection:
            if self._locked(connection, deployment_id).undeploy_requested_at is not None:
                return False
            self._update(connection, deployment_id, step=Step.CREATING, create_called_at=self._now(), message="")
        return True

    def not_created(self, deployment_id: str, why: str) -> None:
        """The provider refused for now and made nothing, so that create may be called again later."""
        with self._database.transaction(write=True) as connection:
            self._locked(connection, deployment_id)
            self._update(connection, deployment_id, step=Step.INTENT, create_called_at=None, message=redact(why))

    def ended_unmade(self, deployment_id: str, why: str) -> None:
        """It ended before the provider made anything: nothing exists there, nothing was spent."""
        with self._database.transaction(write=True) as connection:
            row = self._locked(connection, deployment_id)
            if row.ref is not None or not row.state.standing:
                return
            state, note = DeploymentState.REFUSED, redact(why)
            self._update(connection, deployment_id, state=state, message=note, ended_at=self._now(), read_error=None)
            self._change(connection, deployment_id, state, "", note)

    def observe(self, deployment_id: str, remote: RemoteDeployment, note: str = "") -> DeploymentRecord:
        """Store what the provider just said. What it does not say stays; what is gone stays gone.

        Once undeploying was asked for, a provider that still shows the deployment changes nothing but its raw state.
        """
        with self._database.transaction(write=True) as connection:
            row, now = self._locked(connection, deployment_id), self._now()
            before, state = row.state, remote.state
            if before.standing:
                if row.undeploy_requested_at is not None and state is not DeploymentState.UNDEPLOYED:
                    state = DeploymentState.UNDEPLOYING
                raw, message = redact(remote.raw_state), redact(remote.message)
                changed = (before, row.raw_state) != (state, raw)
                price = remote.usd_per_hour
                values: dict[str, Any] = {
                    "state": state,
                    "raw_state": raw,
                    "ref": remote.ref,
                    "step": Step.CREATED,
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
        with self._database.transaction(write=True) as connection:
            row = self._locked(connection, deployment_id)
            if row.state.standing and row.undeploy_requested_at is None:
                self._update(connection, deployment_id, undeploy_requested_at=self._now())
                self._change(connection, deployment_id, row.state, row.raw_state, redact(why))
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
        with self._database.transaction() as connection:
            found = connection.one(_DEPLOYMENTS, deployment_id)
        if found is None:
            raise self._no_such(deployment_id)
        return found

    def latest(self, *, standing: bool = False, job_id: str | None = None, limit: int | None = None) -> list[DeploymentRecord]:
        """Deployments, newest first; only those that stand where ``standing``, only one job's where ``job_id``."""
        conditions = ["job_id = :job"] if job_id is not None else []
        if standing:
            conditions.append(f"state NOT IN ({_ENDED})")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        order = "ORDER BY created_at DESC, id DESC" + ("" if limit is None else " LIMIT :limit")
        with self._database.transaction() as connection:
            return connection.all(_DEPLOYMENTS, f"{where} {order}", job=job_id, limit=limit)

    def plan(self, deployment_id: str) -> DeploymentPlan:
        """The plan as it was agreed to."""
        from pydantic import ValidationError  # noqa: PLC0415

        from tuneport.core.deployment_plan import DeploymentPlan  # noqa: PLC0415

        with self._database.transaction() as connection:
            found = connection.value("deployments", "plan", deployment_id)
        if found is None:
            raise self._no_such(deployment_id)
        try:
            return DeploymentPlan.model_validate(document(found[0]))
        except ValidationError as error:
            what = f"the plan of deployment {deployment_id} in {self._database.name} cannot be read by this version of tuneport"
            raise LedgerError(what, fix="use the version that deployed it") from error

    def changes(self, deployment_id: str) -> list[DeploymentChange]:
        """Its changes of state and what was asked for, oldest first."""
        with self._database.transaction() as connection:
            return connection.all(_CHANGES, "WHERE deployment_id = :id ORDER BY id", id=deployment_id)

    # Inner parts

    def _set(self, deployment_id: str, **values: Any) -> None:
        with self._database.transaction(write=True) as connection:
            self._locked(connection, deployment_id)
            self._update(connection, deployment_id, **values)

    def _update(self, connection: Connection, deployment_id: str, **values: Any) -> None:
        connection.update("deployments", deployment_id, **values, updated_at=self._now())

    def _locked(self, connection: Connection, deployment_id: str) -> DeploymentRecord:
        found = connection.one(_DEPLOYMENTS, deployment_id, to_change=True)
        if found is None:
            raise self._no_such(deployment_id)
        return found

    def _change(self, connection: Connection, deployment_id: str, state: DeploymentState, raw_state: str, note: str) -> None:
        row = {"deployment_id": deployment_id, "at": self._now(), "state": state, "raw_state": raw_state, "note": note}
        connection.insert("deployment_changes", row)

    def _no_such(self, deployment_id: str) -> UsageError:
        what = f"there is no deployment {deployment_id!r} in the ledger {self._database.name}"
        return UsageError(what, fix="list them with: tuneport deployments --all")
