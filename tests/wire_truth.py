"""The wire-truth check: every field that a user sets moves what is sent, or is refused in words. For any provider.

``violations`` sets one field after another, compiles, and compares with the plan without it:
mapped or converted - payload or uploads must change (unless the outcome's wire is in brackets: tuneport or the client acts;
                      or the payload states that very value anyway, because it states its defaults);
refused             - payload and uploads must not change;
defaulted           - never, for a field that is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Any, get_args

from tuneport.core.catalogue import closed, load_catalogue
from tuneport.core.data.facts import DatasetFacts, Feature, JobData, TokenFacts
from tuneport.core.data.rows import Kind
from tuneport.core.plan import HANDLED_BY_TUNEPORT, FieldOutcome, Plan
from tuneport.core.spec import JobSpec, Method

Compile = Callable[[JobSpec, JobData], Plan]
METHODS: tuple[str, ...] = get_args(Method)
SURVEY_DAY = date(2026, 11, 22)
GRADER = {"type": "string_check", "name": "equal", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.label}}"}
ARN = "arn:aws:iam::123456789012:role/tuning"

Context = dict[str, Any]
SAMPLES: dict[str, list[tuple[Any, Context]]] = {
    "name": [("other-name", {})],
    "continue_from": [("ft:earlier-model", {}), ("ftjob-123", {})],
    "data.validation": [("held.jsonl", {})],
    "tuning.kind": [(kind, {}) for kind in ("lora", "qlora", "dora", "rslora", "full", "prefix", "prompt")],
    "tuning.rank": [(8, {}), (8, {"tuning.kind": "lora"}), (16, {"tuning.kind": "lora"}), (7, {"tuning.kind": "lora"})],
    "tuning.alpha": [(32.0, {}), (32.0, {"tuning.kind": "lora"}), (24.5, {"tuning.kind": "lora"})],
    "tuning.dropout": [(0.1, {}), (0.1, {"tuning.kind": "lora"})],
    "tuning.target_modules": [(("q_proj", "v_proj"), {}), (("q_proj",), {"tuning.kind": "lora"}), ("all-linear", {"tuning.kind": "lora"})],
    "training.epochs": [(3.0, {}), (4.0, {}), (2.5, {}), (60.0, {})],
    "training.steps": [(100, {})],
    "training.batch_size": [(1, {}), (16, {}), (24, {}), (4096, {})],
    "training.gradient_accumulation": [(2, {}), (2, {"training.batch_size": 16})],
    "training.learning_rate": [(2e-4, {}), (3e-5, {}), (0.5, {})],
    "training.learning_rate_multiplier": [(1.8, {}), (0.001, {})],
    "training.warmup_ratio": [(0.1, {}), (0.1, {"training.epochs": 2.0, "training.batch_size": 16})],
    "training.warmup_steps": [(20, {}), (5000, {}), (20, {"training.epochs": 2.0, "training.batch_size": 16})],
    "training.scheduler": [(kind, {}) for kind in ("constant", "linear", "cosine")],
    "training.min_learning_rate_ratio": [(0.1, {}), (0.1, {"training.scheduler": "cosine"}), (0.1, {"training.scheduler": "linear"})],
    "training.scheduler_cycles": [(1.0, {}), (1.0, {"training.scheduler": "cosine"}), (1.0, {"training.scheduler": "linear"})],
    "training.weight_decay": [(0.01, {})],
    "training.max_grad_norm": [(0.5, {})],
    "training.max_seq_length": [(4096, {}), (2048, {}), (1000, {}), (10_000_000, {})],
    "training.packing": [(True, {}), (False, {})],
    "training.loss_on": [("completions", {}), ("all", {})],
    "training.seed": [(7, {})],
    "evaluation.evaluations": [(0, {}), (4, {}), (4, {"data.validation": "held.jsonl", "training.epochs": 2.0, "training.batch_size": 16})],
    "evaluation.checkpoints": [(3, {}), (3, {"training.epochs": 3.0, "training.batch_size": 16})],
    "evaluation.early_stopping.patience": [(3, {}), (3, {"data.validation": "held.jsonl", "evaluation.evaluations": 8})],
    "evaluation.early_stopping.min_delta": [
        (0.01, {}),
        (0.01, {"evaluation.early_stopping.patience": 3, "data.validation": "held.jsonl", "evaluation.evaluations": 8}),
    ],
    "preference.beta": [(0.3, {}), (1.5, {}), (3.0, {})],
    "preference.sft_weight": [(0.2, {})],
    "preference.simpo_gamma": [(0.5, {})],
    "preference.length_normalised": [(True, {}), (False, {})],
    "preference.desirable_weight": [(1.5, {})],
    "preference.undesirable_weight": [(1.5, {})],
    "reinforcement.grader": [(GRADER, {}), ({"type": "label_model"}, {})],
    "reinforcement.reasoning_effort": [("low", {}), ("high", {})],
    "reinforcement.samples_per_prompt": [(4, {}), (1000, {})],
    "reinforcement.max_prompt_length": [(2048, {})],
    "reinforcement.max_output_tokens": [(512, {})],
    "distillation.teacher": [("amazon.nova-pro-v1:0", {})],
    "tracking.wandb.project": [("tickets", {})],
    "tracking.wandb.entity": [("team", {}), ("team", {"tracking.wandb.project": "tickets"})],
    "tracking.wandb.name": [("run", {}), ("run", {"tracking.wandb.project": "tickets"})],
    "tracking.wandb.tags": [(("a", "b"), {}), (("a", "b"), {"tracking.wandb.project": "tickets"})],
    "export.hub_repo": [("team/model", {})],
    "tags": [({"team": "support"}, {}), ({"tuneport-key": "x"}, {})],
    "options.openai.base_url": [("https://tuning.example.org/v1", {})],
    "options.openai.key_variable": [("GATEWAY_API_KEY", {})],
    "options.openai.compute_multiplier": [(2.0, {})],
    "options.openai.eval_samples": [(3, {})],
    "options.openai.eval_interval": [(5, {})],
    "options.bedrock.region": [("us-west-2", {})],
    "options.bedrock.role_arn": [(ARN, {}), ("arn:aws:s3:::bucket", {})],
    "options.bedrock.data_s3_uri": [("s3://bucket/data", {})],
    "options.bedrock.output_s3_uri": [("s3://bucket/out", {})],
    "options.bedrock.job_name": [("another-job", {})],
    "options.bedrock.kms_key_id": [("alias/tuning", {}), ("no such key!", {})],
    "options.bedrock.subnet_ids": [(("subnet-1",), {}), (("subnet-1",), {"options.bedrock.security_group_ids": ("sg-1",)})],
    "options.bedrock.security_group_ids": [(("sg-1",), {}), (("sg-1",), {"options.bedrock.subnet_ids": ("subnet-1",)})],
    "options.bedrock.early_stopping_threshold": [(0.02, {})],
    "options.bedrock.reward_lambda_arn": [("arn:aws:lambda:us-west-2:123456789012:function:grade", {})],
    "options.bedrock.max_teacher_response_tokens": [(700, {})],
    "options.together.base_url": [("https://tuning.example.org", {})],
    "options.together.warmup_evals": [
        (2, {}),
        (2, {"evaluation.early_stopping.patience": 3, "data.validation": "held.jsonl", "evaluation.evaluations": 8}),
    ],
    "options.together.from_hf_model": [("team/model", {})],
    "options.together.hf_model_revision": [("main", {}), ("main", {"options.together.from_hf_model": "team/model"})],
    "options.together.train_vision": [(True, {})],
    "options.fireworks.base_url": [("https://tuning.example.org", {})],
    "options.fireworks.account_id": [("acme", {})],
    "options.fireworks.evaluator": [("accounts/acme/evaluators/equal", {})],
    "options.fireworks.region": [("US_IOWA_1", {})],
    "options.fireworks.eval_auto_carveout": [(True, {})],
    "options.fireworks.output_model": [("my-model", {})],
    "options.fireworks.is_turbo": [(True, {})],
    "options.local.device": [("cpu", {})],
    "options.local.dtype": [("fp32", {})],
    "options.local.chat_template": [("template.jinja", {})],
    "options.local.gpu_memory_gib": [(12.0, {})],
    "options.local.gpu_usd_per_hour": [(2.5, {})],
    "options.local.train_share": [(0.5, {})],
    "options.local.overfitting_guard": [(False, {}), (False, {"data.validation": "held.jsonl"})],
    "options.local.trust_remote_code": [(True, {})],
    "options.local.tracking": [(("tensorboard",), {}), (("wandb", "mlflow"), {})],
    "options.local.wandb_mode": [("online", {}), ("online", {"options.local.tracking": ("wandb",)})],
    "options.local.mlflow_uri": [("sqlite:////tmp/runs.db", {}), ("sqlite:////tmp/runs.db", {"options.local.tracking": ("mlflow",)})],
    "options.local.virtual_tokens": [(8, {}), (8, {"tuning.kind": "prompt"}), (8, {"tuning.kind": "full"})],
}
"""Values to try for every field, each with the other fields that stand beside it."""

ELSEWHERE = frozenset({"model", "method"} | HANDLED_BY_TUNEPORT.keys())
"""Fields that tuneport carries out itself, and the two that test_wire_truth tries on their own."""


def base_spec(provider: str, method: str, **changes: Any) -> JobSpec:
    """A small valid spec for a provider, with fields set by dotted path."""
    document: dict[str, Any] = {"name": "tickets", "model": models_for(provider)[0], "method": method, "data": {"train": "train.jsonl"}}
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        section = document
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return JobSpec.model_validate(document)


def models_for(provider: str) -> list[dict[str, str]]:
    """Base models that the provider takes on the day of the survey."""
    if provider == "local":
        return [{"local": "./one"}, {"local": "./two"}]
    offered = [o for o in load_catalogue().models() if o.provider == provider and not closed(o, SURVEY_DAY)]
    return [{provider: o.vendor_id} for o in offered] or [{provider: "one"}, {provider: "two"}]


def facts(kind: Kind = "chat", rows: int = 400, *, path: str = "train.jsonl", features: frozenset[Feature] = frozenset()) -> DatasetFacts:
    """Facts of a file of short rows."""
    tokens = TokenFacts(low=rows * 200, high=rows * 240, longest_row=900, tokenizer="estimate: characters / 4 +- 25 %", exact=False)
    return DatasetFacts(path=path, sha256="ab" * 32, kind=kind, rows=rows, tokens=tokens, features=features)


def data_for(spec: JobSpec) -> JobData:
    """Data that fits the spec's method, with validation rows when the spec names such a file."""
    kinds: dict[str, Kind] = {"dpo": "preference", "orpo": "preference", "simpo": "preference", "kto": "unpaired_preference", "cpt": "text"}
    features: frozenset[Feature] = frozenset({"prompt_only"}) if spec.method == "rft" else frozenset()
    train = facts(kinds.get(spec.method, "chat"), features=features)
    return JobData(train=train, validation=replace(train, path="held.jsonl", rows=50) if spec.data.validation else None)


def leaf_paths(provider: str) -> Iterator[str]:
    """Every field of a spec that concerns this provider."""
    for path, _ in base_spec(provider, "sft").fields():
        if not path.startswith("options.") or path.startswith(f"options.{provider}."):
            yield path


def violations(provider: str, compile_plan: Compile, method: str) -> list[str]:
    """Every breach of the wire truth of one provider in one method, in words."""

    def made(fields: Context) -> Plan:
        job = base_spec(provider, method, **fields)
        return compile_plan(job, data_for(job))

    found: list[str] = []
    bases: dict[str, Plan] = {}
    for path in leaf_paths(provider):
        for value, context in SAMPLES.get(path, []):
            before = bases.get(str(context)) or bases.setdefault(str(context), made(context))
            after = made(context | {path: value})
            found += [f"{path}={value!r} with {context}: {fault}" for fault in _faults(path, before, after)]
    return found


def _faults(path: str, before: Plan, after: Plan) -> Iterator[str]:
    outcome = next((o for o in after.outcomes if o.path == path), None)
    if outcome is None:
        yield "has no outcome"
        return
    moved = (before.payload, before.uploads) != (after.payload, after.uploads)
    if outcome.outcome == "defaulted":
        yield "is set, and reported as defaulted"
    if outcome.outcome == "refused":
        if not outcome.note:
            yield "is refused without a reason"
        if moved:
            yield "is refused, and moves what is sent"
    elif not moved and "method" not in after.refusals and not (outcome.wire or "").startswith("(") and not _stands(after, outcome):
        yield f"is {outcome.outcome} to {outcome.wire}, and nothing that is sent changes"


def _stands(plan: Plan, outcome: FieldOutcome) -> bool:
    """True when the payload holds the field's value at the place that the outcome names."""
    place: Any = plan.payload
    for key in (outcome.wire or "").split("."):
        if not isinstance(place, dict) or key not in place:
            return False
        place = place[key]
    return bool(place == (outcome.sent if outcome.outcome == "converted" else outcome.value))
