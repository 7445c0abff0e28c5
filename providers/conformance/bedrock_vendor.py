"""Amazon Bedrock and its runtime, in an AWS account with S3 and IAM, as boto3 meets them.

Shapes: botocore's service models bedrock and bedrock-runtime 2023-04-20. Unlike moto it has an idempotent
clientRequestToken, jobs that move, ARNs of the real form, foundation models with their lifecycle, and deployments; it
checks signatures and clocks. Everything lives in one region.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tuneport.providers.conformance.aws_account import ACCOUNT, REGION, ROLE, AwsAccount
from tuneport.providers.conformance.server import route
from tuneport.providers.conformance.wire import Reply, Request, VendorError

PHASES = ("validation", "dataProcessing", "training")
FAILURE = "Validation failed for the training data at line 3: the last message must be from the assistant"


class BedrockVendor(AwsAccount):
    """A stateful fake of Bedrock in one region of one account."""

    script = (
        "InProgress/validation NotStarted", "InProgress/validation", "InProgress/training", "InProgress/training Completed", "Completed",
    )
    submission_routes = ("model", "head", "upload", "create")
    deployment_routes = ("deploy",)
    removal_routes = ("undeploy", "deployment")

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.models: dict[str, dict[str, Any]] = {
            "amazon.nova-micro-v1:0:128k": _model("amazon.nova-micro-v1:0:128k", "FINE_TUNING", "DISTILLATION"),
            "amazon.nova-2-lite-v1:0:256k": _model("amazon.nova-2-lite-v1:0:256k", "FINE_TUNING"),
            "amazon.titan-text-express-v1:0:8k": _model("amazon.titan-text-express-v1:0:8k", "FINE_TUNING", "CONTINUED_PRE_TRAINING"),
            "meta.llama3-1-8b-instruct-v1:0:128k": _model("meta.llama3-1-8b-instruct-v1:0:128k", "FINE_TUNING", status="LEGACY"),
        }
        self.quota_zero = False  # whether the account may have no deployment at all
        self.deploys = True  # whether a finished model is served at once, as if somebody had deployed it

    def key_of(self, body: Mapping[str, Any]) -> str | None:
        """The client's token."""
        return body.get("clientRequestToken")

    def _match(self, request: Request) -> Any:
        """Looking a job up by its name is how a client finds a job that it may have made: the route "list" of the suite."""
        name, handler, found = super()._match(request)
        by_name = name == "poll" and not unquote(found.params["job"]).startswith("arn:")
        return ("list" if by_name else name), handler, found

    # Jobs

    def set_state(self, ref: str, raw: str) -> None:
        """Bring a job into a state; what came before it has then happened too."""
        with self.books() as books:
            job = self.job(ref)
            status, _, detail = raw.partition("/")
            phase, _, word = detail.partition(" ")
            job.update({"status": raw if not detail else status, "raw": raw})
            begun = job["creationTime"]
            if detail:
                job["statusDetails"] = _details(begun, PHASES.index(phase), word or "InProgress")
            elif status == "InProgress":
                job.pop("statusDetails", None)
            elif status == "Completed":
                job["statusDetails"] = _details(begun, len(PHASES), "")
            training = (job.get("statusDetails") or {}).get("trainingDetails", {}).get("status", "NotStarted")
            if training != "NotStarted":
                self._write_metrics(books, job, 4 if training == "Completed" else 2)
            if status in ("Completed", "Failed", "Stopped"):
                job["endTime"] = begun + 60
            if status == "Failed":
                job["failureMessage"] = FAILURE
            if status == "Completed":
                self._finish(books, job)

    def state(self, ref: str) -> str:
        """The raw state of a job, phase included."""
        with self.books() as books:
            return str(books["jobs"][ref]["raw"])

    @route("POST", "/model-customization-jobs", "create")
    def create(self, request: Request) -> Reply:
        """CreateModelCustomizationJob; a repeated token gives the job that it has made."""
        body = request.json()
        if self.closed:
            raise VendorError(403, "Your account is not authorized to invoke this API operation.", "AccessDeniedException")
        with self.books() as books:
            for job in books["jobs"].values():
                if job["clientRequestToken"] == body.get("clientRequestToken"):
                    return Reply({"jobArn": job["jobArn"]}, 201)
                if job["jobName"] == body["jobName"] or job["outputModelName"] == body["customModelName"]:
                    raise VendorError(400, "The provided job name or custom model name is currently in use.", "ConflictException")
            if body["roleArn"] != ROLE:
                raise VendorError(400, "Could not assume provided IAM role.", "ValidationException")
            if body["baseModelIdentifier"] not in self.models:
                raise VendorError(400, "The provided model identifier is invalid.", "ValidationException")
            validators = body.get("validationDataConfig", {}).get("validators", ())
            for uri in (body["trainingDataConfig"]["s3Uri"], *(validator["s3Uri"] for validator in validators)):
                if uri not in books["files"]:
                    raise VendorError(400, f"Unable to access the object {uri} in S3: it does not exist.", "ValidationException")
            number = books["next"] = books["next"] + 1
            arn = f"arn:aws:bedrock:{REGION}:{ACCOUNT}:model-customization-job/{body['baseModelIdentifier']}/job{number:09d}"
            # Whole seconds, one apart, as a clock that never stands still gives them.
            at = 1_795_000_000 + 100 * number
            books["jobs"][arn] = {
                **{name: value for name, value in body.items() if name not in ("jobTags", "customModelTags", "customModelName")},
                "jobArn": arn,
                "outputModelName": body["customModelName"],
                "baseModelArn": f"arn:aws:bedrock:{REGION}::foundation-model/{body['baseModelIdentifier']}",
                "creationTime": at,
                "lastModifiedTime": at,
                "tags": body.get("jobTags", []),
            }
            self.record_made(arn, body)
            self.set_state(arn, self.script[0])
        return Reply({"jobArn": arn}, 201)

    @route("GET", "/model-customization-jobs/{job...}", "poll")
    def get_job(self, request: Request) -> dict[str, Any]:
        """GetModelCustomizationJob, by ARN or by name; by name a new job may show late."""
        arn = unquote(request.params["job"])
        if not arn.startswith("arn:"):
            shown = [job for job in self._books["jobs"].values() if job["jobName"] == arn]
            if shown and self._hidden.get(shown[0]["jobArn"], 0) > 0:
                self._hidden[shown[0]["jobArn"]] -= 1
                shown = []
            if not shown:
                raise VendorError(404, "The specified job could not be found.", "ResourceNotFoundException")
            arn = shown[0]["jobArn"]
        return _timed(self.job(arn))

    @route("GET", "/model-customization-jobs", "list")
    def list_jobs(self, request: Request) -> dict[str, Any]:
        """ListModelCustomizationJobs, two to a page so that paging is met."""
        jobs = [job for job in self.listed() if request.query.get("nameContains", "") in job["jobName"]]
        start = int(request.query.get("nextToken") or 0)
        summary = ("jobArn", "baseModelArn", "jobName", "status", "statusDetails", "creationTime", "lastModifiedTime", "endTime")
        page = [
            {name: job[name] for name in summary if name in job} | {"customModelName": job["outputModelName"]}
            | ({"customModelArn": job["outputModelArn"]} if "outputModelArn" in job else {})
            for job in jobs[start : start + 2]
        ]
        more = {"nextToken": str(start + 2)} if start + 2 < len(jobs) else {}
        return {"modelCustomizationJobSummaries": [_timed(entry) for entry in page], **more}

    @route("POST", "/model-customization-jobs/{job}/stop", "cancel")
    def stop(self, request: Request) -> dict[str, Any]:
        """StopModelCustomizationJob."""
        job = self.job(request.params["job"])
        if job["status"] != "InProgress":
            raise VendorError(400, f"The job is {job['status']} and cannot be stopped.", "ConflictException")
        self.set_state(job["jobArn"], "Stopping")
        return {}

    @route("POST", "/listTagsForResource", "tags")
    def tags(self, request: Request) -> dict[str, Any]:
        """ListTagsForResource, of jobs."""
        return {"tags": self.job(request.json()["resourceARN"])["tags"]}

    # Models

    @route("GET", "/foundation-models/{model}", "model")
    def get_model(self, request: Request) -> dict[str, Any]:
        """GetFoundationModel."""
        found = self.models.get(request.params["model"])
        if found is None:
            raise VendorError(404, "Could not resolve the foundation model from the identifier.", "ResourceNotFoundException")
        return {"modelDetails": found}

    @route("GET", "/foundation-models", "models")
    def list_models(self, request: Request) -> dict[str, Any]:
        """ListFoundationModels."""
        wanted = request.query.get("byCustomizationType")
        return {"modelSummaries": [m for m in self.models.values() if not wanted or wanted in m["customizationsSupported"]]}

    @route("GET", "/custom-models/{model}", "custom_model")
    def get_custom_model(self, request: Request) -> dict[str, Any]:
        """GetCustomModel."""
        return _timed(self._custom(request.params["model"]))

    @route("DELETE", "/custom-models/{model}", "delete")
    def delete_custom_model(self, request: Request) -> dict[str, Any]:
        """DeleteCustomModel; one that is deployed by hand stays."""
        model = self._custom(request.params["model"])
        with self.books() as books:
            if model.get("held") or any(entry["modelArn"] == model["modelArn"] for entry in books.get("deployments", {}).values()):
                raise VendorError(400, "The custom model has active deployments.", "ConflictException")
            del books["models"][model["modelArn"]]
        return {}

    # Deployments

    def set_deployment(self, ref: str, raw: str) -> None:
        """Bring a deployment or a throughput into a state."""
        with self.books() as books:
            entry = books["deployments"][ref]
            entry["status"] = raw
            if raw == "Failed":
                entry["failureMessage"] = "There is no capacity for this model in the region at the moment."

    @property
    def billing(self) -> list[str]:
        """Every deployment and throughput that stands."""
        return list(self.snapshot().get("deployments", {}))

    @route("POST", "/model-customization/custom-model-deployments", "deploy")
    def create_deployment(self, request: Request) -> Reply:
        """CreateCustomModelDeployment; a repeated token gives the deployment that it has made."""
        body = request.json()
        return self._deploy(body, body["modelDeploymentName"], body["modelArn"], "custom-model-deployment", "customModelDeploymentArn", 202)

    @route("GET", "/model-customization/custom-model-deployments/{id...}", "deployment")
    def get_deployment(self, request: Request) -> dict[str, Any]:
        """GetCustomModelDeployment, by ARN or name."""
        return _timed(self._deployment(request.params["id"], "customModelDeploymentArn"))

    @route("DELETE", "/model-customization/custom-model-deployments/{id...}", "undeploy")
    def delete_deployment(self, request: Request) -> dict[str, Any]:
        """DeleteCustomModelDeployment."""
        return self._undeploy(request.params["id"], "customModelDeploymentArn")

    @route("POST", "/provisioned-model-throughput", "deploy")
    def create_throughput(self, request: Request) -> Reply:
        """CreateProvisionedModelThroughput."""
        body = request.json()
        return self._deploy(body, body["provisionedModelName"], body["modelId"], "provisioned-model", "provisionedModelArn", 201)

    @route("GET", "/provisioned-model-throughput/{id...}", "deployment")
    def get_throughput(self, request: Request) -> dict[str, Any]:
        """GetProvisionedModelThroughput, by ARN or name."""
        return _timed(self._deployment(request.params["id"], "provisionedModelArn"))

    @route("DELETE", "/provisioned-model-throughput/{id...}", "undeploy")
    def delete_throughput(self, request: Request) -> dict[str, Any]:
        """DeleteProvisionedModelThroughput."""
        return self._undeploy(request.params["id"], "provisionedModelArn")

    @route("GET", "/model-customization/custom-model-deployments", "deployments")
    def deployments(self, request: Request) -> dict[str, Any]:
        """ListCustomModelDeployments."""
        arn = request.query.get("modelArnEquals", "")
        own = self._standing("customModelDeploymentArn", request)
        if own or not arn:
            return {"modelDeploymentSummaries": own}
        if not self.deploys or arn not in self._books.get("models", {}):
            return {"modelDeploymentSummaries": []}
        deployment = f"arn:aws:bedrock:{REGION}:{ACCOUNT}:custom-model-deployment/{_digest(arn)}"
        entry = {"customModelDeploymentArn": deployment, "customModelDeploymentName": "d", "modelArn": arn, "status": "Active"}
        return {"modelDeploymentSummaries": [_timed({**entry, "createdAt": 1_795_000_000})]}

    @route("GET", "/provisioned-model-throughputs", "throughputs")
    def throughputs(self, request: Request) -> dict[str, Any]:
        """ListProvisionedModelThroughputs."""
        return {"provisionedModelSummaries": self._standing("provisionedModelArn", request)}

    @route("POST", "/model/{model}/converse", "chat")
    def converse(self, request: Request) -> dict[str, Any]:
        """Converse: answers with the question in the answer. A custom model answers only through a deployment."""
        body, model = request.json(), request.params["model"]
        if ":custom-model/" in model:
            raise VendorError(400, "Invocation of a custom model needs a deployment or Provisioned Throughput.", "ValidationException")
        entry = self._books.get("deployments", {}).get(model)
        if entry is not None and entry["status"] not in ("Active", "InService"):
            raise VendorError(429, "The model is not ready for inference.", "ModelNotReadyException")
        text = body["messages"][-1]["content"][0]["text"]
        usage = {"inputTokens": len(text.split()) + 3, "outputTokens": 4, "totalTokens": len(text.split()) + 7}
        message = {"role": "assistant", "content": [{"text": f"about {text}"}]}
        return {"output": {"message": message}, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 5}}

    # Inner parts

    def _deploy(self, body: dict[str, Any], name: str, model: str, kind: str, arn_name: str, status: int) -> Reply:
        with self.books() as books:
            there = books.setdefault("deployments", {})
            for entry in there.values():
                if entry["token"] == body["clientRequestToken"]:
                    return Reply({arn_name: entry["arn"]}, status)
                if entry["name"] == name:
                    raise VendorError(400, "The provided deployment name is currently in use.", "ValidationException")
            if self.quota_zero:
                raise VendorError(400, "The account's quota for this resource is 0: limit exceeded.", "ServiceQuotaExceededException")
            self._custom(model)
            arn = f"arn:aws:bedrock:{REGION}:{ACCOUNT}:{kind}/{_digest(name)}"
            base = f"arn:aws:bedrock:{REGION}::foundation-model/{model.split('/')[1]}"
            units = {"modelUnits": body.get("modelUnits", 1), "desiredModelUnits": body.get("modelUnits", 1)}
            told = {"modelDeploymentName": name, "customModelDeploymentName": name, "createdAt": 1_795_000_000}
            if kind == "provisioned-model":
                times = {"creationTime": 1_795_000_000, "lastModifiedTime": 1_795_000_000}
                told = {"provisionedModelName": name, "desiredModelArn": model, "foundationModelArn": base, **units, **times}
            there[arn] = {arn_name: arn, "modelArn": model, "status": "Creating", **told, "arn": arn, "name": name,
                          "token": body["clientRequestToken"]}  # fmt: skip
        self.record_deployed(arn, body["clientRequestToken"], body)
        return Reply({arn_name: arn}, status)

    def _deployment(self, identifier: str, arn_name: str) -> dict[str, Any]:
        for arn, entry in self._books.get("deployments", {}).items():
            by_name = entry["name"] == identifier
            if arn_name in entry and (arn == identifier or (by_name and self.shows(arn))):
                found: dict[str, Any] = entry
                return found
        raise VendorError(404, "The specified deployment could not be found.", "ResourceNotFoundException")

    def _undeploy(self, identifier: str, arn_name: str) -> dict[str, Any]:
        entry = self._deployment(identifier, arn_name)
        if entry["status"] == "Creating":
            raise VendorError(400, "The deployment is being created.", "ConflictException")
        with self.books() as books:
            del books["deployments"][entry["arn"]]
        return {}

    def _standing(self, arn_name: str, request: Request) -> list[dict[str, Any]]:
        arn, status = request.query.get("modelArnEquals"), request.query.get("statusEquals")
        entries = [entry for entry in self._books.get("deployments", {}).values() if arn_name in entry]
        return [_timed(e) for e in entries if arn in (None, e["modelArn"]) and status in (None, e["status"])]

    def _finish(self, books: dict[str, Any], job: dict[str, Any]) -> None:
        base = job["baseModelArn"].rpartition("/")[2]
        arn = f"arn:aws:bedrock:{REGION}:{ACCOUNT}:custom-model/{base}/{_digest(job['jobArn'])}"
        job |= {"outputModelArn": arn, "trainingMetrics": {"trainingLoss": 0.5}}
        if "validationDataConfig" in job:
            job["validationMetrics"] = [{"validationLoss": 0.75}]
        model = {"modelArn": arn, "modelName": job["outputModelName"], "jobArn": job["jobArn"], "creationTime": job["endTime"]}
        books.setdefault("models", {})[arn] = model

    def _write_metrics(self, books: dict[str, Any], job: dict[str, Any], steps: int) -> None:
        folder = f"{job['outputDataConfig']['s3Uri']}/model-customization-job-{job['jobArn'].rpartition('/')[2]}"
        rows = "".join(f"{step},{step // 2},{2.0 - step / 4},{6.0 - step}\n" for step in range(steps))
        content = "step_number,epoch_number,training_loss,perplexity\n" + rows
        at = job["creationTime"] + 25  # while it trains
        books["files"][f"{folder}/training_artifacts/step_wise_training_metrics.csv"] = {"content": content, "at": at}

    def _custom(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] | None = self._books.get("models", {}).get(name)
        if found is None:
            raise VendorError(404, "The specified custom model could not be found.", "ResourceNotFoundException")
        return found


def _details(begun: float, phase: int, word: str) -> dict[str, Any]:
    """statusDetails with everything before a phase completed, the phase itself at ``word``, the rest not started."""
    told: dict[str, Any] = {}
    for number, name in enumerate(PHASES):
        status = "Completed" if number < phase else word if number == phase else "NotStarted"
        times = {"creationTime": begun + 10 * number + 1, "lastModifiedTime": begun + 10 * number + 9}
        told[f"{name}Details"] = {"status": status, **(times if status != "NotStarted" else {})}
    return told


def _timed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with its times as AWS's REST-JSON writes them, and without what only the fake knows."""
    shown: dict[str, Any] = {}
    for name, value in entry.items():
        if name.endswith(("Time", "At")):
            shown[name] = _iso(value)
        elif name not in ("held", "raw", "tags", "arn", "name", "token"):
            shown[name] = _timed(value) if isinstance(value, dict) else value
    return shown


def _iso(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _model(model: str, *customizations: str, status: str = "ACTIVE") -> dict[str, Any]:
    lifecycle = {"status": status} | ({"endOfLifeTime": "2027-03-01T00:00:00Z"} if status == "LEGACY" else {})
    arn = f"arn:aws:bedrock:{REGION}::foundation-model/{model}"
    return {"modelArn": arn, "modelId": model, "customizationsSupported": list(customizations), "modelLifecycle": lifecycle}
