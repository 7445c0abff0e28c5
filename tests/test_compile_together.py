"""Together's compiler and records: payloads equal to what the vendor's SDK sends, refusals with reasons, bills."""

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
from tuneport.core.errors import CatalogueError, DataError
from tuneport.core.plan import Plan
from tuneport.core.secrets import find_secrets
from tuneport.core.spec import JobSpec
from tuneport.providers.together.compile import KIND_LACKS, LACKS, compile_plan
from tuneport.providers.together.records import RECORDS
from tuneport.providers.together.run import billed_tokens
from tuneport.tests.recording_server import Recorder, recording_server
from tuneport.tests.wire_truth import METHODS, SURVEY_DAY, data_for, facts, violations

MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"
LIMITS = {
    "model_name": MODEL,
    "default_gradient_accumulation_steps": 1,
    "lora_training": {
        "default_rank": 64,
        "max_rank": 64,
        "min_batch_size": 8,
        "max_batch_size": 64,
        "max_batch_size_dpo": 32,
        "target_modules": ["q_proj", "v_proj"],
    },
    "full_training": {"min_batch_size": 8, "max_batch_size": 64, "max_batch_size_dpo": 32},
    "min_learning_rate": 1e-8,
    "max_learning_rate": 0.01,
    "max_num_epochs": 20,
    "max_num_evals": 100,
    "max_num_checkpoints": 100,
    "max_seq_length_sft": 131072,
    "max_seq_length_dpo": 65536,
    "min_max_seq_length": 512,
    "merge_output_lora": True,
    "supports_full_training": True,
    "supports_reasoning": False,
    "supports_tools": True,
    "supports_vision": False,
}


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": {"together": MODEL}, "data": {"train": "train.jsonl"}} | fields)


def plan(job: JobSpec, data: JobData | None = None, today: date = SURVEY_DAY) -> Plan:
    return compile_plan(job, data or data_for(job), today)


WITH_VALIDATION = {"train": "train.jsonl", "validation": "held.jsonl"}
SAME_JOB: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (fields of the spec, the arguments that say the same to the vendor's SDK)
    "sft-defaults": ({}, {"model": MODEL, "lora": True, "lora_r": 16, "lora_alpha": 32}),
    "sft-lora": (
        {
            "name": "tickets",
            "data": WITH_VALIDATION,
            "tuning": {"kind": "lora", "rank": 32, "alpha": 64, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
            "training": {
                "epochs": 3,
                "batch_size": 32,
                "gradient_accumulation": 4,
                "learning_rate": 2e-4,
                "warmup_ratio": 0.1,
                "scheduler": "cosine",
                "min_learning_rate_ratio": 0.1,
                "scheduler_cycles": 1.5,
                "weight_decay": 0.01,
                "max_grad_norm": 0,
                "max_seq_length": 4096,
                "packing": False,
                "loss_on": "completions",
                "seed": 7,
            },
            "evaluation": {"evaluations": 6, "checkpoints": 3, "early_stopping": {"patience": 3, "min_delta": 0.01}},
            "tracking": {"wandb": {"project": "tickets", "entity": "team", "name": "run-1"}},
            "export": {"hub_repo": "team/tickets"},
            "options": {"together": {"warmup_evals": 2}},
        },
        {
            "model": MODEL,
            "validation_file": "${upload:validation}",
            "suffix": "tickets",
            "lora": True,
            "lora_r": 32,
            "lora_alpha": 64,
            "lora_dropout": 0.05,
            "lora_trainable_modules": "q_proj,v_proj",
            "n_epochs": 3,
            "batch_size": 8,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "warmup_ratio": 0.1,
            "min_lr_ratio": 0.1,
            "scheduler_num_cycles": 1.5,
            "weight_decay": 0.01,
            "max_grad_norm": 0,
            "max_seq_length": 4096,
            "packing": False,
            "train_on_inputs": False,
            "random_seed": 7,
            "n_evals": 6,
            "n_checkpoints": 3,
            "early_stopping_enabled": True,
            "early_stopping_patience": 3,
            "early_stopping_min_delta": 0.01,
            "early_stopping_warmup_evals": 2,
            "wandb_api_key": "${env:WANDB_API_KEY}",
            "wandb_project_name": "tickets",
            "wandb_entity": "team",
            "wandb_name": "run-1",
            "hf_api_token": "${env:HF_TOKEN}",
            "hf_output_repo_name": "team/tickets",
        },
    ),
    "sft-full": (
        {"tuning": {"kind": "full"}, "training": {"epochs": 2, "learning_rate": 1e-5, "scheduler": "linear", "batch_size": 16}},
        {
            "model": MODEL,
            "lora": False,
            "n_epochs": 2,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "linear",
            "batch_size": 16,
            "gradient_accumulation_steps": 1,
        },
    ),
    "sft-constant-rate": (
        {"training": {"scheduler": "constant", "loss_on": "all"}},
        {
            "model": MODEL,
            "lora": True,
            "lora_r": 16,
            "lora_alpha": 32,
            "lr_scheduler_type": "linear",
            "min_lr_ratio": 1.0,
            "train_on_inputs": True,
        },
    ),
    "dpo": (
        {
            "method": "dpo",
            "data": WITH_VALIDATION,
            "tuning": {"rank": 8},
            "training": {"learning_rate": 5e-6},
            "evaluation": {"evaluations": 2},
            "preference": {"beta": 0.2, "sft_weight": 0.1, "length_normalised": True},
        },
        {
            "model": MODEL,
            "validation_file": "${upload:validation}",
            "training_method": "dpo",
            "lora": True,
            "lora_r": 8,
            "lora_alpha": 16,
            "learning_rate": 5e-6,
            "n_evals": 2,
            "dpo_beta": 0.2,
            "rpo_alpha": 0.1,
            "dpo_normalize_logratios_by_length": True,
        },
    ),
    "simpo": (
        {"method": "simpo", "preference": {"simpo_gamma": 0.5, "beta": 2.0}},
        {
            "model": MODEL,
            "training_method": "dpo",
            "lora": True,
            "lora_r": 16,
            "lora_alpha": 32,
            "simpo_gamma": 0.5,
            "dpo_beta": 2.0,
        },
    ),
    "cpt": ({"method": "cpt"}, {"model": MODEL, "lora": True, "lora_r": 16, "lora_alpha": 32}),
    "continued": (
        {"continue_from": "ft-1234:40"},
        {"from_checkpoint": "ft-1234:40", "lora": True, "lora_r": 16, "lora_alpha": 32},
    ),
    "from-hub": (
        {"options": {"together": {"from_hf_model": "team/model", "hf_model_revision": "main"}}},
        {"model": MODEL, "from_hf_model": "team/model", "hf_model_revision": "main", "lora": True, "lora_r": 16, "lora_alpha": 32},
    ),
}


@pytest.fixture(scope="module")
def service() -> Iterator[Recorder]:
    """A loopback Together: model limits, price estimate, create."""

    def answer(method: str, path: str) -> dict[str, Any]:
        if "limits" in path:
            return LIMITS
        if "estimate-price" in path:
            return {"estimation_available": False, "reason": "train_file_not_validated"}
        return {"id": "ft-1", "created_at": "2026-11-22T00:00:00Z", "updated_at": "2026-11-22T00:00:00Z", "status": "pending"}

    with recording_server(answer) as recorder:
        yield recorder


@pytest.mark.parametrize("name", SAME_JOB)
def test_the_payload_is_what_the_sdk_sends(name: str, service: Recorder) -> None:
    together = pytest.importorskip("together")
    fields, arguments = SAME_JOB[name]
    job = spec(**fields)
    made = plan(job)
    assert made.refusals == {}
    service.requests.clear()
    with together.Together(api_key="none", base_url=service.url, max_retries=0) as client:
        client.fine_tuning.create(training_file="${upload:train}", **arguments)
    assert made.payload == service.body("/v1/fine-tunes")
    assert json.loads(json.dumps(made.payload)) == made.payload
    assert not list(find_secrets(made.payload))


def test_supervised_payload() -> None:
    made = plan(spec(training={"epochs": 2, "learning_rate": 1e-4}, tuning={"rank": 8}))
    assert made.operation == "POST /v1/fine-tunes"
    assert made.vendor_model == MODEL
    assert made.payload == {
        "training_file": "${upload:train}",
        "validation_file": "",
        "model": MODEL,
        "training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_trainable_modules": "all-linear"},
        "n_epochs": 2,
        "learning_rate": 1e-4,
        "packing": True,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "batch_size": "max",
        "warmup_ratio": 0.0,
        "lr_scheduler": {"lr_scheduler_type": "cosine", "lr_scheduler_args": {"min_lr_ratio": 0.0, "num_cycles": 0.5}},
        "n_evals": 0,
        "n_checkpoints": 1,
        "early_stopping_enabled": False,
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
    }
    assert [u.record for u in made.uploads] == ["together-chat"]


@pytest.mark.parametrize("method", METHODS)
def test_every_field_moves_the_payload_or_is_refused(method: str) -> None:
    assert violations("together", lambda job, data: compile_plan(job, data, SURVEY_DAY), method) == []


@pytest.mark.parametrize("method", LACKS)
def test_a_method_together_lacks_is_refused_and_never_replaced(method: str) -> None:
    made = plan(spec(method=method))
    assert made.refusals["method"] == LACKS[method]
    assert "training_method" not in made.payload


@pytest.mark.parametrize("kind", KIND_LACKS)
def test_a_tuning_together_lacks_is_refused(kind: str) -> None:
    assert plan(spec(tuning={"kind": kind})).refusals == {"tuning.kind": KIND_LACKS[kind]}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"training": {"learning_rate_multiplier": 1.8}}, "training.learning_rate_multiplier", "absolute rate"),
    ({"training": {"steps": 100}}, "training.steps", "epochs"),
    ({"training": {"epochs": 1.5}}, "training.epochs", "not a whole number"),
    ({"tuning": {"alpha": 7.9}}, "tuning.alpha", "would cut 7.9 to 7"),
    ({"tuning": {"rank": 9999}}, "tuning.rank", "at most 64"),
    ({"tuning": {"kind": "full", "rank": 8}}, "tuning.rank", "tuning.kind is full"),
    ({"training": {"warmup_steps": 10}}, "training.warmup_steps", "training.warmup_ratio"),
    ({"training": {"scheduler": "linear", "scheduler_cycles": 2}}, "training.scheduler_cycles", "cosine"),
    ({"training": {"scheduler": "constant", "min_learning_rate_ratio": 0.1}}, "training.min_learning_rate_ratio", "no lower end"),
    ({"training": {"max_seq_length": 200_000}}, "training.max_seq_length", "131,072"),
    ({"evaluation": {"evaluations": 3}}, "evaluation.evaluations", "no validation rows"),
    ({"evaluation": {"early_stopping": {"patience": 2}}}, "evaluation.early_stopping.patience", "needs validation rows"),
    (
        {"data": WITH_VALIDATION, "evaluation": {"evaluations": 3, "early_stopping": {"patience": 2}}},
        "evaluation.early_stopping.patience",
        "at least 4 evaluations",
    ),
    ({"evaluation": {"early_stopping": {"min_delta": 0.1}}}, "evaluation.early_stopping.min_delta", "early stopping is off"),
    ({"method": "simpo"}, "preference.simpo_gamma", "plain DPO"),
    ({"method": "simpo", "preference": {"simpo_gamma": 0}}, "preference.simpo_gamma", "plain DPO"),
    (
        {"method": "simpo", "preference": {"simpo_gamma": 0.5, "length_normalised": False}},
        "preference.length_normalised",
        "always divides",
    ),
    ({"method": "dpo", "training": {"loss_on": "all"}}, "training.loss_on", "sft only"),
    ({"method": "cpt", "training": {"loss_on": "completions"}}, "training.loss_on", "no prompt"),
    ({"tags": {"team": "support"}}, "tags", "no labels"),
    ({"tracking": {"wandb": {"tags": ["a"]}}}, "tracking.wandb.tags", "no tags"),
    (
        {"continue_from": "ft-1", "options": {"together": {"from_hf_model": "a/b"}}},
        "options.together.from_hf_model",
        "continue_from is set",
    ),
    ({"options": {"together": {"hf_model_revision": "main"}}}, "options.together.hf_model_revision", "needs options.together.from_hf"),
]


@pytest.mark.parametrize(("fields", "path", "reason"), REFUSED)
def test_refusals_say_why(fields: dict[str, Any], path: str, reason: str) -> None:
    made = plan(spec(**fields))
    assert list(made.refusals) == [path]
    assert reason in made.refusals[path]


def test_a_model_for_adapters_only_refuses_full_tuning() -> None:
    job = JobSpec.model_validate({"model": "gpt-oss-120b", "data": {"train": "t.jsonl"}, "tuning": {"kind": "full"}})
    assert "offered: lora" in plan(job).refusals["tuning.kind"]


def test_an_unset_rank_stays_within_the_models_limit() -> None:
    made = plan(JobSpec.model_validate({"model": {"together": "no/such-model"}, "data": {"train": "t.jsonl"}}))
    assert made.payload["training_type"] == plan(spec()).payload["training_type"]
    assert [w.code for w in made.warnings].count("unknown_model") == 1
    assert made.cost.usd is None


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(CatalogueError, match="no model 'lama'"):
        plan(JobSpec.model_validate({"model": "lama", "data": {"train": "t.jsonl"}}))


def test_warmup_steps_become_a_share_when_the_steps_are_known() -> None:
    made = plan(spec(training={"warmup_steps": 10, "batch_size": 16, "packing": False, "epochs": 2}))
    assert made.payload["warmup_ratio"] == pytest.approx(10 / 50)
    outcome = next(o for o in made.outcomes if o.path == "training.warmup_steps")
    assert (outcome.outcome, outcome.note) == ("converted", "10 of 50 steps")
    beyond = plan(spec(training={"warmup_steps": 51, "batch_size": 16, "packing": False, "epochs": 2}))
    assert "exceed the 50 steps" in beyond.refusals["training.warmup_steps"]
    assert plan(spec(training={"warmup_steps": 0})).payload["warmup_ratio"] == 0


def test_the_batch_is_that_of_the_whole_step() -> None:
    alone = plan(spec(training={"batch_size": 32})).payload
    assert (alone["batch_size"], alone["gradient_accumulation_steps"]) == (32, 1)
    parts = plan(spec(training={"batch_size": 32, "gradient_accumulation": 4})).payload
    assert (parts["batch_size"], parts["gradient_accumulation_steps"]) == (8, 4)
    left = plan(spec(training={"gradient_accumulation": 4})).payload
    assert (left["batch_size"], left["gradient_accumulation_steps"]) == ("max", 4)


def test_data_that_the_records_cannot_carry_is_refused() -> None:
    def refusals(method: str, *features: Feature, kind: Any = None) -> dict[str, str]:
        job = spec(method=method)
        train = data_for(job).train
        return plan(job, JobData(replace(train, kind=kind or train.kind, features=frozenset(features)))).refusals

    assert "prompt_only" in refusals("sft", "prompt_only")["data.train"]
    assert "weights" in refusals("dpo", "row_weights")["data.train"]
    assert "method cpt learns from text rows" in refusals("cpt", kind="chat")["data.train"]
    assert refusals("sft", "tools", "tool_calls", "message_weights", "row_weights", "reasoning", "images", "multi_turn", "system") == {}


def test_the_bill_counts_epochs_and_evaluations() -> None:
    data = JobData(facts(rows=400), facts(rows=50, path="held.jsonl"))
    job = spec(data=WITH_VALIDATION, training={"epochs": 3}, evaluation={"evaluations": 5})
    made = plan(job, data)
    tokens = data.train.tokens
    assert billed(job, data) == ((3 * tokens.low, 3 * tokens.high), (5 * 50 * 200, 5 * 50 * 240))
    assert {line.item for line in made.cost.lines} == {"training tokens", "validation tokens"}
    assert made.cost.usd is not None
    assert made.cost.usd.low > 0
    unpacked = spec(data=WITH_VALIDATION, training={"epochs": 3, "packing": False, "max_seq_length": 1024}, evaluation={"evaluations": 5})
    assert billed(unpacked, data) == ((3 * 400 * 1024,) * 2, (5 * 50 * 1024,) * 2)
    early = spec(data=WITH_VALIDATION, evaluation={"evaluations": 8, "early_stopping": {"patience": 2}})
    assert billed(early, data)[0] == (tokens.low / 2, tokens.high)


def billed(job: JobSpec, data: JobData) -> tuple[tuple[float, float], tuple[float, float]]:
    from tuneport.core.catalogue import load_catalogue

    train, held = billed_tokens(job, data, load_catalogue().offering(job, "together"))
    assert train is not None
    assert held is not None
    return (train.low, train.high), (held.low, held.high)


def test_warnings() -> None:
    def codes(job: JobSpec) -> set[str]:
        return {w.code for w in plan(job).warnings}

    assert "serving" in codes(spec())
    assert "validation_unused" in codes(spec(data=WITH_VALIDATION))
    assert "validation_unused" not in codes(spec(data=WITH_VALIDATION, evaluation={"evaluations": 2}))
    assert "batch_of_sequences" in codes(spec(training={"batch_size": 16}))
    assert "batch_of_sequences" not in codes(spec(training={"batch_size": 16, "packing": False}))
    assert "rows_cut" in codes(spec(training={"max_seq_length": 512}))
    assert "beta" in codes(spec(method="dpo", preference={"beta": 1.5}))


def test_serving_states_the_hourly_price() -> None:
    job = JobSpec.model_validate({"model": "qwen3.5-9b", "data": {"train": "t.jsonl"}})
    message = next(w.message for w in plan(job).warnings if w.code == "serving")
    assert "USD per GPU-hour" in message
    assert "H100" in message


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
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def chat_row(*messages: dict[str, Any], **rest: Any) -> Row:
    return Row("chat", "train.jsonl", 7, messages=messages, **rest)


def pair_row(*messages: dict[str, Any], **rest: Any) -> Row:
    return Row("preference", "train.jsonl", 7, messages=messages, **{"chosen": ANSWER, "rejected": ANSWER} | rest)


def test_chat_record() -> None:
    tool = {"type": "function", "function": {"name": "track"}}
    row = chat_row(USER, ANSWER | {"weight": 0, "name": None}, tools=(tool,), weight=0.5)
    assert RECORDS["together-chat"](row) == {"messages": [USER, ANSWER | {"weight": 0}], "tools": [tool], "weight": 0.5}


def test_text_and_preference_records() -> None:
    assert RECORDS["together-text"](Row("text", "t.jsonl", 1, text="Once")) == {"text": "Once"}
    row = Row("preference", "p.jsonl", 2, messages=(USER,), chosen=ANSWER, rejected=ANSWER | {"content": "?"})
    assert RECORDS["together-preference"](row) == {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [ANSWER | {"content": "?"}],
    }


@pytest.mark.parametrize(
    ("record", "row", "reason"),
    [
        ("together-chat", chat_row(USER), "ends with a user message"),
        ("together-chat", chat_row(), "no messages"),
        ("together-chat", chat_row({"role": "developer", "content": "x"}, ANSWER), "role 'developer' in message 1"),
        ("together-chat", chat_row(USER, ANSWER | {"audio": "x"}), "'audio' in message 2"),
        ("together-chat", chat_row(USER, ANSWER | {"weight": 0.5}), "weight 0.5"),
        ("together-chat", chat_row(USER, ANSWER, weight=-1.0), "weight of -1"),
        ("together-chat", chat_row({"role": "user", "content": [IMAGE] * 11}, ANSWER), "11 images"),
        ("together-chat", chat_row({"role": "user", "content": [IMAGE | {"image_url": {"url": "https://a/b.png"}}]}, ANSWER), "a link"),
        ("together-text", Row("text", "train.jsonl", 7), "empty text"),
        ("together-text", chat_row(USER, ANSWER), "chat row"),
        ("together-preference", pair_row(USER, rejected=None), "no pair"),
        ("together-preference", pair_row(USER, ANSWER), "ends with an assistant message"),
        ("together-preference", pair_row(USER, weight=2.0), "weight of 2"),
    ],
)
def test_a_row_that_cannot_be_expressed_is_named(record: str, row: Row, reason: str) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:7") as caught:
        RECORDS[record](row)
    assert reason in str(caught.value)
    assert caught.value.fix


@settings(max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6), st.sampled_from([None, 0.0, 1.0, 2.5]))
def test_chat_records_lose_nothing(texts: list[str], weight: float | None) -> None:
    messages = tuple(m for text in texts for m in ({"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}))
    record = RECORDS["together-chat"](chat_row(*messages, weight=weight))
    assert record["messages"] == list(messages)
    assert record.get("weight") == weight


def test_every_upload_has_a_converter() -> None:
    for method in METHODS:
        assert {upload.record for upload in plan(spec(method=method)).uploads} <= RECORDS.keys()
