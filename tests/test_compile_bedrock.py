"""Bedrock's compiler and records: exact payloads by family, refusals with reasons, and botocore's own validator."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from tuneport.core.data.facts import Feature, JobData
from tuneport.core.data.rows import Row
from tuneport.core.errors import DataError
from tuneport.core.plan import Plan
from tuneport.core.spec import JobSpec
from tuneport.providers.bedrock.compile import compile_plan
from tuneport.providers.bedrock.families import FAMILIES, family_of
from tuneport.providers.bedrock.records import RECORDS, RESERVED
from tuneport.tests.wire_truth import METHODS, SURVEY_DAY, data_for, facts, violations

ROLE = "arn:aws:iam::123456789012:role/tuning"
LAMBDA = "arn:aws:lambda:us-east-1:123456789012:function:grade"
ACCOUNT = {"role_arn": ROLE, "data_s3_uri": "s3://acme-tuning/data", "output_s3_uri": "s3://acme-tuning/out"}
NOVA = "amazon.nova-micro-v1:0:128k"
NOVA_2 = "amazon.nova-2-lite-v1:0:256k"
LLAMA = "meta.llama3-1-8b-instruct-v1:0:128k"
TITAN = "amazon.titan-text-express-v1:0:8k"
HAIKU = "anthropic.claude-3-haiku-20240307-v1:0:200k"
COHERE = "cohere.command-text-v14:7:4k"


def spec(model: str = NOVA, **fields: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "tickets", "model": {"bedrock": model}, "data": {"train": "train.jsonl"}} | fields)


def plan(job: JobSpec, data: JobData | None = None, today: date = SURVEY_DAY) -> Plan:
    return compile_plan(job, data or data_for(job), today)


def chat(*features: Feature, rows: int = 400) -> JobData:
    return JobData(train=facts(rows=rows, features=frozenset(features)))


def validated(made: Plan) -> None:
    """botocore's own check of the input against the service model, with the uploads in place."""
    session = pytest.importorskip("botocore.session").get_session()
    validate = pytest.importorskip("botocore.validate").ParamValidator()
    shape = session.get_service_model("bedrock").operation_model(made.operation).input_shape
    text = json.dumps(made.payload).replace("${upload:train}", "s3://acme-tuning/data/t.jsonl")
    body = json.loads(text.replace("${upload:validation}", "s3://acme-tuning/data/v.jsonl"))
    report = validate.validate(body, shape)
    assert not report.has_errors(), report.generate_report()


def test_nova_payload() -> None:
    job = spec(
        data={"train": "train.jsonl", "validation": "held.jsonl"},
        training={"epochs": 3, "learning_rate": 1e-5, "warmup_steps": 10},
        tags={"team": "support"},
        options={
            "bedrock": ACCOUNT
            | {"job_name": "tickets-1", "region": "us-east-1", "kms_key_id": "alias/tuning"}
            | {"subnet_ids": ["subnet-1"], "security_group_ids": ["sg-1"]}
        },
    )
    made = plan(job)
    assert made.refusals == {}
    assert made.payload == {
        "jobName": "tickets-1",
        "customModelName": "tickets",
        "roleArn": ROLE,
        "baseModelIdentifier": NOVA,
        "customizationType": "FINE_TUNING",
        "trainingDataConfig": {"s3Uri": "${upload:train}"},
        "validationDataConfig": {"validators": [{"s3Uri": "${upload:validation}"}]},
        "outputDataConfig": {"s3Uri": "s3://acme-tuning/out"},
        "hyperParameters": {"epochCount": "3", "learningRate": "0.00001", "learningRateWarmupSteps": "10"},
        "customModelKmsKeyId": "alias/tuning",
        "vpcConfig": {"subnetIds": ["subnet-1"], "securityGroupIds": ["sg-1"]},
        "jobTags": [{"key": "team", "value": "support"}],
        "customModelTags": [{"key": "team", "value": "support"}],
    }
    assert {u.record for u in made.uploads} == {"bedrock-nova"}
    assert [u.filename for u in made.uploads] == ["tickets-train.jsonl", "tickets-validation.jsonl"]
    assert not any(w.code == "needed-to-submit" for w in made.warnings)
    validated(made)


@pytest.mark.parametrize(
    ("model", "training", "extra", "strings", "record"),
    [
        (
            TITAN,
            {"epochs": 5, "batch_size": 2, "learning_rate": 0.001},
            {},
            {"epochCount": "5", "batchSize": "2", "learningRate": "0.001"},
            "bedrock-prompt-completion",
        ),
        (
            LLAMA,
            {"epochs": 2, "batch_size": 1, "learning_rate": 1e-4},
            {},
            {"epochCount": "2", "batchSize": "1", "learningRate": "0.0001"},
            "bedrock-prompt-completion",
        ),
        ("meta.llama3-3-70b-instruct-v1:0:128k", {"epochs": 2}, {}, {"epochCount": "2"}, "bedrock-converse"),
        (
            COHERE,
            {"epochs": 4, "batch_size": 8},
            {"evaluation": {"early_stopping": {"patience": 3, "min_delta": 0.05}}},
            {"epochCount": "4", "batchSize": "8", "earlyStoppingPatience": "3", "earlyStoppingThreshold": "0.05"},
            "bedrock-prompt-completion",
        ),
        (
            HAIKU,
            {"epochs": 2, "batch_size": 32, "learning_rate_multiplier": 1.5},
            {"options": {"bedrock": {"early_stopping_threshold": 0.01}}},
            {"epochCount": "2", "batchSize": "32", "learningRateMultiplier": "1.5", "earlyStoppingThreshold": "0.01"},
            "bedrock-claude",
        ),
    ],
)
def test_each_family_has_its_own_names(
    model: str, training: dict[str, Any], extra: dict[str, Any], strings: dict[str, str], record: str
) -> None:
    made = plan(spec(model, training=training, **extra), today=date(2026, 3, 1))
    assert made.refusals == {}
    assert made.payload["hyperParameters"] == strings
    assert made.uploads[0].record == record


def test_a_warmup_ratio_becomes_steps_only_where_the_batch_is_known() -> None:
    titan = plan(spec(TITAN, training={"warmup_ratio": 0.05, "epochs": 2, "batch_size": 8}))
    assert titan.payload["hyperParameters"]["learningRateWarmupSteps"] == "5"  # type: ignore[index,call-overload]
    assert next(o for o in titan.outcomes if o.path == "training.warmup_ratio").outcome == "converted"
    assert "warmup_steps" in plan(spec(training={"warmup_ratio": 0.05})).refusals["training.warmup_ratio"]
    assert "0 to 250" in plan(spec(TITAN, training={"warmup_ratio": 0.5})).refusals["training.warmup_ratio"]


def test_continued_pretraining() -> None:
    made = plan(spec(TITAN, method="cpt", training={"epochs": 1}, options={"bedrock": ACCOUNT}))
    assert made.refusals == {}
    assert made.payload["customizationType"] == "CONTINUED_PRE_TRAINING"
    assert made.uploads[0].record == "bedrock-text"
    validated(made)
    assert "sft" in plan(spec(method="cpt")).refusals["method"]


def test_reinforcement_payload() -> None:
    job = spec(
        NOVA_2,
        method="rft",
        training={"epochs": 2, "batch_size": 40, "learning_rate": 1e-5},
        evaluation={"evaluations": 4},
        reinforcement={"samples_per_prompt": 4, "reasoning_effort": "low", "max_prompt_length": 2048, "max_output_tokens": 512},
        options={"bedrock": ACCOUNT | {"reward_lambda_arn": LAMBDA}},
    )
    made = plan(job)
    assert made.refusals == {}
    assert made.payload["customizationType"] == "REINFORCEMENT_FINE_TUNING"
    assert made.payload["customizationConfig"] == {
        "rftConfig": {
            "graderConfig": {"lambdaGrader": {"lambdaArn": LAMBDA}},
            "hyperParameters": {
                "epochCount": 2,
                "batchSize": 40,
                "learningRate": 1e-5,
                "trainingSamplePerPrompt": 4,
                "reasoningEffort": "low",
                "maxPromptLength": 2048,
                "inferenceMaxTokens": 512,
                "evalInterval": 5,
            },
        }
    }
    assert "hyperParameters" not in made.payload
    validated(made)


def test_distillation_payload() -> None:
    teacher = "amazon.nova-pro-v1:0"
    job = spec(method="distill", distillation={"teacher": teacher}, options={"bedrock": ACCOUNT | {"max_teacher_response_tokens": 700}})
    made = plan(job)
    assert made.refusals == {}
    assert made.payload["customizationConfig"] == {
        "distillationConfig": {"teacherModelConfig": {"teacherModelIdentifier": teacher, "maxResponseLengthForInference": 700}}
    }
    assert made.uploads[0].record == "bedrock-distillation"
    assert made.cost.usd is None
    validated(made)


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "simpo"])
def test_preference_methods_are_refused_and_never_replaced(method: str) -> None:
    made = plan(spec(method=method))
    assert "method" in made.refusals
    assert "customizationType" not in made.payload


@pytest.mark.parametrize(
    ("model", "path", "fields", "says"),
    [
        (NOVA, "training.learning_rate", {"training": {"learning_rate": 1e-3}}, "0.0001"),
        (NOVA, "training.epochs", {"training": {"epochs": 6}}, "1 to 5"),
        (NOVA, "training.batch_size", {"training": {"batch_size": 8}}, "batchSize"),
        (NOVA, "training.warmup_steps", {"training": {"warmup_steps": 101}}, "0 to 100"),
        (NOVA, "training.learning_rate_multiplier", {"training": {"learning_rate_multiplier": 2}}, "training.learning_rate,"),
        (HAIKU, "training.learning_rate", {"training": {"learning_rate": 1e-4}}, "training.learning_rate_multiplier,"),
        (LLAMA, "training.batch_size", {"training": {"batch_size": 2}}, "only 1"),
        (NOVA_2, "training.epochs", {"training": {"epochs": 2}}, "epochCount"),
        (NOVA_2, "data.validation", {"data": {"train": "t.jsonl", "validation": "v.jsonl"}}, "does not use validation"),
        (NOVA_2, "options.bedrock.reward_lambda_arn", {"method": "rft"}, "Lambda"),
        (NOVA_2, "reinforcement.grader", {"method": "rft", "reinforcement": {"grader": {"type": "python"}}}, "reward_lambda_arn"),
        (NOVA_2, "evaluation.evaluations", {"method": "rft", "evaluation": {"evaluations": 3}}, "batch_size"),
        (NOVA, "distillation.teacher", {"method": "distill"}, "teacher"),
        (NOVA, "tuning.kind", {"tuning": {"kind": "lora"}}, "chooses"),
        (NOVA, "tags", {"tags": {"owner": "a;b"}}, "characters"),
        (NOVA, "options.bedrock.role_arn", {"options": {"bedrock": {"role_arn": "arn:aws:s3:::x"}}}, "iam"),
        (NOVA, "options.bedrock.subnet_ids", {"options": {"bedrock": {"subnet_ids": ["subnet-1"]}}}, "security_group_ids"),
    ],
)
def test_what_bedrock_cannot_do_is_refused_with_the_reason(model: str, path: str, fields: dict[str, Any], says: str) -> None:
    assert says in plan(spec(model, **fields), today=date(2026, 3, 1)).refusals[path]


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        (NOVA, chat("tools"), "tools"),
        (NOVA, chat("reasoning"), "reasoning"),
        (NOVA, chat("message_weights"), "weights"),
        (NOVA, chat("images"), "images"),
        (LLAMA, chat("system"), "system role"),
        (LLAMA, chat("multi_turn"), "one question"),
        (LLAMA, chat(rows=99), "100 to 10,000"),
        (LLAMA, chat(rows=10_001), "100 to 10,000"),
        (LLAMA, JobData(train=facts(rows=9_990), validation=facts(rows=20)), "20 rows of validation"),
        (LLAMA, JobData(train=replace(facts(), tokens=replace(facts().tokens, longest_row=20_000))), "16,000"),
        (NOVA, JobData(train=facts("preference")), "preference"),
        (NOVA, chat("prompt_only"), "without an answer"),
    ],
)
def test_data_that_a_family_cannot_read_is_refused(model: str, data: JobData, says: str) -> None:
    assert says in plan(spec(model), data).refusals["data.train"]


def test_nova_2_reads_reasoning() -> None:
    assert "data.train" not in plan(spec(NOVA_2), chat("reasoning", "system", "multi_turn")).refusals


def test_validation_rows_cut_for_nova_2_stay_home_with_a_warning() -> None:
    made = plan(spec(NOVA_2), JobData(train=facts(), validation=facts(rows=40)))
    assert made.refusals == {}
    assert [u.role for u in made.uploads] == ["train"]
    assert any(w.code == "validation-unused" for w in made.warnings)


def test_what_submitting_needs_is_a_warning_and_left_out() -> None:
    made = plan(spec())
    assert sum(w.code == "needed-to-submit" for w in made.warnings) == 3
    assert not {"roleArn", "outputDataConfig"} & made.payload.keys()
    assert made.refusals == {}
    assert "$" not in json.dumps(made.payload).replace("${upload:train}", "")


def test_an_ended_model_is_refused_with_the_date_and_the_way_out() -> None:
    reason = plan(spec(HAIKU)).refusals["model"]
    assert "2026-09-10" in reason
    assert "another base model" in reason


def test_names_come_from_the_contents_when_none_is_given() -> None:
    unnamed = spec().model_copy(update={"name": None})
    other = unnamed.model_copy(update={"model": {"bedrock": LLAMA}})
    first, second = plan(unnamed).payload, plan(other).payload
    assert first["jobName"] == first["customModelName"] == plan(unnamed).payload["jobName"]
    assert first["jobName"] != second["jobName"]
    assert plan(spec(name="a--b")).payload["customModelName"] == "a-b"


def test_an_unknown_model_is_sent_with_warnings() -> None:
    made = plan(spec("acme.new-model-v1:0"))
    assert made.payload["baseModelIdentifier"] == "acme.new-model-v1:0"
    assert {"unknown_model", "record-assumed", "epochs-unknown"} <= {w.code for w in made.warnings}
    assert made.cost.usd is None


def test_cost_follows_the_epochs() -> None:
    two, four = plan(spec(training={"epochs": 2})), plan(spec(training={"epochs": 4}))
    assert two.cost.usd and four.cost.usd
    assert four.cost.usd.low == pytest.approx(2 * two.cost.usd.low)
    assert plan(spec()).cost.usd == two.cost.usd, "Nova's documented default is two epochs"


@pytest.mark.parametrize("model", [NOVA, LLAMA, TITAN, NOVA_2])
@pytest.mark.parametrize("method", METHODS)
def test_every_payload_passes_botocore(model: str, method: str) -> None:
    teacher = {"teacher": "amazon.nova-pro-v1:0"}
    validated(plan(spec(model, method=method, training={"epochs": 2}, distillation=teacher, options={"bedrock": ACCOUNT})))


@pytest.mark.parametrize("method", ["sft", "dpo", "rft"])
def test_every_field_moves_the_payload_or_is_refused(method: str) -> None:
    assert violations("bedrock", lambda job, data: compile_plan(job, data, SURVEY_DAY), method) == []


def test_compiling_is_fast() -> None:
    plan(spec())
    begun = time.perf_counter()
    for _ in range(5):
        plan(spec())
    assert (time.perf_counter() - begun) / 5 < 0.05


# -- families and records ------------------------------------------------------------------------------------------------


def test_every_family_has_a_record_and_arns_are_read() -> None:
    assert all(family.record in RECORDS for family in FAMILIES)
    found = family_of("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-2-lite-v1:0:256k")
    assert found is not None and found.record == "bedrock-nova-2"
    assert family_of("acme.model") is None


SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
THOUGHT = {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."}


def row(*messages: dict[str, Any], kind: Any = "chat", **fields: Any) -> Row:
    return Row(kind=kind, file="train.jsonl", line=7, messages=messages, **fields)


@pytest.mark.parametrize(
    ("record", "given", "expected"),
    [
        ("bedrock-prompt-completion", row(ASK, ANSWER), {"prompt": "Hi", "completion": "Hello"}),
        (
            "bedrock-converse",
            row(SYSTEM, ASK, ANSWER),
            {
                "schemaVersion": "bedrock-conversation-2024",
                "system": [{"text": "Be brief."}],
                "messages": [{"role": "user", "content": [{"text": "Hi"}]}, {"role": "assistant", "content": [{"text": "Hello"}]}],
            },
        ),
        (
            "bedrock-nova-2",
            row(ASK, THOUGHT),
            {
                "schemaVersion": "bedrock-conversation-2024",
                "messages": [
                    {"role": "user", "content": [{"text": "Hi"}]},
                    {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "A greeting."}}}, {"text": "Hello"}]},
                ],
            },
        ),
        ("bedrock-claude", row(SYSTEM, ASK, ANSWER), {"system": "Be brief.", "messages": [ASK, ANSWER]}),
        (
            "bedrock-distillation",
            row(ASK),
            {"schemaVersion": "bedrock-conversation-2024", "messages": [{"role": "user", "content": [{"text": "Hi"}]}]},
        ),
        ("bedrock-text", row(kind="text", text="Once upon a time"), {"input": "Once upon a time"}),
        ("bedrock-reinforcement", row(ASK, columns={"answer": 42}), {"messages": [ASK], "answer": 42}),
    ],
)
def test_records(record: str, given: Row, expected: dict[str, Any]) -> None:
    assert RECORDS[record](given) == expected


@pytest.mark.parametrize("word", RESERVED)
def test_nova_refuses_its_reserved_strings(word: str) -> None:
    bad = row({"role": "user", "content": f"He said {word} and left"}, ANSWER)
    for record in ("bedrock-nova", "bedrock-nova-2"):
        with pytest.raises(DataError, match=r"train\.jsonl:7"):
            RECORDS[record](bad)
    assert RECORDS["bedrock-converse"](bad)


@pytest.mark.parametrize(
    ("record", "bad", "says"),
    [
        ("bedrock-prompt-completion", row(SYSTEM, ASK, ANSWER), "system"),
        ("bedrock-prompt-completion", row(ASK, ANSWER, ASK, ANSWER), "4 messages"),
        ("bedrock-converse", row(ASK), "answer"),
        ("bedrock-converse", row(ANSWER, ASK), "begin with the user"),
        ("bedrock-converse", row(ASK, ASK, ANSWER), "alternate"),
        ("bedrock-converse", row(ASK, THOUGHT), "reasoning_content"),
        ("bedrock-converse", row(ASK, ANSWER | {"weight": 1}), "weight"),
        ("bedrock-converse", row(ASK, ANSWER, weight=2.0), "weight"),
        ("bedrock-converse", row(ASK, ANSWER, tools=({"type": "function"},)), "tools"),
        ("bedrock-converse", row({"role": "tool", "content": "x"}), "tool"),
        ("bedrock-converse", row({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "plain text"),
        ("bedrock-converse", row({"role": "user", "content": ""}, ANSWER), "plain text"),
        ("bedrock-claude", row(SYSTEM, SYSTEM, ASK, ANSWER), "2 system"),
        ("bedrock-nova-2", row(ASK, ANSWER | {"reasoning_content": "as User: said"}), "User:"),
        ("bedrock-text", row(ASK, ANSWER), "no text"),
        ("bedrock-reinforcement", row(ASK, ANSWER), "user's message"),
    ],
)
def test_rows_that_a_record_cannot_express_name_file_and_line(record: str, bad: Row, says: str) -> None:
    with pytest.raises(DataError) as fault:
        RECORDS[record](bad)
    assert "train.jsonl:7" in str(fault.value)
    assert says in str(fault.value)
