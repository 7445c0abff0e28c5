"""Fireworks' deployments and the adapters on them, as its own SDK meets them (fireworks-ai 1.2.28, ``types/``)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from tuneport.providers.conformance.server import FakeVendor, Request, VendorError, route

DEPLOYMENT_FIELDS = frozenset(
    {"baseModel", "deploymentShape", "minReplicaCount", "maxReplicaCount", "autoscalingPolicy", "enableAddons", "displayName"}
)
"""The fields of a deployment that tuneport sends; all stand in the SDK's DeploymentCreateParams."""


class FireworksServing(FakeVendor):
    """The part of a fake Fireworks that serves models. ``deploys``: somebody has put every tuned model on a deployment."""

    deployment_routes = ("deploy",)
    removal_routes = ("undeploy",)
    account: ClassVar[str] = "acme"

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.deploys = True

    def set_deployment(self, ref: str, raw: str) -> None:
        """Bring a deployment, or an adapter on one, into a state; adapters of one that is ready are loaded."""
        with self.books() as books:
            for entry in (*books.get("deployments", []), *books.get("adapters", [])):
                if entry["name"] == ref:
                    entry["state"] = raw
                    failed = raw == "FAILED"
                    message = "There is no capacity for this accelerator" if failed else ""
                    entry["status"] = {"code": "RESOURCE_EXHAUSTED" if failed else "OK", "message": message}
                    entry["replicaCount"] = entry["desiredReplicaCount"] = 1
                if raw == "READY" and entry.get("deployment") == ref:
                    entry["state"] = "DEPLOYED"

    @property
    def billing(self) -> list[str]:
        """Deployments that stand."""
        return [entry["name"] for entry in self.snapshot().get("deployments", []) if "(ours)" in entry and entry["state"] != "DELETED"]

    def record_deployed(self, ref: str, key: str | None, body: dict[str, Any]) -> None:
        """A deployment is found by its id, so none shows late."""
        super().record_deployed(ref, key, body)
        self._hidden[ref] = 0

    @route("POST", "/v1/accounts/{account}/deploymentShapeVersions:match", "shapes")
    def match_shapes(self, request: Request) -> dict[str, Any]:
        """Two shapes for every model; one serves adapters."""
        self._account(request)
        wanted = request.json()["createDeploymentRequest"]["deployment"]
        kinds = [("fast", "NVIDIA_H200_141GB", 2), ("minimal", "NVIDIA_H100_80GB", 1)][1 if wanted.get("enableAddons") else 0 :]
        versions = [
            {"name": f"accounts/fireworks/deploymentShapes/{name}/versions/v1", "validated": True,
             "snapshot": {"baseModel": wanted["baseModel"], "acceleratorType": gpu, "acceleratorCount": count}}
            for name, gpu, count in kinds
        ]  # fmt: skip
        return {"deploymentShapeVersions": versions}

    @route("POST", "/v1/accounts/{account}/deployments", "deploy")
    def create_deployment(self, request: Request) -> dict[str, Any]:
        """Make a deployment, under the id of the query."""
        account, body, ident = self._account(request), request.json(), request.query["deploymentId"]
        name = f"accounts/{account}/deployments/{ident}"
        if unknown := body.keys() - DEPLOYMENT_FIELDS:
            raise VendorError(400, f'unknown field "{sorted(unknown)[0]}"')
        if "/versions/" not in body.get("deploymentShape", ""):
            raise VendorError(400, "deployment_shape is required")
        with self.books() as books:
            there = books.setdefault("deployments", [])
            if any(entry["name"] == name for entry in there):
                raise VendorError(409, f"deployment {ident} already exists")
            gpu = {"acceleratorType": "NVIDIA_H100_80GB", "acceleratorCount": 1}
            there.append({**body, **gpu, "name": name, "state": "CREATING", "createTime": self._time(), "(ours)": True})
        self.record_deployed(name, ident, body)
        return self._deployment(name)

    @route("GET", "/v1/accounts/{account}/deployments/{id}", "deployment")
    def get_deployment(self, request: Request) -> dict[str, Any]:
        """One deployment; one that was deleted still shows."""
        return self._deployment(f"accounts/{self._account(request)}/deployments/{request.params['id']}")

    @route("DELETE", "/v1/accounts/{account}/deployments/{id}", "undeploy")
    def delete_deployment(self, request: Request) -> dict[str, Any]:
        """Delete a deployment; refused after recent traffic unless checks are ignored, and while adapters are loaded."""
        name = f"accounts/{self._account(request)}/deployments/{request.params['id']}"
        self._deployment(name)
        if any(entry["deployment"] == name for entry in self.snapshot().get("adapters", [])):
            raise VendorError(400, "the deployment has models deployed on it")
        if request.query.get("ignoreChecks") != "true":
            raise VendorError(400, "the deployment had traffic within the last hour")
        self.set_deployment(name, "DELETED")
        return {}

    @route("POST", "/v1/accounts/{account}/deployedModels", "load")
    def load_adapter(self, request: Request) -> dict[str, Any]:
        """Load an adapter onto a deployment that is ready and takes some; the same twice is refused."""
        body = request.json()
        deployment = self._deployment(body["deployment"])
        if deployment["state"] != "READY" or not deployment.get("enableAddons"):
            raise VendorError(400, "the deployment is not ready, or has no addons enabled")
        with self.books() as books:
            there = books.setdefault("adapters", [])
            if any((entry["model"], entry["deployment"]) == (body["model"], body["deployment"]) for entry in there):
                raise VendorError(409, "the model is already deployed there")
            name = f"accounts/{self._account(request)}/deployedModels/{self.new_id('dm-')}"
            made = {**body, "name": name, "state": "DEPLOYING"}
            there.append(made)
        return made

    @route("GET", "/v1/accounts/{account}/deployedModels", "adapters")
    def list_adapters(self, request: Request) -> dict[str, Any]:
        """Every adapter that is loaded somewhere."""
        self._account(request)
        return {"deployedModels": self.snapshot().get("adapters", [])}

    @route("GET", "/v1/accounts/{account}/deployedModels/{id}", "adapter")
    def get_adapter(self, request: Request) -> dict[str, Any]:
        """One adapter."""
        return self._adapter(request)

    @route("DELETE", "/v1/accounts/{account}/deployedModels/{id}", "unload")
    def unload_adapter(self, request: Request) -> dict[str, Any]:
        """Take an adapter off its deployment."""
        name = self._adapter(request)["name"]
        with self.books() as books:
            books["adapters"] = [entry for entry in books["adapters"] if entry["name"] != name]
        return {}

    @route("GET", "/v1/accounts/{account}/deployments", "deployments")
    def list_deployments(self, request: Request) -> dict[str, Any]:
        """What ``books["deployments"]`` holds."""
        self._account(request)
        return {"deployments": [shown(entry) for entry in self.snapshot().get("deployments", [])]}

    # Inner parts

    def _deployment(self, name: str) -> dict[str, Any]:
        for entry in self.snapshot().get("deployments", []):
            if entry["name"] == name:
                return shown(entry)
        raise VendorError(404, f"deployment {name} not found")

    def _adapter(self, request: Request) -> dict[str, Any]:
        name = f"accounts/{self._account(request)}/deployedModels/{request.params['id']}"
        for entry in self.snapshot().get("adapters", []):
            if entry["name"] == name:
                found: dict[str, Any] = entry
                return found
        raise VendorError(404, f"deployed model {name} not found")

    def _account(self, request: Request) -> str:
        if request.params["account"] != self.account:
            raise VendorError(403, f"You do not have access to account {request.params['account']}")
        return self.account

    def _deployments_of(self, name: str) -> list[str]:
        books = self.snapshot()
        listed = [entry["name"] for entry in books.get("deployments", []) if entry["baseModel"] == name and entry["state"] == "READY"]
        always = [f"accounts/{self.account}/deployments/d-1"] if self.deploys and name in books.get("models", {}) else []
        loaded = [entry["deployment"] for entry in books.get("adapters", []) if (entry["model"], entry["state"]) == (name, "DEPLOYED")]
        return [*always, *listed, *loaded]

    def _time(self) -> str:
        return datetime.fromtimestamp(self.now(), UTC).isoformat().replace("+00:00", "Z")


def shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a request sees of an entry of the books."""
    return {key: value for key, value in entry.items() if key != "content" and not key.startswith("(") and value is not None}
