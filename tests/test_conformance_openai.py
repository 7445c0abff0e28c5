"""OpenAI against the conformance suite, and what only OpenAI has."""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date
from email.utils import formatdate
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("openai")

from tuneport.core.data.load import load_job_data
from tuneport.core.errors import (
    CredentialsError,
    DataError,
    MissingExtraError,
    ProviderError,
    TuneportError,
    VendorClosedError,
)
from tuneport.core.job import JobState
from tuneport.core.options import OpenAIOptions
from tuneport.core.plan import Plan, compile_for
from tuneport.core.provider import ChatRequest
from tuneport.core.retry import verdict
from tuneport.core.spec import JobSpec
from tuneport.providers.conformance.bench import Bench
from tuneport.providers.conformance.faults import Fault, html, refusal, reset
from tuneport.providers.conformance.openai_vendor import OpenAIVendor
from tuneport.providers.conformance.suite import BadInput, ProviderConformance
from tuneport.providers.openai.client import OpenAIProvider
from tuneport.providers.openai.errors import mapped, translated
from tuneport.providers.openai.records import RECORDS
from tuneport.providers.openai.states import STATES
from tuneport.tests.wire_truth import GRADER

MODEL = "gpt-4.1-mini-2025-04-14"


class TestOpenAI(ProviderConformance):
    target = "tuneport.providers.openai.client:OpenAIProvider"
    vendor_class = OpenAIVendor
    states = STATES
    records = RECORDS
    sdk_modules = ("openai",)
    key_variable = "OPENAI_API_KEY"
    bad_input: ClassVar[Mapping[str, BadInput]] = {
        "wrong key": BadInput("create", refusal(401, "Incorrect API key provided: sk-x", "invalid_api_key"), CredentialsError, "valid key"),
        "revoked key": BadInput("upload", refusal(401, "This API key has been revoked", "invalid_api_key"), CredentialsError, "revoked"),
        "wrong account": BadInput("create", refusal(401, "No such org", "invalid_organization"), CredentialsError, "OPENAI_ORG_ID"),
        "file over the limit": BadInput("upload", refusal(413, "It is too large", "file_too_large"), ProviderError, "fewer or shorter"),
        "model not tunable": BadInput("create", refusal(400, "No fine-tuning", "model_not_available"), ProviderError, "choose a model"),
        "web page": BadInput("upload", html(status=502), ProviderError, "web page .* HTTPS_PROXY"),
    }

    def specs(self, train: str, held: str) -> list[JobSpec]:
        every_field = {
            "name": "tickets",
            "data": {"train": train, "validation": held},
            "training": {"epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.8, "seed": 7, "loss_on": "completions"},
            "tracking": {"wandb": {"project": "tickets", "entity": "team", "name": "run", "tags": ["a"]}},
            "tags": {f"tag{n}": "x" for n in range(15)},
        }
        documents: list[dict[str, Any]] = [{"data": {"train": train}}, every_field]
        return [JobSpec.model_validate({"model": {"openai": MODEL}} | document) for document in documents]

    def expected_body(self, plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:
        body = super().expected_body(plan, files, key)
        return body | {"metadata": {**body.get("metadata", {}), "tuneport_key": key}}

    def map_error(self, error: Exception) -> TuneportError:
        with pytest.raises(TuneportError) as ours, translated("to answer"):
            raise error
        return ours.value


# What only OpenAI has


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with TestOpenAI().open_bench(tmp_path) as opened:
        for name, value in opened.vendor.environment.items():
            monkeypatch.setenv(name, value)
        yield opened


def spec(bench: Bench, **fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": {"openai": MODEL}, "data": {"train": str(bench.folder / "train.jsonl")}} | fields)


def test_preference_and_reinforcement_jobs_arrive_as_planned(bench: Bench) -> None:
    pairs = bench.folder / "pairs.jsonl"
    prompt = [{"role": "user", "content": "hi"}]
    answers = {"preferred_output": [{"role": "assistant", "content": "a"}], "non_preferred_output": [{"role": "assistant", "content": "b"}]}
    pairs.write_text("".join(json.dumps({"input": {"messages": prompt}, **answers}) + "\n" for _ in range(12)))
    questions = bench.folder / "questions.jsonl"
    questions.write_text("".join(json.dumps({"messages": prompt, "label": "cards"}) + "\n" for _ in range(12)))
    dpo = {"method": "dpo", "data": {"train": str(pairs)}, "preference": {"beta": 0.2}}
    rft = {
        "model": {"openai": "o4-mini-2025-04-16"},
        "method": "rft",
        "data": {"train": str(questions)},
        "reinforcement": {"grader": GRADER, "reasoning_effort": "low"},
        "options": {"openai": {"compute_multiplier": 2.0, "eval_samples": 3, "eval_interval": 5}},
    }
    for fields, day in ((dpo, date(2026, 11, 22)), (rft, date(2026, 10, 1))):
        bench.spec = spec(bench, **fields)
        bench.plan = compile_for(OpenAIProvider(), bench.spec, load_job_data(bench.spec), day)
        assert bench.plan.refusals == {}
        bench.options["today"] = lambda: day  # noqa: B023 -- called within this turn
        bench.made_by_hand()
        made = bench.vendor.made[-1].body
        assert made == bench.plan.payload | {"training_file": made["training_file"], "metadata": {"tuneport_key": "tp-7f3k2a-x9k3m2qa"}}


def test_a_large_file_goes_up_in_parts_with_progress_and_a_lost_part_is_sent_again(bench: Bench) -> None:
    bench.options |= {"part_bytes": 2000, "sleep": lambda _s: None}
    bench.vendor.fault("upload_part", reset(), nth=2)
    seen: list[tuple[int, int | None]] = []
    files = bench.provider.upload(bench.plan, bench.rows, "tp-7f3k2a-x9k3m2qa", lambda _name, done, size: seen.append((done, size)))
    content = bench.vendor.file(files["train"])
    assert [json.loads(line) for line in content.splitlines()] == [RECORDS["openai-chat"](row) for row in bench.rows("train")]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 3 and seen[-1] == (len(content), len(content))
    assert bench.provider.upload(bench.plan, bench.rows, "tp-7f3k2a-x9k3m2qa") == files


def test_a_file_above_the_limit_is_refused_before_it_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneport.providers.openai.files.LARGEST_BYTES", 1000)
    with pytest.raises(ProviderError, match="8 GB at most"):
        bench.provider.upload(bench.plan, bench.rows, "tp-7f3k2a-x9k3m2qa")
    assert bench.vendor.log == []


def test_rows_that_changed_since_the_plan_are_not_uploaded(bench: Bench) -> None:
    fewer = bench.plan.model_copy(update={"uploads": tuple(u.model_copy(update={"rows": 39}) for u in bench.plan.uploads)})
    with pytest.raises(DataError, match="40 rows"):
        bench.provider.upload(fewer, bench.rows, "tp-7f3k2a-x9k3m2qa")


def test_a_job_at_another_service_is_reached_by_its_ref_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    address = bench.vendor.environment["OPENAI_BASE_URL"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # nobody listens there
    bench.spec = spec(bench, options={"openai": {"base_url": address}})
    bench.plan = compile_for(OpenAIProvider(), bench.spec, load_job_data(bench.spec), date(2026, 11, 22))
    job = bench.submit()
    assert job.ref == f"{bench.vendor.made[0].ref}@{address}"
    bench.vendor.set_state(bench.vendor.made[0].ref, "succeeded")
    assert job.refresh().state is JobState.SUCCEEDED
    assert job.model.chat([{"role": "user", "content": "hello"}]).text.endswith("hello")
    assert {made.ref for made in OpenAIProvider(OpenAIOptions(base_url=address)).list_jobs()} == {job.ref}


def test_a_service_without_metadata_shows_the_job_by_its_file(bench: Bench) -> None:
    bench.vendor.fault("create", reset(after=True))
    make_job = bench.vendor.record_made

    def forgetful(ref: str, body: dict[str, Any]) -> None:
        make_job(ref, body)
        with bench.vendor.books() as books:
            books["jobs"][ref]["metadata"] = None

    bench.vendor.record_made = forgetful  # type: ignore[method-assign]
    with suppress(TuneportError):
        bench.submit()
    bench.engine.reconcile(resume=True)
    bench.assert_one_job()


def test_a_service_that_refuses_the_filter_is_searched_page_by_page(bench: Bench) -> None:
    ref = bench.made_by_hand("tp-aaaaaa-aaaaaaaa")
    for number in range(120):
        with bench.vendor.books() as books:
            other = {**books["jobs"][ref], "id": f"ftjob-other{number:03d}", "metadata": {"tuneport_key": f"tp-{number}"}}
            books["jobs"][other["id"]] = other
    bench.vendor.fault("list", refusal(400, "Unknown query parameter: metadata"))
    found = bench.provider.find(bench.plan, "tp-aaaaaa-aaaaaaaa")
    assert found is not None and found.ref == ref
    assert bench.vendor.calls("list") == 3


def test_reasoning_models_are_asked_without_a_temperature(bench: Bench) -> None:
    asked = [ChatRequest(str(n), [{"role": "user", "content": "hello"}]) for n in range(3)]
    replies = list(bench.provider.chat("o4-mini-2025-04-16", asked))
    assert [reply.error for reply in replies] == ["", "", ""]


def test_a_model_that_is_gone_ends_the_whole_chat(bench: Bench) -> None:
    with pytest.raises(ProviderError, match="does not exist"):
        list(bench.provider.chat("ft:gone", [ChatRequest(str(n), [{"role": "user", "content": "hello"}]) for n in range(50)]))
    assert bench.vendor.calls("chat") < 50


def test_a_plan_from_before_the_closing_day_is_not_sent_after_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL")
    late = OpenAIProvider(today=lambda: date(2027, 1, 7))
    for call in (lambda: late.upload(bench.plan, bench.rows, "tp-1"), lambda: late.create(bench.plan, {"train": "file-1"}, "tp-1")):
        with pytest.raises(VendorClosedError, match="tuneport plan --provider all"):
            call()


def test_the_lifetime_is_shown_at_every_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneport.providers.openai.address.OWN_HOST", "127.0.0.1")
    ref = bench.made_by_hand()
    for raw in ("queued", "running", "succeeded"):
        bench.vendor.set_state(ref, raw)
        assert "2027-01-14" in bench.provider.poll(ref).message


def test_online_refuses_a_model_that_the_account_does_not_see_and_warns_one_that_never_tuned(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneport.providers.openai.address.OWN_HOST", "127.0.0.1")
    assert "account" in {warning.code for warning in bench.provider.online(bench.plan).warnings}
    bench.made_by_hand()
    asked = bench.provider.online(bench.plan)
    assert asked.refusals == {} and "account" not in {warning.code for warning in asked.warnings}
    bench.vendor.fault("model", refusal(404, "The model does not exist", "model_not_found"))
    assert "this account" in bench.provider.online(bench.plan).refusals["model"]
    bench.vendor.fault("model", reset())
    assert "could not be asked" in bench.provider.online(bench.plan).warnings[-1].message


def test_nothing_is_deleted_while_the_job_runs_and_only_what_is_its_own_afterwards(bench: Bench) -> None:
    ref, other = bench.made_by_hand("tp-aaaaaa-aaaaaaaa"), bench.made_by_hand("tp-bbbbbb-bbbbbbbb")
    with pytest.raises(ProviderError, match="cancel it first"):
        bench.provider.delete(ref)
    bench.vendor.set_state(ref, "succeeded")
    removed = bench.provider.delete(ref)
    assert [name.partition(" ")[0] for name in removed] == ["model", "model", "model", "file"]
    with bench.vendor.books() as books:
        assert [entry["filename"][:18] for entry in books["files"].values()] == ["tp-bbbbbb-bbbbbbbb"]
    assert bench.provider.poll(other).state is JobState.VALIDATING


def test_the_time_left_is_reckoned_by_openais_clock(bench: Bench) -> None:
    bench.vendor.skew_seconds = 5 * 86400
    ref = bench.made_by_hand()
    bench.vendor.set_state(ref, "running")
    left = bench.provider.poll(ref).seconds_left
    assert left is not None and 500 < left <= 600


def test_account_faults_are_told_apart(bench: Bench) -> None:
    ref = bench.made_by_hand()
    cases = [
        (refusal(429, "You exceeded your current quota", "insufficient_quota"), ProviderError, "add credit"),
        (refusal(401, "No such organization: org-x", "invalid_organization"), CredentialsError, "OPENAI_ORG_ID"),
        (refusal(403, "Missing scopes: api.fine_tuning.jobs.read"), CredentialsError, "right"),
        (refusal(404, "Could not find fine tune"), ProviderError, "OPENAI_PROJECT_ID"),
        (Fault("date", status=429, headers={"Retry-After": formatdate(time.time() + 30, usegmt=True)}), ProviderError, "slow down"),
    ]
    for fault, kind, says in cases:
        bench.vendor.fault("poll", fault)
        with pytest.raises(kind, match=says) as failed:
            bench.provider.poll(ref)
        if "slow" in says:
            assert 20 < (failed.value.retry_after or 0) <= 31  # type: ignore[attr-defined]
        else:
            assert verdict(failed.value).kind == "no"


def test_a_key_that_stands_elsewhere_is_named_where_it_stands(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.options["options"] = OpenAIOptions(key_variable="GATEWAY_API_KEY")
    with pytest.raises(CredentialsError, match="GATEWAY_API_KEY is not set"):
        bench.provider.poll("ftjob-1")
    monkeypatch.setenv("GATEWAY_API_KEY", "sk-of-somebody-else-0123456789")
    with pytest.raises(CredentialsError, match="valid key into GATEWAY_API_KEY"):
        bench.provider.poll("ftjob-1")


def test_a_certificate_that_is_not_valid_yet_points_at_the_clock() -> None:
    import httpx2
    import openai

    request = httpx2.Request("GET", "https://api.openai.com/v1/models")
    error = openai.APIConnectionError(request=request)
    error.__cause__ = ssl.SSLCertVerificationError("certificate verify failed: certificate is not yet valid")
    assert "clock" in str(mapped(error))


def test_without_the_sdk_the_extra_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"tuneport\[openai\]"):
        bench.provider.poll("ftjob-1")
