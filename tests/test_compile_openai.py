"""OpenAI's compiler and records: exact payloads, refusals with reasons, and agreement with the SDK's own types."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, TypeAdapter

from tuneport.core.data.facts import JobData
from tuneport.core.data.rows import Row
from tuneport.core.errors import DataError
from tuneport.core.plan import Plan
from tuneport.core.spec import JobSpec
from tuneport.providers.openai.compile import auto_epochs, compile_plan
from tuneport.providers.openai.records import RECORDS
from tuneport.tests.wire_truth import GRADER, SURVEY_DAY, data_for, facts, violations

MODEL = "gpt-4.1-mini-2025-04-14"
REASONING_MODEL = "o4-mini-2025-04-16"


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": {"openai": MODEL}, "data": {"train": "train.jsonl"}} | fields)


def plan(job: JobSpec, data: JobData | None = None, today: date = SURVEY_DAY) -> Plan:
    return compile_plan(job, data or data_for(job), today)


def test_supervised_payload() -> None:
    job = spec(
        name="tickets",
        data={"train": "train.jsonl", "validation": "held.jsonl"},
        training={"epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.8, "seed": 7, "loss_on": "completions"},
        tracking={"wandb": {"project": "tickets", "tags": ["a"]}},
        tags={"team": "support"},
    )
    made = plan(job)
    assert made.refusals == {}
    assert made.operation == "POST /fine_tuning/jobs"
    assert made.payload == {
        "model": MODEL,
        "training_file": "${upload:train}",
        "validation_file": "${upload:validation}",
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.8}},
        },
        "suffix": "tickets",
        "seed": 7,
        "metadata": {"team": "support"},
        "integrations": [{"type": "wandb", "wandb": {"project": "tickets", "tags": ["a"]}}],
    }
    assert isinstance(made.payload["method"]["supervised"]["hyperparameters"]["n_epochs"], int)  # type: ignore[index,call-overload]
    assert [(u.role, u.record, u.filename) for u in made.uploads] == [
        ("train", "openai-chat", "tickets-train.jsonl"),
        ("validation", "openai-chat", "tickets-validation.jsonl"),
    ]


def test_preference_payload() -> None:
    made = plan(spec(method="dpo", preference={"beta": 0.2}, training={"epochs": 2}))
    assert made.refusals == {}
    assert made.payload["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.2}}}
    assert made.uploads[0].record == "openai-dpo"


def test_reinforcement_payload() -> None:
    job = spec(
        method="rft",
        reinforcement={"grader": GRADER, "reasoning_effort": "low"},
        options={"openai": {"compute_multiplier": 2.0, "eval_samples": 3, "eval_interval": 5}},
    )
    made = plan(job.model_copy(update={"model": {"openai": REASONING_MODEL}}), today=date(2026, 10, 1))
    assert made.payload["method"] == {
        "type": "reinforcement",
        "reinforcement": {
            "grader": GRADER,
            "hyperparameters": {"reasoning_effort": "low", "compute_multiplier": 2.0, "eval_samples": 3, "eval_interval": 5},
        },
    }
    assert made.refusals == {}


def test_continuing_sends_the_earlier_model_and_keeps_the_base_for_prices() -> None:
    made = plan(spec(continue_from="ft:gpt-4.1-mini-2025-04-14:acme:tickets:abc"))
    assert made.payload["model"] == made.vendor_model == "ft:gpt-4.1-mini-2025-04-14:acme:tickets:abc"
    assert made.cost.usd is not None
    assert "job" in plan(spec(continue_from="ftjob-abc")).refusals["continue_from"]


@pytest.mark.parametrize("method", ["kto", "orpo", "simpo", "cpt", "distill"])
def test_methods_that_openai_lacks_are_refused_and_never_replaced(method: str) -> None:
    made = plan(spec(method=method))
    assert "method" in made.refusals
    assert "method" not in made.payload


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("training.learning_rate", {"training": {"learning_rate": 2e-4}}, "learning_rate_multiplier"),
        ("training.epochs", {"training": {"epochs": 51}}, "1 to 50"),
        ("training.epochs", {"training": {"epochs": 2.5}}, "whole"),
        ("training.batch_size", {"training": {"batch_size": 257}}, "1 to 256"),
        ("tuning.rank", {"tuning": {"rank": 8}}, "chooses"),
        ("preference.beta", {"method": "dpo", "preference": {"beta": 2.5}}, "2"),
        ("training.loss_on", {"training": {"loss_on": "all"}}, "assistant"),
        ("tracking.wandb.entity", {"tracking": {"wandb": {"entity": "team"}}}, "project"),
        ("reinforcement.grader", {"method": "rft"}, "grader"),
        ("reinforcement.grader", {"method": "rft", "reinforcement": {"grader": {"type": "label_model"}}}, "string_check"),
        ("options.openai.eval_samples", {"options": {"openai": {"eval_samples": 2}}}, "rft"),
        ("tags", {"tags": {f"k{i}": "v" for i in range(16)}}, "15"),
        ("tags", {"tags": {"k" * 65: "v"}}, "64"),
    ],
)
def test_what_openai_cannot_do_is_refused_with_the_reason(path: str, fields: dict[str, Any], says: str) -> None:
    assert says in plan(spec(**fields)).refusals[path]


def test_a_rate_is_never_sent_as_a_multiplier() -> None:
    made = plan(spec(training={"learning_rate": 2e-4}))
    assert "0.0002" not in json.dumps(made.payload)
    assert "learning_rate" not in json.dumps(made.payload)


def test_data_that_the_records_cannot_carry_is_refused_with_all_reasons() -> None:
    job = spec()
    unfit = replace(facts(rows=5), features=frozenset({"images", "row_weights", "reasoning"}))
    reason = plan(job, JobData(train=unfit)).refusals["data.train"]
    assert all(word in reason for word in ("images", "row_weights", "reasoning", "5 rows", "at least 10"))
    assert "preference" in plan(job, JobData(train=facts("preference"))).refusals["data.train"]
    assert "message weights" in plan(
        spec(method="dpo"), JobData(train=facts("preference", features=frozenset({"message_weights"})))
    ).refusals["data.train"]
    assert "end with an answer" in plan(spec(method="rft"), JobData(train=facts())).refusals["data.train"]


def test_lifetimes_warn_before_the_end_and_refuse_after_it() -> None:
    codes = {w.code for w in plan(spec()).warnings}
    assert {"lifetime", "eligibility"} <= codes
    assert "model" not in plan(spec()).refusals
    closed = plan(spec(), today=date(2027, 1, 7)).refusals["model"]
    assert "2027-01-06" in closed


def test_unset_epochs_make_a_range_and_say_so() -> None:
    auto, fixed = plan(spec()), plan(spec(training={"epochs": 3}))
    assert auto.cost.usd and fixed.cost.usd
    assert auto.cost.usd.low < fixed.cost.usd.low
    assert auto.cost.usd.high >= fixed.cost.usd.high
    assert any(w.code == "epochs-estimated" for w in auto.warnings)
    assert not any(w.code == "epochs-estimated" for w in fixed.warnings)
    assert fixed.time.seconds is None or fixed.time.seconds.high > 0


@given(st.integers(min_value=1, max_value=2_000_000))
def test_the_cookbook_rule_keeps_its_limits(rows: int) -> None:
    epochs = auto_epochs(rows)
    assert 1 <= epochs <= 25
    assert rows * epochs <= 25_000 or epochs == 1


def test_cookbook_rule_at_known_points() -> None:
    assert [auto_epochs(n) for n in (3, 10, 33, 34, 400, 8_333, 10_000, 50_000)] == [25, 10, 3, 3, 3, 3, 2, 1]


def test_another_service_keeps_its_model_and_grader() -> None:
    grader = {"type": "lambda", "lambda": {"function": "arn:aws:lambda:us-west-2:123456789012:function:grade"}}
    job = JobSpec.model_validate(
        {
            "model": "openai.gpt-oss-20b",
            "method": "rft",
            "data": {"train": "train.jsonl"},
            "reinforcement": {"grader": grader},
            "options": {"openai": {"base_url": "https://bedrock-mantle.us-west-2.api.aws/v1"}},
        }
    )
    made = plan(job)
    assert made.refusals == {}
    assert made.payload["model"] == "openai.gpt-oss-20b"
    assert made.payload["method"] == {"type": "reinforcement", "reinforcement": {"grader": grader}}
    assert made.cost.usd is None


@pytest.mark.parametrize("method", ["sft", "dpo", "rft"])
def test_payload_fits_the_types_of_the_sdk(method: str) -> None:
    params = pytest.importorskip("openai.types.fine_tuning.job_create_params")
    typed_dict = params.JobCreateParams
    typed_dict.__pydantic_config__ = ConfigDict(extra="forbid")
    job = spec(
        method=method,
        name="tickets",
        data={"train": "train.jsonl", "validation": "held.jsonl"},
        training={"epochs": 3, "batch_size": 8, "learning_rate_multiplier": 0.5, "seed": 1},
        tracking={"wandb": {"project": "p", "entity": "e", "name": "n", "tags": ["t"]}},
        tags={"a": "b"},
        **({"preference": {"beta": 0.1}} if method == "dpo" else {}),
        **({"reinforcement": {"grader": GRADER, "reasoning_effort": "high"}} if method == "rft" else {}),
    )
    payload = plan(job).payload
    TypeAdapter(typed_dict).validate_python(payload, strict=False)


@pytest.mark.parametrize("method", ["sft", "dpo", "rft"])
def test_every_field_moves_the_payload_or_is_refused(method: str) -> None:
    assert violations("openai", lambda job, data: compile_plan(job, data, SURVEY_DAY), method) == []


def test_compiling_is_fast() -> None:
    plan(spec())
    begun = time.perf_counter()
    for _ in range(5):
        plan(spec())
    assert (time.perf_counter() - begun) / 5 < 0.05


# -- records -----------------------------------------------------------------------------------------------------------

TURNS = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "weight": 1},
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def row(kind: Any = "chat", **fields: Any) -> Row:
    return Row(kind=kind, file="train.jsonl", line=7, **fields)


def test_chat_record() -> None:
    record = RECORDS["openai-chat"](row(messages=TURNS, tools=(TOOL,)))
    assert record == {"messages": list(TURNS), "tools": [TOOL]}


def test_preference_record() -> None:
    good, bad = {"role": "assistant", "content": "Good"}, {"role": "assistant", "content": "Bad"}
    record = RECORDS["openai-dpo"](row("preference", messages=TURNS[:2], chosen=good, rejected=bad))
    assert record == {"input": {"messages": list(TURNS[:2])}, "preferred_output": [good], "non_preferred_output": [bad]}


def test_reinforcement_record_carries_the_columns_for_the_grader() -> None:
    record = RECORDS["openai-reinforcement"](row(messages=TURNS[:2], columns={"answer": 42}, label="spam"))
    assert record == {"messages": list(TURNS[:2]), "answer": 42, "label": "spam"}


@pytest.mark.parametrize(
    ("record", "bad", "says"),
    [
        ("openai-chat", row(messages=TURNS[:2]), "answer"),
        ("openai-chat", row(messages=TURNS, weight=0.5), "weight"),
        ("openai-chat", row(messages=({"role": "assistant", "content": "x", "weight": 0.5},)), "0 or 1"),
        ("openai-chat", row(messages=({"role": "assistant", "content": "x", "reasoning_content": "y"},)), "reasoning_content"),
        ("openai-chat", row(messages=({"role": "critic", "content": "x"},)), "critic"),
        ("openai-chat", row("text", text="x"), "text row"),
        ("openai-chat", row(messages=({"role": "user", "content": [{"type": "image_url"}]}, *TURNS[2:])), "not text"),
        ("openai-dpo", row(messages=TURNS), "rejected"),
        ("openai-dpo", row("preference", messages=TURNS[:2], chosen=TURNS[2], rejected=TURNS[2]), "weight"),
        ("openai-reinforcement", row(messages=TURNS), "weight"),
        ("openai-reinforcement", row(messages=({"role": "assistant", "content": "x"},)), "user"),
        ("openai-reinforcement", row(messages=TURNS[:2], columns={"tools": 1}), "tools"),
        ("openai-reinforcement", row(messages=TURNS[:2], columns={"day": date(2026, 1, 1)}), "day"),
    ],
)
def test_rows_that_a_record_cannot_express_name_file_and_line(record: str, bad: Row, says: str) -> None:
    with pytest.raises(DataError) as fault:
        RECORDS[record](bad)
    assert "train.jsonl:7" in str(fault.value)
    assert says in str(fault.value)
