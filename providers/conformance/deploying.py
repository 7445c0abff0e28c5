"""A tuned model from its deployment to the last trace of it: made once, priced, called, and taken down whole."""
# ruff: noqa: S101 -- these are tests

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from tuneport.core.deployment import DeploymentRequest, DeploymentState
from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.errors import ProviderError, RefusedError, TuneportError, UsageError
from tuneport.core.ledger import DeploymentRecord
from tuneport.core.provider import Deployer
from tuneport.core.retry import verdict
from tuneport.providers.conformance.bench import Bench, Conformance, assert_one_sentence, needs
from tuneport.providers.conformance.faults import Fault, kill, lost_replies, refusal
from tuneport.providers.conformance.forks import Forked
from tuneport.providers.conformance.process import start_deploying


class Deploying(Conformance):
    """Deployments: their life, exactly once, refusals, and nothing that bills out of sight."""

    @needs("deployments")
    def test_it_implements_the_deployer_protocol(self, bench: Bench) -> None:
        deployer = bench.provider.deployments()
        assert isinstance(deployer, Deployer)
        assert set(deployer.modes) == set(self.serving), "serving names every mode"
        assert all(word in self.deployment_states for word in self.serving.values())

    def test_from_a_plan_to_an_answer_to_nothing(self, bench: Bench, mode: str) -> None:
        job, deployments = bench.trained(), bench.engine.deployments
        plan = deployments.plan(job.id, DeploymentRequest(mode=mode))
        assert plan.mode == mode and plan.price
        record = deployments.deploy(job.id, plan)
        assert record.state is DeploymentState.DEPLOYING
        bench.on_sleep = lambda: self._all_serve(bench, mode)
        record = deployments.wait(record.id)
        assert record.state.serving
        bench.assert_one_deployment()
        reply = job.model.chat([{"role": "user", "content": "ticket 7"}], max_tokens=16)
        assert "ticket 7" in reply.text and reply.prompt_tokens and reply.completion_tokens
        assert record.ref in [found.ref for found in bench.provider.deployments().list_deployments()]
        with pytest.raises(UsageError, match=f"tuneport undeploy {record.id}"):
            job.delete()
        assert deployments.undeploy(record.id).state is DeploymentState.UNDEPLOYED
        assert bench.vendor.billing == []
        assert not deployments.undeploy(record.id).state.standing
        assert deployments.latest() == []

    @needs("deployments")
    def test_every_state_of_a_deployment_and_an_unknown_one(self, bench: Bench) -> None:
        record, store = bench.deployed(), bench.engine.deployments
        for raw, state in {**self.deployment_states, "SOMETHING_NEW": DeploymentState.UNKNOWN}.items():
            bench.vendor.set_deployment(bench.vendor.deployed[0].ref, raw)
            found = bench.provider.deployments().poll(bench.ledger.deployments.plan(record.id), record.ref or "")
            # one that serves may still lack its last step
            assert found.state is state or (found.unfinished and state.serving), raw
        assert store.get(record.id).state.standing

    @needs("deployments")
    def test_looking_changes_nothing(self, bench: Bench) -> None:
        record = bench.deployed()
        deployer, plan = bench.provider.deployments(), bench.ledger.deployments.plan(record.id)
        before = bench.vendor.snapshot()
        deployer.poll(plan, record.ref or "")
        deployer.find(plan, record.key)
        list(deployer.list_deployments())
        bench.engine.deployments.plan(record.job_id, DeploymentRequest())
        assert bench.vendor.snapshot() == before

    def test_exactly_one_deployment_whatever_goes_wrong(self, bench: Bench, deploy_step: str, deploy_fault: Fault) -> None:
        bench.trained()
        bench.vendor.fault(deploy_step, deploy_fault)
        with suppress(TuneportError):
            bench.deployed()
        bench.engine.reconcile(resume=True)
        bench.assert_one_deployment()
        assert bench.engine.reconcile(resume=True) == []

    def test_kill_9_while_deploying_then_reconcile(self, bench: Bench, deploy_step: str, deploy_after: bool) -> None:
        job = bench.trained()
        plan = bench.engine.deployments.plan(job.id, DeploymentRequest())
        clients: SimpleQueue[Forked] = SimpleQueue()
        bench.vendor.fault(deploy_step, kill(lambda: clients.get().kill(), after=deploy_after))
        client = start_deploying(self.client, bench.folder, job.id, plan, bench.vendor.environment)
        clients.put(client)
        _, printed = client.communicate(timeout=60)
        assert client.returncode == -9, printed
        bench.vendor.calm()
        bench.engine.reconcile(resume=True)
        bench.assert_one_deployment()

    @needs("deployments")
    def test_a_deployment_that_shows_late_is_adopted_not_repeated(self, bench: Bench) -> None:
        bench.provider.deployments()
        bench.trained()
        bench.vendor.list_lag = 2
        bench.vendor.fault(self.vendor_class.deployment_routes[-1], lost_replies()[0])
        with suppress(TuneportError):
            bench.deployed()
        bench.engine.reconcile(resume=True)
        bench.assert_one_deployment()

    @needs("deployments")
    def test_deployments_of_others_are_never_adopted(self, bench: Bench) -> None:
        record = bench.deployed()
        deployer, plan = bench.provider.deployments(), bench.ledger.deployments.plan(record.id)
        found = deployer.find(plan, record.key)
        assert found is not None and found.ref == record.ref
        assert deployer.find(plan, "tp-aaaaaa-aaaaaaab") is None

    @needs("deployments")
    def test_what_is_refused_leaves_nothing_behind(self, bench: Bench) -> None:
        bench.provider.deployments()
        bench.trained()
        bench.vendor.fault(self.vendor_class.deployment_routes[-1], refusal(400, "The quota of this account for GPUs is 0"))
        with pytest.raises(ProviderError) as refused:
            bench.deployed()
        assert_one_sentence(refused.value)
        assert verdict(refused.value).kind == "no"
        assert bench.vendor.billing == [] and bench.engine.deployments.latest() == []
        (record,) = bench.engine.deployments.latest(standing=False)
        assert "quota" in record.message

    @needs("deployments")
    def test_one_that_fails_says_why_and_stands_until_it_is_undeployed(self, bench: Bench) -> None:
        record = bench.deployed()
        failed = next(raw for raw, state in self.deployment_states.items() if state is DeploymentState.FAILED)
        bench.vendor.set_deployment(bench.vendor.deployed[0].ref, failed)
        with pytest.raises(ProviderError, match=rf"(?s)capacity.*tuneport undeploy {record.id}") as told:
            bench.engine.deployments.wait(record.id)
        assert_one_sentence(told.value)
        assert bench.engine.deployments.latest()
        assert bench.engine.deployments.undeploy(record.id).state is DeploymentState.UNDEPLOYED
        assert bench.vendor.billing == []

    def test_a_removal_that_breaks_off_half_way_is_finished_later(self, bench: Bench, removal_step: str) -> None:
        record = self._serving(bench)
        bench.vendor.fault(removal_step, refusal(401, "no"))  # is not tried again within one call
        with suppress(TuneportError):
            bench.engine.deployments.undeploy(record.id)
        bench.vendor.calm()
        if bench.vendor.billing:
            assert bench.engine.deployments.latest(), "it stands at the vendor and not in the ledger"
        bench.engine.deployments.sweep()
        bench.engine.deployments.undeploy(record.id)
        assert bench.vendor.billing == [] and bench.engine.deployments.latest() == []

    @needs("deployments")
    def test_what_cannot_be_done_is_refused_not_dropped(self, bench: Bench) -> None:
        bench.provider.deployments()
        job, deployments = bench.trained(), bench.engine.deployments

        def told(request: DeploymentRequest) -> DeploymentPlan | RefusedError:
            try:
                return deployments.plan(job.id, request)
            except RefusedError as refused:
                return refused

        wanted: dict[str, Any] = {
            "mode": "no-such-mode", "replicas": 3, "hardware": "no-such-hardware", "idle_s": 7777.0, "commitment": "no-such-term",
            "port": 8080,
        }  # fmt: skip
        for mode in self.serving:
            plain = told(DeploymentRequest(mode=mode))
            assert isinstance(plain, DeploymentPlan)
            for name, value in wanted.items():
                found = told(replace(DeploymentRequest(mode=mode), **{name: value}))
                if isinstance(found, RefusedError):
                    assert_one_sentence(found)
                    assert list(found.reasons) == [f"--{name.removesuffix('_s')}"]
                else:
                    assert found.payload != plain.payload, f"{name} is neither carried out nor refused in mode {mode}"

    @needs("deployments")
    def test_no_secret_is_stored_or_said_while_deploying(self, bench: Bench) -> None:
        bench.provider.deployments()
        bench.trained()
        secret, told = self.vendor_class.secret, []
        for step in self.vendor_class.deployment_routes:
            for fault in (refusal(401, f"Incorrect API key provided: {secret}"), refusal(400, f"Bearer {secret} was not expected")):
                bench.vendor.fault(step, fault)
                with pytest.raises(TuneportError) as failed:
                    bench.deployed()
                told.append(f"{failed.value!r} {failed.value}")
                bench.vendor.calm()
        assert any("[secret]" in text for text in told)
        assert secret not in " ".join(told) and secret.encode() not in bench.stored_bytes()

    # Inner parts

    def _serving(self, bench: Bench) -> DeploymentRecord:
        record = bench.deployed()
        bench.on_sleep = lambda: self._all_serve(bench, record.mode)
        return bench.engine.deployments.wait(record.id)

    def _all_serve(self, bench: Bench, mode: str) -> None:
        standing = set(bench.vendor.billing)
        for made in bench.vendor.deployed:
            if made.ref in standing:
                bench.vendor.set_deployment(made.ref, self.serving[mode])
