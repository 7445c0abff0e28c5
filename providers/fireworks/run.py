"""The run of a Fireworks job: length, batch, learning rate and its schedule, sequences, checkpoints. Pure.

Rules come from Fireworks' fine-tuning pages unless another source is named.
"""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from tuneport.core.catalogue import Offering
from tuneport.core.data.facts import JobData
from tuneport.core.plan import Fields
from tuneport.core.spec import JobSpec
from tuneport.providers.common import Bounds, bounds_of, send_bounded, set_only, steps_per_epoch, warmup_steps_of

PAGES = "Fireworks' fine-tuning pages"
MAX_ROWS_TIMES_EPOCHS = 3_000_000
LENGTH_STEP = 16
"""maxContextLength must be divisible by it (fw-ai/cookbook, error reference, 2026-08)."""
UNKNOWN = "unknown: Fireworks chooses"
BATCH_DEFAULT = "unknown: Fireworks chooses; its web form shows 32 rows, or 4 pairs"


def training_settings(fields: Fields, offering: Offering, data: JobData, at: str) -> dict[str, JsonValue]:
    """Length, batch, learning rate, sequence length, checkpoints, region."""
    body: dict[str, JsonValue] = {
        "epochs": _epochs(fields, offering, data, at),
        "learningRate": send_bounded(
            fields, "training.learning_rate", at + "learningRate", bounds_of(offering, "learning_rate"), default=UNKNOWN
        ),
        "batchSizeSamples": send_bounded(
            fields, "training.batch_size", at + "batchSizeSamples", bounds_of(offering, "batch_size"), default=BATCH_DEFAULT
        ),
        "optimizerWeightDecay": fields.send("training.weight_decay", at + "optimizerWeightDecay", default=UNKNOWN),
        "maxContextLength": _context_length(fields, offering, at),
        "learningRateWarmupSteps": _warmup(fields, data, at),
        "samplerCheckpointSaveIntervalSteps": _checkpoints(fields, data, at),
        "region": fields.send("options.fireworks.region", at + "region", default="Fireworks chooses"),
    }
    return set_only(body | _schedule(fields))


def _epochs(fields: Fields, offering: Offering, data: JobData, at: str) -> Any:
    epochs = fields.peek("training.epochs")
    most = offering.limits.get("max_rows_times_epochs") or MAX_ROWS_TIMES_EPOCHS
    if epochs is not None and epochs == int(epochs) and data.train.rows * epochs > most:
        fields.refuse("training.epochs", f"{data.train.rows:,} rows x {epochs:g} epochs exceed {most:,} ({PAGES})")
        return None
    return send_bounded(fields, "training.epochs", at + "epochs", bounds_of(offering, "epochs"), default="1", whole=True)


def _context_length(fields: Fields, offering: Offering, at: str) -> Any:
    length = fields.peek("training.max_seq_length")
    step = offering.limits.get("seq_length_multiple") or LENGTH_STEP
    if length is not None and length % step:
        near = " or ".join(str(n) for n in (length // step * step, (length // step + 1) * step) if n)
        fields.refuse("training.max_seq_length", f"{length} is not divisible by {step}, which Fireworks wants; use {near}")
        return None
    longest = offering.limits.get("max_seq_length_dpo" if fields.spec.method in ("dpo", "orpo") else "max_seq_length_sft")
    most = longest or offering.context
    bounds = Bounds(None, most, f"limit of {offering.model} at Fireworks") if most else None
    default = "set by the model, at least 32,768 for most (documentation)"
    return send_bounded(fields, "training.max_seq_length", at + "maxContextLength", bounds, default=default)


def _steps(spec: JobSpec, data: JobData) -> int | None:
    """Optimiser steps of the run, or None when only the service knows."""
    carved = spec.options.fireworks.eval_auto_carveout
    # Rows with reasoning are unrolled into one row for each answer, and rollouts set the steps of rft.
    if spec.training.batch_size is None or carved or spec.method == "rft" or "reasoning" in data.train.features:
        return None
    return steps_per_epoch(data.train.rows, spec.training.batch_size) * max(1, int(spec.training.epochs or 1))


_STEPS_UNKNOWN = (
    "needs the number of all steps, which is known only with training.batch_size set, without eval_auto_carveout, for rows without"
    " reasoning, and not in rft"
)


def _warmup(fields: Fields, data: JobData, at: str) -> Any:
    wire, path = at + "learningRateWarmupSteps", "training.warmup_ratio"
    direct = fields.send("training.warmup_steps", wire, default=UNKNOWN)
    ratio, steps = fields.peek(path), _steps(fields.spec, data)
    if ratio and steps is None:
        reason = f"Fireworks takes the warm-up in steps, and turning a share into steps {_STEPS_UNKNOWN}; set training.warmup_steps"
        fields.refuse(path, reason)
        return direct
    if ratio is None:
        fields.send(path, wire, default="not set")
        return direct
    training = fields.spec.training
    warmup = warmup_steps_of(ratio, data.train.rows, training.batch_size, int(training.epochs or 1)) if training.batch_size else 0
    note = f"{warmup} of {steps} steps" if ratio else "no warm-up"
    return fields.send(path, wire, default="", convert=lambda _: warmup, note=note)


def _checkpoints(fields: Fields, data: JobData, at: str) -> Any:
    path = "evaluation.checkpoints"
    if fields.spec.method == "rft":
        fields.refuse_if_set(path, "Fireworks saves checkpoints at intervals in sft and preference jobs only")
        return None
    wanted, steps = fields.peek(path), _steps(fields.spec, data)
    if wanted and steps is None:
        fields.refuse(path, f"Fireworks takes an interval in steps, and turning a count into one {_STEPS_UNKNOWN}")
        return None
    if wanted and steps is not None and wanted > steps:
        fields.refuse(path, f"{wanted} checkpoints exceed the {steps} steps of the run")
        return None
    interval = (steps or 1) // (wanted or 1)
    return fields.send(
        path,
        at + "samplerCheckpointSaveIntervalSteps",
        default="the final model only",
        convert=lambda _: interval,
        note=f"every {interval} of {steps} steps, which makes {(steps or 1) // interval}",
    )


def _schedule(fields: Fields) -> dict[str, JsonValue]:
    """``lrScheduler``: ``{shape: {minLrRatio}}``. Documented for supervised jobs; the default is constant."""
    shape, lowest = fields.peek("training.scheduler"), fields.peek("training.min_learning_rate_ratio")
    if fields.spec.method != "sft":
        for path in ("training.scheduler", "training.min_learning_rate_ratio"):
            fields.refuse_if_set(path, "Fireworks documents lrScheduler for supervised jobs only")
        return {}
    fields.send(
        "training.scheduler",
        "lrScheduler",
        default="constant",
        convert=lambda name: {name: {}},
        note="documented for the REST interface; the SDK's types lack it",
    )
    if shape in (None, "constant") and lowest is not None:
        which = "is constant" if shape else "is unset, which means constant"
        fields.refuse("training.min_learning_rate_ratio", f"training.scheduler {which}, and a constant rate has no lower end")
        lowest = None
    else:
        wire = f"lrScheduler.{shape or '<shape>'}.minLrRatio"
        fields.send("training.min_learning_rate_ratio", wire, default=UNKNOWN)
    if shape is None:
        return {}
    return {"lrScheduler": {shape: {} if lowest is None else {"minLrRatio": lowest}}}
