"""Serving a tuned model on GPUs of one's own: merged into its base (live merge), or as an adapter that shares them with others.

A deployment's id is ours to choose and is its key, as a job's is, so ``find`` is exact. An adapter (``addon``) is loaded once the
deployment of its base is ready (``finish``); one that joins a deployment of the ledger is found by model and deployment.
Refs: ``accounts/A/deployments/D``, and ``accounts/A/deployedModels/M`` for an adapter on a deployment of somebody else's.
Sources: fireworks-ai 1.2.28 (``resources/deployments.py``, ``lora.py``), Fireworks' page "Deploying Fine Tuned Models".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import date
from typing import Any

from tuneport.core.deployment import DeploymentRequest, DeploymentState, RemoteDeployment, Tuned
from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.errors import ProviderError, RefusedError, UsageError
from tuneport.core.money import Range
from tuneport.core.prices import load_prices
from tuneport.providers.exchange import refuse_requested, split
from tuneport.providers.fireworks.session import PAGE, Api, exists_already, status_of

MODES: Mapping[str, str] = {
    "merge": "the adapter merged into its base: the speed of the base, one model per deployment",
    "addon": "the base with adapters beside it: slower, and other jobs of the same base can share it (--on)",
}
STATES: Mapping[str, DeploymentState] = {
    "STATE_UNSPECIFIED": DeploymentState.UNKNOWN,
    "CREATING": DeploymentState.DEPLOYING,
    "READY": DeploymentState.READY,
    "UPDATING": DeploymentState.READY,
    "FAILED": DeploymentState.FAILED,
    "DELETING": DeploymentState.UNDEPLOYING,
    "DELETED": DeploymentState.UNDEPLOYED,
}
"""``types/deployment.py`` of the SDK."""
ADAPTER_STATES: Mapping[str, DeploymentState] = {
    "DEPLOYING": DeploymentState.DEPLOYING,
    "DEPLOYED": DeploymentState.READY,
    "UPDATING": DeploymentState.READY,
    "UNDEPLOYING": DeploymentState.UNDEPLOYING,
}
"""``types/shared/deployed_model.py``."""
GPUS: Mapping[str, str] = {
    "NVIDIA_H100_80GB": "H100", "NVIDIA_H200_141GB": "H200", "NVIDIA_B200_180GB": "B200", "NVIDIA_A100_80GB": "A100-80",
}  # fmt: skip
"""Fireworks' name of an accelerator -> the price book's."""
SHORTEST_IDLE_S, DEFAULT_IDLE_S = 300, 3600
"""``scaleToZeroWindow`` of ``types/autoscaling_policy.py``: at least 5 minutes, 1 hour by default."""
_REF = re.compile(r"(?:accounts/(?P<account>[^/]+)/)?(?P<kind>deployments|deployedModels)/(?P<id>[^/]+)")

Session = Callable[[str | None, str | None], "AbstractContextManager[Api]"]


class FireworksDeployer:
    """``core.provider.Deployer`` for Fireworks. ``open_session`` opens the SDK for an account at an address."""

    modes = MODES
    settle_seconds = 0.0  # a deployment is found by its id

    def __init__(self, open_session: Session, today: Callable[[], date] = date.today) -> None:
        self._session, self._today = open_session, today

    def plan(self, tuned: Tuned, request: DeploymentRequest, stands_on: str | None = None) -> DeploymentPlan:
        """Scales to zero while nobody asks; on the cheapest shape that Fireworks has validated, or the one that ``hardware`` names."""
        mode = request.mode or ("addon" if stands_on else "merge")
        self._refuse(mode, request, stands_on)
        name, address = split(tuned.model)
        if stands_on is not None:
            deployment = split(stands_on)[0]
            return DeploymentPlan(
                provider="fireworks", model=tuned.model, mode=mode, operation="POST deployedModels",
                payload={"model": name, "deployment": deployment}, usd_per_hour=Range(low=0, high=0),
                price=f"nothing of its own: it shares {deployment}", stands_on=stands_on,
            )  # fmt: skip
        served = name if mode == "merge" else tuned.base_model
        with self._session(_account(name), address) as api:
            shapes = _shapes(api, served, addons=mode == "addon")
        shape, gpus, notes = self._chosen(shapes, request.hardware)
        replicas = request.replicas or 1
        asked = request.idle_s if request.idle_s is not None else min(request.ttl_s or DEFAULT_IDLE_S, DEFAULT_IDLE_S)
        idle = max(int(asked), SHORTEST_IDLE_S)
        payload: dict[str, Any] = {
            "baseModel": served,
            "deploymentShape": shape,
            "minReplicaCount": 0,
            "maxReplicaCount": replicas,
            "autoscalingPolicy": {"scaleToZeroWindow": f"{idle}s"},
        }
        if mode == "addon":
            payload["enableAddons"] = True
        usd, price = self._priced(gpus, replicas)
        notes += [f"it scales to zero after {idle / 60:g} min without a request, and then costs nothing; the next request wakes it"]
        return DeploymentPlan(
            provider="fireworks", model=tuned.model, mode=mode, operation="POST deployments", payload=payload, usd_per_hour=usd,
            price=price, may_idle=True, notes=tuple(notes),
        )  # fmt: skip

    def create(self, plan: DeploymentPlan, key: str) -> RemoteDeployment:
        """One request, which is never repeated; where the id is taken, an earlier create has made it."""
        with self._at(plan) as api:
            body = dict(plan.payload)
            try:
                if plan.stands_on is not None:
                    made = api.ask(api.client.lora.with_raw_response.load, extra_body={**body, "description": key})
                    return self._adapter_seen(api, made)
                base = body.pop("baseModel")
                create = api.client.deployments.with_raw_response.create
                made = api.ask(create, base_model=base, deployment_id=key, extra_body={**body, "displayName": key})
            except ProviderError as error:
                found = self._found(api, plan, key) if exists_already(error) else None
                if found is None:
                    raise
                return found
            return self._seen(api, plan, {"name": f"accounts/{api.account}/deployments/{key}"} | made)

    def find(self, plan: DeploymentPlan, key: str) -> RemoteDeployment | None:
        """The deployment whose id is ``key``; of an adapter on another's, the one of this model there that bears the key."""
        with self._at(plan) as api:
            return self._found(api, plan, key)

    def poll(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """The deployment, and whether the adapter is loaded where it has one."""
        with self._at(plan) as api:
            kind, ident = _parsed(ref)
            got = self._got(api, kind, ident)
            if got is None:
                return RemoteDeployment(ref, DeploymentState.UNDEPLOYED, "gone")
            return self._adapter_seen(api, got) if kind == "deployedModels" else self._seen(api, plan, got)

    def finish(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Load the adapter onto its deployment."""
        seen = self.poll(plan, ref)
        if seen.unfinished:
            with self._at(plan) as api:
                body = {"model": split(plan.model)[0], "deployment": split(ref)[0]}
                try:
                    api.ask(api.client.lora.with_raw_response.load, extra_body=body)
                except ProviderError as error:
                    if not exists_already(error):
                        raise
        return self.poll(plan, ref)

    def remove(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Unload the adapter, then delete the deployment, although it may have been in use a moment ago."""
        with self._at(plan) as api:
            kind, ident = _parsed(ref)
            if kind == "deployments" and plan.mode == "addon":
                for loaded in _adapters(api, f"accounts/{api.account}/deployments/{ident}"):
                    self._delete(api, "deployedModels", str(loaded["name"]).rpartition("/")[2])
            seen = self._got(api, kind, ident)
            if seen is not None and str(seen.get("state")) not in ("DELETING", "DELETED", "UNDEPLOYING"):
                self._delete(api, kind, ident)
        after = self.poll(plan, ref)
        if not after.state.standing or after.state is DeploymentState.UNDEPLOYING:
            return after
        return RemoteDeployment(ref, DeploymentState.UNDEPLOYING, after.raw_state)

    def list_deployments(self) -> Iterator[RemoteDeployment]:
        """The account's deployments."""
        with self._session(None, None) as api:
            for entry in api.pages(api.client.deployments.with_raw_response.list, "deployments", page_size=PAGE):
                if entry.get("name") and STATES.get(str(entry.get("state"))) is not DeploymentState.UNDEPLOYED:
                    yield self._seen(api, None, entry)

    # Inner parts

    def _at(self, plan: DeploymentPlan) -> AbstractContextManager[Api]:
        name, address = split(plan.model)
        return self._session(_account(name), address)

    def _found(self, api: Api, plan: DeploymentPlan, key: str) -> RemoteDeployment | None:
        if plan.stands_on is None:
            got = self._got(api, "deployments", key)
            return None if got is None else self._seen(api, plan, got)
        model = split(plan.model)[0]
        for loaded in _adapters(api, split(plan.stands_on)[0]):
            if loaded.get("model") == model and loaded.get("description") == key:
                return self._adapter_seen(api, loaded)
        return None

    def _seen(self, api: Api, plan: DeploymentPlan | None, entry: Mapping[str, Any]) -> RemoteDeployment:
        name, raw = str(entry["name"]), str(entry.get("state") or "")
        state = STATES.get(raw, DeploymentState.UNKNOWN if raw else DeploymentState.DEPLOYING)
        ref, message = api.at(name), str((entry.get("status") or {}).get("message") or "")
        if state is DeploymentState.READY and entry.get("replicaCount") == 0 and entry.get("desiredReplicaCount", 0) == 0:
            state = DeploymentState.IDLE
        usd, _ = self._priced([_gpus(entry)], int(entry.get("maxReplicaCount") or 1))
        if plan is None or not state.serving:
            return RemoteDeployment(ref, state, raw, message, usd_per_hour=usd)
        model = split(plan.model)[0]
        if plan.mode == "addon":
            loaded = next((found for found in _adapters(api, name) if found.get("model") == model), None)
            if loaded is None:
                what = "its adapter is not loaded yet"
                return RemoteDeployment(ref, DeploymentState.DEPLOYING, raw, what, usd_per_hour=usd, unfinished=True)
            if ADAPTER_STATES.get(str(loaded.get("state"))) is not DeploymentState.READY:
                return RemoteDeployment(ref, DeploymentState.DEPLOYING, raw, f"its adapter is {loaded.get('state')}", usd_per_hour=usd)
        return RemoteDeployment(ref, state, raw, message, api.at(f"{model}#{name}"), usd)

    @staticmethod
    def _adapter_seen(api: Api, entry: Mapping[str, Any]) -> RemoteDeployment:
        raw = str(entry.get("state") or "")
        state = ADAPTER_STATES.get(raw, DeploymentState.UNKNOWN if raw else DeploymentState.DEPLOYING)
        call_as = api.at(f"{entry['model']}#{entry['deployment']}") if state.serving else None
        return RemoteDeployment(api.at(str(entry["name"])), state, raw, str((entry.get("status") or {}).get("message") or ""), call_as)

    @staticmethod
    def _got(api: Api, kind: str, ident: str) -> dict[str, Any] | None:
        resource = api.client.deployments if kind == "deployments" else api.client.lora
        try:
            return api.ask(resource.with_raw_response.get, ident)
        except ProviderError as error:
            if status_of(error) == 404 and error.retry == "no":
                return None
            raise

    @staticmethod
    def _delete(api: Api, kind: str, ident: str) -> None:
        try:
            if kind == "deployments":
                api.ask(api.client.deployments.with_raw_response.delete, ident, ignore_checks=True)
            else:
                api.ask(api.client.lora.with_raw_response.unload, ident)
        except ProviderError as error:
            if status_of(error) != 404:
                raise

    def _refuse(self, mode: str, request: DeploymentRequest, stands_on: str | None) -> None:
        shared = f"it shares {stands_on}" if stands_on else ""
        short = request.idle_s is not None and request.idle_s < SHORTEST_IDLE_S
        refuse_requested(
            "fireworks", MODES, mode, request, stands_on,
            {
                "replicas": shared,
                "hardware": shared,
                "idle_s": shared or (f"Fireworks waits at least {SHORTEST_IDLE_S // 60} min" if short else ""),
                "commitment": "tuneport deploys at Fireworks without one; reservations are made with Fireworks' sales",
                "port": "Fireworks answers at its own address",
                "on": "" if mode == "addon" else "a merged model has its deployment for itself; share with --mode addon",
            },
        )  # fmt: skip

    def _chosen(self, shapes: list[dict[str, Any]], wanted: str | None) -> tuple[str, list[tuple[str, int]], list[str]]:
        """(shape to send, the GPUs that it may come to, notes)."""
        named = {str(s.get("name") or ""): _gpus(s) for s in shapes}
        if wanted is not None:
            # By its whole name, by the shape's own (accounts/A/deploymentShapes/NAME/versions/V), or by the GPU.
            low = wanted.lower()
            fit = {n: g for n, g in named.items() if low in (n.lower(), *n.lower().split("/")[3:4], GPUS.get(g[0], g[0]).lower())}
            if not fit:
                there = ", ".join(f"{GPUS.get(gpu, gpu)} ({name})" for name, (gpu, _) in named.items()) or "none is known"
                reason = f"{wanted} is no shape for this model; shapes: {there}"
                raise RefusedError("fireworks", {"--hardware": reason}, wanted="deployment")
            named = fit
        if not named:
            raise RefusedError("fireworks", {"model": "Fireworks has no validated shape to serve it on"}, wanted="deployment")
        costs = {name: self._priced([gpus], 1)[0] for name, gpus in named.items()}
        best = min(named, key=lambda name: (cost.high if (cost := costs[name]) else float("inf"), name))
        others = [f"{count} x {GPUS.get(gpu, gpu)} ({name})" for name, (gpu, count) in named.items() if name != best]
        return best, [named[best]], [f"other shapes (--hardware): {', '.join(others)}"] if others else []

    def _priced(self, gpus: list[tuple[str, int]], replicas: int) -> tuple[Range | None, str]:
        """USD per hour of these GPUs, and how that comes about."""
        (gpu, count), *_ = gpus
        found = load_prices().find("fireworks", "host_hour", gpu=GPUS.get(gpu, gpu), today=self._today()) if gpu and count else None
        if found is None:
            return None, f"the price book has no price for an hour of {gpu or 'the GPU that Fireworks will choose'} at Fireworks"
        basis = f"{count} x {GPUS.get(gpu, gpu)} x {found.amount.high:g} USD a GPU-hour, up to {replicas} replica(s), billed per second"
        return found.amount * count * replicas, f"{basis} ({found.source})"


def _shapes(api: Api, model: str, *, addons: bool) -> list[dict[str, Any]]:
    """The validated shapes that this account can serve a model on."""
    wanted: Any = {"parent": f"accounts/{api.account}", "deployment": {"base_model": model} | ({"enable_addons": True} if addons else {})}
    found = api.ask(api.client.deployment_shape_versions.with_raw_response.match, create_deployment_request=wanted)
    versions = [entry for entry in found.get("deploymentShapeVersions") or () if isinstance(entry, dict)]
    return [{**(entry.get("snapshot") or {}), "name": entry.get("name")} for entry in versions]


def _gpus(entry: Mapping[str, Any]) -> tuple[str, int]:
    return str(entry.get("acceleratorType") or ""), int(entry.get("acceleratorCount") or 0)


def _adapters(api: Api, deployment: str) -> list[dict[str, Any]]:
    listed = api.pages(api.client.lora.with_raw_response.list, "deployedModels", page_size=PAGE)
    return [entry for entry in listed if entry.get("deployment") == deployment]


def _account(model: str) -> str | None:
    return model.split("/")[1] if model.startswith("accounts/") and not model.startswith("accounts/fireworks/") else None


def _parsed(ref: str) -> tuple[str, str]:
    found = _REF.fullmatch(split(ref)[0])
    if found is None:
        raise UsageError(f"{ref!r} is no deployment at Fireworks", fix="list them with: tuneport deployments")
    return found["kind"], found["id"]
