"""The Python API as the README shows it, against a vendor on loopback."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

pytest.importorskip("openai")

import tuneport as tp
from tuneport.advisor.intake import load_intake
from tuneport.core.errors import RefusedError
from tuneport.providers.conformance.openai_vendor import OpenAIVendor

ROOT = Path(__file__).resolve().parent.parent
TODAY = date(2026, 11, 22)


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def spec(tmp_path: Path) -> tp.JobSpec:
    row = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    (tmp_path / "train.jsonl").write_text((json.dumps(row) + "\n") * 12, encoding="utf-8")
    (tmp_path / "spec.yaml").write_text("model: gpt-4.1-mini\ndata: {train: train.jsonl}\ntraining: {epochs: 2}\n", encoding="utf-8")
    return tp.load_spec(tmp_path / "spec.yaml")


def test_a_plan_may_ask_the_vendor_at_the_specs_address(
    spec: tp.JobSpec, vendor: OpenAIVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = vendor.environment["OPENAI_BASE_URL"]
    monkeypatch.delenv("OPENAI_BASE_URL")
    here = tp.load_spec({**spec.model_dump(exclude_unset=True), "options": {"openai": {"base_url": address}}})
    asked, alone = tp.plan(here, "openai", today=TODAY, online=True), tp.plan(here, "openai", today=TODAY)
    assert asked.payload == alone.payload
    assert [w.code for w in asked.warnings].count("online") > [w.code for w in alone.warnings].count("online")


def test_plan_submit_wait_chat_and_list(spec: tp.JobSpec, vendor: OpenAIVendor) -> None:
    plan = tp.plan(spec, "openai", today=TODAY)
    assert plan.cost.usd is not None and plan.payload["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2  # type: ignore[index,call-overload]
    job = tp.submit(spec, "openai", planned=plan)
    assert job.ref is not None and [j.id for j in tp.jobs()] == [job.id]
    vendor.set_state(job.ref, "succeeded")
    job.wait()
    reply = job.model.chat([{"role": "user", "content": "2 + 2?"}])
    assert reply.error == "" and reply.text
    assert job.record.billed_tokens


def test_what_the_provider_refuses_is_never_sent(spec: tp.JobSpec, vendor: OpenAIVendor) -> None:
    refused = spec.model_copy(update={"tuning": spec.tuning.model_copy(update={"rank": 8})})
    with pytest.raises(RefusedError, match=r"tuning\.rank"):
        tp.submit(refused, "openai")
    assert tp.jobs() == [] and vendor.made == []


def test_advice_before_anything_is_measured() -> None:
    example = ROOT / "examples" / "tickets"
    report = tp.advise(example / "decision.yaml", spec=example / "spec.yaml", today=TODAY)
    assert report.decision.verdict == "measure"
    assert {offer.provider for offer in report.offers} == {"openai", "bedrock", "together", "fireworks", "local"}
    assert f"tuneport baseline {shlex.quote(str(example / 'spec.yaml'))} -p local" in report.decision.next_steps[0]
    loaded = tp.advise(load_intake(example / "decision.yaml"), spec=tp.load_spec(example / "spec.yaml"), today=TODAY)
    assert "tuneport baseline YOUR-SPEC.yaml -p local" in loaded.decision.next_steps[0]
    assert (loaded.savings, loaded.reproducibility) == (report.savings, report.reproducibility)
