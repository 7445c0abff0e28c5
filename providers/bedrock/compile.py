"""A JobSpec in Bedrock's words: the input of CreateModelCustomizationJob. Pure.

Names and patterns: botocore's service model of bedrock, API version 2023-04-20.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date

from pydantic import JsonValue

from tuneport.core.catalogue import Offering, load_catalogue
from tuneport.core.data.facts import Feature, JobData
from tuneport.core.estimate import training_cost, training_time
from tuneport.core.money import Range
from tuneport.core.plan import Fields, Plan, PlanWarning
from tuneport.core.prices import load_prices
from tuneport.core.spec import JobSpec
from tuneport.providers.bedrock.families import ASSUMED, Family, family_of
from tuneport.providers.bedrock.hyperparameters import run_settings
from tuneport.providers.common import (
    DataRules,
    bounds_of,
    check_lifetime,
    fixed,
    length_bounds,
    method_on_wire,
    refuse_unfit_data,
    row_bounds,
    send_model,
    send_validation,
    tag_faults,
    trained_tokens,
    unoffered_method,
    uploads_for,
)

OPERATION = "CreateModelCustomizationJob"
API_SOURCE = "Bedrock API 2023-04-20"

METHODS: Mapping[str, str] = {
    "sft": "FINE_TUNING",
    "cpt": "CONTINUED_PRE_TRAINING",
    "rft": "REINFORCEMENT_FINE_TUNING",
    "distill": "DISTILLATION",
}
"""Our method -> customizationType."""

_NO_PREFERENCE = "CreateModelCustomizationJob has no preference tuning"
LACKS: Mapping[str, str] = {
    "dpo": f"{_NO_PREFERENCE}; DPO of Nova runs as a SageMaker training job",
    "kto": _NO_PREFERENCE,
    "orpo": _NO_PREFERENCE,
    "simpo": _NO_PREFERENCE,
}
"""Methods that Bedrock does not offer -> reason."""

_OWN_SCHEDULE = "Bedrock runs its own learning-rate schedule"
UNSUPPORTED: Mapping[str, str] = {
    "tuning": "Bedrock chooses which weights learn, and shows none of it",
    "training.steps": "Bedrock measures the run in epochs only; set training.epochs",
    "training.gradient_accumulation": "Bedrock has no setting for gradient accumulation",
    "training.scheduler": _OWN_SCHEDULE,
    "training.min_learning_rate_ratio": _OWN_SCHEDULE,
    "training.scheduler_cycles": _OWN_SCHEDULE,
    "training.weight_decay": "Bedrock has no setting for weight decay",
    "training.max_grad_norm": "Bedrock has no setting for gradient clipping",
    "training.max_seq_length": "Bedrock has no setting for the sequence length (rft has reinforcement.max_prompt_length)",
    "training.packing": "Bedrock has no setting for packing",
    "training.loss_on": "Bedrock has no setting for it, and does not document which tokens carry loss",
    "training.seed": "Bedrock has no setting for the seed",
    "evaluation.checkpoints": "Bedrock gives no access to checkpoints",
    "preference": _NO_PREFERENCE,
    "reinforcement.grader": "Bedrock grades with your own Lambda; set options.bedrock.reward_lambda_arn",
    "tracking.wandb": "Bedrock writes metrics to S3 only",
    "export": "Bedrock gives no access to tuned weights",
}
"""What Bedrock does not offer: field, or prefix of a group, -> reason."""

CANNOT_CARRY: Mapping[Feature, str] = {
    "tools": "no Bedrock record known to tuneport has tools (Nova 2: they may make the job fail)",
    "tool_calls": "no Bedrock record known to tuneport has tool calls",
    "images": "Bedrock reads images from S3 locations, which tuneport does not write",
    "message_weights": "Bedrock's records have no weights",
    "row_weights": "Bedrock's records have no weights",
}

PATTERNS: Mapping[str, str] = {
    "role_arn": r"arn:aws(-[^:]+)?:iam::([0-9]{12})?:role/.+",
    "kms_key_id": r"arn:aws(-[^:]+)?:kms:[a-zA-Z0-9-]*:[0-9]{12}:(key/[a-zA-Z0-9-]{36}|alias/[a-zA-Z0-9-_/]+)"
    r"|[a-zA-Z0-9-]{36}|alias/[a-zA-Z0-9-_/]+",
    "data_s3_uri": r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](/[-!_*'().a-z0-9A-Z]+)*/?",
    "output_s3_uri": r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](/[-!_*'().a-z0-9A-Z]+)*/?",
    "reward_lambda_arn": r"arn:(aws[a-zA-Z-]*)?:lambda:[a-z]{2}(-gov)?-[a-z]+-\d{1}:\d{12}:function:[a-zA-Z0-9-_\.]+"
    r"(:(\$LATEST|[a-zA-Z0-9-_]+))?",
}
"""What the API accepts for these options."""
TAG_PATTERN = r"[a-zA-Z0-9\s._:/=+@-]*"


def compile_plan(spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
    """The plan of this spec at Bedrock. ``today`` decides lifetimes and the age of prices; the clock's date when None.

    What only submitting needs (role and S3 folders) is a warning of the code needed-to-submit while it is missing.
    """
    day = today or date.today()
    offering = load_catalogue().offering(spec, "bedrock")
    family = family_of(offering.vendor_id)
    fields = Fields(spec, "bedrock", UNSUPPORTED)
    warnings: list[PlanWarning] = []

    base = _base_model(fields, offering)
    warnings += check_lifetime(fields, offering, day)
    customization = method_on_wire(
        fields, "customizationType", METHODS, {**unoffered_method(offering, spec.method), **LACKS}, note="Bedrock's name of the same method"
    )
    names = _names(fields, data)
    payload: dict[str, JsonValue] = {**names, "baseModelIdentifier": base}
    if customization:
        payload["customizationType"] = customization
    payload["trainingDataConfig"] = {"s3Uri": "${upload:train}"}
    validated = _validation(fields, data, family or ASSUMED, warnings)
    if validated:
        payload["validationDataConfig"] = {"validators": [{"s3Uri": "${upload:validation}"}]}
    payload |= run_settings(fields, offering, data)
    payload |= _account(fields, warnings)
    refuse_unfit_data(fields, data, _data_rules(offering, family or ASSUMED, spec.method))

    if family is None and spec.method == "sft":
        message = f"the record format of {offering.vendor_id} is not known; {ASSUMED.record} is assumed"
        warnings.append(PlanWarning(code="record-assumed", message=message))
    warnings += _serving(offering, day)
    epochs = _epochs(spec, offering, warnings)
    tokens = trained_tokens(data, epochs) if epochs else None
    return Plan(
        provider="bedrock",
        model=offering.model,
        vendor_model=base,
        operation=OPERATION,
        payload=payload,
        uploads=uploads_for(data, _record(spec.method, family or ASSUMED), str(names["customModelName"]), validation=validated),
        outcomes=fields.finish(),
        cost=training_cost(offering, method=spec.method, tuning=None, trained_tokens=tokens, evaluated_tokens=None, today=day),
        time=training_time("bedrock", tokens, day),
        epochs=epochs,
        warnings=tuple(warnings),
    )


# -- model, names, data --------------------------------------------------------------------------------------------------


def _base_model(fields: Fields, offering: Offering) -> str:
    """baseModelIdentifier: the base model, or the earlier custom model that is trained further."""
    earlier = fields.peek("continue_from")
    if earlier is not None and ":model-customization-job/" in earlier:
        fields.refuse("continue_from", "Bedrock continues from a custom model, not from a job; give the custom model's ARN")
        earlier = None
    else:
        fields.send("continue_from", "baseModelIdentifier", default="starts from the base model")
    return send_model(fields, "bedrock", "baseModelIdentifier", offering.vendor_id, earlier)


def _names(fields: Fields, data: JobData) -> dict[str, JsonValue]:
    """customModelName and jobName; without a name both come from the spec's and the data's contents, so they stay the same."""
    spec = fields.spec
    contents = json.dumps(spec.model_dump(mode="json"), sort_keys=True) + data.train.sha256
    derived = f"tuneport-{hashlib.sha256(contents.encode()).hexdigest()[:10]}"
    single = re.sub("-+", "-", spec.name) if spec.name else derived
    changed = single if spec.name and single != spec.name else None
    unique = "a part of the job's key is appended on submitting, for AWS takes a name only once"
    fields.send(
        "name",
        "customModelName",
        default=f"{derived}, from the contents of spec and data; {unique}",
        convert=(lambda _: changed) if changed else None,
        note=f"Bedrock allows no two dashes in a row; {unique}" if changed else unique,
    )
    note = "sent as it stands; AWS takes a name only once"
    job_name = fields.send("options.bedrock.job_name", "jobName", default=f"the model's name, {single}; {unique}", note=note)
    return {"jobName": job_name or single, "customModelName": single}


def _serving(offering: Offering, today: date) -> list[PlanWarning]:
    """The warning that the tuned model will be billed by the hour, where the catalogue knows no other way to serve it."""
    if offering.serving != ("provisioned",):
        return []
    price = load_prices().find("bedrock", "host_hour", model=offering.model, today=today)
    told = f"{price.amount.high:g} USD ({price.source})" if price else "the price book has no price for it"
    message = f"the tuned model answers by provisioned throughput only, which is billed by the hour per model unit: {told}"
    return [PlanWarning(code="serving", message=message)]


def _validation(fields: Fields, data: JobData, family: Family, warnings: list[PlanWarning]) -> bool:
    if family.uses_validation or fields.spec.method != "sft":
        return send_validation(fields, data, "validationDataConfig.validators[0].s3Uri")
    reason = "Nova 2 does not use validation rows (Nova 2 supervised fine-tuning page)"
    fields.refuse_if_set("data.validation", reason)
    if data.validation and fields.peek("data.validation") is None:
        warnings.append(PlanWarning(code="validation-unused", message=f"the validation rows cut by data.split are not sent: {reason}"))
    return False


def _record(method: str, family: Family) -> str:
    return {"cpt": "bedrock-text", "rft": "bedrock-reinforcement", "distill": "bedrock-distillation"}.get(method, family.record)


def _data_rules(offering: Offering, family: Family, method: str) -> DataRules:
    rows, longest = row_bounds(offering), length_bounds(offering)
    if method == "rft":
        needs: dict[Feature, str] = {"prompt_only": "its rows end with an answer; method rft learns from prompts that end with the user"}
        reasoning: dict[Feature, str] = {"reasoning": "reinforcement prompts have no place for reasoning"}
        return DataRules(cannot_carry={**CANNOT_CARRY, **reasoning}, needs=needs)
    if method == "distill":
        return DataRules(cannot_carry={**CANNOT_CARRY, "reasoning": "the teacher's answers have no place for reasoning"})
    if method != "sft":
        return DataRules(cannot_carry=CANNOT_CARRY, row_tokens=longest)
    answers: dict[Feature, str] = {"prompt_only": "rows without an answer have nothing to learn in method sft"}
    unfit = {**CANNOT_CARRY, **family.cannot_carry, **answers}
    return DataRules(cannot_carry=unfit, rows=rows, rows_of_both=family.rows_of_both, row_tokens=longest)


# -- account and run -----------------------------------------------------------------------------------------------------


def _account(fields: Fields, warnings: list[PlanWarning]) -> dict[str, JsonValue]:
    """Role, places in S3, keys, network and tags. What only submitting needs becomes a warning while it is missing."""
    fields.send("options.bedrock.region", "(region of the client)", default="AWS_REGION, or the AWS profile's region")
    role = _option(fields, "role_arn", "roleArn", needed="the IAM role that Bedrock assumes", warnings=warnings)
    _option(fields, "data_s3_uri", "(folder of the uploads)", needed="the S3 folder for the rows", warnings=warnings)
    output = _option(fields, "output_s3_uri", "outputDataConfig.s3Uri", needed="the S3 folder for the metrics", warnings=warnings)
    sent: dict[str, JsonValue] = {
        "roleArn": role,
        "outputDataConfig": {"s3Uri": output} if output else None,
        "customModelKmsKeyId": _option(fields, "kms_key_id", "customModelKmsKeyId"),
        "vpcConfig": _vpc(fields),
    }
    tags = _tags(fields)
    sent |= {"jobTags": tags, "customModelTags": tags}
    return {name: value for name, value in sent.items() if value is not None}


def _option(fields: Fields, name: str, wire: str, *, needed: str = "", warnings: list[PlanWarning] | None = None) -> JsonValue:
    path = f"options.bedrock.{name}"
    value = fields.peek(path)
    if value is not None and not re.fullmatch(PATTERNS[name], value):
        fields.refuse(path, f"{value!r} does not have the form that the API takes, {PATTERNS[name]} ({API_SOURCE})")
        return None
    if value is None and needed and warnings is not None:
        warnings.append(PlanWarning(code="needed-to-submit", message=f"{path} is not set: {needed}; planning goes on without it"))
    result: JsonValue = fields.send(path, wire, default=f"needed to submit: {needed}" if needed else "none")
    return result


def _vpc(fields: Fields) -> JsonValue:
    subnets, groups = "options.bedrock.subnet_ids", "options.bedrock.security_group_ids"
    if (fields.peek(subnets) is None) != (fields.peek(groups) is None):
        for path, other in ((subnets, groups), (groups, subnets)):
            fields.refuse_if_set(path, f"a private network needs {other} as well")
        return None
    ids = {
        "subnetIds": fields.send(subnets, "vpcConfig.subnetIds", default="no private network"),
        "securityGroupIds": fields.send(groups, "vpcConfig.securityGroupIds", default="no private network"),
    }
    return ids if ids["subnetIds"] is not None else None


def _tags(fields: Fields) -> JsonValue:
    tags = fields.peek("tags")
    fault = tag_faults(tags, most=199, key_length=128, value_length=256, pattern=TAG_PATTERN, source=API_SOURCE) if tags else ""
    if fault:
        fields.refuse("tags", fault)
        return None
    listed: list[JsonValue] = [{"key": key, "value": value} for key, value in (tags or {}).items()]
    note = "on the job and on the tuned model, as lists of key and value"
    wire = "jobTags, customModelTags"
    result: JsonValue = fields.send("tags", wire, default="only the job's own key", convert=lambda _: listed, note=note)
    return result


def _epochs(spec: JobSpec, offering: Offering, warnings: list[PlanWarning]) -> Range | None:
    """The epochs for cost and time: as set, else the documented default, else all that the base model accepts, else unknown."""
    if spec.method == "distill":
        return None
    if spec.training.epochs is not None:
        return fixed(spec.training.epochs)
    default = offering.defaults.get("epochs") if spec.method != "rft" else None
    if isinstance(default, (int, float)):
        return fixed(default)
    bounds = bounds_of(offering, "rft_epochs" if spec.method == "rft" else "epochs")
    if bounds is None or bounds.low is None or bounds.high is None:
        message = "training.epochs is unset and Bedrock's default is not known, so cost and time are not either"
        warnings.append(PlanWarning(code="epochs-unknown", message=message))
        return None
    message = f"training.epochs is unset; cost and time are reckoned for {bounds} epochs"
    warnings.append(PlanWarning(code="epochs-estimated", message=message))
    return Range(low=bounds.low, high=bounds.high)
