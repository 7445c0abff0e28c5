"""A JobSpec in Fireworks' words: the JSON body of one of three create calls. Pure.

Field names are those on the wire (camelCase), as the SDK fireworks-ai 1.2.28 sends them; ``lrScheduler`` is documented for
the REST interface and missing in the SDK's types. The client adds the job's id, which is ours to choose, as a query parameter.
Rules without a source of their own come from Fireworks' fine-tuning pages; limits of a model come from the catalogue.
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
    Bounds,
    DataRules,
    check_lifetime,
    evaluated_tokens,
    fixed,
    hosting_warning,
    method_on_wire,
    refuse_unfit_data,
    row_bounds,
    send_bounded,
    send_for_method,
    send_validation,
    set_only,
    trained_tokens,
    unoffered_method,
    uploads_for,
)
from tuneport.providers.fireworks.run import PAGES, UNKNOWN, training_settings

METHODS: Mapping[str, str] = {"sft": "supervised", "dpo": "DPO", "orpo": "ORPO", "rft": "reinforcement"}
"""Our method -> its name there. DPO and ORPO are values of ``lossConfig.method``; the others are resources of their own."""
OPERATIONS: Mapping[str, str] = {
    "sft": "POST /v1/accounts/{account}/supervisedFineTuningJobs",
    "dpo": "POST /v1/accounts/{account}/dpoJobs",
    "orpo": "POST /v1/accounts/{account}/dpoJobs",
    "rft": "POST /v1/accounts/{account}/reinforcementFineTuningJobs",
}
"""Our method -> the call that makes the job."""
METHOD_WIRE: Mapping[str, str] = {"dpo": "lossConfig.method", "orpo": "lossConfig.method"}
LACKS: Mapping[str, str] = {
    "kto": "Fireworks has no KTO; with pairs of answers use dpo or orpo",
    "simpo": "Fireworks has no SimPO; its preference methods are dpo and orpo",
    "cpt": "Fireworks' managed jobs have no continued pre-training",
    "distill": "Fireworks has no managed distillation job; write the teacher's answers into rows and use sft",
}
"""Methods that Fireworks does not offer -> reason."""

_ADAPTER = "Fireworks lets one choose the LoRA rank only"
_DEPRECATED = "the present trainer rejects it"
UNSUPPORTED: Mapping[str, str] = {
    "tuning.alpha": _ADAPTER,
    "tuning.dropout": _ADAPTER,
    "tuning.target_modules": _ADAPTER,
    "training.steps": "Fireworks measures the run in epochs only; set training.epochs",
    "training.gradient_accumulation": f"{_DEPRECATED}; batch_size is the whole step at Fireworks",
    "training.learning_rate_multiplier": (
        "Fireworks takes an absolute rate, and a factor on the vendor's own rate is not one; set training.learning_rate"
    ),
    "training.scheduler_cycles": "Fireworks' cosine schedule is one half wave",
    "training.max_grad_norm": "Fireworks has no setting for gradient clipping",
    "training.packing": "Fireworks has no setting for packing",
    "training.seed": "Fireworks has no setting for the seed",
    "evaluation.evaluations": "Fireworks chooses when it evaluates",
    "evaluation.early_stopping": f"{_DEPRECATED}; a saved checkpoint can be used instead",
    "preference.sft_weight": "Fireworks' preference losses have no added SFT loss",
    "preference.simpo_gamma": "Fireworks has no SimPO",
    "preference.length_normalised": "Fireworks' dpo has no length normalisation",
    "preference.desirable_weight": "Fireworks has no KTO",
    "preference.undesirable_weight": "Fireworks has no KTO",
    "reinforcement.grader": "Fireworks runs an evaluator that is stored there, not a grader; set options.fireworks.evaluator",
    "reinforcement.reasoning_effort": "Fireworks has no setting for the reasoning effort in training",
    "reinforcement.max_prompt_length": "Fireworks has no setting for the prompt length",
    "distillation": "Fireworks has no managed distillation job",
    "tracking.wandb.name": "Fireworks passes project and entity to W&B; the run is named there",
    "tracking.wandb.tags": "Fireworks passes project and entity to W&B, no tags",
    "export": "Fireworks has no export to a hub; download the weights instead",
    "tags": "Fireworks' jobs carry no labels",
}
"""What Fireworks does not offer: field, or prefix of a group, -> reason."""

KIND_LACKS: Mapping[str, str] = {
    "qlora": "Fireworks chooses the precision of the base itself; use lora",
    "dora": "Fireworks has no DoRA; it tunes lora",
    "rslora": "Fireworks has no rank-stabilised LoRA; it tunes lora",
    "full": "no document shows full tuning in Fireworks' managed jobs; they make LoRA adapters",
    "prefix": "Fireworks has no prefix tuning; it tunes lora",
    "prompt": "Fireworks has no prompt tuning; it tunes lora",
}
RANKS = Bounds(1, 32, PAGES)
ROWS = Bounds(3, 3_000_000, PAGES)
BETA_BELOW = 0.5
"""lossConfig.dpo.beta lies above 0 and below this (fireworks-ai 1.2.28, DpoConfig)."""


def compile_plan(spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
    """The plan of this spec at Fireworks. ``today`` decides lifetimes and the age of prices; the clock's date when None.

    Raises CatalogueError when the base model is unknown, or not offered by Fireworks.
    """
    day = today or date.today()
    offering = load_catalogue().offering(spec, "fireworks")
    fields = Fields(spec, "fireworks", UNSUPPORTED)
    # In preference and reinforcement jobs the training settings stand one level deeper.
    at = "" if spec.method == "sft" else "trainingConfig."

    lacks = {**unoffered_method(offering, spec.method), **LACKS}
    note = "a job resource of its own" if spec.method not in METHOD_WIRE else "Fireworks' word"
    method = method_on_wire(fields, METHOD_WIRE.get(spec.method, "(resource)"), METHODS, lacks, note=note)
    training = _base(fields, offering, at) | training_settings(fields, offering, data, at)
    warnings = check_lifetime(fields, offering, day)
    job: dict[str, JsonValue] = {"dataset": "${upload:train}", **_extras(fields, data), **_method_settings(fields, method)}
    if method is not None:
        refuse_unfit_data(fields, data, _data_rules(spec, offering))
    payload = job | (training if spec.method == "sft" else {"trainingConfig": training})

    tokens = _tokens(spec, data)
    uploads = uploads_for(data, _record(spec, data), spec.name or "tuneport", validation="evaluationDataset" in payload)
    return Plan(
        provider="fireworks",
        model=offering.model,
        vendor_model=offering.vendor_id,
        operation=OPERATIONS.get(spec.method, OPERATIONS["sft"]),
        payload=payload,
        uploads=uploads,
        outcomes=fields.finish(),
        cost=training_cost(
            offering,
            method=spec.method,
            tuning=spec.tuning.kind or "lora",
            trained_tokens=tokens,
            evaluated_tokens=evaluated_tokens(data, spec.training.epochs or 1),
            today=day,
        ),
        time=training_time("fireworks", tokens, day),
        epochs=fixed(spec.training.epochs or 1),
        warnings=(*warnings, *_advice(spec, data, offering), *hosting_warning(offering, day)),
    )


# -- what is trained ---------------------------------------------------------------------------------------------------


def _base(fields: Fields, offering: Offering, at: str) -> dict[str, JsonValue]:
    """The base model or an earlier adapter (exactly one of the two), the adapter's rank, and the new model's id."""
    body: dict[str, JsonValue] = {}
    earlier = fields.send("continue_from", at + "warmStartFrom", default="starts from the base model")
    if earlier is not None:
        body["warmStartFrom"] = earlier
        note = "not sent: warmStartFrom already names its base; used here for limits and prices"
        fields.send("model", at + "warmStartFrom", default="", convert=lambda _: None, note=note)
    else:
        changed = fields.peek("model") != offering.vendor_id
        to_id = (lambda _: offering.vendor_id) if changed else None
        body["baseModel"] = fields.send("model", at + "baseModel", default="", convert=to_id, note="Fireworks' id" if changed else "")
    kind = fields.peek("tuning.kind")
    if kind in KIND_LACKS:
        fields.refuse("tuning.kind", KIND_LACKS[kind])
    else:
        fields.send("tuning.kind", "(every managed job)", default="lora, the only kind", note="managed jobs make LoRA adapters")
    rank, bounds = fields.peek("tuning.rank"), _or(offering, RANKS, "min_rank", "max_rank")
    if rank is not None and bounds.admits(rank) and rank & (rank - 1):
        fields.refuse("tuning.rank", f"{rank} is not a power of two, which Fireworks wants ({PAGES})")
    else:
        body["loraRank"] = send_bounded(fields, "tuning.rank", at + "loraRank", bounds, default="8")
    body["outputModel"] = fields.send("options.fireworks.output_model", at + "outputModel", default="the job's id")
    return set_only(body)


# -- the job around it -------------------------------------------------------------------------------------------------


def _extras(fields: Fields, data: JobData) -> dict[str, JsonValue]:
    """Validation rows, names, trackers. Keys are only referred to: the client puts them in when it sends."""
    preference = fields.spec.method in METHOD_WIRE
    body: dict[str, JsonValue] = {}
    carve = "options.fireworks.eval_auto_carveout"
    if preference:
        reason = "Fireworks' preference jobs take no validation rows"
        fields.refuse_if_set("data.validation", reason)
        fields.refuse_if_set(carve, reason)
        if data.validation and fields.peek("data.validation") is None:
            fields.refuse("data.split.validation", f"{reason}; set it to 0 to train on these rows")
    else:
        if send_validation(fields, data, "evaluationDataset"):
            body["evaluationDataset"] = "${upload:validation}"
        if data.validation and fields.peek(carve):
            fields.refuse(carve, "there are validation rows already, so that Fireworks need not cut any")
        else:
            body["evalAutoCarveout"] = fields.send(carve, "evalAutoCarveout", default="unknown: Fireworks decides")
    note = "name of the job; the model's id is options.fireworks.output_model, else the job's id"
    body["displayName"] = fields.send("name", "displayName", default="no display name", note=note)
    note = "the key is read from WANDB_API_KEY when sending"
    wandb = set_only(
        {key: fields.send(f"tracking.wandb.{key}", f"wandbConfig.{key}", default="no W&B", note=note) for key in ("project", "entity")}
    )
    if wandb:
        body["wandbConfig"] = {"enabled": True, "apiKey": "${env:WANDB_API_KEY}", **wandb}
    turbo = "options.fireworks.is_turbo"
    if fields.spec.method == "sft":
        body["isTurbo"] = fields.send(turbo, "isTurbo", default="false")
    else:
        fields.refuse_if_set(turbo, "Fireworks has turbo mode for supervised jobs only")
    fields.send("options.fireworks.account_id", "(path of the call)", default="FIREWORKS_ACCOUNT_ID")
    fields.send("options.fireworks.base_url", "(address of the client)", default="FIREWORKS_BASE_URL, or Fireworks' own address")
    return set_only(body)


def _method_settings(fields: Fields, method: str | None) -> dict[str, JsonValue]:
    """What only one method has, and where loss counts."""
    chosen = fields.peek("training.loss_on")
    if fields.spec.method == "rft":
        fields.refuse_if_set("training.loss_on", "reinforcement learns from scores, not from tokens of an answer")
    elif chosen == "all":
        fields.refuse("training.loss_on", "at Fireworks only assistant messages carry loss (a message's weight 0 takes one out)")
    else:
        note = "only assistant messages carry loss at Fireworks; nothing needs to be sent"
        fields.send("training.loss_on", "(Fireworks' own behaviour)", default="only assistant messages carry loss", note=note)
    body: dict[str, JsonValue] = {}
    if method in ("DPO", "ORPO"):
        # Always set: two docstrings of the SDK name different methods for a job that leaves it out.
        body["lossConfig"] = {"method": method, **_beta(fields, method)}
    else:
        send_for_method(fields, "preference.beta", METHODS, lambda: fields.refuse_if_set("preference.beta", "not offered for this method"))
    return body | _rft(fields, method)


def _beta(fields: Fields, method: str) -> dict[str, JsonValue]:
    path, beta = "preference.beta", fields.peek("preference.beta")
    if method == "ORPO":
        fields.refuse_if_set(path, "Fireworks' ORPO has no setting for the weight of the odds ratio")
        return {}
    if beta is not None and beta >= BETA_BELOW:
        fields.refuse(path, f"{beta:g} is outside the accepted range, above 0 and below {BETA_BELOW:g} (fireworks-ai 1.2.28, DpoConfig)")
        return {}
    sent = fields.send(path, "lossConfig.dpo.beta", default=UNKNOWN)
    return {} if sent is None else {"dpo": {"beta": sent}}


def _rft(fields: Fields, method: str | None) -> dict[str, JsonValue]:
    evaluator = "options.fireworks.evaluator"
    if method != "reinforcement":
        ours = fields.spec.method
        fields.refuse_if_set(evaluator, "belongs to method rft, which is refused" if ours == "rft" else f"has no meaning in method {ours}")
        for path in ("reinforcement.samples_per_prompt", "reinforcement.max_output_tokens"):
            send_for_method(fields, path, (), lambda: None)
        return {}
    body: dict[str, JsonValue] = {}
    if fields.peek(evaluator) is None:
        fields.refuse(evaluator, "method rft needs the resource name of an evaluator at Fireworks")
    else:
        body["evaluator"] = fields.send(evaluator, "evaluator", default="")
    at = "inferenceParameters."
    candidates = fields.send("reinforcement.samples_per_prompt", at + "responseCandidatesCount", default=UNKNOWN)
    length = fields.send("reinforcement.max_output_tokens", at + "maxOutputTokens", default=UNKNOWN)
    inference = set_only({"responseCandidatesCount": candidates, "maxOutputTokens": length})
    return body | ({"inferenceParameters": inference} if inference else {})


# -- data, cost, advice ------------------------------------------------------------------------------------------------


def _record(spec: JobSpec, data: JobData) -> str:
    """The record shape (``providers.fireworks.records``). A weight on one row means that every row needs one."""
    if spec.method in METHOD_WIRE:
        return "fireworks-preference"
    if spec.method == "rft":
        return "fireworks-rft"
    weighted = any("row_weights" in facts.features for facts in (data.train, data.validation) if facts)
    return "fireworks-chat-weighted" if weighted else "fireworks-chat"


def _data_rules(spec: JobSpec, offering: Offering) -> DataRules:
    cannot: dict[Feature, str] = {"images": "Fireworks' text records take text only"}
    needs: dict[Feature, str] = {}
    if spec.method == "rft":
        cannot |= {"row_weights": "rft records have no weights", "message_weights": "rft learns from scores, not from weighted answers"}
        needs["prompt_only"] = "its rows end with an answer, and rft learns from prompts that end with the user"
    else:
        cannot["prompt_only"] = f"rows without an answer have nothing to learn in method {spec.method}"
    if spec.method in METHOD_WIRE:
        reason = "Fireworks' preference records have no weights"
        cannot |= {"row_weights": reason, "message_weights": reason, "multi_turn": "Fireworks' preference records hold one turn"}
    return DataRules(cannot_carry=cannot, rows=row_bounds(offering) or ROWS, needs=needs)


def _unrolled(spec: JobSpec, data: JobData) -> bool:
    """True when rows grow on the way in: with reasoning, each answer becomes a row with all that precedes it."""
    return spec.method == "sft" and {"reasoning", "multi_turn"} <= data.train.features


def _tokens(spec: JobSpec, data: JobData) -> Range | None:
    return None if _unrolled(spec, data) else trained_tokens(data, fixed(spec.training.epochs or 1))


def _advice(spec: JobSpec, data: JobData, offering: Offering) -> list[PlanWarning]:
    found: list[PlanWarning] = []
    if _unrolled(spec, data):
        message = "conversations with reasoning are unrolled into one row for each answer, so more tokens are billed than the file holds"
        found.append(PlanWarning(code="unrolled", message=message))
    limit = spec.training.max_seq_length or offering.context
    if limit and data.train.tokens.longest_row > limit:
        message = f"the longest row has up to {data.train.tokens.longest_row} tokens and a sequence at most {limit}: rows may be cut"
        found.append(PlanWarning(code="rows_cut", message=message))
    return found


def _or(offering: Offering, fallback: Bounds, low: str, high: str) -> Bounds:
    """Bounds from the catalogue, each end falling back to what the vendor's pages say for every model."""
    return Bounds(offering.limits.get(low, fallback.low), offering.limits.get(high, fallback.high), fallback.source)
