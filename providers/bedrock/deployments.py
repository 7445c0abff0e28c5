"""Serving a custom model: on demand (billed per token) or by provisioned throughput (billed by the hour per model unit).

A deployment's ref is its ARN. The key travels as its name, which AWS takes once per account and region, as ``clientRequestToken``
(a repeated token makes no second one) and in the tag ``tuneport-key``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from tuneport.core.catalogue import Offering, load_catalogue
from tuneport.core.deployment import HOURS_PER_MONTH, DeploymentRequest, DeploymentState, RemoteDeployment, Tuned
from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.errors import ProviderError, RefusedError
from tuneport.core.money import Range
from tuneport.core.prices import load_prices
from tuneport.providers.bedrock import models
from tuneport.providers.bedrock.aws import Aws, boto, region_of
from tuneport.providers.bedrock.errors import MODEL_FIX, code_of, translated, unreadable
from tuneport.providers.exchange import refuse_requested

MODES: Mapping[str, str] = {
    "on-demand": "billed per token, nothing while nobody asks",
    "provisioned": "reserved model units, billed by the hour whether anybody asks or not",
}
STATES: Mapping[str, DeploymentState] = {
    "Creating": DeploymentState.DEPLOYING,
    "Active": DeploymentState.READY,
    "InService": DeploymentState.READY,
    "Updating": DeploymentState.READY,  # it answers with the model it had
    "Failed": DeploymentState.FAILED,
}
"""Enums CustomModelDeploymentStatus and ProvisionedModelStatus of botocore's service model."""
COMMITMENTS: Mapping[str, tuple[str, float]] = {"1-month": ("OneMonth", HOURS_PER_MONTH), "6-month": ("SixMonths", 6 * HOURS_PER_MONTH)}
"""Option -> (AWS's word, hours that are paid for)."""
ON_DEMAND_REGIONS = ("us-east-1", "us-west-2")
"""Bedrock user guide, "Deploy a custom model for on-demand inference" (copy of 2026)."""
_GONE = frozenset({"ResourceNotFoundException", "404"})
_BUSY = frozenset({"ConflictException", "ResourceInUseException"})


@dataclass(frozen=True, slots=True)
class _Kind:
    """The calls and fields of one of the two kinds."""

    create: str
    get: str
    delete: str
    list: str
    name: str  # field of the create call
    identifier: str  # parameter of get and delete
    arn: str
    listed: str


KINDS: Mapping[str, _Kind] = {
    "on-demand": _Kind(
        "create_custom_model_deployment", "get_custom_model_deployment", "delete_custom_model_deployment",
        "list_custom_model_deployments", "modelDeploymentName", "customModelDeploymentIdentifier", "customModelDeploymentArn",
        "modelDeploymentSummaries",
    ),
    "provisioned": _Kind(
        "create_provisioned_model_throughput", "get_provisioned_model_throughput", "delete_provisioned_model_throughput",
        "list_provisioned_model_throughputs", "provisionedModelName", "provisionedModelId", "provisionedModelArn",
        "provisionedModelSummaries",
    ),
}  # fmt: skip


class BedrockDeployer:
    """``core.provider.Deployer`` for Amazon Bedrock. ``today`` is for tests."""

    modes = MODES
    settle_seconds = 5.0  # as BedrockProvider's

    def __init__(self, aws: Aws, region: Callable[[str | None], str], today: Callable[[], date] = date.today) -> None:
        self._aws, self._region, self._today = aws, region, today

    def plan(self, tuned: Tuned, request: DeploymentRequest, stands_on: str | None = None) -> DeploymentPlan:
        """On demand, or by provisioned throughput where the catalogue knows no other way for this base."""
        offering = _offering(tuned.base_model)
        only_provisioned = offering is not None and offering.serving == ("provisioned",)
        mode = request.mode or ("provisioned" if only_provisioned else "on-demand")
        self._refuse(mode, request, stands_on)
        region = self._region(region_of(tuned.model))
        notes = self._asked(tuned, mode, region)
        if mode == "on-demand":
            payload: dict[str, Any] = {"modelArn": tuned.model}
            usd, price = Range(low=0, high=0), self._per_token(tuned.base_model)
            if region not in ON_DEMAND_REGIONS:
                notes.append(f"AWS documents on-demand deployments in {' and '.join(ON_DEMAND_REGIONS)} only; {region} may refuse it")
            return self._planned(tuned, mode, payload, usd, price, 0.0, notes)
        payload = {"modelId": tuned.model, "modelUnits": request.replicas or 1}
        hours = 0.0
        if request.commitment:
            payload["commitmentDuration"], hours = COMMITMENTS[request.commitment]
            notes.append(f"AWS keeps it, and bills it, for the {request.commitment} term; it cannot be undeployed before")
        found, price = self._per_hour(tuned.base_model, request.replicas or 1, request.commitment)
        return self._planned(tuned, mode, payload, found, price, hours, notes)

    def create(self, plan: DeploymentPlan, key: str) -> RemoteDeployment:
        """One request, which is never repeated; one that this key has made already is returned."""
        kind = KINDS[plan.mode]
        body = dict(plan.payload) | {kind.name: key, "clientRequestToken": key, "tags": [{"key": "tuneport-key", "value": key}]}
        try:
            with translated():
                answer = getattr(self._client(plan), kind.create)(**body)
        except ProviderError as error:
            found = self.find(plan, key) if error.retry == "no" else None  # the name is taken: by an earlier try?
            if found is None:
                raise
            return found
        if not answer.get(kind.arn):
            raise unreadable("it names no deployment")
        return RemoteDeployment(str(answer[kind.arn]), DeploymentState.DEPLOYING, "")

    def find(self, plan: DeploymentPlan, key: str) -> RemoteDeployment | None:
        """The one of this name; a new name shows at once, or after ``settle_seconds``."""
        return self._got(self._client(plan), KINDS[plan.mode], key)

    def poll(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """By its ARN."""
        return self._got(self._client(plan), KINDS[plan.mode], ref) or RemoteDeployment(ref, DeploymentState.UNDEPLOYED, "gone")

    def finish(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Nothing is left to do once it runs."""
        return self.poll(plan, ref)

    def remove(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Delete it. While AWS still creates it, it cannot be deleted: call again."""
        kind, client = KINDS[plan.mode], self._client(plan)
        try:
            with translated():
                getattr(client, kind.delete)(**{kind.identifier: ref})
        except ProviderError as error:
            if code_of(error) not in _GONE | _BUSY:
                raise
            seen = self.poll(plan, ref)
            if code_of(error) in _BUSY and seen.state is not DeploymentState.UNDEPLOYED:
                if seen.state is not DeploymentState.DEPLOYING:
                    raise
                return RemoteDeployment(ref, DeploymentState.UNDEPLOYING, seen.raw_state, error.what)
            return seen
        return self.poll(plan, ref)

    def list_deployments(self) -> Iterator[RemoteDeployment]:
        """Both kinds, in the region of the options or the environment."""
        client = self._aws.client("bedrock", self._region(None))
        for kind in KINDS.values():
            token: dict[str, str] = {}
            while True:
                with translated():
                    page = getattr(client, kind.list)(**token)
                for entry in page.get(kind.listed) or ():
                    yield _seen(entry, kind)
                if not page.get("nextToken"):
                    break
                token = {"nextToken": page["nextToken"]}

    # Inner parts

    def _client(self, plan: DeploymentPlan) -> Any:
        return self._aws.client("bedrock", self._region(region_of(plan.model)))

    def _got(self, client: Any, kind: _Kind, identifier: str) -> RemoteDeployment | None:
        try:
            with boto():
                return _seen(getattr(client, kind.get)(**{kind.identifier: identifier}), kind)
        except ProviderError as error:
            if code_of(error) in _GONE:
                return None
            raise

    def _refuse(self, mode: str, request: DeploymentRequest, stands_on: str | None) -> None:
        by_token = "on demand there is nothing to size: AWS scales it" if mode == "on-demand" else ""
        commitment = ""
        if request.commitment:
            commitment = by_token or ("" if request.commitment in COMMITMENTS else f"AWS has {' and '.join(COMMITMENTS)}")
        refuse_requested(
            "bedrock", MODES, mode, request, stands_on,
            {
                "replicas": by_token,
                "hardware": "Bedrock chooses the hardware itself",
                "idle_s": "on demand it costs nothing while idle" if mode == "on-demand" else "provisioned throughput never idles",
                "commitment": commitment,
                "port": "Bedrock answers at its own address",
                "on": "Bedrock serves one model per deployment",
            },
        )  # fmt: skip

    def _asked(self, tuned: Tuned, mode: str, region: str) -> list[str]:
        """What AWS says of the model today. Raises RefusedError when it does not serve it any more."""
        client = self._aws.client("bedrock", region)
        with boto():
            client.get_custom_model(modelIdentifier=tuned.model)
        found = models.base_model(client, tuned.base_model, region)
        if found.refused and (mode == "provisioned" or "has no base model" in found.refused):
            reason = f"{found.refused}, and no new provisioned throughput; {MODEL_FIX}"
            raise RefusedError("bedrock", {"model": reason}, wanted="deployment")
        if found.refused:
            return [f"{found.refused}; a deployment may be refused too"]
        if found.why_unknown:
            return [f"whether Bedrock still serves {tuned.base_model} was not asked: {found.why_unknown}"]
        return [f"AWS ends {tuned.base_model}, and with it this model, on {found.ends:%Y-%m-%d}"] if found.ends else []

    def _planned(
        self, tuned: Tuned, mode: str, payload: dict[str, Any], usd: Range | None, price: str, hours: float, notes: list[str]
    ) -> DeploymentPlan:
        operation = {"on-demand": "CreateCustomModelDeployment", "provisioned": "CreateProvisionedModelThroughput"}[mode]
        return DeploymentPlan(
            provider="bedrock", model=tuned.model, mode=mode, operation=operation, payload=payload, usd_per_hour=usd, price=price,
            committed_hours=hours, notes=tuple(notes),
        )  # fmt: skip

    def _per_token(self, base: str) -> str:
        book, day = load_prices(), self._today()
        found = [book.find("bedrock", kind, model=base, tuned=True, today=day) for kind in ("infer_in", "infer_out")]
        if any(price is None for price in found):
            return "billed per token; the price book does not have this model's prices"
        words = zip(found, ("in", "out"), strict=True)
        told = " and ".join(f"{price.amount.high:g} USD/1M {word}" for price, word in words if price)
        source = found[0].source if found[0] else ""
        return f"nothing by the hour; answers cost {told} ({source})"

    def _per_hour(self, base: str, units: int, commitment: str | None) -> tuple[Range | None, str]:
        variant = f"{commitment} commitment" if commitment else ""
        price = load_prices().find("bedrock", "host_hour", model=base, variant=variant, today=self._today())
        if price is None:
            return None, f"the price book has no price per model unit of {base}{f' with {variant}' if variant else ''}"
        return price.amount * units, f"{units} x {price.amount.high:g} USD an hour per model unit ({price.source})"


def _offering(base: str) -> Offering | None:
    return next((o for o in load_catalogue().models() if o.provider == "bedrock" and o.vendor_id == base), None)


def _seen(entry: Mapping[str, Any], kind: _Kind) -> RemoteDeployment:
    raw, ref = str(entry.get("status")), str(entry[kind.arn])
    state = STATES.get(raw, DeploymentState.UNKNOWN)
    return RemoteDeployment(ref, state, raw, str(entry.get("failureMessage") or ""), ref if state.serving else None)
