"""The run of a Together job: length, batch, optimiser, schedule, evaluations, and the tokens that the bill counts. Pure.

Rules without a source of their own come from the SDK together 3.1.1, ``lib/resources/fine_tuning.py``.
"""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from tuneport.core.catalogue import Offering
from tuneport.core.data.facts import DatasetFacts, JobData
from tuneport.core.money import Range
from tuneport.core.plan import Fields, PlanWarning
from tuneport.core.spec import PREFERENCE_METHODS, JobSpec
from tuneport.providers.common import bounds_of, file_tokens, length_bounds, send_bounded, set_only, steps_per_epoch

EARLY_STOPPING_WARMUP = 1
"""Evaluations before early stopping may act, where the job says nothing (SDK docstring)."""


def optimisation(fields: Fields, offering: Offering, data: JobData) -> dict[str, JsonValue]:
    """Length, batch, optimiser and sequences."""
    epochs, rate = bounds_of(offering, "epochs"), bounds_of(offering, "learning_rate")
    length = length_bounds(offering, _length_limit(fields.spec))
    packing = fields.send("training.packing", "packing", default="true (sent)")
    body = {
        "n_epochs": send_bounded(fields, "training.epochs", "n_epochs", epochs, default="1 (sent)", whole=True) or 1,
        "learning_rate": send_bounded(fields, "training.learning_rate", "learning_rate", rate, default="1e-5 (sent)") or 1e-5,
        "packing": True if packing is None else packing,
        "max_seq_length": send_bounded(
            fields, "training.max_seq_length", "max_seq_length", length, default="the model's longest, which the service knows"
        ),
        "random_seed": fields.send("training.seed", "random_seed", default="42 (the service's)"),
        "weight_decay": fields.send("training.weight_decay", "weight_decay", default="0 (sent)") or 0.0,
    }
    norm = fields.send("training.max_grad_norm", "max_grad_norm", default="1 (sent)")
    body["max_grad_norm"] = 1.0 if norm is None else norm
    return set_only(body | _batch(fields, offering) | _warmup(fields, data))


def _batch(fields: Fields, offering: Offering) -> dict[str, Any]:
    """Ours is the batch of one optimiser step; Together's is one of ``gradient_accumulation_steps`` parts of it."""
    batch, parts = fields.peek("training.batch_size"), fields.peek("training.gradient_accumulation")
    divisor = parts or 1
    bounds = bounds_of(offering, "batch_size")
    if batch is not None and bounds is not None and not bounds.admits(batch / divisor):
        reason = f"{batch // divisor} rows in one part of the batch lie outside {bounds} ({bounds.source}); change gradient_accumulation"
        fields.refuse("training.batch_size", reason)
        batch = None
    unset = "1 is sent, so that batch_size holds for the whole step" if batch else "the model's default, which the service knows"
    sent_parts = fields.send("training.gradient_accumulation", "gradient_accumulation_steps", default=unset)
    body: dict[str, Any] = {"gradient_accumulation_steps": 1 if batch and sent_parts is None else sent_parts}
    if batch is None and fields.peek("training.batch_size") is not None:
        return body | {"batch_size": "max"}
    per_part = fields.send(
        "training.batch_size",
        "batch_size",
        default="max (sent): the largest that fits",
        convert=(lambda value: value // divisor) if divisor > 1 else None,
        note=f"{batch} rows in {parts} parts of gradient_accumulation_steps" if batch and divisor > 1 else "",
    )
    return body | {"batch_size": per_part or "max"}


def _warmup(fields: Fields, data: JobData) -> dict[str, Any]:
    ratio = fields.send("training.warmup_ratio", "warmup_ratio", default="0 (sent)") or 0.0
    warmup = fields.peek("training.warmup_steps")
    if not warmup:
        zero = (lambda _: 0.0) if warmup == 0 else None
        fields.send("training.warmup_steps", "warmup_ratio", default="not set", convert=zero, note="no warm-up")
        return {"warmup_ratio": ratio}
    steps = _steps(fields.spec, data)
    if steps is None:
        reason = (
            "Together takes the warm-up as a share, and the number of all steps is known only with training.batch_size and packing: false;"
            " set training.warmup_ratio"
        )
        fields.refuse("training.warmup_steps", reason)
        return {"warmup_ratio": ratio}
    if warmup > steps:
        fields.refuse("training.warmup_steps", f"{warmup} steps of warm-up exceed the {steps} steps of the run")
        return {"warmup_ratio": ratio}
    note = f"{warmup} of {steps} steps"
    return {"warmup_ratio": fields.send("training.warmup_steps", "warmup_ratio", default="", convert=lambda n: n / steps, note=note)}


def _steps(spec: JobSpec, data: JobData) -> int | None:
    """Optimiser steps of the run, or None when only the service knows: packing changes the number of sequences."""
    if spec.training.batch_size is None or spec.training.packing is not False:
        return None
    return steps_per_epoch(data.train.rows, spec.training.batch_size) * max(1, int(spec.training.epochs or 1))


def schedule(fields: Fields) -> dict[str, JsonValue]:
    """The scheduler. Together knows linear and cosine; constant is a linear one that ends at the peak."""
    shape = fields.peek("training.scheduler")
    constant = shape == "constant"
    at = "lr_scheduler.lr_scheduler_args."
    word = fields.send(
        "training.scheduler",
        "lr_scheduler.lr_scheduler_type",
        default="cosine (sent)",
        convert=(lambda _: "linear") if constant else None,
        note="linear from the peak to the peak (min_lr_ratio 1), which is constant" if constant else "",
    )
    lowest = fields.peek("training.min_learning_rate_ratio")
    if constant and lowest not in (None, 1):
        fields.refuse("training.min_learning_rate_ratio", "a constant rate has no lower end; choose scheduler linear or cosine")
        lowest = 1.0
    else:
        lowest = fields.send("training.min_learning_rate_ratio", at + "min_lr_ratio", default=f"{int(constant)} (sent)")
    arguments: dict[str, JsonValue] = {"min_lr_ratio": float(constant) if lowest is None else lowest}
    if word in (None, "cosine"):
        cycles = fields.send("training.scheduler_cycles", at + "num_cycles", default="0.5 (sent): one half wave")
        arguments["num_cycles"] = 0.5 if cycles is None else cycles
    else:
        fields.refuse_if_set("training.scheduler_cycles", f"belongs to the cosine scheduler, and training.scheduler is {shape}")
    return {"lr_scheduler": {"lr_scheduler_type": word or "cosine", "lr_scheduler_args": arguments}}


def evaluation(fields: Fields, has_validation: bool) -> dict[str, JsonValue]:
    """Validation passes, checkpoints and early stopping."""
    evaluations = fields.peek("evaluation.evaluations")
    if evaluations and not has_validation:
        fields.refuse("evaluation.evaluations", "there are no validation rows to evaluate on; set data.validation or data.split.validation")
        evaluations = None
    else:
        fields.send("evaluation.evaluations", "n_evals", default="0 (sent): validation rows are not used")
    body: dict[str, JsonValue] = {
        "n_evals": evaluations or 0,
        "n_checkpoints": fields.send("evaluation.checkpoints", "n_checkpoints", default="1 (sent)") or 1,
    }
    return body | _early_stopping(fields, evaluations or 0, has_validation)


def _early_stopping(fields: Fields, evaluations: int, has_validation: bool) -> dict[str, JsonValue]:
    path = "evaluation.early_stopping.patience"
    rest = {
        "early_stopping_min_delta": ("evaluation.early_stopping.min_delta", "0 (the service's)"),
        "early_stopping_warmup_evals": ("options.together.warmup_evals", f"{EARLY_STOPPING_WARMUP} (the service's)"),
    }
    patience = fields.peek(path)
    needed = _evaluations_needed(fields.spec)
    if patience is not None and not has_validation:
        fields.refuse(path, "early stopping needs validation rows; set data.validation or data.split.validation")
    elif patience is not None and evaluations < needed:
        rule = f"early stopping after {patience} needs at least {needed} evaluations (patience + warm-up + 1)"
        fields.refuse(path, f"{rule}, and evaluation.evaluations is {evaluations or 'unset'}")
    elif patience is not None:
        sent = {"early_stopping_patience": fields.send(path, "early_stopping_patience", default="")}
        sent |= {wire: fields.send(other, wire, default=default) for wire, (other, default) in rest.items()}
        return {"early_stopping_enabled": True, **set_only(sent)}
    else:
        fields.send(path, "early_stopping_patience", default="no early stopping (sent)")
    for wire, (other, _) in rest.items():
        if fields.peek(other) is None:
            fields.send(other, wire, default="no early stopping")
        else:
            fields.refuse(other, "early stopping is off, or refused; see evaluation.early_stopping.patience")
    return {"early_stopping_enabled": False}


def _evaluations_needed(spec: JobSpec) -> int:
    """Evaluations before a run can stop early: one to compare with, the warm-up, and ``patience`` without improvement."""
    warmup = spec.options.together.warmup_evals
    return (spec.evaluation.early_stopping.patience or 0) + (EARLY_STOPPING_WARMUP if warmup is None else warmup) + 1


def billed_tokens(spec: JobSpec, data: JobData, offering: Offering) -> tuple[Range | None, Range | None]:
    """Tokens that the bill counts: (epochs x training tokens, evaluations x validation tokens). None: unknown.

    Without packing a row counts as max_seq_length tokens, whatever its length. A run that stops early is billed for the steps
    it made, at least those before early stopping may act.
    """
    evaluations, share = spec.evaluation.evaluations or 0, _share_made(spec)
    length: int | None = spec.training.max_seq_length
    if length is None:
        length = offering.limits.get(_length_limit(spec))

    def once(facts: DatasetFacts) -> Range | None:
        if spec.training.packing is not False:
            return file_tokens(facts)
        return Range(low=facts.rows * length, high=facts.rows * length) if length else None

    train = once(data.train)
    held = once(data.validation) if data.validation else None
    return train * billed_epochs(spec) if train else None, held * evaluations * share if held and evaluations else None


def billed_epochs(spec: JobSpec) -> Range:
    """Passes over the training rows that the bill counts: as set, else Together's 1; fewer when the run stops early."""
    return _share_made(spec) * (spec.training.epochs or 1)


def _share_made(spec: JobSpec) -> Range:
    """The share of the run that is made: all, or from where early stopping may act."""
    evaluations = spec.evaluation.evaluations or 0
    stops = spec.evaluation.early_stopping.patience and evaluations
    return Range(low=min(1.0, _evaluations_needed(spec) / evaluations) if stops else 1.0, high=1.0)


def _length_limit(spec: JobSpec) -> str:
    """The catalogue's key for the longest sequence in the spec's method."""
    return "max_seq_length_dpo" if spec.method in PREFERENCE_METHODS else "max_seq_length_sft"


def advice(spec: JobSpec, data: JobData, offering: Offering) -> list[PlanWarning]:
    """What works as asked, but perhaps not as meant. Codes: validation_unused, batch_of_sequences, rows_cut, beta, images."""
    found: list[PlanWarning] = []
    if data.validation and not spec.evaluation.evaluations:
        message = "validation rows are uploaded but not used: Together evaluates 0 times unless evaluation.evaluations says otherwise"
        found.append(PlanWarning(code="validation_unused", message=message))
    if spec.training.batch_size and spec.training.packing is not False:
        message = "packing is on, so batch_size counts packed sequences of several rows; set training.packing: false to count rows"
        found.append(PlanWarning(code="batch_of_sequences", message=message))
    limit = spec.training.max_seq_length or offering.limits.get(_length_limit(spec))
    if limit and data.train.tokens.longest_row > limit:
        message = f"the longest row has up to {data.train.tokens.longest_row} tokens and a sequence at most {limit}: rows may be cut"
        found.append(PlanWarning(code="rows_cut", message=message))
    beta, advised = spec.preference.beta, offering.limits.get("advised_dpo_beta")
    if beta and advised and spec.method == "dpo" and not advised[0] <= beta <= advised[1]:
        message = f"preference.beta {beta:g} lies outside the {advised[0]:g} to {advised[1]:g} that Together advises"
        found.append(PlanWarning(code="beta", message=message))
    if "images" in data.train.features:
        message = f"the rows hold images; whether {offering.vendor_id} reads images is checked by the service only"
        found.append(PlanWarning(code="images", message=message))
    return found
