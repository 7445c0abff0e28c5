"""Together's endpoints and deployments, as its own SDK meets them: the v2 resources of a project (together 3.1.1, ``types/``)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneport.providers.conformance.server import FakeVendor, Request, VendorError, route

PROJECT = "proj-acme"


class TogetherServing(FakeVendor):
    """The part of a fake Together that serves tuned models."""

    deployment_routes = ("endpoint", "deploy")
    removal_routes = ("undeploy", "endpoint_delete")

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.serving = True  # an endpoint serves every tuned model
        self.must_stop_first = False  # a deployment that runs cannot be deleted
        self.configs = [("cr_1", "1xh100"), ("cr_2", "2xh200")]  # (configuration, hardware) for every model

    def set_deployment(self, ref: str, raw: str) -> None:
        """Bring a deployment into a state."""
        with self.books() as books:
            message = "There is no capacity for this hardware." if raw.endswith("FAILED") else ""
            books["deployments"][ref]["status"] = {"state": raw, "message": message}

    @property
    def billing(self) -> list[str]:
        """Deployments, and endpoints that are left of them."""
        books = self.snapshot()
        return [*books.get("deployments", {}), *books.get("endpoints", {})]

    @route("GET", "/v3/whoami", "whoami")
    def whoami(self, _request: Request) -> dict[str, Any]:
        """The key's project."""
        return {"type": "project_api_key", "project": {"id": PROJECT, "name": "Acme", "slug": "acme"}}

    @route("GET", "/v2/public/inference-instance-types", "hardware")
    def hardware(self, _request: Request) -> dict[str, Any]:
        """Two kinds of replicas with their prices."""
        kinds = (("1xh100", "H100", 1, 549), ("2xh200", "H200", 2, 1098))
        data = [
            {"id": ident, "name": ident, "description": ident, "gpuType": gpu, "gpuCount": count, "gpuMemoryGib": 80,
             "priceCentsPerHour": cents, "regions": []}
            for ident, gpu, count, cents in kinds
        ]  # fmt: skip
        return {"object": "list", "data": data, "next_cursor": None}

    @route("GET", "/v2/projects/{project}/models/{id}", "model")
    def get_model(self, request: Request) -> dict[str, Any]:
        """A tuned model, whose base belongs to Together."""
        self._project(request)
        if not any(job.get("model_object_id") == request.params["id"] for job in self.snapshot()["jobs"].values()):
            raise VendorError(404, "model not found")
        return {"id": request.params["id"], "name": f"acme/{request.params['id']}", "baseModel": "projects/proj-together/models/ml_base"}

    @route("GET", "/v2/projects/{project}/configs", "configs")
    def list_configs(self, request: Request) -> dict[str, Any]:
        """Configurations, which the base has and the tuned model itself does not; one to a page."""
        self._project(request)
        if not request.query.get("referenceModel", "").endswith("ml_base"):
            return {"data": [], "next_cursor": None}
        start = int(request.query.get("after") or 0)
        found = [
            {"id": ident, "projectId": "proj-together", "certifications": [], "selectors": [{"key": "instance_type", "value": hardware}]}
            for ident, hardware in self.configs
        ]
        return {"data": found[start : start + 1], "next_cursor": str(start + 1) if start + 1 < len(found) else None}

    @route("POST", "/v2/projects/{project}/endpoints", "endpoint")
    def create_endpoint(self, request: Request) -> dict[str, Any]:
        """A name that requests go to."""
        project, name = self._project(request), request.json()["name"]
        with self.books() as books:
            there = books.setdefault("endpoints", {})
            if any(entry["name"] == f"acme/{name}" for entry in there.values()):
                raise VendorError(409, f"endpoint {name} already exists")
            ident = self.new_id("ep_")
            there[ident] = {"id": ident, "name": f"acme/{name}", "projectId": project, "trafficSplit": [], "createdAt": self._time()}
        return self._endpoint_shown(ident)

    @route("GET", "/v2/projects/{project}/endpoints", "endpoints")
    def list_endpoints(self, request: Request) -> dict[str, Any]:
        """Every endpoint of the project."""
        self._project(request)
        shown = [self._endpoint_shown(ident) for ident in self.snapshot().get("endpoints", {})]
        return {"object": "list", "data": shown, "next_cursor": None}

    @route("GET", "/v2/projects/{project}/endpoints/{endpoint}", "endpoint_get")
    def get_endpoint(self, request: Request) -> dict[str, Any]:
        """One endpoint."""
        self._project(request)
        return self._endpoint_shown(request.params["endpoint"])

    @route("PATCH", "/v2/projects/{project}/endpoints/{endpoint}", "traffic")
    def update_endpoint(self, request: Request) -> dict[str, Any]:
        """Route its requests."""
        entry = self._endpoint_shown(request.params["endpoint"])
        with self.books() as books:
            books["endpoints"][entry["id"]]["trafficSplit"] = request.json()["trafficSplit"]
        return self._endpoint_shown(entry["id"])

    @route("DELETE", "/v2/projects/{project}/endpoints/{endpoint}", "endpoint_delete")
    def delete_endpoint(self, request: Request) -> dict[str, Any]:
        """Remove an endpoint without deployments."""
        entry = self._endpoint_shown(request.params["endpoint"])
        if entry["deployments"]:
            raise VendorError(400, "the endpoint has deployments")
        with self.books() as books:
            del books["endpoints"][entry["id"]]
        return {}

    @route("POST", "/v2/projects/{project}/endpoints/{endpoint}/deployments", "deploy")
    def create_deployment(self, request: Request) -> dict[str, Any]:
        """Make a deployment."""
        project, endpoint = self._project(request), self._endpoint_shown(request.params["endpoint"])
        body = request.json()
        if not str(body.get("config")).startswith("projects/proj-together/configs/cr_"):
            raise VendorError(400, "config is not compatible with the model")
        with self.books() as books:
            there = books.setdefault("deployments", {})
            ident, name = self.new_id("dep_"), f"{endpoint['name']}/{body['name']}"
            if any(entry["name"] == name for entry in there.values()):
                raise VendorError(409, f"deployment {name} already exists")
            status = {"state": "DEPLOYMENT_STATE_PROVISIONING", "message": "pulling the weights"}
            there[ident] = {**body, "id": ident, "name": name, "projectId": project, "endpointId": endpoint["id"], "status": status}
        self.record_deployed(ident, body["name"], body)
        return self._deployment(ident)

    @route("GET", "/v2/projects/{project}/endpoints/{endpoint}/deployments", "deployments")
    def list_deployments(self, request: Request) -> dict[str, Any]:
        """The deployments of an endpoint."""
        self._project(request)
        entries = self.snapshot().get("deployments", {}).values()
        found = [entry for entry in entries if entry["endpointId"] == request.params["endpoint"] and self.shows(entry["id"])]
        return {"object": "list", "data": found, "next_cursor": None}

    @route("GET", "/v2/projects/{project}/endpoints/{endpoint}/deployments/{id}", "deployment")
    def get_deployment(self, request: Request) -> dict[str, Any]:
        """One deployment."""
        return self._deployment(request.params["id"])

    @route("PATCH", "/v2/projects/{project}/endpoints/{endpoint}/deployments/{id}", "stop")
    def update_deployment(self, request: Request) -> dict[str, Any]:
        """Scale it; to nothing means to stop it."""
        entry, wanted = self._deployment(request.params["id"]), request.json()["autoscaling"]
        with self.books() as books:
            books["deployments"][entry["id"]]["autoscaling"] = wanted
        if wanted["maxReplicas"] == 0:
            self.set_deployment(entry["id"], "DEPLOYMENT_STATE_STOPPED")
        return self._deployment(entry["id"])

    @route("DELETE", "/v2/projects/{project}/endpoints/{endpoint}/deployments/{id}", "undeploy")
    def delete_deployment(self, request: Request) -> dict[str, Any]:
        """Remove a deployment."""
        entry = self._deployment(request.params["id"])
        if self.must_stop_first and not entry["status"]["state"].endswith("STOPPED"):
            raise VendorError(409, "the deployment must be stopped first")
        with self.books() as books:
            del books["deployments"][entry["id"]]
        return {}

    # Inner parts

    def _project(self, request: Request) -> str:
        if request.params["project"] != PROJECT:
            raise VendorError(403, "no access to this project")
        return PROJECT

    def _endpoint_shown(self, ident: str) -> dict[str, Any]:
        books = self.snapshot()
        if ident not in books.get("endpoints", {}):
            raise VendorError(404, f"endpoint {ident} not found")
        own = [entry for entry in books.get("deployments", {}).values() if entry["endpointId"] == ident]
        brief = [{"id": e["id"], "name": e["name"], "state": e["status"]["state"], "autoscaling": e["autoscaling"]} for e in own]
        return {**books["endpoints"][ident], "deployments": brief}

    def _deployment(self, ident: str) -> dict[str, Any]:
        found: dict[str, Any] | None = self.snapshot().get("deployments", {}).get(ident)
        if found is None:
            raise VendorError(404, f"deployment {ident} not found")
        return found

    def _answers(self, name: str) -> bool:
        """Whether an endpoint of this name has its requests routed to a deployment that is ready; a model's name answers if ``serving``."""
        books = self.snapshot()
        found = next((entry for entry in books.get("endpoints", {}).values() if entry["name"] == name), None)
        if found is None:
            return self.serving
        there = [books["deployments"][part["deploymentId"]]["status"]["state"] for part in found["trafficSplit"]]
        return there == ["DEPLOYMENT_STATE_READY"]

    def _time(self) -> str:
        return datetime.fromtimestamp(self.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
