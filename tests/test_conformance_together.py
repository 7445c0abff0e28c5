"""Together against the conformance kit, with its own SDK as the client, and what only Together has."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.register_assert_rewrite("tuneport.providers.conformance")
pytest.importorskip("together")

import tuneport  # noqa: E402
from tuneport.core.errors import CredentialsError, DataError, ProviderError, TuneportError, UsageError  # noqa: E402
from tuneport.core.job import JobState  # noqa: E402
from tuneport.core.plan import Plan  # noqa: E402
from tuneport.core.provider import ChatRequest  # noqa: E402
from tuneport.core.spec import JobSpec  # noqa: E402
from tuneport.providers.conformance.faults import Fault, html, lost_replies, malformed, refusal, reset, unheard_requests  # noqa: E402
from tuneport.providers.conformance.suite import BadInput, Bench, ProviderConformance  # noqa: E402
from tuneport.providers.conformance.together_vendor import STEPS, TogetherVendor  # noqa: E402
from tuneport.providers.exchange import filled  # noqa: E402
from tuneport.providers.together.client import TogetherProvider, suffix  # noqa: E402
from tuneport.providers.together.deployments import STATES as DEPLOYMENT_STATES  # noqa: E402
from tuneport.providers.together.errors import mapped, translated  # noqa: E402
from tuneport.providers.together.records import RECORDS  # noqa: E402
from tuneport.providers.together.states import STATES, hub_export, job_events, remote_job  # noqa: E402

MODEL = {"together": "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"}
KEY = "tp-7f3k2a-x9k3m2qa"


class TestTogether(ProviderConformance):
    target = "tuneport.providers.together.client:TogetherProvider"
    vendor_class = TogetherVendor
    states = STATES
    records = RECORDS
    deployment_states = DEPLOYMENT_STATES
    serving: ClassVar[Mapping[str, str]] = {"dedicated": "DEPLOYMENT_STATE_READY"}
    sdk_modules = ("together", "together.lib.resources.files")
    key_variable = "TOGETHER_API_KEY"
    bad_input: ClassVar[Mapping[str, BadInput]] = {
        "wrong key": BadInput("create", refusal(401, "Invalid API key provided"), CredentialsError, "TOGETHER_API_KEY is not a key"),
        "revoked key": BadInput("create", refusal(401, "This API key has been revoked"), CredentialsError, "was revoked .*api.together.ai"),
        "wrong account": BadInput("create", refusal(403, "Project mismatch"), CredentialsError, "no right .*key of the account"),
        "file over the limit": BadInput("upload", refusal(413, "Request entity too large"), ProviderError, "fewer or shorter"),
        "model not tunable": BadInput("create", refusal(400, "Model x is not supported for fine-tuning"), ProviderError, "tuneport models"),
        "web page": BadInput("create", html(status=403), ProviderError, "web page .* HTTPS_PROXY"),
    }
    provider_options: ClassVar[Mapping[str, Any]] = {"sleep": lambda _seconds: None}

    def specs(self, train: str, held: str) -> list[JobSpec]:
        return [
            JobSpec.model_validate({"model": MODEL, "data": {"train": train}} | fields)
            for fields in (
                {"name": "tickets"},
                {
                    "data": {"train": train, "validation": held},
                    "tuning": {"rank": 32, "alpha": 64, "target_modules": ["q_proj", "v_proj"]},
                    "training": {"epochs": 3, "batch_size": 32, "learning_rate": 2e-4, "packing": False, "max_seq_length": 4096},
                    "evaluation": {"evaluations": 6, "checkpoints": 3, "early_stopping": {"patience": 3}},
                },
                {"tuning": {"kind": "full"}, "training": {"scheduler": "linear"}, "continue_from": "ft-1234:40"},
            )
        ]

    def expected_body(self, plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:
        return filled(plan.payload, files, "Together") | {"suffix": suffix(plan, key)}

    def deployment_of(self, ref: str) -> str:
        return ref.rpartition("/")[2]

    def map_error(self, error: Exception) -> TuneportError:
        with pytest.raises(TuneportError) as ours, translated():
            raise error
        return ours.value


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The suite's bench, for tests of what only Together has."""
    with TestTogether().open_bench(tmp_path) as bench:
        for name, value in bench.vendor.environment.items():
            monkeypatch.setenv(name, value)
        yield bench


def vendor_of(bench: Bench) -> TogetherVendor:
    assert isinstance(bench.vendor, TogetherVendor)
    return bench.vendor


def together_of(bench: Bench) -> TogetherProvider:
    provider = bench.provider
    assert isinstance(provider, TogetherProvider)
    return provider


def finished(bench: Bench) -> str:
    ref = bench.made_by_hand()
    bench.vendor.set_state(ref, "completed")
    return ref


# -- submitting --------------------------------------------------------------------------------------------------------


def test_name_and_key_share_the_suffix(bench: Bench) -> None:
    bench.made_by_hand()
    assert bench.vendor.made[0].body["suffix"] == f"tickets-{KEY}"
    for length, refused in ((21, []), (22, ["name"])):
        spec = bench.spec.model_copy(update={"name": "n" * length})
        plan = TogetherProvider().compile(spec, _data(spec))
        assert list(plan.refusals) == refused
    assert "at most 21 fit" in plan.refusals["name"]


def test_keys_of_trackers_are_put_in_only_when_sending(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = JobSpec.model_validate(bench.spec.model_dump() | {"tracking": {"wandb": {"project": "p"}}, "export": {"hub_repo": "a/b"}})
    bench.spec, bench.plan = spec, TestTogether().compile(spec)
    monkeypatch.setenv("WANDB_API_KEY", "wandb-key-of-a-test")
    with pytest.raises(TuneportError, match="HF_TOKEN is not set"):
        bench.submit()
    assert bench.vendor.log == []
    monkeypatch.setenv("HF_TOKEN", "hf-token-of-a-test")
    bench.submit()
    body = bench.vendor.made[0].body
    assert (body["wandb_key"], body["hf_api_token"]) == ("wandb-key-of-a-test", "hf-token-of-a-test")
    assert b"wandb-key-of-a-test" not in bench.stored_bytes()


def test_debug_logs_hold_no_keys_and_no_signed_addresses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = JobSpec.model_validate(bench.spec.model_dump() | {"tracking": {"wandb": {"project": "p"}}})
    bench.spec, bench.plan = spec, TestTogether().compile(spec)
    monkeypatch.setenv("WANDB_API_KEY", "wandb-key-of-a-test")
    caplog.set_level(logging.DEBUG)
    bench.made_by_hand()
    assert "/v1/fine-tunes" in caplog.text
    assert "/storage/" in caplog.text
    for secret in ("wandb-key-of-a-test", "conformance-credential", "0a1b2c3d4e5f", TogetherVendor.secret):
        assert secret not in caplog.text


def test_the_files_check_is_waited_for(bench: Bench) -> None:
    vendor_of(bench).check_takes = 3
    slept: list[float] = []
    bench.options["sleep"] = slept.append
    bench.submit()
    assert slept == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("fault", [*lost_replies(), *unheard_requests()], ids=str)
def test_a_check_that_cannot_be_read_for_a_moment_costs_nothing(bench: Bench, fault: Fault) -> None:
    bench.vendor.fault("file", fault)
    bench.submit()
    assert bench.vendor.calls("upload") == 1
    bench.assert_one_job()


def test_content_that_was_swallowed_on_the_way_is_sent_again(bench: Bench) -> None:
    bench.vendor.fault("content", malformed())  # 200, but not by Together
    bench.submit()
    assert bench.vendor.calls("content") == 2
    assert len(bench.vendor.file(str(bench.vendor.made[0].body["training_file"])).splitlines()) == 40


def test_rejected_rows_are_named_by_their_place_in_the_users_file(bench: Bench) -> None:
    vendor_of(bench).rejected_lines = (3, 7)
    with pytest.raises(DataError) as refused:
        bench.submit()
    text, train = str(refused.value), bench.spec.data.train
    assert f"{train}:3, {train}:7" in text
    assert "must be from the assistant" in text
    assert bench.ledger.latest()[0].state is JobState.FAILED
    assert bench.vendor.made == []


def test_a_large_file_goes_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from together.lib.resources import files

    for name, value in (("MULTIPART_THRESHOLD_GB", 0.0), ("TARGET_PART_SIZE_MB", 1 / 1024), ("MIN_PART_SIZE_MB", 0)):
        monkeypatch.setattr(files, name, value)
    moved: list[tuple[str, int, int | None]] = []
    ids = bench.provider.upload(bench.plan, bench.rows, KEY, lambda *progress: moved.append(progress))
    assert bench.vendor.calls("content") > 3
    assert len(bench.vendor.file(ids["train"]).splitlines()) == 40
    assert moved[0][1] == 0
    assert moved[-1][1] == moved[-1][2]
    assert bench.provider.upload(bench.plan, bench.rows, KEY) == ids
    bench.provider.create(bench.plan, ids, KEY)


@pytest.mark.parametrize("shown", [0, 12])
def test_the_training_file_is_the_second_sign_of_a_job(bench: Bench, shown: int) -> None:
    ref = bench.made_by_hand()
    vendor_of(bench).shown_suffix = shown
    found = bench.provider.find(bench.plan, KEY)
    assert found is not None
    assert found.ref == ref
    assert bench.provider.find(bench.plan, "tp-7f3k2a-x9k3m2qb") is None
    bench.made_by_hand()
    with pytest.raises(ProviderError, match="several jobs"):
        bench.provider.find(bench.plan, KEY)
    vendor_of(bench).shown_suffix = None
    found = bench.provider.find(bench.plan, KEY)
    assert found is not None
    assert found.ref == ref  # the older one


def test_the_address_in_the_spec_travels_with_ref_and_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    address = bench.vendor.url
    monkeypatch.setenv("TOGETHER_BASE_URL", "http://127.0.0.1:9")
    bench.spec = JobSpec.model_validate(bench.spec.model_dump() | {"options": {"together": {"base_url": address}}})
    bench.plan = TestTogether().compile(bench.spec)
    job = bench.submit()
    assert job.ref == f"{bench.vendor.made[0].ref}@{address}"
    bench.vendor.set_state(bench.vendor.made[0].ref, "completed")
    assert job.refresh().state is JobState.SUCCEEDED
    reply = job.model.chat([{"role": "user", "content": "hello"}])
    assert "hello" in reply.text
    assert bench.provider.checkpoints(job.ref)[0].model.endswith(f":10@{address}")


# -- reading -----------------------------------------------------------------------------------------------------------


def test_the_bill_is_in_dollars_and_only_of_a_job_that_ended(bench: Bench) -> None:
    ref = bench.made_by_hand()
    bench.vendor.set_state(ref, "running")
    seen = bench.provider.poll(ref)
    assert (seen.billed_usd, seen.billed_tokens, seen.seconds_left) == (None, None, 600)
    assert seen.progress == pytest.approx(1 / 3)
    bench.vendor.set_state(ref, "completed")
    seen = bench.provider.poll(ref)
    assert seen.billed_tokens is not None
    assert seen.billed_usd == pytest.approx(seen.billed_tokens * 0.48e-6)
    bench.vendor.set_state(ref, "error")
    assert bench.provider.poll(ref).billed_usd is None  # refunded


def test_metrics_come_as_events_and_at_checkpoints(bench: Bench) -> None:
    ref = finished(bench)
    assert bench.provider.checkpoints(ref)[0].metrics == {}
    bench.vendor.set_state(ref, "running")
    bench.vendor.set_state(ref, "completed")
    curve = [event for event in bench.provider.events(ref) if "train/loss" in event.metrics]
    assert [event.metrics["step"] for event in curve] == list(STEPS)
    checkpoint = bench.provider.checkpoints(ref)[1]
    assert (checkpoint.step, checkpoint.model) == (20, f"{ref}:20")
    assert checkpoint.metrics == {"train/loss": 0.1, "learning_rate": 1e-5}


def test_events_in_either_spelling_and_without_times() -> None:
    told = [
        {"type": "JOB_PENDING", "created_at": "2026-11-22T10:00:00Z", "level": "Info", "message": "made", "hash": "h1"},
        {"type": "TRAINING_START", "created_at": "2026-11-22T10:05:00.5Z", "level": "legacy_iwarning", "message": ""},
        {"type": "TRAINING_START", "created_at": "2026-11-22T10:05:00.5Z", "level": "legacy_iwarning", "message": ""},
        {"type": "JOB_ERROR", "created_at": "not a time"},
    ]
    curve = [{"step": 2, "loss": 0.5}, {"step": 1, "loss": 0.9}, {"step": 1, "eval_loss": 1.0}]
    points = [*curve, {"loss": 1.0}, {"step": 3, "loss": float("nan")}]
    found = job_events(told, points)
    assert [event.message for event in found] == ["made", "training start", "training start", "step 1", "step 1", "step 2"]
    assert [event.level for event in found[:3]] == ["info", "warning", "warning"]
    assert len({event.id for event in found}) == 6
    assert found[3].at == datetime(2026, 11, 22, 10, 5, 0, 500_000, UTC)
    assert job_events(told, points) == found
    assert hub_export(told) == ""
    uploading = {"type": "MODEL_UPLOADING_TO_HF", "message": ""}
    assert hub_export([uploading]) == "uploading"
    assert hub_export([uploading, {"type": "WARNING", "message": "Upload to Hugging Face failed"}]) == "failed"
    assert hub_export([uploading, {"type": "MODEL_UPLOAD_TO_HF_COMPLETE"}]) == "done"


def test_states_and_words_that_nobody_knows() -> None:
    assert remote_job({"id": "ft-1", "status": "defragmenting"}).state is JobState.UNKNOWN
    assert remote_job({"id": "ft-1", "status": "queued", "queue_depth": 4}).message == "place 4 in the queue"
    early = remote_job({"id": "ft-1", "status": "completed", "early_stopped": True, "early_stopping_best_step": 40})
    assert early.message == "stopped early, the model is that of step 40"
    for document in ({}, {"id": "ft-1"}, {"id": 3, "status": "queued"}, {"id": "ft-1", "status": None}):
        with pytest.raises(ProviderError, match="not that of a fine-tuning job"):
            remote_job(document)
    from together.lib.types.fine_tuning import FinetuneJobStatus

    assert {status.value for status in FinetuneJobStatus} == set(STATES)


# -- asking before paying ----------------------------------------------------------------------------------------------


def test_limits_of_today_refuse_what_exceeds_them(bench: Bench) -> None:
    vendor = vendor_of(bench)
    vendor.limits["lora_training"]["max_rank"] = 8
    vendor.limits["max_num_epochs"] = 2
    bench.plan = TestTogether().compile(TestTogether().specs(bench.spec.data.train, str(bench.folder / "held.jsonl"))[1])
    asked = bench.provider.online(bench.plan)
    assert asked.refusals.keys() == {"tuning.rank", "training.epochs"}
    assert "32 exceeds the most, 8, for meta-llama" in asked.refusals["tuning.rank"]
    assert len(asked.outcomes) == len(bench.plan.outcomes)


def test_a_model_without_limits_is_not_tunable(bench: Bench) -> None:
    spec = bench.spec.model_copy(update={"model": {"together": "acme/untunable"}})
    plan = TestTogether().compile(JobSpec.model_validate(spec.model_dump()))
    assert "not supported for fine-tuning" in bench.provider.online(plan).refusals["model"]


def test_the_vendors_price_takes_the_place_of_the_estimate(bench: Bench) -> None:
    provider = together_of(bench)
    assert any("only for files that it holds" in warning.message for warning in provider.online(bench.plan).warnings)
    files = provider.upload(bench.plan, bench.rows, KEY)
    priced = provider.online(bench.plan, files)
    assert priced.cost.usd is not None
    assert priced.cost.usd.low == priced.cost.usd.high > 4
    assert "told by Together on" in priced.cost.lines[0].basis
    assert "credit" not in {warning.code for warning in priced.warnings}
    vendor_of(bench).price = {"allowed_to_proceed": False, "user_limit": 1.5}
    assert "credit limit is 1.50 USD" in next(w.message for w in provider.online(bench.plan, files).warnings if w.code == "credit")
    bench.vendor.expire_files()
    assert any("train file not validated" in warning.message for warning in provider.online(bench.plan, files).warnings)


def test_plan_online_has_the_vendors_price_once_a_job_has_uploaded_the_same_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEPORT_LEDGER", bench.ledger.name)
    other = bench.spec.model_copy(update={"name": "longer", "training": bench.spec.training.model_copy(update={"epochs": 4})})

    def told() -> bool:
        return "told by Together" in tuneport.plan(other, "together", online=True).cost.lines[0].basis

    assert not told()
    bench.submit()
    made = len(bench.vendor.log)
    assert told()
    assert {entry.route for entry in bench.vendor.log[made:]} == {"limits", "estimate"}  # nothing was uploaded or made
    with Path(bench.spec.data.train).open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}) + "\n")
    assert not told()


# -- weights, chat, removal --------------------------------------------------------------------------------------------


def test_weights_arrive_whole_after_a_broken_download(bench: Bench, tmp_path: Path) -> None:
    ref, vendor, folder = finished(bench), vendor_of(bench), tmp_path / "weights"
    vendor.cut_after = 50_000
    moved: list[int] = []
    (path,) = bench.provider.download(ref, folder, lambda _name, done, _total: moved.append(done))
    assert path.name.endswith("-adapter.tar.zst")
    assert path.read_bytes() == vendor.weights(ref, "adapter")
    assert vendor.log[-1].request.headers["range"].startswith("bytes=")
    assert vendor.log[-1].status == 206
    assert moved == sorted(moved)
    assert sorted(p.name for p in folder.iterdir()) == [path.name, f"{path.name}.sha256"]
    before = vendor.calls("download")
    assert bench.provider.download(ref, folder) == [path]
    assert vendor.calls("download") == before
    path.write_bytes(b"spoilt")
    assert bench.provider.download(ref, folder) == [path]
    assert path.read_bytes() == vendor.weights(ref, "adapter")


def test_other_archives_and_none(bench: Bench, tmp_path: Path) -> None:
    ref, provider, vendor = finished(bench), together_of(bench), vendor_of(bench)
    (merged,) = provider.download(ref, tmp_path, kind="merged")
    assert merged.read_bytes() == vendor.weights(ref, "merged")
    (step,) = provider.download(f"{ref}:20", tmp_path)
    assert step.name.endswith("-step-20.tar.zst")
    assert step.read_bytes() == vendor.weights(ref, "20")
    vendor.fault("download", html())
    with pytest.raises(ProviderError, match="web page"):
        TogetherProvider(sleep=_no_more).download(ref, tmp_path / "new")
    unfinished = bench.made_by_hand("tp-cccccc-cccccccc")
    with pytest.raises(ProviderError, match="has no final weights"):
        provider.download(unfinished, tmp_path)
    with pytest.raises(UsageError, match="cannot be kept"):
        provider.download(ref, Path("/proc/none"))


def _no_more(_seconds: float) -> None:
    raise ProviderError("something between here and Together answered with a web page", retry="no")


def test_a_part_of_another_archive_is_not_gone_on_with(bench: Bench, tmp_path: Path) -> None:
    ref, vendor = finished(bench), vendor_of(bench)
    name = str(vendor.snapshot()["jobs"][ref]["model_output_name"]).replace("/", "--") + "-adapter.part"
    (tmp_path / name).write_bytes(b"old" * 1000)
    (tmp_path / f"{name}.json").write_text(json.dumps({"etag": '"of-an-older-archive"', "content-length": "999999"}))
    (path,) = bench.provider.download(ref, tmp_path)
    assert path.read_bytes() == vendor.weights(ref, "adapter")


def test_a_model_that_nothing_serves_says_so(bench: Bench) -> None:
    ref = finished(bench)
    vendor_of(bench).serving = False
    model = bench.provider.poll(ref).tuned_model
    assert model is not None
    with pytest.raises(ProviderError, match="nothing at Together serves") as refused:
        list(bench.provider.chat(model, [ChatRequest(str(n), [{"role": "user", "content": "?"}]) for n in range(20)]))
    assert "tuneport deploy" in refused.value.fix


def test_a_question_that_no_request_can_carry_spoils_no_other(bench: Bench) -> None:
    asked = [ChatRequest("0", [{"role": "user", "content": "\ud800"}]), ChatRequest("1", [{"role": "user", "content": "?"}])]
    replies = {reply.id: reply for reply in bench.provider.chat("Qwen/Qwen3.5-9B", asked)}
    assert "half a character" in replies["0"].error
    assert replies["1"].text


def test_files_that_others_use_stay(bench: Bench) -> None:
    first, second = finished(bench), bench.made_by_hand("tp-bbbbbb-bbbbbbbb")
    file = str(bench.vendor.made[0].body["training_file"])
    assert bench.vendor.made[1].body["training_file"] == file
    assert not [name for name in bench.provider.delete(first) if name.startswith("file")]
    with pytest.raises(ProviderError, match="cancel it first"):
        bench.provider.delete(second)
    bench.vendor.set_state(second, "cancelled")
    assert bench.provider.delete(second) == [f"file {file}", f"job {second}"]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (refusal(401, "This API key has been revoked"), "was revoked"),
        (refusal(402, "Insufficient balance"), "wants credit"),
        (refusal(403, "Project mismatch"), "has no right"),
        (refusal(413, "Request entity too large"), "too large"),
        (refusal(400, "Model acme/x is not supported for fine-tuning"), "does not tune this model"),
        (refusal(400, "The file file-1 has expired"), "no longer holds a file"),
        (refusal(401, "Request timestamp outside of the allowed clock skew"), "this machine's clock wrong"),
        (html(status=403), "web page"),
        (html(status=407), "web page"),
        (reset(), "cannot be reached"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_with_a_way_out(bench: Bench, fault: Any, said: str) -> None:
    bench.vendor.fault("list", fault)
    with pytest.raises(TuneportError, match=said) as failed:
        bench.provider.find(bench.plan, KEY)
    assert failed.value.fix


def test_a_certificate_of_another_time_points_to_the_clock() -> None:
    import ssl

    import httpx
    import together

    request = httpx.Request("GET", "https://api.together.ai")
    for text, said in (("certificate is not yet valid", "clock"), ("self-signed certificate in certificate chain", "SSL_CERT_FILE")):
        error = together.APIConnectionError(request=request)
        error.__cause__ = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")
        error.__cause__.__cause__ = ssl.SSLCertVerificationError(1, f"certificate verify failed: {text}")
        found = mapped(error)
        assert said in found.fix
        assert isinstance(found, ProviderError)
        assert found.retry == "no"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TOGETHER_API_KEY", "tgp_v1_clé-0123456789", "characters that no key has"),
        ("TOGETHER_API_KEY", " ", "is not set"),
        ("SSL_CERT_FILE", "no/such/file.pem", "names no certificates"),
    ],
)
def test_an_environment_that_cannot_work(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TuneportError, match=said) as failed:
        bench.provider.poll("ft-1")
    assert "clé" not in str(failed.value)
    assert bench.vendor.log == []


def _data(spec: JobSpec) -> Any:
    from tuneport.core.data.load import load_job_data

    return load_job_data(spec)
