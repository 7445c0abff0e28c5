"""A JobSpec in Together's words: the body of POST /v1/fine-tunes. Pure.

The body is the one that the SDK together 3.1.1 builds (``lib/resources/fine_tuning.py``, ``create_finetune_request``): it
states every setting, the SDK's own defaults too, so that none changes between plan and job. Rules without a source of their
own come from that function. Limits of a model come from the catalogue; the service is asked again before submission.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from pydantic import JsonValue

from tuneport.core.catalogue import Offering, load_catalogue
from tuneport.core.data.facts import Feature, JobData
from tuneport.core.estimate import training_cost, training_time
from tuneport.core.keys import KEY_LENGTH
from tuneport.core.plan import Fields, Plan
from tuneport.core.spec import PREFERENCE_METHODS, JobSpec
from tuneport.providers.common import (
    Bounds,
    DataRules,
    bounds_of,
    check_lifetime,
    hosting_warning,
    method_on_wire,
    refuse_unfit_data,
    row_bounds,
    send_bounded,
    send_for_method,
    send_validation,
    set_only,
    unoffered_method,
    uploads_for,
)
from tuneport.providers.together.run import advice, billed_epochs, billed_tokens, evaluation, optimisation, schedule

OPERATION = "POST /v1/fine-tunes"

METHODS: Mapping[str, str] = {"sft": "sft", "cpt": "sft", "dpo": "dpo", "simpo": "dpo"}
"""Our method -> training_method.method."""
RECORD_FOR: Mapping[str, str] = {
    "sft": "together-chat",
    "cpt": "together-text",
    "dpo": "together-preference",
    "simpo": "together-preference",
}
"""Our method -> record shape (``providers.together.records``)."""
METHOD_NOTES: Mapping[str, str] = {
    "cpt": "sft on records of raw text, where every token carries loss",
    "simpo": "dpo with simpo_gamma above 0: no reference model, log-probabilities divided by length",
}
LACKS: Mapping[str, str] = {
    "kto": "Together has no KTO; with pairs of answers use dpo or simpo",
    "orpo": "Together has no ORPO; its preference methods are dpo and simpo",
    "rft": "Together's managed jobs have no reinforcement; its reinforcement API runs a training loop of your own",
    "distill": "Together has no distillation job; write the teacher's answers into rows and use sft",
}
"""Methods that Together does not offer -> reason."""
KIND_LACKS: Mapping[str, str] = {
    "qlora": "Together tunes lora or full and does not let one choose a 4-bit base",
    "dora": "Together has no DoRA; it tunes lora or full",
    "rslora": "Together has no rank-stabilised LoRA; it tunes lora or full",
    "prefix": "Together has no prefix tuning; it tunes lora or full",
    "prompt": "Together has no prompt tuning; it tunes lora or full",
}

UNSUPPORTED: Mapping[str, str] = {
    "training.steps": "Together measures the run in epochs only; set training.epochs",
    "training.learning_rate_multiplier": (
        "Together takes an absolute rate, and a factor on the vendor's own rate is not one; set training.learning_rate"
    ),
    "preference.desirable_weight": "Together has no KTO",
    "preference.undesirable_weight": "Together has no KTO",
    "reinforcement": "Together's managed jobs have no reinforcement",
    "distillation": "Together has no distillation job",
    "tracking.wandb.tags": "Together passes project, entity and name to W&B, no tags",
    "tags": "Together's jobs carry no labels",
}
"""What Together does not offer: field, or prefix of a group, -> reason."""

DEFAULT_RANK = 16
"""The API wants a rank with every LoRA job, and the model's own default is told online only. 16 lies in every range of
practitioners (field guide: 8 to 64) and within the lowest limit seen (16, DeepSeek-V3.1 and Kimi)."""
MAX_SUFFIX = 40
"""Characters of ``suffix`` (SDK, comment on ``FinetuneRequest.suffix``)."""
MAX_NAME = MAX_SUFFIX - KEY_LENGTH - 1
"""The job's own key shares the suffix, since Together's jobs have no other place for it: NAME-KEY."""


def compile_plan(spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
    """The plan of this spec at Together. ``today`` decides lifetimes and the age of prices; the clock's date when None.

    Raises CatalogueError when the base model is unknown, or not offered by Together.
    """
    day = today or date.today()
    offering = load_catalogue().offering(spec, "together")
    fields = Fields(spec, "together", UNSUPPORTED)

    payload: dict[str, JsonValue] = {"training_file": "${upload:train}"}
    has_validation = send_validation(fields, data, "validation_file")
    payload["validation_file"] = "${upload:validation}" if has_validation else ""
    payload |= _base(fields, offering)
    warnings = check_lifetime(fields, offering, day)
    lacks = {**unoffered_method(offering, spec.method), **LACKS}
    method = method_on_wire(fields, "training_method.method", METHODS, lacks, note=METHOD_NOTES.get(spec.method, ""))
    payload |= _training_type(fields, offering)
    payload |= optimisation(fields, offering, data) | schedule(fields)
    payload |= evaluation(fields, has_validation)
    payload |= _method_settings(fields, method, offering)
    payload |= _destinations(fields)
    if method is not None:
        refuse_unfit_data(fields, data, _data_rules(spec, offering))

    tokens, passes = billed_tokens(spec, data, offering)
    return Plan(
        provider="together",
        model=offering.model,
        vendor_model=offering.vendor_id,
        operation=OPERATION,
        payload=payload,
        uploads=uploads_for(data, RECORD_FOR.get(spec.method, "together-chat"), spec.name or "tuneport"),
        outcomes=fields.finish(),
        cost=training_cost(
            offering, method=spec.method, tuning=spec.tuning.kind or "lora", trained_tokens=tokens, evaluated_tokens=passes, today=day
        ),
        time=training_time("together", tokens, day),
        epochs=billed_epochs(spec),
        warnings=(*warnings, *advice(spec, data, offering), *hosting_warning(offering, day)),
    )


# -- what is trained ---------------------------------------------------------------------------------------------------


def _base(fields: Fields, offering: Offering) -> dict[str, JsonValue]:
    """The base model or the checkpoint: the service takes exactly one of the two."""
    body: dict[str, JsonValue] = {}
    checkpoint = fields.send("continue_from", "from_checkpoint", default="starts from the base model")
    hub_model = fields.peek("options.together.from_hf_model")
    if checkpoint is not None:
        body["from_checkpoint"] = checkpoint
        note = "not sent: from_checkpoint already names its base; used here for limits and prices"
        fields.send("model", "from_checkpoint", default="", convert=lambda _: None, note=note)
        if hub_model is not None:
            fields.refuse("options.together.from_hf_model", "continue_from is set, and Together starts from one of the two")
    else:
        changed = fields.peek("model") != offering.vendor_id
        to_id = (lambda _: offering.vendor_id) if changed else None
        body["model"] = fields.send("model", "model", default="", convert=to_id, note="Together's id" if changed else "")
    if checkpoint is None or hub_model is None:
        note = "no Hugging Face token is sent for reading, so the repository must be public"
        body["from_hf_model"] = fields.send("options.together.from_hf_model", "from_hf_model", default="Together's own weights", note=note)
    if fields.peek("options.together.hf_model_revision") is not None and body.get("from_hf_model") is None:
        fields.refuse("options.together.hf_model_revision", "needs options.together.from_hf_model without continue_from")
    else:
        body["hf_model_revision"] = fields.send("options.together.hf_model_revision", "hf_model_revision", default="latest")
    return set_only(body)


def _training_type(fields: Fields, offering: Offering) -> dict[str, JsonValue]:
    """``training_type``, always explicit: left out, the SDK drops rank, alpha, dropout and modules in silence."""
    kind = fields.peek("tuning.kind")
    if kind in KIND_LACKS:
        fields.refuse("tuning.kind", KIND_LACKS[kind])
    elif offering.tunings is not None and (kind or "lora") not in offering.tunings:
        offered = ", ".join(sorted(offering.tunings)) or "none"
        fields.refuse("tuning.kind", f"Together does not tune {offering.model} by {kind or 'lora'} (offered: {offered})")
    else:
        word = "Full" if kind == "full" else "Lora"
        fields.send("tuning.kind", "training_type.type", default="Lora (sent)", convert=lambda _: word, note="Together's word")
        if kind == "full":
            for path in ("tuning.rank", "tuning.alpha", "tuning.dropout", "tuning.target_modules"):
                fields.refuse_if_set(path, "is a setting of lora, and tuning.kind is full")
            return {"training_type": {"type": "Full"}}
    rank = _rank(fields, offering)
    modules = fields.peek("tuning.target_modules")
    listed = isinstance(modules, tuple)
    sent_modules = fields.send(
        "tuning.target_modules",
        "training_type.lora_trainable_modules",
        default="all-linear (sent)",
        convert=",".join if listed else None,
        note="joined by commas" if listed else "",
    )
    dropout = bounds_of(offering, "lora_dropout")
    return {
        "training_type": {
            "lora_r": rank,
            "lora_alpha": _alpha(fields, rank),
            "lora_dropout": send_bounded(fields, "tuning.dropout", "training_type.lora_dropout", dropout, default="0 (sent)") or 0.0,
            "lora_trainable_modules": sent_modules or "all-linear",
            "type": "Lora",
        }
    }


def _rank(fields: Fields, offering: Offering) -> int:
    highest = offering.limits.get("max_rank")
    documented = offering.defaults.get("rank")
    rank: int = documented or min(DEFAULT_RANK, highest or DEFAULT_RANK)
    whose = "the model's documented default" if documented else "tuneport's: the API wants a rank, and tells the model's own online only"
    limits = Bounds(offering.limits.get("min_rank"), highest, f"limit of {offering.model} at Together")
    sent = send_bounded(fields, "tuning.rank", "training_type.lora_r", limits, default=f"{rank} is sent ({whose})", whole=True)
    return rank if sent is None else int(sent)


def _alpha(fields: Fields, rank: int) -> int:
    alpha = fields.peek("tuning.alpha")
    if alpha is not None and alpha != int(alpha):
        fields.refuse("tuning.alpha", f"Together takes whole numbers, and would cut {alpha:g} to {int(alpha)}")
        return 2 * rank
    whole = fields.send(
        "tuning.alpha", "training_type.lora_alpha", default=f"{2 * rank}, twice the rank (sent)", convert=int if alpha is not None else None
    )
    return 2 * rank if whole is None else int(whole)


# -- method, data and destinations ----------------------------------------------------------------------------------------


def _method_settings(fields: Fields, method: str | None, offering: Offering) -> dict[str, JsonValue]:
    """``training_method``: what only one method has."""
    at = "training_method."
    masking = _loss_on(fields, at + "train_on_inputs")
    beta_bounds = bounds_of(offering, "dpo_beta")

    def send(path: str, wire: str, default: str) -> Any:
        return send_for_method(fields, path, METHODS, lambda: fields.send(path, at + wire, default=default))

    beta = send_for_method(
        fields,
        "preference.beta",
        METHODS,
        lambda: send_bounded(fields, "preference.beta", at + "dpo_beta", beta_bounds, default="0.1 (the service's)"),
    )
    sft_weight = send("preference.sft_weight", "rpo_alpha", "no added SFT loss")
    simpo = fields.spec.method == "simpo"
    gamma = fields.peek("preference.simpo_gamma") if simpo else None
    if simpo and not gamma:
        fields.refuse("preference.simpo_gamma", "Together runs SimPO only with a gamma above 0; without one it would run plain DPO; set it")
    else:
        send("preference.simpo_gamma", "simpo_gamma", "")
    by_length = fields.peek("preference.length_normalised")
    if simpo and by_length is False:
        fields.refuse("preference.length_normalised", "SimPO always divides log-probabilities by length")
    else:
        send("preference.length_normalised", "dpo_normalize_logratios_by_length", f"{str(simpo).lower()} (sent)")
    if method is None:
        return {}
    if method == "sft":
        return {"training_method": {"method": "sft", "train_on_inputs": masking}}
    settings = {
        "method": "dpo",
        "dpo_beta": beta,
        "dpo_normalize_logratios_by_length": simpo or bool(by_length),
        "dpo_reference_free": simpo,
        "rpo_alpha": sft_weight,
        "simpo_gamma": gamma,
    }
    return {"training_method": set_only(settings)}


def _loss_on(fields: Fields, wire: str) -> bool | str:
    method, chosen = fields.spec.method, fields.peek("training.loss_on")
    if method in PREFERENCE_METHODS:
        fields.refuse_if_set("training.loss_on", f"Together takes train_on_inputs for sft only; {method} counts loss on the answers")
        return "auto"
    if method == "cpt" and chosen == "completions":
        fields.refuse("training.loss_on", "records of raw text have no prompt to leave out")
        return "auto"
    default = "auto (sent): all tokens of raw text, only the answers in conversations"
    sent = fields.send("training.loss_on", wire, default=default, convert=lambda loss: loss == "all", note="true: loss on all tokens")
    return "auto" if sent is None else bool(sent)


def _destinations(fields: Fields) -> dict[str, JsonValue]:
    """Name, trackers and export. Keys are only referred to: the client puts them in when it sends."""
    body: dict[str, JsonValue] = {}
    name = fields.peek("name")
    if name is not None and len(name) > MAX_NAME:
        room = f"Together's suffix holds {MAX_SUFFIX}, of which the job's own key takes {KEY_LENGTH + 1}"
        fields.refuse("name", f"has {len(name)} characters, and at most {MAX_NAME} fit: {room}")
    else:
        note = "followed by a dash and the job's own key, by which tuneport finds the job again"
        body["suffix"] = fields.send("name", "suffix", default="the job's own key alone", note=note)
    for path, wire in (("project", "wandb_project_name"), ("entity", "wandb_entity"), ("name", "wandb_name")):
        body[wire] = fields.send(f"tracking.wandb.{path}", wire, default="no W&B", note="the key is read from WANDB_API_KEY when sending")
        if body[wire] is not None:
            body["wandb_key"] = "${env:WANDB_API_KEY}"
    note = "the token is read from HF_TOKEN when sending"
    body["hf_output_repo_name"] = fields.send("export.hub_repo", "hf_output_repo_name", default="no export", note=note)
    if body["hf_output_repo_name"] is not None:
        body["hf_api_token"] = "${env:HF_TOKEN}"  # noqa: S105 - a reference, not a secret
    vision = fields.send("options.together.train_vision", "multimodal_params.train_vision", default="false")
    if vision is not None:
        body["multimodal_params"] = {"train_vision": vision}
    fields.send("options.together.base_url", "(address of the client)", default="TOGETHER_BASE_URL, or Together's own address")
    return set_only(body)


def _data_rules(spec: JobSpec, offering: Offering) -> DataRules:
    answers: dict[Feature, str] = {"prompt_only": f"rows without an answer have nothing to learn in method {spec.method}"}
    if spec.method in PREFERENCE_METHODS:
        reason = "Together's preference records have no weights"
        answers |= {"row_weights": reason, "message_weights": reason}
    return DataRules(cannot_carry=answers, rows=row_bounds(offering))
