"""Fireworks' compiler and records: payloads equal to what the vendor's SDK sends, refusals with reasons, bills."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneport.core.data.facts import Feature, JobData
from tuneport.core.data.rows import Row
from tuneport.core.errors import DataError
from tuneport.core.plan import Plan
from tuneport.core.secrets import find_secrets
from tuneport.core.spec import JobSpec
from tuneport.providers.fireworks.compile import KIND_LACKS, LACKS, OPERATIONS, compile_plan
from tuneport.providers.fireworks.records import RECORDS
from tuneport.tests.recording_server import Recorder, recording_server
from tuneport.tests.wire_truth import METHODS, SURVEY_DAY, data_for, facts, violations

MODEL = "accounts/fireworks/models/qwen3-8b"
WITH_VALIDATION = {"train": "train.jsonl", "validation": "held.jsonl"}
EVALUATOR = "accounts/acme/evaluators/equal"


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": {"fireworks": MODEL}, "data": {"train": "train.jsonl"}} | fields)


def plan(job: JobSpec, data: JobData | None = None, today: date = SURVEY_DAY) -> Plan:
    return compile_plan(job, data or data_for(job), today)


SAME_JOB: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    # name: (fields of the spec, the SDK's resource, the arguments that say the same to it)
    "sft-defaults": ({}, "supervised_fine_tuning_jobs", {"base_model": MODEL}),
    "sft-lora": (
        {
            "name": "tickets",
            "data": WITH_VALIDATION,
            "tuning": {"kind": "lora", "rank": 16},
            "training": {
                "epochs": 3,
                "batch_size": 32,
                "learning_rate": 2e-4,
                "warmup_ratio": 0.1,
                "scheduler": "cosine",
                "min_learning_rate_ratio": 0.1,
                "weight_decay": 0.01,
                "max_seq_length": 4096,
                "loss_on": "completions",
            },
            "evaluation": {"checkpoints": 3},
            "tracking": {"wandb": {"project": "tickets", "entity": "team"}},
            "options": {"fireworks": {"region": "US_IOWA_1", "output_model": "tickets-v1", "is_turbo": True, "eval_auto_carveout": False}},
        },
        "supervised_fine_tuning_jobs",
        {
            "base_model": MODEL,
            "display_name": "tickets",
            "evaluation_dataset": "${upload:validation}",
            "lora_rank": 16,
            "epochs": 3,
            "batch_size_samples": 32,
            "learning_rate": 2e-4,
            "learning_rate_warmup_steps": 4,  # 0.1 of 39 steps, rounded up
            "optimizer_weight_decay": 0.01,
            "max_context_length": 4096,
            "sampler_checkpoint_save_interval_steps": 13,
            "wandb_config": {"enabled": True, "api_key": "${env:WANDB_API_KEY}", "project": "tickets", "entity": "team"},
            "region": "US_IOWA_1",
            "output_model": "tickets-v1",
            "is_turbo": True,
            "eval_auto_carveout": False,
            "extra_body": {"lrScheduler": {"cosine": {"minLrRatio": 0.1}}},
        },
    ),
    "sft-continued": (
        {"continue_from": "accounts/acme/models/tickets", "training": {"warmup_steps": 5, "scheduler": "constant"}},
        "supervised_fine_tuning_jobs",
        {
            "warm_start_from": "accounts/acme/models/tickets",
            "learning_rate_warmup_steps": 5,
            "extra_body": {"lrScheduler": {"constant": {}}},
        },
    ),
    "dpo": (
        {
            "name": "tickets",
            "method": "dpo",
            "tuning": {"rank": 8},
            "training": {"epochs": 2, "batch_size": 4, "learning_rate": 5e-6, "max_seq_length": 8192},
            "preference": {"beta": 0.2},
            "evaluation": {"checkpoints": 2},
            "options": {"fireworks": {"region": "EU_PARIS_1", "output_model": "tickets-v2"}},
        },
        "dpo_jobs",
        {
            "display_name": "tickets",
            "loss_config": {"method": "DPO", "dpo": {"beta": 0.2}},
            "training_config": {
                "base_model": MODEL,
                "lora_rank": 8,
                "epochs": 2,
                "batch_size_samples": 4,
                "learning_rate": 5e-6,
                "max_context_length": 8192,
                "sampler_checkpoint_save_interval_steps": 100,
                "region": "EU_PARIS_1",
                "output_model": "tickets-v2",
            },
        },
    ),
    "orpo": (
        {"method": "orpo", "training": {"learning_rate": 8e-6}},
        "dpo_jobs",
        {"loss_config": {"method": "ORPO"}, "training_config": {"base_model": MODEL, "learning_rate": 8e-6}},
    ),
    "rft": (
        {
            "method": "rft",
            "data": WITH_VALIDATION,
            "reinforcement": {"samples_per_prompt": 8, "max_output_tokens": 512},
            "tracking": {"wandb": {"project": "tickets"}},
            "options": {"fireworks": {"evaluator": EVALUATOR}},
        },
        "reinforcement_fine_tuning_jobs",
        {
            "evaluator": EVALUATOR,
            "evaluation_dataset": "${upload:validation}",
            "inference_parameters": {"response_candidates_count": 8, "max_output_tokens": 512},
            "wandb_config": {"enabled": True, "api_key": "${env:WANDB_API_KEY}", "project": "tickets"},
            "training_config": {"base_model": MODEL},
        },
    ),
}


@pytest.fixture(scope="module")
def service() -> Iterator[Recorder]:
    """A loopback Fireworks that accepts every job."""
    with recording_server(lambda method, path: {"name": "accounts/acme/jobs/tp-1", "state": "JOB_STATE_CREATING"}) as recorder:
        yield recorder


@pytest.mark.parametrize("name", SAME_JOB)
def test_the_payload_is_what_the_sdk_sends(name: str, service: Recorder) -> None:
    fireworks = pytest.importorskip("fireworks")
    fields, resource, arguments = SAME_JOB[name]
    job = spec(**fields)
    made = plan(job)
    assert made.refusals == {}
    service.requests.clear()
    with fireworks.Fireworks(api_key="none", account_id="acme", base_url=service.url, max_retries=0) as client:
        getattr(client, resource).create(dataset="${upload:train}", **arguments)
    (method, path, body), *_ = service.requests
    assert made.payload == body
    assert made.operation.replace("{account}", "acme") == f"{method} {path}"
    assert json.loads(json.dumps(made.payload)) == made.payload
    assert not list(find_secrets(made.payload))


def test_supervised_payload() -> None:
    made = plan(spec(training={"epochs": 2, "learning_rate": 1e-4}, tuning={"rank": 8}))
    assert made.payload == {"dataset": "${upload:train}", "baseModel": MODEL, "loraRank": 8, "epochs": 2, "learningRate": 1e-4}
    assert made.vendor_model == MODEL
    assert [u.record for u in made.uploads] == ["fireworks-chat"]


@pytest.mark.parametrize("method", METHODS)
def test_every_field_moves_the_payload_or_is_refused(method: str) -> None:
    assert violations("fireworks", lambda job, data: compile_plan(job, data, SURVEY_DAY), method) == []


@pytest.mark.parametrize("method", LACKS)
def test_a_method_fireworks_lacks_is_refused(method: str) -> None:
    assert plan(spec(method=method)).refusals["method"] == LACKS[method]


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_the_loss_is_always_named(method: str) -> None:
    made = plan(spec(method=method))
    assert made.payload["lossConfig"] == {"method": method.upper()}
    assert made.operation == OPERATIONS[method]


@pytest.mark.parametrize("kind", KIND_LACKS)
def test_a_tuning_fireworks_lacks_is_refused(kind: str) -> None:
    assert plan(spec(tuning={"kind": kind})).refusals == {"tuning.kind": KIND_LACKS[kind]}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"training": {"learning_rate_multiplier": 1.8}}, "training.learning_rate_multiplier", "absolute rate"),
    ({"training": {"steps": 100}}, "training.steps", "epochs"),
    ({"training": {"epochs": 1.5}}, "training.epochs", "not a whole number"),
    ({"training": {"epochs": 8000}}, "training.epochs", "400 rows x 8000 epochs exceed 3,000,000"),
    ({"training": {"max_seq_length": 1000}}, "training.max_seq_length", "use 992 or 1008"),
    ({"training": {"max_seq_length": 512_000}}, "training.max_seq_length", "outside the accepted range"),
    ({"training": {"gradient_accumulation": 2}}, "training.gradient_accumulation", "rejects it"),
    ({"training": {"seed": 1}}, "training.seed", "no setting"),
    ({"training": {"packing": False}}, "training.packing", "no setting"),
    ({"training": {"loss_on": "all"}}, "training.loss_on", "assistant messages"),
    ({"training": {"warmup_ratio": 0.1}}, "training.warmup_ratio", "training.batch_size"),
    ({"training": {"min_learning_rate_ratio": 0.1}}, "training.min_learning_rate_ratio", "constant"),
    ({"method": "dpo", "training": {"scheduler": "cosine"}}, "training.scheduler", "supervised jobs only"),
    ({"evaluation": {"checkpoints": 3}}, "evaluation.checkpoints", "training.batch_size"),
    ({"evaluation": {"checkpoints": 30}, "training": {"batch_size": 32}}, "evaluation.checkpoints", "exceed the 13 steps"),
    ({"evaluation": {"early_stopping": {"patience": 2}}}, "evaluation.early_stopping.patience", "rejects it"),
    ({"tuning": {"rank": 12}}, "tuning.rank", "power of two"),
    ({"tuning": {"rank": 64}}, "tuning.rank", "1 to 32"),
    ({"tuning": {"alpha": 32}}, "tuning.alpha", "rank only"),
    ({"method": "dpo", "preference": {"beta": 0.5}}, "preference.beta", "below 0.5"),
    ({"method": "orpo", "preference": {"beta": 0.1}}, "preference.beta", "odds ratio"),
    ({"method": "dpo", "data": WITH_VALIDATION}, "data.validation", "take no validation rows"),
    ({"method": "rft"}, "options.fireworks.evaluator", "needs the resource name"),
    ({"options": {"fireworks": {"evaluator": EVALUATOR}}}, "options.fireworks.evaluator", "no meaning in method sft"),
    ({"data": WITH_VALIDATION, "options": {"fireworks": {"eval_auto_carveout": True}}}, "options.fireworks.eval_auto_carveout", "already"),
    ({"export": {"hub_repo": "a/b"}}, "export.hub_repo", "download"),
    ({"tracking": {"wandb": {"project": "p", "name": "run"}}}, "tracking.wandb.name", "named there"),
]


@pytest.mark.parametrize(("fields", "path", "reason"), REFUSED)
def test_refusals_say_why(fields: dict[str, Any], path: str, reason: str) -> None:
    made = plan(spec(**fields))
    assert list(made.refusals) == [path]
    assert reason in made.refusals[path]


def test_validation_rows_that_tuneport_cut_are_not_dropped_in_silence() -> None:
    job = spec(method="dpo", data={"train": "train.jsonl", "split": {"validation": 0.1}})
    made = plan(job, JobData(facts("preference"), facts("preference", rows=40)))
    assert "set it to 0" in made.refusals["data.split.validation"]
    assert [u.role for u in made.uploads] == ["train"]


def test_checkpoints_become_an_interval() -> None:
    made = plan(spec(training={"batch_size": 32, "epochs": 2}, evaluation={"checkpoints": 4}))
    assert made.payload["samplerCheckpointSaveIntervalSteps"] == 6
    assert next(o.note for o in made.outcomes if o.path == "evaluation.checkpoints") == "every 6 of 26 steps, which makes 4"


@settings(max_examples=40)
@given(st.integers(3, 5000), st.integers(1, 64), st.integers(1, 5), st.floats(0, 1))
def test_warmup_stays_within_the_run(rows: int, batch: int, epochs: int, ratio: float) -> None:
    made = plan(spec(training={"batch_size": batch, "epochs": epochs, "warmup_ratio": ratio}), JobData(facts(rows=rows)))
    steps = -(-rows // batch) * epochs
    warmup = made.payload["learningRateWarmupSteps"]
    assert isinstance(warmup, int)
    assert ratio * steps <= warmup + 1e-6 <= steps + 1


def test_data_that_the_records_cannot_carry_is_refused() -> None:
    def refusals(method: str, *features: Feature, rows: int = 400) -> dict[str, str]:
        job = spec(method=method, options={"fireworks": {"evaluator": EVALUATOR}} if method == "rft" else {})
        return plan(job, JobData(replace(data_for(job).train, rows=rows, features=frozenset(features)))).refusals

    assert "text only" in refusals("sft", "images")["data.train"]
    assert "3 to 3,000,000" in refusals("sft", rows=2)["data.train"]
    assert "one turn" in refusals("dpo", "multi_turn")["data.train"]
    assert "prompts that end with the user" in refusals("rft")["data.train"]
    assert refusals("sft", "tools", "tool_calls", "message_weights", "row_weights", "reasoning", "multi_turn", "system") == {}
    assert refusals("rft", "prompt_only", "tools") == {}


def test_a_weight_on_one_row_puts_one_on_every_row() -> None:
    made = plan(spec(), JobData(facts(features=frozenset({"row_weights"}))))
    assert [u.record for u in made.uploads] == ["fireworks-chat-weighted"]


def test_the_bill() -> None:
    made = plan(spec(training={"epochs": 3}))
    tokens = data_for(spec()).train.tokens
    assert made.cost.usd is not None
    rate = made.cost.usd.high / (3 * tokens.high)
    assert made.cost.usd.low == pytest.approx(3 * tokens.low * rate)
    unrolled = plan(spec(), JobData(facts(features=frozenset({"reasoning", "multi_turn"}))))
    assert unrolled.cost.usd is None
    assert unrolled.time.seconds is None
    assert "unrolled" in {w.code for w in unrolled.warnings}


def test_serving_states_the_hourly_price() -> None:
    message = next(w.message for w in plan(spec()).warnings if w.code == "serving")
    assert "USD per GPU-hour" in message


def test_compiling_is_fast() -> None:
    job = spec(**SAME_JOB["sft-lora"][0])
    data = data_for(job)
    plan(job, data)
    start = time.perf_counter()
    for _ in range(10):
        plan(job, data)
    assert (time.perf_counter() - start) / 10 < 0.05


# -- records -----------------------------------------------------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "Where is my order?"}, {"role": "assistant", "content": '{"topic": "shipping"}'}


def chat_row(*messages: dict[str, Any], **rest: Any) -> Row:
    return Row("chat", "train.jsonl", 7, messages=messages, **rest)


def test_chat_records() -> None:
    tool = {"type": "function", "function": {"name": "track"}}
    assert RECORDS["fireworks-chat"](chat_row(USER, ANSWER, tools=(tool,))) == {"messages": [USER, ANSWER], "tools": [tool]}
    assert RECORDS["fireworks-chat-weighted"](chat_row(USER, ANSWER))["weight"] == 1.0
    assert RECORDS["fireworks-chat-weighted"](chat_row(USER, ANSWER, weight=-0.5))["weight"] == -0.5


def test_preference_and_prompt_records() -> None:
    row = Row("preference", "p.jsonl", 2, messages=(USER,), chosen=ANSWER, rejected=ANSWER | {"content": "?"})
    assert RECORDS["fireworks-preference"](row) == {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [ANSWER | {"content": "?"}],
    }
    prompt = chat_row(USER, columns={"reference": {"topic": "shipping"}}, label="shipping")
    assert RECORDS["fireworks-rft"](prompt) == {"messages": [USER], "label": "shipping", "reference": {"topic": "shipping"}}


@pytest.mark.parametrize(
    ("record", "row", "reason"),
    [
        ("fireworks-chat", chat_row(USER), "ends with a user message"),
        ("fireworks-chat", chat_row(USER, ANSWER, weight=1.0), "has a weight"),
        ("fireworks-chat", chat_row({"role": "developer", "content": "x"}, ANSWER), "role 'developer'"),
        ("fireworks-chat", chat_row(USER, ANSWER | {"weight": 2}), "weight 2"),
        ("fireworks-chat", chat_row({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "not text"),
        ("fireworks-chat", Row("text", "train.jsonl", 7, text="x"), "text row"),
        (
            "fireworks-preference",
            Row("preference", "train.jsonl", 7, messages=(USER, ANSWER, USER), chosen=ANSWER, rejected=ANSWER),
            "several turns",
        ),
        ("fireworks-rft", chat_row(USER, ANSWER), "ends with the assistant's answer"),
        ("fireworks-rft", chat_row(USER, weight=1.0), "weight"),
        ("fireworks-rft", chat_row(USER, columns={"messages": 1}), "column named 'messages'"),
        ("fireworks-rft", chat_row(USER, columns={"day": date(2026, 1, 1)}), "column 'day'"),
        ("fireworks-rft", chat_row(USER, columns={"score": float("nan")}), "column 'score'"),
    ],
)
def test_a_row_that_cannot_be_expressed_is_named(record: str, row: Row, reason: str) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:7") as caught:
        RECORDS[record](row)
    assert reason in str(caught.value)
    assert caught.value.fix


def test_every_upload_has_a_converter() -> None:
    for method in METHODS:
        assert {upload.record for upload in plan(spec(method=method)).uploads} <= RECORDS.keys()
