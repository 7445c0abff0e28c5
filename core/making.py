"""Makes a deployment exactly once: intent on disk → create → record.

As with jobs (``core.submission``) the ledger says on disk that a step begins before it begins: *intent*, then *creating*, then
*created*. Create is called again only after ``Deployer.find`` has shown nothing for the settling time.
"""

from __future__ import annotations

from tuneport.core.deployment import RemoteDeployment
from tuneport.core.errors import LedgerError, ProviderError, TuneportError
from tuneport.core.ledger import DeploymentRecord, Ledger, Step
from tuneport.core.ledger.locks import StillHeld
from tuneport.core.provider import Deployer
from tuneport.core.retry import verdict
from tuneport.core.submission import SETTLE_S, Sleep, looked_for, proves_nothing_made

RESUME_FIX = "go on with: tuneport reconcile --yes, or give it up with: tuneport undeploy {}"


class Making:
    """One claimed deployment on its way to the provider. All calls of ``Deployer.create`` happen here."""

    def __init__(self, ledger: Ledger, deployer: Deployer, deployment_id: str, held: StillHeld, sleep: Sleep) -> None:
        self._ledger, self._deployer, self._id, self._held, self._sleep = ledger, deployer, deployment_id, held, sleep
        self._store = ledger.deployments
        self._plan = self._store.plan(deployment_id)
        self._settle_s = float(getattr(deployer, "settle_seconds", SETTLE_S))

    def carry_out(self) -> None:
        """Bring it from where it stands to *created*. Raises the provider's error, as ``core.submission`` does."""
        record = self._store.get(self._id)
        if record.ref is not None or not record.state.standing:
            return
        if record.step is Step.CREATING and self.adopt(wait=True) is not None:
            return
        if not self._held():
            raise LedgerError(f"the claim on deployment {self._id} was lost before it was created", fix=RESUME_FIX.format(self._id))
        if self._store.creating(self._id):
            self._create(record.key)
        else:
            self._store.ended_unmade(self._id, "undeployed before it was created")

    def adopt(self, *, wait: bool) -> DeploymentRecord | None:
        """Record what an earlier create made, if the provider shows it; ``wait`` out the settling time for it. Reads only."""
        record = self._store.get(self._id)
        called = record.create_called_at
        age = (self._ledger.now() - called).total_seconds() if called else 0.0
        find = self._deployer.find
        remote = looked_for(lambda: find(self._plan, record.key), age, self._settle_s, self._sleep, wait=wait)
        return None if remote is None else self._record(remote, "found at the provider and adopted")

    def settled(self) -> bool:
        """Whether so long has passed since create was called that the provider would show what it made."""
        called = self._store.get(self._id).create_called_at
        return called is None or (self._ledger.now() - called).total_seconds() >= self._settle_s

    def _create(self, key: str) -> None:
        try:
            remote = self._deployer.create(self._plan, key)
        except TuneportError as error:
            if verdict(error).kind == "rate_limit":
                self._store.not_created(self._id, f"not created yet: {error}")
                raise
            if proves_nothing_made(error):
                self._store.ended_unmade(self._id, f"not created: {error}")
                raise
            self._after_lost_reply(error)
            return
        self._record(remote, "created")

    def _after_lost_reply(self, error: TuneportError) -> None:
        name, fix = self._plan.provider, "let tuneport look again before it makes one: tuneport reconcile"
        self._store.note(self._id, f"the answer of {name} was lost: {error}")
        try:
            found = self.adopt(wait=True)
        except LedgerError:
            raise
        except TuneportError as looking:
            raise ProviderError(f"{name} did not confirm deployment {self._id}, and cannot be asked ({looking.what})", fix=fix) from error
        if found is None:
            what = f"{name} did not confirm deployment {self._id}, and shows no such deployment ({error.what})"
            raise ProviderError(what, fix=fix) from error

    def _record(self, remote: RemoteDeployment, note: str) -> DeploymentRecord:
        try:
            return self._store.observe(self._id, remote, note)
        except LedgerError as error:
            what = f"{self._plan.provider} has made deployment {self._id} as {remote.ref}, but it could not be recorded ({error})"
            raise LedgerError(what, fix="mend the ledger, then adopt it with: tuneport reconcile") from error
