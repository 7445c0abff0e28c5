"""A JobSpec in OpenAI's words: the body of POST /fine_tuning/jobs. Pure.

Field names: openai/openai-openapi 2.3.0, commit f85dbe2 of 2026-08-21. Ranges come from the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from pydantic import JsonValue

from tuneport.core.catalogue import Offering, load_catalogue
from tuneport.core.data.facts import Feature, JobData
from tuneport.core.estimate import training_cost, training_time
from tuneport.core.money import Range
from tuneport.core.plan import Fields, Plan, PlanWarning
from tuneport.core.spec import JobSpec
from tuneport.providers.common import (
    DataRules,
    bounds_of,
    check_lifetime,
    fixed,
    method_on_wire,
    refuse_unfit_data,
    row_bounds,
    send_bounded,
    send_for_method,
    send_model,
    send_validation,
    tag_faults,
    trained_tokens,
    unoffered_method,
    uploads_for,
)

OPERATION = "POST /fine_tuning/jobs"
METADATA_SOURCE = "OpenAI API specification 2.3.0, 2026-08-21; one of 16 places holds the job's own key"

METHODS: Mapping[str, str] = {"sft": "supervised", "dpo": "dpo", "rft": "reinforcement"}
"""Our method -> method.type."""
RECORD_FOR: Mapping[str, str] = {"sft": "openai-chat", "dpo": "openai-dpo", "rft": "openai-reinforcement"}
"""Our method -> record shape (``providers.openai.records``)."""
GRADERS = frozenset({"string_check", "text_similarity", "python", "score_model", "multi"})
"""Grader types that a reinforcement job takes."""

_OWN_TUNING = "OpenAI chooses which weights learn, and shows none of it"
_OWN_SCHEDULE = "OpenAI runs its own learning-rate schedule and takes only learning_rate_multiplier"

UNSUPPORTED: Mapping[str, str] = {
    "tuning": _OWN_TUNING,
    "training.steps": "OpenAI measures the run in epochs only; set training.epochs",
    "training.gradient_accumulation": "OpenAI splits its batches itself; set training.batch_size",
    "training.learning_rate": (
        "OpenAI takes only a factor on its own rate, which it does not publish, so a rate cannot be turned into one;"
        " set training.learning_rate_multiplier"
    ),
    "training.warmup_ratio": _OWN_SCHEDULE,
    "training.warmup_steps": _OWN_SCHEDULE,
    "training.scheduler": _OWN_SCHEDULE,
    "training.min_learning_rate_ratio": _OWN_SCHEDULE,
    "training.scheduler_cycles": _OWN_SCHEDULE,
    "training.weight_decay": "OpenAI has no setting for weight decay",
    "training.max_grad_norm": "OpenAI has no setting for gradient clipping",
    "training.max_seq_length": "OpenAI has no setting for the sequence length; shorten the rows instead",
    "training.packing": "OpenAI has no setting for packing",
    "evaluation.evaluations": "OpenAI chooses when it evaluates (in method rft set options.openai.eval_interval, in steps)",
    "evaluation.checkpoints": "OpenAI chooses which checkpoints it keeps",
    "evaluation.early_stopping": "OpenAI has no early stopping; a checkpoint of an earlier epoch can be used instead",
    "preference.sft_weight": "OpenAI's dpo has no added SFT loss",
    "preference.length_normalised": "OpenAI's dpo has no length normalisation",
    "preference.simpo_gamma": "OpenAI has no SimPO",
    "preference.desirable_weight": "OpenAI has no KTO",
    "preference.undesirable_weight": "OpenAI has no KTO",
    "distillation": "OpenAI has no distillation job",
    "reinforcement.samples_per_prompt": "OpenAI chooses the number of samples; options.openai.compute_multiplier scales the exploration",
    "reinforcement.max_prompt_length": "OpenAI has no setting for the prompt length",
    "reinforcement.max_output_tokens": "OpenAI has no setting for the answer length in training",
    "export": "OpenAI gives no access to tuned weights",
}
"""What OpenAI does not offer: field, or prefix of a group, -> reason."""

LACKS: Mapping[str, str] = {
    "kto": "OpenAI has no KTO; with pairs of answers use dpo",
    "orpo": "OpenAI has no ORPO; its preference method is dpo",
    "simpo": "OpenAI has no SimPO; its preference method is dpo",
    "cpt": "OpenAI has no continued pre-training",
    "distill": "OpenAI has no distillation job; write the teacher's answers into rows and use sft",
}
"""Methods that OpenAI does not offer -> reason."""

CANNOT_CARRY: Mapping[Feature, str] = {
    "row_weights": "OpenAI's records have no weight for a whole row",
    "reasoning": "OpenAI's records have no place for reasoning_content",
    "images": "no source confirms images in OpenAI's fine-tuning records for the models it still tunes",
}


def compile_plan(spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
    """The plan of this spec at OpenAI. ``today`` decides lifetimes and the age of prices; the clock's date when None."""
    day = today or date.today()
    offering = load_catalogue().offering(spec, "openai")
    fields = Fields(spec, "openai", UNSUPPORTED)
    warnings: list[PlanWarning] = []

    payload: dict[str, JsonValue] = {"model": _model(fields, offering.vendor_id)}
    warnings += check_lifetime(fields, offering, day)
    payload["training_file"] = "${upload:train}"
    if send_validation(fields, data, "validation_file"):
        payload["validation_file"] = "${upload:validation}"
    method = method_on_wire(
        fields, "method.type", METHODS, {**unoffered_method(offering, spec.method), **LACKS}, note="OpenAI's name of the same method"
    )
    hyperparameters, rest = _hyperparameters(fields, offering, method)
    if method:
        settings = rest | ({"hyperparameters": hyperparameters} if hyperparameters else {})
        payload["method"] = {"type": method} | ({method: settings} if settings else {})
    payload |= _extras(fields)
    _loss_on(fields)
    refuse_unfit_data(fields, data, _data_rules(offering, spec.method))

    epochs, epochs_note = _epochs(spec, data)
    if epochs_note:
        warnings.append(PlanWarning(code="epochs-estimated", message=epochs_note))
    tokens = trained_tokens(data, epochs)
    return Plan(
        provider="openai",
        model=offering.model,
        vendor_model=str(payload["model"]),
        operation=OPERATION,
        payload=payload,
        uploads=uploads_for(data, RECORD_FOR.get(spec.method, "openai-chat"), spec.name or "tuneport"),
        outcomes=fields.finish(),
        cost=training_cost(offering, method=spec.method, tuning=spec.tuning.kind, trained_tokens=tokens, evaluated_tokens=None, today=day),
        time=training_time("openai", tokens, day),
        epochs=epochs,
        warnings=tuple(warnings),
    )


def auto_epochs(rows: int) -> int:
    """The epochs that OpenAI's cookbook expects for ``auto``: 3, so changed that 100 to 25,000 rows are seen in all.

    Source: OpenAI cookbook, "Data preparation and analysis for chat model fine-tuning" (3 epochs as target, 1 to 25 as
    limits). The service's own rule is not published.
    """
    target, fewest_seen, most_seen = 3, 100, 25_000
    if rows * target < fewest_seen:
        return min(25, fewest_seen // rows)
    if rows * target > most_seen:
        return max(1, most_seen // rows)
    return target


def _epochs(spec: JobSpec, data: JobData) -> tuple[Range, str]:
    if spec.training.epochs is not None:
        return fixed(spec.training.epochs), ""
    likely = auto_epochs(max(1, data.train.rows))
    epochs = Range(low=1, high=max(3, likely))
    note = (
        f"training.epochs is unset, so OpenAI chooses: about {likely} by its cookbook's rule; cost and time are reckoned for"
        f" {epochs.low:g} to {epochs.high:g}. Set training.epochs to fix both"
    )
    return epochs, note


def _model(fields: Fields, vendor_id: str) -> str:
    """What stands in ``model``: the base model, or the earlier tuned model that is trained further."""
    earlier = fields.peek("continue_from")
    if earlier is not None and earlier.startswith("ftjob-"):
        fields.refuse("continue_from", "OpenAI continues from a tuned model, not from a job; give the job's ft:... model")
        earlier = None
    else:
        fields.send("continue_from", "model", default="starts from the base model")
    return send_model(fields, "openai", "model", vendor_id, earlier)


def _hyperparameters(fields: Fields, offering: Offering, method: str | None) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """(method.<type>.hyperparameters, what stands beside them in method.<type>)."""
    root = f"method.{method or '<type>'}."
    at = root + "hyperparameters."
    sent: dict[str, JsonValue] = {
        "n_epochs": send_bounded(
            fields, "training.epochs", at + "n_epochs", bounds_of(offering, "epochs"), default="auto: OpenAI chooses", whole=True
        ),
        "batch_size": send_bounded(
            fields, "training.batch_size", at + "batch_size", bounds_of(offering, "batch_size"), default="auto: OpenAI chooses", whole=True
        ),
        "learning_rate_multiplier": send_bounded(
            fields,
            "training.learning_rate_multiplier",
            at + "learning_rate_multiplier",
            bounds_of(offering, "learning_rate_multiplier"),
            default="auto: OpenAI chooses",
        ),
        "beta": send_for_method(
            fields,
            "preference.beta",
            METHODS,
            lambda: send_bounded(fields, "preference.beta", at + "beta", bounds_of(offering, "dpo_beta"), default="auto: OpenAI chooses"),
        ),
        "reasoning_effort": send_for_method(
            fields,
            "reinforcement.reasoning_effort",
            METHODS,
            lambda: fields.send("reinforcement.reasoning_effort", at + "reasoning_effort", default="default"),
        ),
    }
    for option in ("compute_multiplier", "eval_samples", "eval_interval"):
        path = f"options.openai.{option}"
        if fields.spec.method == "rft":
            sent[option] = fields.send(path, at + option, default="auto: OpenAI chooses")
        else:
            fields.refuse_if_set(path, f"has no meaning in method {fields.spec.method}; it belongs to rft")
    grader = send_for_method(fields, "reinforcement.grader", METHODS, lambda: _grader(fields, root + "grader"))
    return {k: v for k, v in sent.items() if v is not None}, {"grader": grader} if grader is not None else {}


def _grader(fields: Fields, wire: str) -> JsonValue:
    grader = fields.peek("reinforcement.grader")
    if grader is None:
        fields.refuse("reinforcement.grader", "method rft needs a grader at OpenAI")
        return None
    kind = grader.get("type")
    elsewhere = fields.peek("options.openai.base_url") is not None
    if kind not in GRADERS and not elsewhere:
        fields.refuse("reinforcement.grader", f"OpenAI takes graders of type {', '.join(sorted(GRADERS))}, not {kind!r}")
        return None
    note = "" if kind in GRADERS else "a grader type of the service at options.openai.base_url; OpenAI itself does not know it"
    result: JsonValue = fields.send("reinforcement.grader", wire, default="", note=note)
    return result


def _loss_on(fields: Fields) -> None:
    if fields.peek("training.loss_on") == "all":
        fields.refuse("training.loss_on", "at OpenAI only the assistant's messages carry loss")
        return
    note = "OpenAI's own behaviour: only the assistant's messages carry loss, so nothing is sent"
    fields.send("training.loss_on", "(no field)", default=note, convert=lambda _: None, note=note)


def _extras(fields: Fields) -> dict[str, JsonValue]:
    """Suffix, seed, metadata and integrations; the service address stays with the client."""
    sent: dict[str, JsonValue] = {
        "suffix": fields.send("name", "suffix", default="no suffix"),
        "seed": fields.send("training.seed", "seed", default="OpenAI draws one and reports it"),
        "metadata": _metadata(fields),
        "integrations": _wandb(fields),
    }
    fields.send("options.openai.base_url", "(address of the client)", default="OPENAI_BASE_URL, or OpenAI's own address")
    fields.send("options.openai.key_variable", "(key of the client)", default="OPENAI_API_KEY")
    return {key: value for key, value in sent.items() if value is not None}


def _metadata(fields: Fields) -> JsonValue:
    tags = fields.peek("tags")
    fault = tag_faults(tags, most=15, key_length=64, value_length=512, source=METADATA_SOURCE) if tags else ""
    if fault:
        fields.refuse("tags", fault)
        return None
    result: JsonValue = fields.send("tags", "metadata", default="only the job's own key")
    return result


def _wandb(fields: Fields) -> JsonValue:
    at = "integrations[0].wandb."
    if fields.peek("tracking.wandb.project") is None:
        for name in ("project", "entity", "name", "tags"):
            fields.refuse_if_set(f"tracking.wandb.{name}", "OpenAI's W&B integration needs a project; set tracking.wandb.project")
        return None
    names = ("project", "entity", "name", "tags")
    values = {
        name: fields.send(f"tracking.wandb.{name}", at + name, default="W&B's default", note="the W&B key is stored at OpenAI")
        for name in names
    }
    return [{"type": "wandb", "wandb": {name: value for name, value in values.items() if value is not None}}]


def _data_rules(offering: Offering, method: str) -> DataRules:
    if method == "rft":
        weights: dict[Feature, str] = {"message_weights": "reinforcement learns from a grader, not from weighted answers"}
        needs: dict[Feature, str] = {"prompt_only": "its rows end with an answer; method rft learns from prompts that end with the user"}
        rows, held = row_bounds(offering, most="max_rows_rft"), row_bounds(offering, "", "max_validation_rows_rft")
        return DataRules(cannot_carry={**CANNOT_CARRY, **weights}, rows=rows, validation_rows=held, needs=needs)
    answers: dict[Feature, str] = {"prompt_only": f"rows without an answer have nothing to learn in method {method}"}
    if method == "dpo":
        answers["message_weights"] = "OpenAI's preference records have no message weights"
    return DataRules(cannot_carry={**CANNOT_CARRY, **answers}, rows=row_bounds(offering))
