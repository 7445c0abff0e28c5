"""The settings of the run in Bedrock's words: ``hyperParameters`` (strings) and ``customizationConfig`` (typed).

Names: Bedrock user guide, "Custom model hyperparameters" (undated copy of 2026), and botocore's service model 2023-04-20.
Ranges and defaults come from the catalogue, by base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from pydantic import JsonValue

from tuneport.core.catalogue import Offering
from tuneport.core.data.facts import JobData
from tuneport.core.plan import Fields
from tuneport.providers.common import Bounds, bounds_of, send_bounded, steps_per_epoch, warmup_steps_of

NAMES: Mapping[str, tuple[str, str]] = {
    "training.epochs": ("epochs", "epochCount"),
    "training.batch_size": ("batch_size", "batchSize"),
    "training.learning_rate": ("learning_rate", "learningRate"),
    "training.learning_rate_multiplier": ("learning_rate_multiplier", "learningRateMultiplier"),
    "training.warmup_steps": ("warmup_steps", "learningRateWarmupSteps"),
    "evaluation.early_stopping.patience": ("early_stopping_patience", "earlyStoppingPatience"),
    "evaluation.early_stopping.min_delta": ("early_stopping_threshold", "earlyStoppingThreshold"),
}
"""Field -> (key of the catalogue's limits, name on the wire). A base model has those for which the catalogue knows a limit."""

REINFORCEMENT_NAMES: Mapping[str, tuple[str, str]] = {
    "training.epochs": ("rft_epochs", "epochCount"),
    "training.batch_size": ("rft_batch_size", "batchSize"),
    "training.learning_rate": ("rft_learning_rate", "learningRate"),
    "reinforcement.samples_per_prompt": ("rft_samples_per_prompt", "trainingSamplePerPrompt"),
    "reinforcement.reasoning_effort": ("", "reasoningEffort"),
    "reinforcement.max_prompt_length": ("", "maxPromptLength"),
    "reinforcement.max_output_tokens": ("", "inferenceMaxTokens"),
}
"""The same for rft; an empty key: the API states no range."""

_WHOLE = frozenset(NAMES) - {"training.learning_rate", "training.learning_rate_multiplier", "evaluation.early_stopping.min_delta"}
_THRESHOLD = "options.bedrock.early_stopping_threshold"


def run_settings(fields: Fields, offering: Offering, data: JobData) -> dict[str, JsonValue]:
    """The part of the payload that the spec's method needs: hyperParameters or customizationConfig, or neither."""
    method = fields.spec.method
    if method != "rft":
        fields.refuse_if_set("evaluation.evaluations", "Bedrock chooses when it evaluates; only rft has an interval")
        fields.refuse_if_set("options.bedrock.reward_lambda_arn", f"has no meaning in method {method}; it belongs to rft")
    if method != "distill":
        fields.refuse_if_set("options.bedrock.max_teacher_response_tokens", f"has no meaning in method {method}; it belongs to distill")
    if method == "rft":
        return _reinforcement(fields, offering, data)
    if method == "distill":
        return _distillation(fields)
    return _strings(fields, offering, data)


def _strings(fields: Fields, offering: Offering, data: JobData) -> dict[str, JsonValue]:
    steps = _warmup_ratio(fields, offering, data)
    sent = {wire: _one(fields, offering, path, limit, f"hyperParameters.{wire}") for path, (limit, wire) in NAMES.items()}
    if steps is not None:
        sent["learningRateWarmupSteps"] = steps
    threshold = _threshold(fields, offering)
    if threshold is not None:
        sent["earlyStoppingThreshold"] = threshold
    strings: dict[str, JsonValue] = {wire: _text(value) for wire, value in sent.items() if value is not None}
    return {"hyperParameters": strings} if strings else {}


def _one(fields: Fields, offering: Offering, path: str, limit: str, wire: str) -> float | None:
    bounds = bounds_of(offering, limit)
    if bounds is None:
        name = wire.rpartition(".")[2]
        fields.refuse_if_set(path, f"no hyperparameter {name} is known for {offering.vendor_id}; leave it unset{_instead(path, offering)}")
        return None
    default = offering.defaults.get(limit)
    said = "Bedrock's default, not documented" if default is None else f"{default:g}" if isinstance(default, (int, float)) else str(default)
    value: float | None = send_bounded(fields, path, wire, bounds, default=said, whole=path in _WHOLE, note="sent as a string")
    return value


def _instead(path: str, offering: Offering) -> str:
    """A learning rate and a multiplier never stand in for each other; say which of the two this model takes."""
    pair = {"training.learning_rate": "learning_rate_multiplier", "training.learning_rate_multiplier": "learning_rate"}
    other = pair.get(path)
    return f", or set training.{other}, which this model takes" if other and bounds_of(offering, other) else ""


def _warmup_ratio(fields: Fields, offering: Offering, data: JobData) -> int | None:
    """Warm-up steps from a ratio, where batch size and epochs are known; otherwise the ratio is refused."""
    path, ratio, training = "training.warmup_ratio", fields.peek("training.warmup_ratio"), fields.spec.training
    bounds = bounds_of(offering, "warmup_steps")
    batch = training.batch_size or offering.defaults.get("batch_size") or _only(bounds_of(offering, "batch_size"))
    epochs = training.epochs or offering.defaults.get("epochs")
    if bounds is None:
        fields.refuse_if_set(path, f"no warm-up is known for {offering.vendor_id}; leave it unset")
        return None
    if not isinstance(batch, int) or not isinstance(epochs, (int, float)):
        fields.refuse_if_set(path, f"the batch size of {offering.vendor_id} is not published; set training.warmup_steps ({bounds})")
        return None
    steps = 0 if ratio is None else warmup_steps_of(ratio, data.train.rows, batch, epochs)
    if not bounds.admits(steps):
        fields.refuse(path, f"{ratio:g} of this run is {steps} steps, and {bounds} are accepted ({bounds.source})")
        return None
    note = f"{data.train.rows} rows in batches of {batch} for {epochs:g} epochs, times the ratio"
    wire = "hyperParameters.learningRateWarmupSteps"
    sent: int | None = fields.send(path, wire, default="see training.warmup_steps", convert=lambda _: steps, note=note)
    return sent


def _only(bounds: Bounds | None) -> int | None:
    return int(bounds.high) if bounds is not None and bounds.high is not None and bounds.low == bounds.high else None


def _threshold(fields: Fields, offering: Offering) -> float | None:
    """options.bedrock.early_stopping_threshold, the vendor's name of evaluation.early_stopping.min_delta."""
    bounds = bounds_of(offering, "early_stopping_threshold")
    if bounds is None:
        fields.refuse_if_set(_THRESHOLD, f"no early stopping is known for {offering.vendor_id}")
        return None
    if fields.peek("evaluation.early_stopping.min_delta") is not None:
        fields.refuse_if_set(_THRESHOLD, "is the same setting as evaluation.early_stopping.min_delta; set one of them")
        return None
    default = "see evaluation.early_stopping.min_delta"
    value: float | None = send_bounded(fields, _THRESHOLD, "hyperParameters.earlyStoppingThreshold", bounds, default=default)
    return value


def _text(value: float) -> str:
    """A number as hyperParameters takes it: a string without an exponent."""
    return format(Decimal(repr(value)), "f")


def _reinforcement(fields: Fields, offering: Offering, data: JobData) -> dict[str, JsonValue]:
    at = "customizationConfig.rftConfig."
    for path in NAMES.keys() - REINFORCEMENT_NAMES.keys() | {"training.warmup_ratio", _THRESHOLD}:
        fields.refuse_if_set(path, "Bedrock's reinforcement jobs have no such setting")
    sent: dict[str, JsonValue] = {}
    for path, (limit, wire) in REINFORCEMENT_NAMES.items():
        bounds = bounds_of(offering, limit) if limit else None
        default = "Bedrock's default, not documented"
        if isinstance(fields.peek(path), str):
            sent[wire] = fields.send(path, f"{at}hyperParameters.{wire}", default=default)
        else:
            whole = path != "training.learning_rate"
            sent[wire] = send_bounded(fields, path, f"{at}hyperParameters.{wire}", bounds, default=default, whole=whole)
    sent["evalInterval"] = _interval(fields, offering, data, f"{at}hyperParameters.evalInterval")
    typed: dict[str, JsonValue] = {wire: value for wire, value in sent.items() if value is not None}
    config: dict[str, JsonValue] = {"hyperParameters": typed} if typed else {}
    grader = "options.bedrock.reward_lambda_arn"
    if fields.peek(grader) is None:
        fields.refuse(grader, "method rft needs the ARN of the grader's Lambda at Bedrock")
    else:
        arn = fields.send(grader, f"{at}graderConfig.lambdaGrader.lambdaArn", default="")
        config["graderConfig"] = {"lambdaGrader": {"lambdaArn": arn}}
    return {"customizationConfig": {"rftConfig": config}}


def _interval(fields: Fields, offering: Offering, data: JobData, wire: str) -> int | None:
    """Steps between evaluations, from their number over the run; that needs the batch size and the epochs."""
    path, count, training = "evaluation.evaluations", fields.peek("evaluation.evaluations"), fields.spec.training
    if count is None:
        fields.send(path, wire, default="Bedrock's default, not documented")
        return None
    if count == 0:
        fields.refuse(path, "Bedrock cannot switch evaluation off in reinforcement jobs")
        return None
    if training.batch_size is None or training.epochs is None:
        fields.refuse(path, "Bedrock takes steps between evaluations; set training.batch_size and training.epochs to give them")
        return None
    interval = max(1, round(steps_per_epoch(data.train.rows, training.batch_size) * training.epochs / count))
    bounds = bounds_of(offering, "rft_eval_interval")
    if bounds is not None and not bounds.admits(interval):
        fields.refuse(path, f"{count} evaluations are one every {interval} steps, and {bounds} steps are accepted ({bounds.source})")
        return None
    sent: int = fields.send(path, wire, default="", convert=lambda _: interval, note=f"all steps of the run over {count} evaluations")
    return sent


def _distillation(fields: Fields) -> dict[str, JsonValue]:
    for path in (*NAMES, "training.warmup_ratio", _THRESHOLD):
        fields.refuse_if_set(path, "no hyperparameters are known for Bedrock's distillation jobs; leave it unset")
    at = "customizationConfig.distillationConfig.teacherModelConfig."
    model: dict[str, JsonValue] = {}
    if fields.peek("distillation.teacher") is None:
        fields.refuse("distillation.teacher", "method distill needs a teacher model at Bedrock")
    else:
        model["teacherModelIdentifier"] = fields.send("distillation.teacher", at + "teacherModelIdentifier", default="")
    longest = fields.send(
        "options.bedrock.max_teacher_response_tokens", at + "maxResponseLengthForInference", default="Bedrock's default, not documented"
    )
    if longest is not None:
        model["maxResponseLengthForInference"] = longest
    return {"customizationConfig": {"distillationConfig": {"teacherModelConfig": model}}}
