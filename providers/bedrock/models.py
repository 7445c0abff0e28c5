"""Models as Bedrock knows them today: whether a base model takes new jobs here, and what serves a tuned one. Reads, and one delete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuneport.core.errors import CredentialsError, ProviderError, RefusedError
from tuneport.core.plan import Plan, PlanWarning
from tuneport.providers.bedrock.errors import MODEL_FIX, code_of, translated, unreadable

_GONE = frozenset({"ResourceNotFoundException", "404"})
_UNKNOWN_ID = "ValidationException"
"""How Bedrock answers an id that this region does not have (the other way is ResourceNotFoundException)."""
_LISTED_CUSTOMIZATIONS = frozenset({"FINE_TUNING", "CONTINUED_PRE_TRAINING", "DISTILLATION"})
"""What ``customizationsSupported`` can name (enum ModelCustomization); reinforcement cannot be read from it."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What GetFoundationModel says. ``why_unknown`` is set, and nothing else, when it cannot be asked."""

    refused: str = ""  # why Bedrock takes no jobs for it here; "" when it does as far as is known
    customizations: tuple[str, ...] = ()
    ends: datetime | None = None
    why_unknown: str = ""


def base_model(client: Any, model: str, region: str) -> BaseModel:
    """Ask Bedrock for the lifecycle of a base model.

    Unknown is an answer: a caller without the right (bedrock:GetFoundationModel), or a service that lacks the call, as
    moto does. Raises what else AWS says (no connection, wrong key, slow down).
    """
    if ":custom-model/" in model or "." not in model:
        return BaseModel(why_unknown="the base of a custom model is not asked for")
    try:
        with translated():
            details = client.get_foundation_model(modelIdentifier=model).get("modelDetails")
    except CredentialsError as error:
        if code_of(error) in ("AccessDeniedException", "403"):
            return BaseModel(why_unknown=str(error))
        raise
    except ProviderError as error:
        if code_of(error) in _GONE or code_of(error) == _UNKNOWN_ID:
            return BaseModel(refused=f"region {region} has no base model {model} ({error.what})")
        if code_of(error) in ("500", "501", "InternalServerException", "UnknownOperationException"):
            return BaseModel(why_unknown=str(error))
        raise
    if not details:
        raise unreadable("it holds no model")
    lifecycle: Mapping[str, Any] = details.get("modelLifecycle") or {}
    ends = lifecycle.get("endOfLifeTime")
    refused = ""
    if lifecycle.get("status") == "LEGACY":
        until = f"; it stops answering on {ends:%Y-%m-%d}" if isinstance(ends, datetime) else ""
        refused = f"{model} is in Bedrock's state Legacy, which takes no new fine-tuning jobs{until}"
    return BaseModel(refused=refused, customizations=tuple(details.get("customizationsSupported") or ()), ends=ends)


def require_open(client: Any, plan: Plan, region: str) -> None:
    """Raises RefusedError when Bedrock itself says that it takes no jobs for the plan's base model in this region."""
    found = base_model(client, plan.vendor_model, region)
    if found.refused:
        raise RefusedError("bedrock", {"model": f"{found.refused}; {MODEL_FIX}"})


def asked(client: Any, plan: Plan, region: str, refusals: dict[str, str]) -> list[PlanWarning]:
    """Warnings on the plan's base model; what refuses it goes into ``refusals``."""
    found = base_model(client, plan.vendor_model, region)
    if found.why_unknown:
        message = f"whether Bedrock still takes jobs for {plan.vendor_model} is unknown: {found.why_unknown}"
        return [PlanWarning(code="online", message=message)]
    if found.refused:
        refusals["model"] = f"{found.refused}; {MODEL_FIX}"
        return []
    warnings = []
    if found.ends is not None:
        message = f"Bedrock ends {plan.vendor_model}, and every model tuned from it, on {found.ends:%Y-%m-%d}"
        warnings.append(PlanWarning(code="lifetime", message=message))
    wanted = plan.payload.get("customizationType")
    if wanted in _LISTED_CUSTOMIZATIONS and wanted not in found.customizations:
        offered = ", ".join(found.customizations) or "none"
        message = f"Bedrock lists {offered} as customizations of {plan.vendor_model} in {region}, and not {wanted}; it may refuse the job"
        warnings.append(PlanWarning(code="online", message=message))
    return warnings


def deployment_of(client: Any, model: str) -> str:
    """The ARN of an active deployment, or provisioned throughput, of a custom model.

    Raises ProviderError when nothing serves it.
    """
    with translated():
        page = client.list_custom_model_deployments(modelArnEquals=model, statusEquals="Active")
    for deployment in page.get("modelDeploymentSummaries") or ():
        return str(deployment["customModelDeploymentArn"])
    with translated():
        page = client.list_provisioned_model_throughputs(modelArnEquals=model, statusEquals="InService")
    for throughput in page.get("provisionedModelSummaries") or ():
        return str(throughput["provisionedModelArn"])
    raise ProviderError(f"nothing serves the custom model {model}", fix="deploy it first: tuneport deploy JOB", retry="no")


def delete(client: Any, model: str, *, dry_run: bool = False) -> bool:
    """Delete a custom model, or only look for it; False when there is none of that ARN. Raises ProviderError while something serves it."""
    try:
        with translated():
            client.get_custom_model(modelIdentifier=model)
            if not dry_run:
                client.delete_custom_model(modelIdentifier=model)
    except ProviderError as error:
        if code_of(error) in _GONE:
            return False
        if code_of(error) == "ConflictException":
            raise ProviderError(f"Bedrock does not delete {model} yet ({error.what})", fix="undeploy it first", retry="no") from error
        raise
    return True
