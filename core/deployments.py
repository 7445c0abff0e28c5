"""Deploys tuned models exactly once, keeps what they cost in sight, and takes them down again.

``core.making`` makes one. A deployment stands in the ledger until the provider itself says that it is gone, so nothing that bills
is ever forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneport.core.deployment import DeploymentRequest, DeploymentState, Tuned
from tuneport.core.errors import BudgetError, LedgerError, ProviderError, TuneportError, UsageError
from tuneport.core.jobs import no_model
from tuneport.core.keys import new_deployment_id
from tuneport.core.ledger import DeploymentChange, DeploymentRecord, JobRecord, Ledger, Step
from tuneport.core.ledger.records import unread
from tuneport.core.making import RESUME_FIX, Making
from tuneport.core.provider import Deployer, Provider
from tuneport.core.reading import offered
from tuneport.core.retry import retrying, verdict
from tuneport.core.submission import Reconciled, Sleep

if TYPE_CHECKING:  # loads pydantic, which listing does not need
    from tuneport.core.deployment_plan import DeploymentPlan

LONGEST_START_S = 2700.0
"""How long to wait until a deployment serves before saying that it does not. Fireworks' own client waits 30 minutes (firectl,
``--wait-timeout``); weights of large models take longer."""
LONGEST_REMOVAL_S = 600.0
FIRST_LOOK_S, LONGEST_LOOK_S = 2.0, 15.0

OnChange = Callable[[DeploymentRecord], None]


@dataclass(frozen=True, slots=True)
class Expired:
    """What became of a deployment whose time was up. ``error`` is why it could not be taken down yet."""

    record: DeploymentRecord
    error: TuneportError | None = None


class Deployments:
    """The deployments of one ledger: ``Engine.deployments``. Safe beside others on the same ledger."""

    def __init__(
        self,
        ledger: Ledger,
        provider_of: Callable[[JobRecord], Provider],
        *,
        sleep: Sleep = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._provider_of, self._sleep, self._clock = ledger, provider_of, sleep, clock
        self._store = ledger.deployments

    # Spending

    def needless(self, job_id: str) -> str:
        """Why a job's tuned model needs no deployment at its provider; empty where it needs one."""
        return self._provider_of(self._ledger.get(job_id)).unoffered.get("deployments", "")

    def plan(self, job_id: str, request: DeploymentRequest, *, on: str | None = None) -> DeploymentPlan:
        """How a job's tuned model would be served, and at what price; ``on`` is the id of a deployment to share. Reads only.

        Raises JobFailedError when there is no tuned model (any more), RefusedError for what the provider cannot do, ProviderError
        when it needs no deployments or cannot be asked, UsageError when ``on`` cannot be shared.
        """
        job = self._ledger.get(job_id)
        if job.ref is None or job.tuned_model is None or job.deleted_at is not None:
            raise no_model(job)
        shared = self._shared(on, job) if on is not None else None
        tuned = Tuned(job.ref, job.tuned_model, self._ledger.plan(job_id).vendor_model)
        return retrying(lambda: self._deployer(job).plan(tuned, request, shared), attempts=3, sleep=self._sleep)

    def deploy(self, job_id: str, plan: DeploymentPlan, *, ttl_s: float | None = None, on: str | None = None) -> DeploymentRecord:
        """Make a deployment of ``plan``, exactly once; does not wait until it serves (``wait``). This spends.

        Raises BudgetError before anything is written or sent when ``budget.max_usd`` of the job's spec cannot be kept; afterwards
        the provider's error: it has then ended as *refused* if that proves that nothing was made, else it stays resumable.
        """
        job = self._ledger.get(job_id)
        deployer = self._deployer(job)
        self.check_budget(job, plan, ttl_s)
        self.reconcile()
        self.sweep()
        with self._ledger.claim(f"deploy-{job_id}") as alone:  # two at once could each find the same money left
            if alone is None:
                fix = "wait for it, then see: tuneport deployments"
                raise UsageError(f"another process is deploying job {job_id} at this moment", fix=fix)
            self.check_budget(job, plan, ttl_s)
            return self._deploy(job_id, plan, deployer, ttl_s, on)

    def _deploy(
        self, job_id: str, plan: DeploymentPlan, deployer: Deployer, ttl_s: float | None, on: str | None
    ) -> DeploymentRecord:
        while True:
            deployment_id = new_deployment_id()
            with self._ledger.claim(deployment_id) as held:  # before the intent is visible
                if held is not None and self._store.add(deployment_id, job_id, plan, ttl_s=ttl_s, stands_on=on):
                    Making(self._ledger, deployer, deployment_id, held, self._sleep).carry_out()
                    return self._store.get(deployment_id)

    def check_budget(self, job: JobRecord, plan: DeploymentPlan, ttl_s: float | None) -> None:
        """Raises BudgetError when this deployment, with all that the job has cost, may exceed ``budget.max_usd`` of its spec."""
        limit = self._ledger.spec(job.id).budget.max_usd
        if limit is None or plan.free:
            return
        at, price = plan.provider, plan.usd_per_hour
        if price is None:
            what = f"the price of this deployment at {at} is unknown, so budget.max_usd of {limit:g} USD cannot be kept"
            raise BudgetError(what, fix="add its price to your price file (TUNEPORT_PRICES), or deploy a job without a budget")
        spent = self._spent(job)
        left = limit - spent
        hours = max(left, 0.0) / price.high
        if ttl_s is None:
            raise BudgetError(
                f"a deployment that costs up to {price.high:.2f} USD an hour without an end exceeds any budget.max_usd ({limit:g} USD)",
                fix=f"add --ttl: {left:.2f} USD are left, which is {hours:.1f} h" if left > 0 else "raise budget.max_usd",
            )
        cost = price.high * max((ttl_s or 0.0) / 3600, plan.committed_hours)
        if cost > left:
            raise BudgetError(
                f"this deployment may cost up to {cost:.2f} USD, and of budget.max_usd ({limit:g} USD) {max(left, 0.0):.2f} USD are left",
                fix=f"shorten --ttl to {hours:.1f} h or less, or raise budget.max_usd",
            )

    def reconcile(self, *, resume: bool = False) -> list[Reconciled]:
        """Settle every deployment whose making was interrupted, as ``Engine.reconcile`` does with jobs."""
        unmade = [record for record in self._store.latest(standing=True) if record.ref is None]
        return [self._reconcile(record, resume=resume) for record in reversed(unmade)]

    # Reading

    def get(self, deployment_id: str) -> DeploymentRecord:
        """A deployment as the ledger knows it. Raises UsageError when there is none of that id."""
        return self._store.get(deployment_id)

    def latest(self, *, standing: bool = True, job_id: str | None = None) -> list[DeploymentRecord]:
        """Deployments as the ledger knows them, newest first; asks no provider."""
        return self._store.latest(standing=standing, job_id=job_id)

    def changes(self, deployment_id: str) -> list[DeploymentChange]:
        """A deployment's history, oldest first."""
        return self._store.changes(deployment_id)

    def refresh(self, deployment_id: str) -> DeploymentRecord:
        """Ask the provider once and store the answer. A failed read keeps the last good state (``freshness``)."""
        return self._look(self._store.get(deployment_id), finish=False)[0]

    def serving(self, job_id: str) -> DeploymentRecord | None:
        """The newest deployment of a job that answers requests, as far as the ledger knows."""
        return next((found for found in self.latest(job_id=job_id) if found.state.serving and found.call_as), None)

    # Changing what exists

    def wait(self, deployment_id: str, on_change: OnChange | None = None, *, longest_s: float = LONGEST_START_S) -> DeploymentRecord:
        """Look at a deployment until it serves. Raises ProviderError, and leaves it standing, when it fails or does not get there."""
        until, pause = self._clock() + longest_s, FIRST_LOOK_S
        self._reconcile_if_unmade(deployment_id)
        while True:
            record, error = self._look(self._store.get(deployment_id), finish=True)
            if on_change is not None:
                on_change(record)
            if record.state.serving:
                return record
            if error is not None and verdict(error).kind == "no":
                what = f"deployment {record.id} stands at {record.provider} but cannot be brought to serve ({error.what})"
                raise ProviderError(what, fix=f"{error.fix}, or take it down: tuneport undeploy {record.id}", retry="no") from error
            why = f": {record.message}" if record.message else ""
            word = record.raw_state or record.state.value
            if record.state in (DeploymentState.FAILED, DeploymentState.STOPPED):
                what = f"deployment {record.id} has {record.state.value} at {record.provider} ({word}){why}"
                raise ProviderError(what, fix=f"take down what is left of it: tuneport undeploy {record.id}", retry="no")
            if not record.state.standing or record.state is DeploymentState.UNDEPLOYING:
                raise ProviderError(f"deployment {record.id} is {record.state.value}{why}", fix="deploy anew: tuneport deploy", retry="no")
            if self._clock() >= until:
                seen = record.freshness(self._ledger.now()) or f"it is {word}{why}"
                raise ProviderError(
                    f"deployment {record.id} at {record.provider} does not serve after {longest_s / 60:.0f} min ({seen}), and may bill",
                    fix=f"take it down: tuneport undeploy {record.id}, or go on waiting: tuneport watch {record.id}",
                    retry="no",
                )
            self._sleep(pause)
            pause = min(1.5 * pause, LONGEST_LOOK_S)

    def undeploy(self, deployment_id: str, *, wait_s: float = LONGEST_REMOVAL_S, why: str = "undeploying asked for") -> DeploymentRecord:
        """Take a deployment down, and wait until the provider says that it is gone; harmless on one that is.

        Returns it as *undeploying* when that takes longer than ``wait_s``: it stands in the ledger, and is looked at again by the
        next call. Raises UsageError while others stand on it, and the provider's error.
        """
        record = self._store.get(deployment_id)
        if not record.state.standing:
            return record
        others = [other.id for other in self.latest() if other.stands_on == deployment_id]
        if others:
            fix = f"undeploy first: tuneport undeploy {' '.join(others)}"
            raise UsageError(f"deployment {deployment_id} is shared by {', '.join(others)}", fix=fix)
        record = self._store.request_undeploy(deployment_id, why)
        if record.ref is None:
            record = self._give_up(record)
        if not record.state.standing or record.ref is None:
            return record
        plan, ref, deployer = self._store.plan(deployment_id), record.ref, self._deployer_of(record)
        until, pause = self._clock() + wait_s, FIRST_LOOK_S
        while True:
            record = self._store.observe(deployment_id, retrying(lambda: deployer.remove(plan, ref), sleep=self._sleep))
            if not record.state.standing or self._clock() + pause > until:
                return record
            self._sleep(pause)
            pause = min(1.5 * pause, LONGEST_LOOK_S)

    def sweep(self) -> list[Expired]:
        """Take down every deployment whose time (``--ttl``) is up, or whose removal was begun; never raises for a provider."""
        now = self._ledger.now()
        due = [r for r in self.latest() if r.undeploy_requested_at is not None or (r.expires_at is not None and r.expires_at <= now)]
        found = []
        for record in sorted(due, key=lambda one: one.stands_on is None):  # those that share another's go first
            try:
                found.append(Expired(self.undeploy(record.id, wait_s=0.0, why="its time is up")))
            except LedgerError:
                raise
            except TuneportError as error:
                found.append(Expired(self._store.read_failed(record.id, unread(error)), error))
        return found

    def keep(self, on_change: OnChange | None = None) -> None:
        """Look at what stands until nothing has a time limit any more, taking each down when its time is up.

        Returns at once when no deployment has one.
        """
        while waiting := [record for record in self.latest() if record.expires_at is not None or record.undeploy_requested_at is not None]:
            for expired in self.sweep():
                if on_change is not None:
                    on_change(expired.record)
            ends = [r.expires_at for r in waiting if r.expires_at is not None]
            left = (min(ends) - self._ledger.now()).total_seconds() if ends else 0.0
            self._sleep(min(max(left, LONGEST_LOOK_S), 60.0))

    # Inner parts

    def _deployer(self, job: JobRecord) -> Deployer:
        return offered(self._provider_of(job), "deployments").deployments()

    def _deployer_of(self, record: DeploymentRecord) -> Deployer:
        return self._deployer(self._ledger.get(record.job_id))

    def _shared(self, on: str, job: JobRecord) -> str:
        found = self._store.get(on)
        if found.provider != job.provider:
            what = f"deployment {on} is at {found.provider}, and job {job.id} at {job.provider}"
            raise UsageError(what, fix="share one at the same provider")
        if found.stands_on is not None:
            raise UsageError(f"deployment {on} itself shares {found.stands_on}", fix=f"share that one: --on {found.stands_on}")
        if not found.state.serving or found.ref is None:
            fix = f"wait until it serves: tuneport watch {on}"
            raise UsageError(f"deployment {on} is {found.state.value} and cannot be shared now", fix=fix)
        return found.ref

    def _spent(self, job: JobRecord) -> float:
        """What the job and its deployments have cost at most, and what those that stand will cost until their time is up, in USD."""
        trained = job.billed_usd if job.billed_usd is not None else job.estimate_high_usd or 0.0
        now = self._ledger.now()
        costs = [record.cost_usd(max(now, record.expires_at or now)) for record in self.latest(standing=False, job_id=job.id)]
        return trained + sum(cost.high for cost in costs if cost is not None)

    def _look(self, record: DeploymentRecord, *, finish: bool) -> tuple[DeploymentRecord, TuneportError | None]:
        """The deployment after asking for its state, or with the error if that failed, which is stored beside the last good state."""
        ref = record.ref
        if ref is None or not record.state.standing:
            return record, None
        plan = self._store.plan(record.id)
        try:
            deployer = self._deployer_of(record)
            remote = retrying(lambda: deployer.poll(plan, ref), attempts=3, sleep=self._sleep)
            if remote.unfinished and finish and record.undeploy_requested_at is None:
                remote = retrying(lambda: deployer.finish(plan, ref), attempts=3, sleep=self._sleep)
        except LedgerError:
            raise
        except TuneportError as error:
            return self._store.read_failed(record.id, unread(error)), error
        note = ""
        if remote.state is DeploymentState.UNDEPLOYED and record.undeploy_requested_at is None:
            if not self._settled(record, deployer):
                return self._store.read_failed(record.id, f"{record.provider} does not show it yet"), None
            note = "gone at the provider, though nobody here undeployed it"
        return self._store.observe(record.id, remote, note), None

    def _settled(self, record: DeploymentRecord, deployer: Deployer) -> bool:
        called = record.create_called_at
        return called is None or (self._ledger.now() - called).total_seconds() >= deployer.settle_seconds

    def _give_up(self, record: DeploymentRecord) -> DeploymentRecord:
        """One whose making was interrupted: adopted if the provider has it after all, else ended."""
        with self._ledger.claim(record.id) as held:
            if held is None:  # whoever makes it sees the request, before or after create
                return self._store.get(record.id)
            record = self._store.get(record.id)
            if record.ref is None and record.state.standing:
                making = Making(self._ledger, self._deployer_of(record), record.id, held, self._sleep)
                if record.step is not Step.CREATING or making.adopt(wait=True) is None:
                    self._store.ended_unmade(record.id, "undeployed before it was created")
        return self._store.get(record.id)

    def _reconcile_if_unmade(self, deployment_id: str) -> None:
        record = self._store.get(deployment_id)
        if record.ref is None and record.state.standing:
            found = self._reconcile(record, resume=False)
            if found.outcome == "interrupted":
                what = f"deployment {deployment_id} was interrupted before {record.provider} made it; nothing was spent"
                raise UsageError(what, fix=RESUME_FIX.format(deployment_id))

    def _reconcile(self, record: DeploymentRecord, *, resume: bool) -> Reconciled:
        with self._ledger.claim(record.id) as held:
            if held is None:
                return Reconciled(record.id, "busy", "another process is making it")
            record = self._store.get(record.id)
            try:
                making = Making(self._ledger, self._deployer_of(record), record.id, held, self._sleep)
                return self._settle(record, making, resume)
            except LedgerError:
                raise
            except TuneportError as error:
                now = self._store.get(record.id)
                if now.state is DeploymentState.REFUSED:
                    return Reconciled(record.id, "failed", now.message)
                self._store.read_failed(record.id, unread(error))
                return Reconciled(record.id, "unreachable", str(error))

    def _settle(self, record: DeploymentRecord, making: Making, resume: bool) -> Reconciled:
        if record.ref is not None or not record.state.standing:
            return Reconciled(record.id, "adopted", "another process finished it")
        may_exist = record.step is Step.CREATING
        if (may_exist or resume) and making.adopt(wait=False) is not None:
            return Reconciled(record.id, "adopted")
        late = record.expires_at is not None and record.expires_at <= self._ledger.now()
        if (late or record.undeploy_requested_at is not None) and (not may_exist or making.settled()):
            self._store.ended_unmade(record.id, "its time was up before it was created" if late else "undeployed before it was created")
            return Reconciled(record.id, "cancelled")
        if resume:
            making.carry_out()
            return Reconciled(record.id, "resumed")
        if may_exist and not making.settled():
            return Reconciled(record.id, "unsettled", f"{record.provider} shows no such deployment yet")
        fix = RESUME_FIX.format(record.id)
        self._store.note(record.id, f"interrupted before it was created; nothing exists at {record.provider}; {fix}")
        return Reconciled(record.id, "interrupted", fix)
