"""What is each vendor's own in serving: modes and their prices, shared deployments, sizes, models that are not served any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tuneport.providers.conformance")
for sdk in ("boto3", "together", "fireworks"):
    pytest.importorskip(sdk)

from tuneport.core.deployment import DeploymentRequest, DeploymentState  # noqa: E402
from tuneport.core.errors import BudgetError, ProviderError, RefusedError, UsageError  # noqa: E402
from tuneport.core.options import FireworksOptions  # noqa: E402
from tuneport.core.spec import JobSpec  # noqa: E402
from tuneport.providers.conformance.bench import Bench, Conformance  # noqa: E402
from tuneport.providers.conformance.faults import lost_replies, refusal  # noqa: E402
from tuneport.providers.fireworks.client import FireworksProvider  # noqa: E402
from tuneport.tests import test_conformance_bedrock as bedrock  # noqa: E402
from tuneport.tests import test_conformance_fireworks as fireworks  # noqa: E402
from tuneport.tests import test_conformance_together as together  # noqa: E402

LLAMA = "meta.llama3-1-8b-instruct-v1:0:128k"


@contextmanager
def opened(suite: Conformance, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with suite.open_bench(folder) as bench:
        for name, value in bench.vendor.environment.items():
            monkeypatch.setenv(name, value)
        yield bench


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with opened(bedrock.TestBedrock(), tmp_path, monkeypatch) as bench:
        yield bench


@pytest.fixture
def tg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with opened(together.TestTogether(), tmp_path, monkeypatch) as bench:
        yield bench


@pytest.fixture
def fw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("WANDB_API_KEY", fireworks.WANDB_KEY)
    with opened(fireworks.TestFireworks(), tmp_path, monkeypatch) as bench:
        yield bench


def plan(bench: Bench, job_id: str | None = None, on: str | None = None, **wanted: Any) -> Any:
    return bench.engine.deployments.plan(job_id or bench.trained().id, DeploymentRequest(**wanted), on=on)


# -- Bedrock -----------------------------------------------------------------------------------------------------------


def test_bedrock_tells_tokens_from_hours(aws: Bench) -> None:
    job = aws.trained()
    on_demand = plan(aws, job.id)
    assert (on_demand.mode, on_demand.free) == ("on-demand", True) and "0.035 USD/1M in and 0.14 USD/1M out" in on_demand.price
    reserved = plan(aws, job.id, mode="provisioned", replicas=2, commitment="1-month")
    assert reserved.payload["commitmentDuration"] == "OneMonth" and reserved.committed_hours == 730
    assert reserved.usd_per_hour is None and "no price per model unit" in reserved.price  # unknown is not zero
    with pytest.raises(RefusedError, match=r"--replicas: on demand there is nothing to size.*--hardware.*--idle"):
        plan(aws, job.id, replicas=2, hardware="H100", idle_s=600)
    with pytest.raises(RefusedError, match=r"--commitment: AWS has 1-month and 6-month"):
        plan(aws, job.id, mode="provisioned", commitment="2-month")


def test_bedrock_serves_some_bases_by_the_hour_only(aws: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.vendor.models[LLAMA]["modelLifecycle"] = {"status": "ACTIVE"}  # type: ignore[attr-defined]
    chats = tmp_path / "qa.jsonl"
    chats.write_text('{"prompt": "a", "completion": "b"}\n' * 120)
    aws.spec = bedrock.spec(str(chats), model={"bedrock": LLAMA}, budget={"max_usd": 40})
    aws.plan = bedrock.TestBedrock().compile(aws.spec)
    (warning,) = [w.message for w in aws.plan.warnings if w.code == "serving"]
    assert "by provisioned throughput only" in warning and "the price book has no price for it" in warning
    job = aws.trained()
    found = plan(aws, job.id)
    assert found.mode == "provisioned"
    with pytest.raises(BudgetError, match="price of this deployment at bedrock is unknown"):
        aws.engine.deployments.deploy(job.id, found, ttl_s=3600)
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "sources: {offer: {title: our contract, observed_on: 2026-11-20, grade: P}}\n"
        f"prices: [{{provider: bedrock, kind: host_hour, model: '{LLAMA}', amount: 20, source: offer}}]\n"
    )
    monkeypatch.setenv("TUNEPORT_PRICES", str(prices))
    found = plan(aws, job.id, replicas=2)
    assert found.usd_per_hour.high == 40 and "2 x 20 USD an hour per model unit (our contract" in found.price
    with pytest.raises(BudgetError, match="may cost up to 80"):
        aws.engine.deployments.deploy(job.id, found, ttl_s=7200)
    aws.vendor.models[LLAMA]["modelLifecycle"] = {"status": "LEGACY"}  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match=r"Legacy.*no new provisioned throughput"):
        plan(aws, job.id)
    assert any("Legacy" in note for note in plan(aws, job.id, mode="on-demand").notes)


def test_bedrock_says_quota_zero_and_a_missing_model_in_one_sentence(aws: Bench) -> None:
    job = aws.trained()
    found = plan(aws, job.id)
    aws.vendor.quota_zero = True  # type: ignore[attr-defined]
    with pytest.raises(ProviderError, match=r"quota.*Service Quotas.*may have 0"):
        aws.engine.deployments.deploy(job.id, found)
    assert aws.engine.deployments.latest() == []
    with aws.vendor.books() as books:
        books["models"].clear()
    with pytest.raises(ProviderError, match="custom model could not be found"):
        plan(aws, job.id)


def test_bedrock_is_asked_again_while_it_still_creates(aws: Bench) -> None:
    record = aws.deployed()  # Creating: AWS does not delete it yet
    assert aws.engine.deployments.undeploy(record.id, wait_s=0).state is DeploymentState.UNDEPLOYING
    assert aws.vendor.billing and aws.engine.deployments.latest()
    aws.on_sleep = lambda: aws.vendor.set_deployment(aws.vendor.deployed[0].ref, "Active")
    assert aws.engine.deployments.undeploy(record.id).state is DeploymentState.UNDEPLOYED
    assert aws.vendor.billing == []


# -- Together ----------------------------------------------------------------------------------------------------------


def test_together_takes_the_cheapest_configuration_or_the_one_that_is_named(tg: Bench) -> None:
    job = tg.trained()
    cheapest = plan(tg, job.id, replicas=3, idle_s=1800)
    assert cheapest.payload["config"].endswith("/configs/cr_1") and cheapest.payload["inactive_timeout"] == 30
    assert (cheapest.usd_per_hour.low, cheapest.usd_per_hour.high) == (5.49, 3 * 5.49) and cheapest.may_idle
    for named in ("H200", "cr_2"):
        assert plan(tg, job.id, hardware=named).payload["config"].endswith("/configs/cr_2")
    with pytest.raises(RefusedError, match=r"--hardware: A100 is not offered.*1 x H100 \(cr_1\)"):
        plan(tg, job.id, hardware="A100")
    with pytest.raises(RefusedError, match=r"--idle: .*30 min to 24 h"):
        plan(tg, job.id, idle_s=60)
    tg.vendor.configs = [("cr_8", "secret-hardware")]  # type: ignore[attr-defined]
    unknown = plan(tg, job.id)
    assert unknown.usd_per_hour is None and "no price" in unknown.price
    tg.vendor.configs = []  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match=r"no deployment configuration.*tuneport export"):
        plan(tg, job.id)


def test_together_leaves_nothing_of_a_refused_or_a_running_deployment(tg: Bench) -> None:
    tg.trained()
    tg.vendor.fault("deploy", refusal(422, "The quota for H100 is 0"))
    with pytest.raises(ProviderError, match="quota"):
        tg.deployed()
    assert tg.vendor.billing == []  # not even the endpoint
    record = tg.deployed()
    tg.vendor.must_stop_first = True  # type: ignore[attr-defined]
    assert tg.engine.deployments.undeploy(record.id).state is DeploymentState.UNDEPLOYED
    assert tg.vendor.billing == [] and tg.vendor.calls("stop") == 1


# -- Fireworks ---------------------------------------------------------------------------------------------------------


def test_fireworks_serves_several_adapters_on_one_deployment(fw: Bench) -> None:
    deployments = fw.engine.deployments
    first_job = fw.trained()
    fw.on_sleep = lambda: fw.vendor.set_deployment(fw.vendor.deployed[0].ref, "READY")
    first = deployments.wait(fw.deployed("addon").id)
    second_job = fw.trained()
    with pytest.raises(RefusedError, match="--on: a merged model has its deployment for itself"):
        plan(fw, second_job.id, mode="merge", on=first.id)
    shared = plan(fw, second_job.id, on=first.id)
    assert (shared.mode, shared.free) == ("addon", True)
    fw.vendor.fault("load", lost_replies()[0])  # loaded, and nobody heard of it
    record = deployments.deploy(second_job.id, shared, on=first.id)
    assert len(fw.vendor.snapshot()["adapters"]) == 2
    fw.on_sleep = lambda: fw.vendor.set_deployment(record.ref or "", "DEPLOYED")
    record = deployments.wait(record.id)
    for job in (first_job, second_job):
        assert job.refresh().model.chat([{"role": "user", "content": "hi"}]).text == f"{job.tuned_model} says: hi"
    assert fw.provider.deployments().find(shared, record.key) is not None
    assert fw.provider.deployments().find(shared, "tp-zzzzzz-zzzzzzzz") is None
    with pytest.raises(UsageError, match=record.id):
        deployments.undeploy(first.id)
    assert deployments.undeploy(record.id).state is DeploymentState.UNDEPLOYED
    assert fw.vendor.billing
    assert deployments.undeploy(first.id).state is DeploymentState.UNDEPLOYED
    assert fw.vendor.billing == []


def test_fireworks_prices_the_shape_that_it_sends(fw: Bench) -> None:
    job = fw.trained()
    merged = plan(fw, job.id, ttl_s=7200.0)
    assert merged.payload["deploymentShape"].endswith("/minimal/versions/v1") and merged.payload["minReplicaCount"] == 0
    assert merged.payload["autoscalingPolicy"] == {"scaleToZeroWindow": "3600s"} and merged.may_idle
    assert merged.usd_per_hour.high == 8 and "1 x H100 x 8 USD a GPU-hour" in merged.price
    for named in ("H200", "fast"):
        assert plan(fw, job.id, hardware=named, replicas=2).usd_per_hour.high == 32
    assert plan(fw, job.id, mode="addon").payload["enableAddons"] is True
    with pytest.raises(RefusedError, match=r"--hardware: A100 is no shape"):
        plan(fw, job.id, hardware="A100")
    with pytest.raises(RefusedError, match=r"--idle: Fireworks waits at least 5 min"):
        plan(fw, job.id, idle_s=60)


def test_fireworks_is_reached_by_the_options_of_the_spec(fw: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIREWORKS_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("FIREWORKS_ACCOUNT_ID")
    options = {"base_url": fw.vendor.url, "account_id": "acme"}
    fw.options |= {"options": FireworksOptions(**options)}
    assert list(FireworksProvider(FireworksOptions(**options)).list_jobs()) == []
    fw.spec = JobSpec.model_validate(fw.spec.model_dump() | {"options": {"fireworks": options}})
    fw.plan = fireworks.TestFireworks().compile(fw.spec)
    job = fw.trained()
    assert job.ref is not None and job.ref.endswith(f"@{fw.vendor.url}")
    fw.on_sleep = lambda: fw.vendor.set_deployment(fw.vendor.deployed[0].ref, "READY")
    record = fw.engine.deployments.wait(fw.deployed().id)
    assert record.ref is not None and record.ref.endswith(f"@{fw.vendor.url}")
    assert "hi" in job.model.chat([{"role": "user", "content": "hi"}]).text
    assert fw.engine.deployments.undeploy(record.id).state is DeploymentState.UNDEPLOYED
