"""Serving a tuned model on a dedicated endpoint: GPUs by the hour while replicas run.

An endpoint is a name that requests go to and costs nothing; the deployment under it holds the GPUs (together 3.1.1,
``resources/endpoints``). Both are named by the deployment's key, which is how they are found again. A ref is
``projects/P/endpoints/E/deployments/D``. Together routes requests to a deployment only once it is told to (``finish``).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from tuneport.core.deployment import DeploymentRequest, DeploymentState, RemoteDeployment, Tuned
from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.money import Range
from tuneport.providers.exchange import at, refuse_requested, split
from tuneport.providers.together.hardware import chosen, configs_for, pages
from tuneport.providers.together.session import document, gone, listed

if TYPE_CHECKING:
    import together

MODES: Mapping[str, str] = {"dedicated": "GPUs of your own, billed while replicas run"}
STATES: Mapping[str, DeploymentState] = {
    "DEPLOYMENT_STATE_PROVISIONING": DeploymentState.DEPLOYING,
    "DEPLOYMENT_STATE_READY": DeploymentState.READY,
    "DEPLOYMENT_STATE_SCALING": DeploymentState.READY,
    "DEPLOYMENT_STATE_DEGRADED": DeploymentState.READY,  # some of its replicas answer
    "DEPLOYMENT_STATE_FAILED": DeploymentState.FAILED,
    "DEPLOYMENT_STATE_STOPPING": DeploymentState.STOPPED,
    "DEPLOYMENT_STATE_STOPPED": DeploymentState.STOPPED,
}
"""``types/deployment_status.py`` of the SDK."""
PROJECT_VARIABLE = "TOGETHER_PROJECT_ID"
OWN_HOST, INFERENCE = "api.together.ai", "https://api-inference.together.ai"
"""Dedicated endpoints answer at another address than the one that makes them (documentation, "Deploy a fine-tuned model")."""
SHORTEST_IDLE_MIN, LONGEST_IDLE_MIN = 30, 1440
"""``inactive_timeout`` of ``types/endpoints/deployment_create_params.py``."""
_REF = re.compile(r"projects/(?P<project>[^/]+)/endpoints/(?P<endpoint>[^/]+)/deployments/(?P<id>[^/]+)")
_SLOW_PATH = "Together's own deployment page shows what it offers for this model"

Session = Callable[[str | None], "AbstractContextManager[together.Together]"]


class TogetherDeployer:
    """``core.provider.Deployer`` for Together AI. ``open_session`` opens the SDK at an address."""

    modes = MODES
    settle_seconds = 60.0  # assumed, as TogetherProvider's

    def __init__(self, open_session: Session, address: str | None) -> None:
        self._session, self._address = open_session, address

    def plan(self, tuned: Tuned, request: DeploymentRequest, stands_on: str | None = None) -> DeploymentPlan:
        """On the cheapest configuration that Together has for the model, or the one that ``hardware`` names."""
        mode = request.mode or "dedicated"
        refuse_requested(
            "together", MODES, mode, request, stands_on,
            {
                "idle_s": _idle_fault(request.idle_s),
                "commitment": "Together's endpoints have none",
                "port": "Together answers at its own address",
                "on": "tuneport gives each model at Together an endpoint of its own",
            },
        )  # fmt: skip
        ident, address = self._split(tuned.job)
        with self._session(address) as client:
            project = _project(client)
            job = document(client.fine_tuning.with_raw_response.retrieve(ident.partition(":")[0]))
            model = job.get("model_object_id")
            if not model:
                what = f"Together's job {ident} shows no model_object_id, without which it cannot be deployed"
                raise ProviderError(what, fix=_SLOW_PATH, retry="no")
            resource = f"projects/{project}/models/{model}"
            configs = configs_for(client, project, str(model), resource)
            hardware = listed(client.endpoints.hardware.with_raw_response.list())
        config, cents, told, others = chosen(configs, hardware, request.hardware, tuned.base_model)
        replicas = request.replicas or 1
        idle = request.idle_s if request.idle_s is not None else request.ttl_s
        payload: dict[str, Any] = {
            "model": resource,
            "config": f"projects/{config.get('projectId') or project}/configs/{config['id']}",
            "autoscaling": {"min_replicas": 1, "max_replicas": replicas},
        }
        notes = [f"other configurations (--hardware): {', '.join(others)}"] if others else []
        if idle is not None:
            minutes = min(max(math.ceil(idle / 60), SHORTEST_IDLE_MIN), LONGEST_IDLE_MIN)
            payload["inactive_timeout"] = minutes
            notes.append(f"Together stops it by itself after {minutes} min without a request")
        else:
            notes.append("Together bills it until it is undeployed, also while nobody asks")
        usd = None if cents is None else Range(low=cents / 100, high=cents / 100 * replicas)
        price = (
            f"Together's list of hardware has no price for {told}"
            if cents is None
            else f"{told}: {cents / 100:g} USD an hour per replica, 1 to {replicas} (Together's list of hardware, asked now)"
        )
        return DeploymentPlan(
            provider="together", model=tuned.model, mode=mode, operation=f"POST /v2/projects/{project}/endpoints/.../deployments",
            payload=payload, usd_per_hour=usd, price=price, may_idle=idle is not None, notes=tuple(notes),
        )  # fmt: skip

    def create(self, plan: DeploymentPlan, key: str) -> RemoteDeployment:
        """Make the endpoint if it is not there, then the deployment under it, once. A refused deployment leaves no endpoint."""
        address = self._split(plan.model)[1]
        with self._session(address) as client:
            project = _project_of(plan)
            endpoint = _endpoint(client, project, key)
            if endpoint is None:
                endpoint = document(client.endpoints.with_raw_response.create(project_id=project, name=key))
            ident = str(endpoint["id"])
            create: Any = client.endpoints.deployments.with_raw_response.create
            try:
                made = document(create(project_id=project, endpoint_id=ident, name=key, **plan.payload))
            except Exception as error:
                self._clean_up(client, error, project, ident)
                raise
            return _seen(made, endpoint, address, client)

    def find(self, plan: DeploymentPlan, key: str) -> RemoteDeployment | None:
        """The deployment of this name under the endpoint of this name."""
        address = self._split(plan.model)[1]
        with self._session(address) as client:
            project = _project_of(plan)
            endpoint = _endpoint(client, project, key)
            if endpoint is None:
                return None
            lister = client.endpoints.deployments.with_raw_response.list
            for made in pages(lambda **more: lister(endpoint_id=str(endpoint["id"]), project_id=project, **more)):
                if str(made.get("name")).rpartition("/")[2] == key:
                    return _seen(made, endpoint, address, client)
        return None

    def poll(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:  # noqa: ARG002 -- the ref says it all
        """Its state; while only its endpoint is left, it is being taken down."""
        found, address = self._parsed(ref)
        with self._session(address) as client:
            return self._polled(client, found, ref, address)

    def finish(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:  # noqa: ARG002 -- the ref says it all
        """Route the endpoint's requests to the deployment."""
        found, address = self._parsed(ref)
        with self._session(address) as client:
            if self._polled(client, found, ref, address).unfinished:
                split_to: Any = [{"deployment_id": found["id"], "weight": 1.0}]
                client.endpoints.with_raw_response.update(found["endpoint"], project_id=found["project"], traffic_split=split_to)
            return self._polled(client, found, ref, address)

    def remove(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:  # noqa: ARG002 -- the ref says it all
        """Delete the deployment, stopping it first where Together wants that, and then its endpoint."""
        found, address = self._parsed(ref)
        with self._session(address) as client:
            here = {"project_id": found["project"], "endpoint_id": found["endpoint"]}
            deployments: Any = client.endpoints.deployments.with_raw_response
            try:
                absent = gone(lambda: deployments.delete(found["id"], **here))
            except Exception as error:
                if not _is_refusal(error):
                    raise
                absent = False
                none: Any = {"min_replicas": 0, "max_replicas": 0}
                deployments.update(found["id"], autoscaling=none, **here)  # it must stop before it can be deleted
            if not absent and (left := _retrieved(client, found)) is not None:
                return RemoteDeployment(ref, DeploymentState.UNDEPLOYING, _word(left), "Together is stopping it")
            try:
                gone(lambda: client.endpoints.with_raw_response.delete(found["endpoint"], project_id=found["project"]))
            except Exception as error:
                if not _is_refusal(error):
                    raise
            return self._polled(client, found, ref, address)

    def list_deployments(self) -> Iterator[RemoteDeployment]:
        """The dedicated deployments of the project."""
        with self._session(self._address) as client:
            project = _project(client)
            lister = client.endpoints.with_raw_response.list
            for endpoint in list(pages(lambda **more: lister(project_id=project, **more))):
                for made in endpoint.get("deployments") or ():
                    yield _seen({**made, "endpointId": endpoint["id"], "projectId": project}, endpoint, self._address, client)

    # Inner parts

    def _split(self, marked: str) -> tuple[str, str | None]:
        name, address = split(marked)
        return name, address or self._address

    def _parsed(self, ref: str) -> tuple[dict[str, str], str | None]:
        name, address = self._split(ref)
        found = _REF.fullmatch(name)
        if found is None:
            raise UsageError(f"{ref!r} is no deployment at Together", fix="list them with: tuneport deployments")
        return found.groupdict(), address

    def _polled(self, client: together.Together, found: Mapping[str, str], ref: str, address: str | None) -> RemoteDeployment:
        made, endpoint = _retrieved(client, found), _retrieved_endpoint(client, found)
        if endpoint is None:
            return RemoteDeployment(ref, DeploymentState.UNDEPLOYED, "gone")
        if made is None:
            return RemoteDeployment(ref, DeploymentState.UNDEPLOYING, "its endpoint is left")
        return _seen(made, endpoint, address, client)

    @staticmethod
    def _clean_up(client: together.Together, error: Exception, project: str, endpoint: str) -> None:
        """Remove the endpoint of a deployment that was refused for good; it costs nothing, so failing to is no error."""
        if not _is_refusal(error):
            return
        try:
            client.endpoints.with_raw_response.delete(endpoint, project_id=project)
        except Exception:  # noqa: BLE001 -- what counts is the refusal itself
            return


def _is_refusal(error: Exception) -> bool:
    """Whether Together said no for good to this very call: not a matter of the key, nor of the rate."""
    import together  # noqa: PLC0415

    return isinstance(error, together.APIStatusError) and error.status_code in (400, 404, 409, 412, 422)


def _retrieved(client: together.Together, found: Mapping[str, str]) -> dict[str, Any] | None:
    kept: list[Any] = []
    retrieve: Any = client.endpoints.deployments.with_raw_response.retrieve
    absent = gone(lambda: kept.append(retrieve(found["id"], endpoint_id=found["endpoint"], project_id=found["project"])))
    return None if absent else document(kept[0])


def _retrieved_endpoint(client: together.Together, found: Mapping[str, str]) -> dict[str, Any] | None:
    kept: list[Any] = []
    retrieve: Any = client.endpoints.with_raw_response.retrieve
    return None if gone(lambda: kept.append(retrieve(found["endpoint"], project_id=found["project"]))) else document(kept[0])


def _project(client: together.Together) -> str:
    """The project that the key belongs to, unless TOGETHER_PROJECT_ID names one."""
    named = os.environ.get(PROJECT_VARIABLE, "").strip()
    if named:
        return named
    found = (document(client.with_raw_response.whoami()).get("project") or {}).get("id")
    if not found:
        raise UsageError("Together's endpoints belong to a project, and this key to none", fix=f"set {PROJECT_VARIABLE}")
    return str(found)


def _project_of(plan: DeploymentPlan) -> str:
    return plan.operation.removeprefix("POST /v2/projects/").partition("/")[0]


def _endpoint(client: together.Together, project: str, name: str) -> dict[str, Any] | None:
    lister = client.endpoints.with_raw_response.list
    found = pages(lambda **more: lister(project_id=project, **more))
    return next((entry for entry in found if str(entry.get("name")).rpartition("/")[2] == name), None)


def _seen(made: Mapping[str, Any], endpoint: Mapping[str, Any], address: str | None, client: together.Together) -> RemoteDeployment:
    raw = _word(made)
    state = STATES.get(raw, DeploymentState.UNKNOWN)
    ident = str(made["id"])
    project = made.get("projectId") or endpoint.get("projectId")
    ref = at(f"projects/{project}/endpoints/{made.get('endpointId') or endpoint['id']}/deployments/{ident}", address)
    routed = any(str(part.get("deploymentId")) == ident and part.get("weight") for part in endpoint.get("trafficSplit") or ())
    status = made.get("status")
    message = str(status.get("message") or "") if isinstance(status, Mapping) else ""
    unfinished = state is DeploymentState.READY and not routed
    answers_at = address or (INFERENCE if OWN_HOST in str(client.base_url) else None)
    call_as = at(str(endpoint.get("name")), answers_at) if state.serving and routed else None
    return RemoteDeployment(ref, DeploymentState.DEPLOYING if unfinished else state, raw, message, call_as, unfinished=unfinished)


def _word(made: Mapping[str, Any]) -> str:
    status = made.get("status")
    return str((status.get("state") if isinstance(status, Mapping) else None) or made.get("state") or "")


def _idle_fault(idle_s: float | None) -> str:
    if idle_s is None or SHORTEST_IDLE_MIN <= idle_s / 60 <= LONGEST_IDLE_MIN:
        return ""
    return f"Together stops an idle deployment after {SHORTEST_IDLE_MIN} min to {LONGEST_IDLE_MIN // 60} h"


