"""With real keys, at the real vendors: ``pytest -m live``. Skipped without a key; docs/conformance.md says what each costs.

Reads are free. A job is made only where TUNEPORT_LIVE_SPEND=1 is set as well; it is cancelled at once and deleted.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tuneport.core.data.load import load_job_data, open_rows
from tuneport.core.errors import TuneportError, VendorClosedError
from tuneport.core.plan import Plan, compile_for
from tuneport.core.provider import Provider
from tuneport.core.spec import JobSpec
from tuneport.providers import registry

pytestmark = pytest.mark.live

# Kept when the module is imported: conftest empties the environment and shuts the network before each test.
_KEYS = {name: value for name, value in os.environ.items() if name.startswith(("OPENAI_", "TOGETHER_", "FIREWORKS_", "AWS_"))}
_CONNECT = socket.socket.connect
_SPEND = os.environ.get("TUNEPORT_LIVE_SPEND") == "1"

VENDORS = {
    "openai": ("OPENAI_API_KEY", "gpt-4.1-mini-2025-04-14"),
    "together": ("TOGETHER_API_KEY", "Qwen/Qwen2.5-1.5B-Instruct"),
    "fireworks": ("FIREWORKS_API_KEY", "accounts/fireworks/models/qwen3-0p6b"),
}
KEY = "tp-live00-x9k3m2qa"


@pytest.fixture(params=sorted(VENDORS))
def vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    variable, _ = VENDORS[name]
    if not _KEYS.get(variable):
        pytest.skip(f"{variable} is not set")
    for key, value in _KEYS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(socket.socket, "connect", _CONNECT)
    return name


@pytest.fixture
def provider(vendor: str) -> Provider:
    return registry.get(vendor)


@pytest.fixture
def spec(vendor: str, tmp_path: Path) -> JobSpec:
    path = tmp_path / "train.jsonl"
    turns = [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(10)))
    return JobSpec.model_validate({"model": {vendor: VENDORS[vendor][1]}, "data": {"train": str(path)}, "training": {"epochs": 1}})


@pytest.fixture
def plan(provider: Provider, spec: JobSpec) -> Plan:
    return compile_for(provider, spec, load_job_data(spec))


def test_reading_the_list_and_one_job(provider: Provider) -> None:
    for job in provider.list_jobs(3):
        seen = provider.poll(job.ref)
        assert (seen.ref, bool(seen.raw_state)) == (job.ref, True)
        if "events" not in provider.unoffered:
            events = list(provider.events(job.ref))
            assert [event.at for event in events] == sorted(event.at for event in events)


def test_listing_what_is_deployed(provider: Provider) -> None:
    if "deployments" in provider.unoffered:
        pytest.skip(provider.unoffered["deployments"])
    for found in provider.deployments().list_deployments():
        assert found.ref and found.raw_state


def test_asking_about_a_plan(provider: Provider, plan: Plan) -> None:
    asked = provider.online(plan)
    assert asked.payload == plan.payload
    assert not [warning for warning in asked.warnings if "could not be asked" in warning.message]


def test_nobody_has_a_job_with_a_fresh_key(provider: Provider, plan: Plan) -> None:
    assert provider.find(plan, "tp-000000-00000000") is None


def test_a_job_is_made_found_cancelled_and_deleted(provider: Provider, plan: Plan, spec: JobSpec) -> None:
    if not _SPEND:
        pytest.skip("TUNEPORT_LIVE_SPEND=1 is not set")
    if plan.refusals:
        pytest.skip(str(plan.refusals))
    files = provider.upload(plan, lambda part: open_rows(spec, part), KEY)
    assert provider.upload(plan, lambda part: open_rows(spec, part), KEY) == files
    try:
        made = provider.create(plan, files, KEY)
    except VendorClosedError as error:
        pytest.skip(str(error))
    try:
        found = provider.find(plan, KEY)
        assert found is not None and found.ref == made.ref
    finally:
        provider.cancel(made.ref)
        try:
            provider.delete(made.ref)
        except TuneportError as error:  # it is still stopping
            pytest.skip(f"cancelled; delete it later: {error}")
