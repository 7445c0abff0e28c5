"""Fireworks against the conformance suite, and what only Fireworks has."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

pytest.register_assert_rewrite("tuneport.providers.conformance.suite")
pytest.importorskip("fireworks")

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError, UsageError  # noqa: E402
from tuneport.core.job import JobState  # noqa: E402
from tuneport.core.plan import Plan  # noqa: E402
from tuneport.core.provider import ChatRequest  # noqa: E402
from tuneport.core.retry import verdict  # noqa: E402
from tuneport.core.spec import JobSpec  # noqa: E402
from tuneport.providers.conformance.bench import Bench, Conformance  # noqa: E402
from tuneport.providers.conformance.faults import html, lost_replies, refusal, reset  # noqa: E402
from tuneport.providers.conformance.fireworks_vendor import FireworksVendor, weights_of  # noqa: E402
from tuneport.providers.conformance.suite import BadInput, ProviderConformance  # noqa: E402
from tuneport.providers.fetching import Part  # noqa: E402
from tuneport.providers.fireworks import datasets  # noqa: E402
from tuneport.providers.fireworks.deployments import STATES as DEPLOYMENT_STATES  # noqa: E402
from tuneport.providers.fireworks.records import RECORDS  # noqa: E402
from tuneport.providers.fireworks.session import translated  # noqa: E402
from tuneport.providers.fireworks.states import STATES, metric_events, remote_job  # noqa: E402

MODEL = "accounts/fireworks/models/qwen3-8b"
WANDB_KEY = "wandb_v1_conformance0123456789abcdef"
KEY = "tp-7f3k2a-x9k3m2qa"
JOB = f"accounts/acme/supervisedFineTuningJobs/{KEY}"
ASKED = [ChatRequest("0", [{"role": "user", "content": "my card is lost"}])]


class Setup(Conformance):
    target = "tuneport.providers.fireworks.client:FireworksProvider"
    vendor_class = FireworksVendor
    states = STATES
    records = RECORDS
    deployment_states = DEPLOYMENT_STATES
    serving: ClassVar[Mapping[str, str]] = {"merge": "READY", "addon": "READY"}
    sdk_modules = ("fireworks", "fireworks.lib.dataset_upload")
    key_variable = "FIREWORKS_API_KEY"
    bad_input: ClassVar[Mapping[str, BadInput]] = {
        "wrong key": BadInput("create", refusal(401, "Invalid API key"), CredentialsError, "FIREWORKS_API_KEY"),
        "revoked key": BadInput("dataset_create", refusal(401, "The key was revoked"), CredentialsError, "revoked.* unrevoked"),
        "wrong account": BadInput("create", refusal(403, "no access to accounts/acme"), CredentialsError, "FIREWORKS_ACCOUNT_ID"),
        "file over the limit": BadInput("upload", refusal(413, "150 MB at most"), ProviderError, "fewer or shorter"),
        "model not tunable": BadInput("create", refusal(400, "model x is not tunable"), ProviderError, "tuneport models"),
        "web page": BadInput("dataset_create", html(status=502), ProviderError, "web page .* HTTPS_PROXY"),
    }
    provider_options: ClassVar[Mapping[str, Any]] = {"sleep": lambda _seconds: None}

    @pytest.fixture(autouse=True)
    def _tracker_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)

    def specs(self, train: str, held: str) -> list[JobSpec]:
        every_field = {
            "name": "tickets",
            "data": {"train": train, "validation": held},
            "tuning": {"kind": "lora", "rank": 16},
            "training": {
                "epochs": 3, "batch_size": 16, "learning_rate": 2e-4, "warmup_ratio": 0.1, "scheduler": "cosine",
                "min_learning_rate_ratio": 0.1, "weight_decay": 0.01, "max_seq_length": 4096, "loss_on": "completions",
            },
            "evaluation": {"checkpoints": 3},
            "tracking": {"wandb": {"project": "tickets", "entity": "team"}},
            "options": {"fireworks": {"region": "US_IOWA_1", "output_model": "tickets-v1", "is_turbo": True}},
        }  # fmt: skip
        return [job(data={"train": train}), job(**every_field)]

    def expected_body(self, plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:
        body = super().expected_body(plan, files, key)
        if "wandbConfig" in body:
            body["wandbConfig"] = {**body["wandbConfig"], "apiKey": WANDB_KEY}
        return body

    def ref_of(self, made: str) -> str:
        return made if "/" in made else f"accounts/acme/supervisedFineTuningJobs/{made}"

    def deployment_of(self, ref: str) -> str:
        return ref.partition("@")[0]

    def map_error(self, error: Exception) -> TuneportError:
        with pytest.raises(TuneportError) as ours, translated():
            raise error
        return ours.value


def job(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": {"fireworks": MODEL}} | fields)


class TestFireworks(Setup, ProviderConformance):
    def test_a_job_that_the_list_shows_late_is_adopted_not_repeated(self, bench: Bench) -> None:
        bench.vendor.list_lag = 4  # no matter: a job is found by its id, not by a list
        bench.vendor.fault("create", lost_replies()[0])
        bench.submit()
        bench.assert_one_job()


class TestOnlyFireworks(Setup):
    # Exactly once, by the id

    def test_create_with_a_key_that_is_taken_gives_the_job_that_is_there(self, bench: Bench) -> None:
        ref = bench.made_by_hand(KEY)
        bench.vendor.set_state(ref, "JOB_STATE_RUNNING")
        files = bench.provider.upload(bench.plan, bench.rows, KEY)
        again = bench.provider.create(bench.plan, files, KEY)
        assert (again.ref, again.state, again.key) == (JOB, JobState.RUNNING, KEY)
        assert len(bench.vendor.made) == 1

    def test_a_conflict_over_something_else_is_not_taken_for_our_job(self, bench: Bench) -> None:
        bench.spec = job(data={"train": bench.spec.data.train}, options={"fireworks": {"output_model": "tickets-v1"}})
        bench.plan = self.compile(bench.spec)
        bench.vendor.set_state(bench.made_by_hand("tp-aaaaaa-aaaaaaaa"), "JOB_STATE_COMPLETED")
        with pytest.raises(ProviderError, match="output model already exists") as refused:
            bench.made_by_hand(KEY)
        assert verdict(refused.value).kind == "no"
        assert bench.provider.find(bench.plan, KEY) is None

    def test_the_account_is_required_and_named(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FIREWORKS_ACCOUNT_ID")
        with pytest.raises(CredentialsError, match=r"^FIREWORKS_ACCOUNT_ID is not set"):
            bench.provider.find(bench.plan, KEY)
        monkeypatch.delenv("FIREWORKS_API_KEY")
        with pytest.raises(CredentialsError, match="FIREWORKS_API_KEY and FIREWORKS_ACCOUNT_ID are not set"):
            list(bench.provider.list_jobs())

    def test_account_and_address_of_the_spec_travel_in_ref_and_model(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        own = {"account_id": "acme", "base_url": f"{bench.vendor.url}/"}
        bench.spec = job(data={"train": bench.spec.data.train}, options={"fireworks": own})
        bench.plan = self.compile(bench.spec)
        monkeypatch.delenv("FIREWORKS_ACCOUNT_ID")
        monkeypatch.delenv("FIREWORKS_BASE_URL")
        ref = bench.made_by_hand(KEY)
        assert ref == f"{JOB}@{bench.vendor.url}"
        bench.vendor.set_state(JOB, "JOB_STATE_COMPLETED")
        seen = bench.provider.poll(ref)
        assert (seen.ref, seen.tuned_model) == (ref, f"accounts/acme/models/{KEY}@{bench.vendor.url}")
        assert [reply.error for reply in bench.provider.chat(seen.tuned_model or "", ASKED)] == [""]

    def test_what_is_no_ref_is_refused(self, bench: Bench) -> None:
        with pytest.raises(UsageError, match="accounts/ACCOUNT/supervisedFineTuningJobs/JOB"):
            bench.provider.poll("ftjob-1")

    # Datasets

    def test_a_dataset_is_waited_for_until_it_is_ready(self, bench: Bench) -> None:
        vendor, slept = vendor_of(bench), []
        vendor.slow_datasets, bench.options["sleep"] = 3, slept.append
        files = bench.provider.upload(bench.plan, bench.rows, KEY)
        assert slept == [0.5, 1.0, 2.0]
        (entry,) = vendor.snapshot()["files"].values()
        assert (entry["state"], entry["format"], entry["exampleCount"]) == ("READY", "CHAT", "40")
        assert files["train"].startswith(f"accounts/acme/datasets/{KEY}-train-")
        assert len(files["train"].rpartition("/")[2]) <= 63

    def test_a_dataset_that_never_becomes_ready_is_no_proof_of_anything(self, bench: Bench) -> None:
        vendor_of(bench).slow_datasets = 10_000
        with pytest.raises(ProviderError, match=r"not made dataset \S+ ready in 30 minutes \(it is UPLOADING\)") as failed:
            bench.provider.upload(bench.plan, bench.rows, KEY)
        assert verdict(failed.value).kind == "transient"

    def test_rows_that_fireworks_rejects_fail_with_its_reason(self, bench: Bench) -> None:
        vendor_of(bench).rejects = "line 3: unknown role"
        with pytest.raises(ProviderError, match=r"train\.jsonl \(line 3: unknown role\)") as failed:
            bench.submit()
        assert verdict(failed.value).kind == "no"
        assert bench.vendor.made == []

    def test_an_upload_whose_answer_was_lost_is_not_sent_into_a_second_dataset(self, bench: Bench) -> None:
        vendor_of(bench).slow_datasets = 2
        bench.vendor.fault("upload", reset(after=True))
        with pytest.raises(ProviderError):
            bench.provider.upload(bench.plan, bench.rows, KEY)
        bench.provider.upload(bench.plan, bench.rows, KEY)
        assert len(bench.vendor.snapshot()["files"]) == 1

    def test_a_file_above_the_direct_limit_needs_a_service_behind_https(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets, "LARGEST_DIRECT", 100)
        with pytest.raises(ProviderError, match="https") as failed:
            bench.provider.upload(bench.plan, bench.rows, KEY)
        assert verdict(failed.value).kind == "no"
        assert bench.vendor.calls("upload") == 0

    # The other families

    @pytest.mark.parametrize("method", ["dpo", "orpo", "rft"])
    def test_every_family_has_its_own_resource(self, bench: Bench, method: str) -> None:
        family = "reinforcementFineTuningJobs" if method == "rft" else "dpoJobs"
        path = bench.folder / "other.jsonl"
        path.write_text("".join(json.dumps(RFT_ROW if method == "rft" else PAIR) + "\n" for _ in range(5)))
        options = {"evaluator": "accounts/acme/evaluators/equal"} if method == "rft" else {}
        training = {"epochs": 1, "learning_rate": 1e-5}
        bench.spec = job(method=method, data={"train": str(path)}, training=training, options={"fireworks": options})
        bench.plan = self.compile(bench.spec)
        ref = bench.made_by_hand(KEY)
        assert ref == f"accounts/acme/{family}/{KEY}"
        files = {"train": next(iter(bench.vendor.snapshot()["files"]))}
        assert bench.vendor.made[0].body == self.expected_body(bench.plan, files, KEY)
        assert bench.vendor.snapshot()["files"][files["train"]].get("format") == ("RL" if method == "rft" else None)
        assert bench.provider.find(bench.plan, KEY) == bench.provider.poll(ref)
        assert list(bench.provider.events(ref)) == []
        bench.vendor.set_state(ref, "JOB_STATE_PAUSED")
        assert bench.provider.resume(ref).state is JobState.QUEUED
        assert bench.provider.cancel(ref).state is JobState.CANCELLING
        bench.vendor.set_state(ref, "JOB_STATE_EARLY_STOPPED")
        assert [event.metrics.get("loss") for event in bench.provider.events(ref)] == ([] if method == "rft" else [2, 1, 2 / 3])
        done = bench.provider.poll(ref)
        assert (done.state, done.tuned_model, done.base_model) == (JobState.SUCCEEDED, f"accounts/acme/models/{KEY}", MODEL)
        assert "stopped early" in done.message

    def test_the_list_merges_all_families_and_pages(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tuneport.providers.fireworks.client.PAGE", 2)
        path = bench.folder / "pairs.jsonl"
        path.write_text("".join(json.dumps(PAIR) + "\n" for _ in range(5)))
        sft = bench.spec
        refs = []
        for number in range(7):
            bench.spec = job(method="dpo", data={"train": str(path)}) if number % 2 else sft
            bench.plan = self.compile(bench.spec)
            refs.append(bench.made_by_hand(f"tp-{number:06d}-x9k3m2qa"))
        assert [seen.ref for seen in bench.provider.list_jobs()] == refs[::-1]
        assert [seen.ref for seen in bench.provider.list_jobs(3)] == refs[:3:-1]

    # Cost

    def test_the_cost_is_the_bill_only_once_the_job_has_ended(self) -> None:
        running = {"name": JOB, "state": "JOB_STATE_RUNNING", "estimatedCost": {"currencyCode": "USD", "units": "1", "nanos": 250_000_000}}
        seen = remote_job(running, account="acme")
        assert seen.billed_usd is None and "1.25 USD" in seen.message
        for ended in ("JOB_STATE_COMPLETED", "JOB_STATE_CANCELLED"):
            seen = remote_job({**running, "state": ended}, account="acme")
            assert seen.billed_usd == 1.25 and "USD" not in seen.message
        euros = {"currencyCode": "EUR", "units": "2"}
        seen = remote_job({**running, "state": "JOB_STATE_COMPLETED", "estimatedCost": euros}, account="acme")
        assert seen.billed_usd is None and "2.00 EUR" in seen.message
        assert remote_job({"name": JOB, "state": "JOB_STATE_COMPLETED"}, account="acme").billed_usd is None

    # Metrics

    def test_metric_lines_of_both_forms_become_events_and_half_a_line_does_not(self) -> None:
        lines = [
            {"timestamp": 1_784_318_345.9, "step": 1, "data": {"train/loss": 0.93, "train/token": 20_248, "note": "x"}},
            {"timestamp": 1_784_318_346.9, "step": 2, "train/loss": 0.5, "eval/loss": 0.7},
            {"step": 3, "loss": 0.4},
        ]
        text = "\n".join([*map(json.dumps, lines), '{"step": 4, "lo', "[1]", '{"loss": 1}', '{"step": 5, "loss": NaN}'])
        events = metric_events(text, "2026-07-17T19:00:00Z")
        assert [event.metrics for event in events if event.metrics["step"] < 5] == [
            {"step": 3, "loss": 0.4},
            {"step": 1, "loss": 0.93, "token": 20_248},
            {"step": 2, "loss": 0.5, "eval_loss": 0.7},
        ]
        assert next(event.at for event in events if event.metrics["step"] == 3) == datetime(2026, 7, 17, 19, tzinfo=UTC)
        assert metric_events(text, None) != [] == metric_events("", None)

    # Weights

    def test_weights_arrive_whole_and_go_on_where_they_broke_off(self, bench: Bench) -> None:
        ref = bench.made_by_hand(KEY)
        with pytest.raises(ProviderError, match="has no model"):
            bench.provider.download(ref, bench.folder / "weights")
        bench.vendor.set_state(ref, "JOB_STATE_COMPLETED")
        vendor_of(bench).cut_after = 2000
        moved: list[tuple[str, int, int | None]] = []
        paths = bench.provider.download(ref, bench.folder / "weights", lambda *progress: moved.append(progress))
        assert [path.name for path in paths] == ["adapter_config.json", "adapter_model.safetensors"]
        for path in paths:
            assert path.read_bytes() == weights_of(f"accounts/acme/models/{KEY}/{path.name}")
        assert moved[-1] == ("adapter_model.safetensors", 5000, 5000)
        asked = [line.request.headers.get("range") for line in bench.vendor.log if line.route == "weights"]
        assert asked == [None, "bytes=2000-", None]
        assert sorted(path.suffix for path in (bench.folder / "weights").iterdir()) == [".json", ".safetensors", ".sha256", ".sha256"]
        assert bench.provider.download(ref, bench.folder / "weights") == paths
        paths[0].write_bytes(b"harmed")
        bench.provider.download(ref, bench.folder / "weights")
        assert bench.vendor.calls("weights") == 4, "only the harmed file is fetched again"

    def test_weights_with_a_wrong_checksum_are_not_kept(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        ref = bench.made_by_hand(KEY)
        bench.vendor.set_state(ref, "JOB_STATE_COMPLETED")
        weights = Part.headers.fget
        assert weights is not None
        monkeypatch.setattr(Part, "headers", property(lambda part: weights(part) | {"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}))
        with pytest.raises(ProviderError, match="checksum differs"):
            bench.provider.download(ref, bench.folder / "weights")
        assert list((bench.folder / "weights").iterdir()) == []

    @pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "", "c:\\x"])
    def test_a_file_name_that_leaves_the_folder_is_refused(self, bench: Bench, name: str) -> None:
        ref = bench.made_by_hand(KEY)
        bench.vendor.set_state(ref, "JOB_STATE_COMPLETED")
        body = json.dumps({"filenameToSignedUrls": {name: f"{bench.vendor.url}/signed/weights/x"}}).encode()
        fault = replace(refusal(200, ""), raw=("application/json", body), status=200)
        bench.vendor.fault("weights_address", fault)
        with pytest.raises(ProviderError, match="would not stay inside"):
            bench.provider.download(ref, bench.folder / "weights")

    # Deleting

    def test_deleting_spares_the_datasets_of_others_and_running_jobs(self, bench: Bench) -> None:
        ref = bench.made_by_hand(KEY)
        with pytest.raises(ProviderError, match="tuneport cancel"):
            bench.provider.delete(ref)
        bench.vendor.set_state(ref, "JOB_STATE_COMPLETED")
        with bench.vendor.books() as books:
            (own,) = books["files"]
            books["jobs"][ref]["evaluationDataset"] = "accounts/acme/datasets/shared"
            books["files"]["accounts/acme/datasets/shared"] = books["files"][own]
        assert bench.provider.delete(ref) == [f"model accounts/acme/models/{KEY}", f"dataset {own}"]
        assert list(bench.vendor.snapshot()["files"]) == ["accounts/acme/datasets/shared"]
        assert bench.provider.poll(ref).state is JobState.SUCCEEDED, "the record of the job, and its cost, stay"

    # Chat

    def test_a_tuned_model_without_a_deployment_says_what_to_do(self, bench: Bench) -> None:
        vendor = vendor_of(bench)
        vendor.deploys = False
        bench.vendor.set_state(bench.made_by_hand(KEY), "JOB_STATE_COMPLETED")
        model = f"accounts/acme/models/{KEY}"
        with pytest.raises(ProviderError, match=r"stands on no deployment.*tuneport deploy") as failed:
            list(bench.provider.chat(model, ASKED))
        assert verdict(failed.value).kind == "no"
        place = {"name": "accounts/acme/deployments/live", "baseModel": model, "state": "CREATING"}
        with vendor.books() as books:
            books["deployments"] = [place]
        with pytest.raises(ProviderError, match="is being deployed") as failed:
            list(bench.provider.chat(model, ASKED))
        assert verdict(failed.value).kind == "transient"
        place["state"] = "READY"  # a live merge: the deployment's base is the tuned model
        assert [reply.text for reply in bench.provider.chat(model, ASKED)] == [f"{model} says: my card is lost"]
        assert list(bench.provider.chat(model, [])) == []

    def test_a_deployment_that_wakes_up_is_waited_for(self, bench: Bench) -> None:
        bench.vendor.set_state(bench.made_by_hand(KEY), "JOB_STATE_COMPLETED")
        waking = refusal(503, "Deployment is scaling up", "DEPLOYMENT_SCALING_UP")
        for nth in (1, 2):
            bench.vendor.fault("chat", waking, nth)
        assert [reply.error for reply in bench.provider.chat(f"accounts/acme/models/{KEY}", ASKED)] == [""]
        for nth in range(1, 7):
            bench.vendor.fault("chat", waking, nth)
        with pytest.raises(ProviderError, match="waking up") as failed:
            list(bench.provider.chat(f"accounts/acme/models/{KEY}", ASKED))
        assert verdict(failed.value).kind == "transient"

    def test_a_base_model_that_is_served_per_token_needs_no_deployment(self, bench: Bench) -> None:
        assert [reply.text for reply in bench.provider.chat(MODEL, ASKED)] == [f"{MODEL} says: my card is lost"]

    # Asking before submitting

    @pytest.mark.parametrize(
        ("facts", "path", "reason"),
        [
            ({"tunable": False}, "model", "cannot be tuned by sft"),
            ({"supportsLora": False}, "tuning.kind", "takes no LoRA"),
            ({"trainingContextLength": 2048}, "training.max_seq_length", "4,096 exceeds the 2,048"),
        ],
    )
    def test_what_the_vendor_says_today_is_refused(self, bench: Bench, facts: dict[str, Any], path: str, reason: str) -> None:
        vendor_of(bench).model_facts = facts
        bench.plan = self.compile(job(data={"train": bench.spec.data.train}, training={"max_seq_length": 4096}))
        asked = bench.provider.online(bench.plan)
        assert reason in asked.refusals[path]

    def test_a_suspended_account_and_a_dying_model_are_warned_of(self, bench: Bench) -> None:
        bench.vendor.closed = True
        vendor_of(bench).model_facts = {"deprecationDate": {"year": 2026, "month": 12, "day": 1}}
        warnings = {warning.code: warning.message for warning in bench.provider.online(bench.plan).warnings}
        assert "MONTHLY_SPEND_LIMIT_EXCEEDED" in warnings["account"]
        assert "2026-12-01" in warnings["lifetime"]

    # Secrets

    def test_keys_and_signed_addresses_stay_out_of_debug_logs(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        bench.plan = self.compile(self.specs(str(bench.folder / "train.jsonl"), str(bench.folder / "held.jsonl"))[1])
        bench.spec = self.specs(str(bench.folder / "train.jsonl"), str(bench.folder / "held.jsonl"))[1]
        ref = bench.made_by_hand(KEY)
        bench.vendor.set_state(ref, "JOB_STATE_COMPLETED")
        list(bench.provider.events(ref))
        bench.provider.download(ref, bench.folder / "weights")
        assert "supervisedFineTuningJobs" in caplog.text
        for secret in (WANDB_KEY, FireworksVendor.secret, "0a1b2c3d4e5f"):
            assert secret not in caplog.text

    def test_a_tracker_key_that_is_missing_is_named_before_anything_is_sent(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.plan = self.compile(self.specs(str(bench.folder / "train.jsonl"), str(bench.folder / "held.jsonl"))[1])
        monkeypatch.delenv("WANDB_API_KEY")
        with pytest.raises(CredentialsError, match="WANDB_API_KEY is not set"):
            bench.provider.upload(bench.plan, bench.rows, KEY)
        assert bench.vendor.log == []


def vendor_of(bench: Bench) -> FireworksVendor:
    assert isinstance(bench.vendor, FireworksVendor)
    return bench.vendor


PAIR = {
    "input": {"messages": [{"role": "user", "content": "my card is lost"}]},
    "preferred_output": [{"role": "assistant", "content": "cards/0"}],
    "non_preferred_output": [{"role": "assistant", "content": "cards/1"}],
}
RFT_ROW = {"messages": [{"role": "user", "content": "17 + 25?"}], "answer": "42"}
