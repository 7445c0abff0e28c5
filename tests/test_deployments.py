"""Deployments over the fake provider: made once, priced, within the budget, never out of the ledger while they may bill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tuneport.core.deployment import DeploymentRequest, DeploymentState
from tuneport.core.errors import BudgetError, CredentialsError, ProviderError, UsageError
from tuneport.core.ledger import DeploymentRecord
from tuneport.core.money import Range
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import Died, make_plan, make_spec
from tuneport.tests.stores import STORES, place
from tuneport.tests.test_engine_crash import PRELUDE, Place

HOUR = 3600.0
DEPLOY = PRELUDE + """
from tuneport.core.deployment import DeploymentRequest
spec = make_spec(folder)
job = engine.submit(spec, make_plan(spec)).wait()
print(engine.deployments.deploy(job.id, engine.deployments.plan(job.id, DeploymentRequest())).ref)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def trained(bench: Bench, max_usd: float | None = None) -> str:
    spec = make_spec(bench.folder, **({"budget": {"max_usd": max_usd}} if max_usd else {}))
    return bench.engine.submit(spec, make_plan(spec)).wait().id


def deployed(bench: Bench, job_id: str, mode: str | None = None, *, ttl_s: float | None = None, on: str | None = None) -> DeploymentRecord:
    deployments = bench.engine.deployments
    return deployments.deploy(job_id, deployments.plan(job_id, DeploymentRequest(mode=mode, ttl_s=ttl_s), on=on), ttl_s=ttl_s, on=on)


def test_from_plan_to_answer_to_nothing(bench: Bench) -> None:
    job_id, deployments = trained(bench), bench.engine.deployments
    plan = deployments.plan(job_id, DeploymentRequest())
    assert plan.usd_per_month == Range(low=4 * 730, high=6 * 730)
    record = deployments.deploy(job_id, plan)
    assert record.state is DeploymentState.DEPLOYING
    seen: list[str] = []
    record = deployments.wait(record.id, lambda one: seen.append(one.state.value))
    assert seen == ["deploying", "ready"]
    assert deployments.latest() == [record]
    assert bench.engine.job(job_id).model.chat([{"role": "user", "content": "hi"}]).text == "model-of-ft-0#dep-0: hi"
    with pytest.raises(UsageError, match=f"tuneport undeploy {record.id}"):
        bench.engine.delete(job_id)
    bench.clock.sleep(2 * HOUR)
    running = deployments.get(record.id).cost_usd(bench.clock.now())
    assert running is not None and running.low == pytest.approx(8, rel=0.01) and running.high == pytest.approx(12, rel=0.01)
    gone = deployments.undeploy(record.id)
    assert gone.state is DeploymentState.UNDEPLOYED
    assert deployments.undeploy(record.id) == gone
    bench.clock.sleep(HOUR)
    ended = deployments.get(record.id).cost_usd(bench.clock.now())
    assert ended is not None and ended.high < 12.1  # the clock of the bill stands still
    assert deployments.latest() == []
    assert [change.state.value for change in deployments.changes(record.id)][-1] == "undeployed"
    assert bench.engine.job(job_id).model.call_as == "model-of-ft-0"


def test_the_budget_holds_for_training_and_serving_together(bench: Bench) -> None:
    job_id = trained(bench, max_usd=20)  # 0.50 USD are billed already
    with pytest.raises(BudgetError, match=r"without an end.*add --ttl: 19.50 USD are left, which is 3.2 h"):
        deployed(bench, job_id)
    with pytest.raises(BudgetError, match=r"may cost up to 24\.00 USD"):
        deployed(bench, job_id, ttl_s=4 * HOUR)
    deployed(bench, job_id, "free")
    assert deployed(bench, job_id, ttl_s=2 * HOUR).expires_at is not None
    with pytest.raises(BudgetError, match=r"7\.50 USD are left"):
        deployed(bench, job_id, ttl_s=2 * HOUR)
    assert len(bench.vendor.deployments) == 2


def test_when_its_time_is_up_any_next_start_takes_it_down(bench: Bench) -> None:
    job_id, deployments = trained(bench), bench.engine.deployments
    short, long = deployed(bench, job_id, ttl_s=HOUR), deployed(bench, job_id)
    bench.clock.sleep(HOUR - 60)
    assert deployments.sweep() == []
    bench.clock.sleep(61)
    bench.provider.faults["remove_deployment"] = ["credentials"]
    (expired,) = deployments.sweep()
    assert expired.record.state.standing and expired.error is not None  # it may bill, so it stays
    deployments.keep()
    assert deployments.get(short.id).state is DeploymentState.UNDEPLOYED
    assert [one.id for one in deployments.latest()] == [long.id]


def test_two_cannot_spend_the_same_money_at_once(bench: Bench) -> None:
    job_id = trained(bench, max_usd=20)
    with bench.ledger.claim(f"deploy-{job_id}") as held:
        assert held is not None
        with pytest.raises(UsageError, match="another process is deploying"):
            deployed(bench, job_id, ttl_s=HOUR)
    assert bench.vendor.deployments == []
    assert deployed(bench, job_id, ttl_s=HOUR).state is DeploymentState.DEPLOYING


def test_a_watch_of_jobs_keeps_the_time_of_deployments(bench: Bench) -> None:
    record = deployed(bench, trained(bench), ttl_s=90)
    bench.vendor.script = ["waiting"] * 40 + ["done"]
    bench.submit().wait()
    assert bench.ledger.deployments.get(record.id).undeploy_requested_at is not None


def test_a_shared_deployment_goes_last(bench: Bench) -> None:
    deployments = bench.engine.deployments
    first = deployments.wait(deployed(bench, trained(bench)).id)
    other = trained(bench)
    second = deployed(bench, other, on=first.id)
    assert (second.stands_on, bench.engine.ledger.deployments.plan(second.id).stands_on) == (first.id, first.ref)
    with pytest.raises(UsageError, match=f"tuneport undeploy {second.id}"):
        deployments.undeploy(first.id)
    with pytest.raises(UsageError, match=f"--on {first.id}"):
        deployments.plan(other, DeploymentRequest(), on=second.id)
    deployments.undeploy(second.id)
    assert not deployments.undeploy(first.id).state.standing


def test_one_that_never_serves_or_fails_stands_until_it_is_undeployed(bench: Bench) -> None:
    deployments = bench.engine.deployments
    record = deployed(bench, trained(bench))
    bench.provider.faults["poll_deployment"] = ["reset_before"] * 10_000
    with pytest.raises(ProviderError, match=rf"does not serve after 45 min .*may bill; take it down: tuneport undeploy {record.id}"):
        deployments.wait(record.id)
    bench.provider.faults.clear()
    bench.vendor.deployment_word = "broken"
    with pytest.raises(ProviderError, match=rf"{record.id} has failed at fake \(broken\); take down .*tuneport undeploy {record.id}"):
        deployments.wait(record.id)
    assert deployments.get(record.id).state is DeploymentState.FAILED
    assert [one.id for one in deployments.latest()] == [record.id]
    assert deployments.undeploy(record.id).state is DeploymentState.UNDEPLOYED


def test_an_adapter_that_cannot_be_loaded_ends_the_wait(bench: Bench) -> None:
    record = deployed(bench, trained(bench))
    bench.provider.faults["finish_deployment"] = ["refuse"]
    with pytest.raises(ProviderError, match=rf"stands at fake but cannot be brought to serve .*tuneport undeploy {record.id}"):
        bench.engine.deployments.wait(record.id)


@pytest.mark.parametrize("fault", ["refuse", "credentials", "closed"])
def test_what_is_refused_stands_nowhere(bench: Bench, fault: str) -> None:
    job_id = trained(bench)
    bench.provider.faults["deploy"] = [fault]
    with pytest.raises((ProviderError, CredentialsError)):
        deployed(bench, job_id)
    (record,) = bench.engine.deployments.latest(standing=False)
    assert record.state is DeploymentState.REFUSED and record.message.startswith("not created")
    assert bench.engine.deployments.latest() == [] and bench.engine.reconcile(resume=True) == []


@pytest.mark.parametrize("fault", ["reset_before", "reset_after", "rate_limit", "die_before", "die_after"])
@pytest.mark.parametrize("lag", [0, 4])
def test_exactly_one_deployment_whatever_goes_wrong(bench: Bench, fault: str, lag: int) -> None:
    job_id = trained(bench)
    bench.vendor.list_lag = lag
    bench.provider.faults["deploy"] = [fault]
    try:
        deployed(bench, job_id)
    except (ProviderError, Died):
        bench.engine.reconcile(resume=True)
    (made,) = bench.vendor.deployments
    (record,) = bench.engine.deployments.latest()
    assert (record.ref, record.key) == (made["ref"], made["key"])
    assert bench.engine.reconcile(resume=True) == []


def test_undeploying_what_was_interrupted_finds_out_first(bench: Bench) -> None:
    job_id = trained(bench)
    for fault, state in (("die_before", DeploymentState.REFUSED), ("die_after", DeploymentState.UNDEPLOYED)):
        bench.provider.faults["deploy"] = [fault]
        with pytest.raises(Died):
            deployed(bench, job_id)
        assert bench.engine.deployments.undeploy(bench.engine.deployments.latest()[0].id).state is state
    assert [made["removals"] for made in bench.vendor.deployments] == [2]


def test_what_was_interrupted_is_not_made_after_its_time(bench: Bench) -> None:
    job_id = trained(bench)
    bench.provider.faults["deploy"] = ["die_before"]
    with pytest.raises(Died):
        deployed(bench, job_id, ttl_s=HOUR)
    bench.clock.sleep(HOUR + 1)
    assert [one.outcome for one in bench.engine.reconcile(resume=True)] == ["cancelled"]
    assert bench.vendor.deployments == [] and bench.engine.deployments.latest() == []


def test_a_job_deploys_and_undeploys_its_model(bench: Bench) -> None:
    job = bench.engine.job(trained(bench))
    first = job.deploy(DeploymentRequest(mode="free"))
    second = job.deploy(ttl_s=HOUR)
    assert first.state.serving and second.expires_at is not None
    assert {gone.state for gone in job.undeploy()} == {DeploymentState.UNDEPLOYED}
    assert job.undeploy() == []


def test_one_that_somebody_else_took_down_is_noticed(bench: Bench) -> None:
    record = deployed(bench, trained(bench))
    with bench.vendor.open() as books:
        books["deployments"][0]["removals"] = 2
    assert bench.engine.deployments.refresh(record.id).state.standing  # the vendor's list may lag
    bench.clock.sleep(120)
    assert bench.engine.deployments.refresh(record.id).state is DeploymentState.UNDEPLOYED


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("fault", "made"), [("kill_before", 0), ("kill_after", 1)])
def test_kill_9_then_reconcile_makes_exactly_one_deployment(tmp_path: Path, store: str, fault: str, made: int) -> None:
    with place(store, tmp_path) as where:
        site = Place(tmp_path, where)
        process = site.run(DEPLOY, f'{{"deploy": ["{fault}"]}}')
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors
        (cautious,) = site.reconcile()
        assert cautious == ("adopted" if made else cautious)
        assert len(vendor_of(site)) == made  # without resume nothing is spent
        if not made:
            assert site.reconcile(resume=True) == ["resumed"]
        (there,), (record,) = vendor_of(site), site.engine().deployments.latest()
        assert (record.ref, record.key) == (there["ref"], there["key"])
        assert site.reconcile(resume=True) == []
        site.close()


def vendor_of(site: Place) -> list[dict[str, object]]:
    from tuneport.tests.fake_provider import FakeVendor

    return FakeVendor(site.folder / "vendor.json").deployments
