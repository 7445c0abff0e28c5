"""Fireworks' datasets, three families of jobs, models, deployments and chat completions, as its own SDK meets them.

Shapes: fireworks-ai 1.2.28 (types/), errors as its gateway sends them (``{"code": <gRPC>, "message", "details"}``), the
metrics file as seen in files of July 2026. What Fireworks answers to a job id that is taken is not documented: 409 is what
its SDK expects of other resources.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from tuneport.providers.conformance.fireworks_serving import FireworksServing, shown
from tuneport.providers.conformance.server import Reply, Request, VendorError, route

FAMILIES: Mapping[str, str] = {
    "supervisedFineTuningJobs": "supervisedFineTuningJobId",
    "dpoJobs": "dpoJobId",
    "reinforcementFineTuningJobs": "reinforcementFineTuningJobId",
}
"""Family of jobs -> query parameter of the id."""
_TRAINING = (
    "baseModel", "warmStartFrom", "outputModel", "epochs", "learningRate", "learningRateWarmupSteps", "loraRank", "maxContextLength",
    "batchSizeSamples", "optimizerWeightDecay", "samplerCheckpointSaveIntervalSteps", "region",
)  # fmt: skip
_AROUND = ("dataset", "displayName", "wandbConfig")
FIELDS: Mapping[str, frozenset[str]] = {
    "supervisedFineTuningJobs": frozenset({*_TRAINING, *_AROUND, "evaluationDataset", "evalAutoCarveout", "isTurbo", "lrScheduler"}),
    "dpoJobs": frozenset({*_AROUND, "trainingConfig", "lossConfig"}),
    "reinforcementFineTuningJobs": frozenset(
        {*_AROUND, "trainingConfig", "evaluator", "evaluationDataset", "evalAutoCarveout", "inferenceParameters"}
    ),
}
"""The fields that a job of each family may be made with; the gateway refuses others."""
GRPC: Mapping[int, int] = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 412: 9, 422: 3, 429: 8, 500: 13, 503: 14}
"""HTTP status -> gRPC code of an error's body."""
FINAL = frozenset({f"JOB_STATE_{word}" for word in ("COMPLETED", "EARLY_STOPPED", "FAILED", "EXPIRED", "CANCELLED")})
DONE = frozenset({"JOB_STATE_COMPLETED", "JOB_STATE_EARLY_STOPPED"})
STEPS = (1, 2, 3)
"""Steps of training; the metrics file has a line for each that is done."""
BLOCK = 5000
"""Bytes of each file of a tuned model."""


class FireworksVendor(FireworksServing):
    """A stateful fake of Fireworks."""

    secret = "fw_conformance0123456789abcdef"  # noqa: S105 -- of a fake
    script = (
        "JOB_STATE_CREATING", "JOB_STATE_PENDING", "JOB_STATE_VALIDATING", "JOB_STATE_RUNNING", "JOB_STATE_WRITING_RESULTS",
        "JOB_STATE_COMPLETED",
    )  # fmt: skip
    submission_routes = ("dataset_create", "upload", "dataset", "create")
    why_failed: ClassVar[str] = "dataset is invalid: line 3: the last message must be from the assistant"

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._routes.sort(key=lambda entry: (entry[1].groups, -len(entry[1].pattern)))  # the most literal path counts
        self.slow_datasets = 0  # so many looks at a dataset after its upload find it still UPLOADING
        self.rejects = ""  # why no dataset becomes ready
        self.cut_after: int | None = None  # so many bytes of a model's file are sent, then the connection breaks
        self.model_facts: dict[str, Any] = {}  # what the base models say of themselves, beside the usual

    @property
    def environment(self) -> dict[str, str]:
        """Address, key and account."""
        return {"FIREWORKS_BASE_URL": self.url, "FIREWORKS_API_KEY": self.secret, "FIREWORKS_ACCOUNT_ID": self.account}

    def error(self, status: int, message: str, code: str | None) -> dict[str, Any]:
        """The gateway's error body; the inference service's where there is a code."""
        if code is not None:
            return {"error": {"object": "error", "type": code, "code": code, "message": message}}
        return {"code": GRPC.get(status, 2), "message": message, "details": []}

    def authorise(self, request: Request) -> None:
        """A bearer token; signed addresses take none, and must not get one."""
        given = request.headers.get("authorization")
        if request.path.startswith("/signed/"):
            if given is not None:
                raise VendorError(400, "a signed address was given a key")
        elif given != f"Bearer {self.secret}":
            raise VendorError(401, "The API key you provided is invalid.")

    def key_of(self, body: Mapping[str, Any]) -> str | None:
        """The id of the job, which is a part of the query and which ``record_made`` therefore sees to."""
        return body.get("(id)")

    def record_made(self, ref: str, body: dict[str, Any]) -> None:
        """The key is the id at the end of the name."""
        super().record_made(ref, {**body, "(id)": ref.rpartition("/")[2]})
        with self.books() as books:
            del books["made"][-1]["body"]["(id)"]

    def state(self, ref: str) -> str:
        """The raw state of a job."""
        with self.books() as books:
            return str(books["jobs"][ref]["state"])

    def set_state(self, ref: str, raw: str) -> None:
        """Bring a job into a state."""
        with self.books() as books:
            job = self.job(ref)
            job["state"] = raw
            done, share = raw in DONE, {"JOB_STATE_RUNNING": 0.4, "JOB_STATE_WRITING_RESULTS": 1.0}.get(raw, 1.0 if raw in DONE else 0.0)
            job["jobProgress"] = {"percent": int(100 * share), "epoch": 0}
            failed = raw in ("JOB_STATE_FAILED", "JOB_STATE_EXPIRED")
            job["status"] = {"code": "INVALID_ARGUMENT" if failed else "OK", "message": self.why_failed if failed else ""}
            job["completedTime"] = self._time() if raw in FINAL else None
            job["estimatedCost"] = {"currencyCode": "USD", "units": "1", "nanos": 250_000_000} if share else None
            shown = [step for step in STEPS if share >= step / len(STEPS) or (share and step == 1)]
            job["(metrics)"] = [json.dumps(self._point(job, step)) for step in shown] or job["(metrics)"]
            if done:
                name = self._tuned(job)
                model = {"name": name, "kind": "HF_PEFT_ADDON", "state": "READY", "fineTuningJob": ref, "tunable": False}
                books.setdefault("models", {}).setdefault(name, model)

    # Datasets

    @route("POST", "/v1/accounts/{account}/datasets", "dataset_create")
    def create_dataset(self, request: Request) -> dict[str, Any]:
        """An empty dataset that waits for its file."""
        body = request.json()
        name = f"accounts/{self._account(request)}/datasets/{body['datasetId']}"
        facts = body["dataset"]
        if "userUploaded" not in facts or int(facts.get("exampleCount", 0)) < 1:
            raise VendorError(400, "dataset needs user_uploaded and example_count")
        if facts.get("format", "CHAT") not in ("CHAT", "COMPLETION", "RL"):
            raise VendorError(400, f"unknown dataset format {facts['format']}")
        with self.books() as books:
            if name in books["files"]:
                raise VendorError(409, f"dataset {body['datasetId']} already exists")
            books["files"][name] = {**facts, "name": name, "state": "UPLOADING", "content": "", "(looks)": 0, "createTime": self._time()}
            return shown(books["files"][name])

    @route("POST", "/v1/accounts/{account}/datasets/{id}:upload", "upload")
    def upload(self, request: Request) -> dict[str, Any]:
        """One file by multipart/form-data."""
        _, files = request.form()
        entry, (name, content) = self._dataset(request), files["file"]
        if not name.endswith(".jsonl") or not content:
            raise VendorError(400, "the file must be non-empty JSONL")
        with self.books():
            if entry["content"]:
                raise VendorError(400, "dataset file is already uploaded")
            if content.count(b"\n") != int(entry["exampleCount"]):
                raise VendorError(400, "example_count differs from the lines of the file")
            waits = self.rejects or self.slow_datasets
            entry |= {"content": content.decode(), "(looks)": self.slow_datasets, "state": "UPLOADING" if waits else "READY"}
            if self.rejects:
                entry["status"] = {"code": "INVALID_ARGUMENT", "message": self.rejects}
        return {"id": request.params["id"], "object": "file", "bytes": len(content), "filename": name, "purpose": "fine-tune"}

    @route("POST", "/v1/accounts/{account}/datasets/{id}:getUploadEndpoint", "upload_address")
    def upload_address(self, request: Request) -> dict[str, Any]:
        """Signed addresses for a large file. Those of a fake are plain http, which the SDK's helper refuses."""
        name, sizes = self._dataset(request)["name"], request.json()["filenameToSize"]
        return {"filenameToSignedUrls": {file: f"{self.url}/signed/upload/{name}/{file}" for file in sizes}}

    @route("GET", "/v1/accounts/{account}/datasets/{id}", "dataset")
    def get_dataset(self, request: Request) -> dict[str, Any]:
        """One dataset."""
        entry = self._dataset(request)
        if entry["content"] and entry["state"] == "UPLOADING" and not self.rejects:
            entry["(looks)"] -= 1
            if entry["(looks)"] < 0:
                entry["state"] = "READY"
        return shown(entry)

    @route("DELETE", "/v1/accounts/{account}/datasets/{id}", "dataset_delete")
    def delete_dataset(self, request: Request) -> dict[str, Any]:
        """Remove a dataset."""
        name = self._dataset(request)["name"]
        with self.books() as books:
            del books["files"][name]
        return {}

    # Jobs

    @route("POST", "/v1/accounts/{account}/{family}", "create")
    def create(self, request: Request) -> dict[str, Any]:
        """Make a job, under the id of the query."""
        family, body = self._family(request), request.json()
        account = self._account(request)
        if self.closed:
            raise VendorError(412, f"Account {account} is suspended, possibly due to reaching the monthly spending limit")
        if unknown := body.keys() - FIELDS[family]:
            raise VendorError(400, f'unknown field "{sorted(unknown)[0]}"')
        ident = request.query.get(FAMILIES[family]) or self.new_id("job-")
        ref = f"accounts/{account}/{family}/{ident}"
        training = body.get("trainingConfig", body)
        if ("baseModel" in training) == ("warmStartFrom" in training):
            raise VendorError(400, "exactly one of base_model and warm_start_from must be given")
        if family == "dpoJobs" and body.get("lossConfig", {}).get("method") not in ("DPO", "ORPO"):
            raise VendorError(400, "loss_config.method must be DPO or ORPO")
        with self.books() as books:
            for name in ("dataset", "evaluationDataset"):
                if name in body and books["files"].get(body[name], {}).get("state") != "READY":
                    raise VendorError(400, f"dataset {body[name]} does not exist or is not ready")
            if ref in books["jobs"]:
                raise VendorError(409, f"{family} {ident} already exists")
            if self._tuned({**body, "name": ref}) in books.get("models", {}):
                raise VendorError(409, "the output model already exists")
            books["jobs"][ref] = {**body, "name": ref, "state": self.script[0], "createTime": self._time(), "(metrics)": []}
            if "wandbConfig" in body:
                books["jobs"][ref]["wandbConfig"] = {**body["wandbConfig"], "apiKey": ""}
        self.record_made(ref, body)
        return self._job(ref)

    @route("GET", "/v1/accounts/{account}/{family}", "list")
    def list_jobs(self, request: Request) -> dict[str, Any]:
        """Jobs of one family, in pages; by name unless asked for otherwise."""
        account, family = self._account(request), self._family(request)
        found = [job for job in self.listed() if job["name"].startswith(f"accounts/{account}/{family}/")]
        if request.query.get("orderBy") != "create_time desc":
            found.sort(key=lambda job: job["name"])
        start, size = int(request.query.get("pageToken") or 0), min(int(request.query.get("pageSize") or 50), 200)
        page: dict[str, Any] = {family: [self._job(job["name"]) for job in found[start : start + size]], "totalSize": len(found)}
        return page | ({"nextPageToken": str(start + size)} if start + size < len(found) else {})

    @route("GET", "/v1/accounts/{account}/{family}/{id}", "poll")
    def get_job(self, request: Request) -> dict[str, Any]:
        """One job."""
        return self._job(self._named(request))

    @route("POST", "/v1/accounts/{account}/{family}/{id}:cancel", "cancel")
    def cancel(self, request: Request) -> dict[str, Any]:
        """Begin to stop a job."""
        job = self.job(self._named(request))
        if job["state"] in FINAL or job["state"] == "JOB_STATE_CANCELLING":
            raise VendorError(400, f"job is in state {job['state']} and cannot be cancelled")
        self.set_state(job["name"], "JOB_STATE_CANCELLING")
        return {}

    @route("POST", "/v1/accounts/{account}/{family}/{id}:resume", "resume")
    def resume(self, request: Request) -> dict[str, Any]:
        """Go on with a job that is paused or has failed."""
        job = self.job(self._named(request))
        if job["state"] not in ("JOB_STATE_PAUSED", "JOB_STATE_FAILED"):
            raise VendorError(400, f"job is in state {job['state']} and cannot be resumed")
        self.set_state(job["name"], "JOB_STATE_PENDING")
        return self._job(job["name"])

    @route("GET", "/v1/accounts/{account}/dpoJobs/{id}:getMetricsFileEndpoint", "metrics_address")
    def metrics_address(self, request: Request) -> dict[str, Any]:
        """Where the metrics of a preference job stand."""
        ref = f"accounts/{self._account(request)}/dpoJobs/{request.params['id']}"
        if not self.job(ref)["(metrics)"]:
            raise VendorError(404, "there is no metrics file yet")
        return {"signedUrl": self._metrics_url(ref)}

    @route("GET", "/signed/metrics/{name...}", "events")
    def metrics(self, request: Request) -> Reply:
        """The metrics file; its last line is being written while the job runs."""
        job = self.job(request.params["name"])
        if not job["(metrics)"]:
            return Reply(b"<Error><Code>NoSuchKey</Code></Error>", 404, {"Content-Type": "application/xml"})
        tail = "" if job["state"] in FINAL else '{"timestamp": 17'
        return Reply(("\n".join([*job["(metrics)"], tail])).encode(), 200, {"Content-Type": "application/octet-stream"})

    # Models, accounts, answers

    @route("GET", "/v1/accounts/{account}", "account")
    def get_account(self, request: Request) -> dict[str, Any]:
        """The account, and whether it is suspended."""
        state = "MONTHLY_SPEND_LIMIT_EXCEEDED" if self.closed else "UNSUSPENDED"
        return {"name": f"accounts/{self._account(request)}", "email": "a@example.org", "state": "READY", "suspendState": state}

    @route("GET", "/v1/accounts/{account}/models/{id}", "model")
    def get_model(self, request: Request) -> dict[str, Any]:
        """A base model of Fireworks, or a tuned one of the account."""
        name = f"accounts/{request.params['account']}/models/{request.params['id']}"
        if request.params["account"] == "fireworks":
            facts = {"tunable": True, "rlTunable": True, "supportsLora": True, "trainingContextLength": 65536, "supportsServerless": True}
            return {"name": name, "kind": "HF_BASE_MODEL", "state": "READY", **facts, **self.model_facts}
        self._account(request)
        found: dict[str, Any] | None = self.snapshot().get("models", {}).get(name)
        if found is None:
            raise VendorError(404, f"model {name} not found")
        always = [f"accounts/{self.account}/deployments/d-1"] if self.deploys else []
        return {**found, "deployedModelRefs": [{"deployment": place, "state": "DEPLOYED", "default": True} for place in always]}

    @route("DELETE", "/v1/accounts/{account}/models/{id}", "model_delete")
    def delete_model(self, request: Request) -> dict[str, Any]:
        """Remove a tuned model that stands on no deployment."""
        name = f"accounts/{self._account(request)}/models/{request.params['id']}"
        with self.books() as books:
            if name not in books.get("models", {}):
                raise VendorError(404, f"model {name} not found")
            del books["models"][name]
        return {}

    @route("GET", "/v1/accounts/{account}/models/{id}:getDownloadEndpoint", "weights_address")
    def weights_address(self, request: Request) -> dict[str, Any]:
        """Signed addresses of a tuned model's files."""
        name = f"accounts/{self._account(request)}/models/{request.params['id']}"
        if name not in self.snapshot().get("models", {}):
            raise VendorError(404, f"model {name} not found")
        files = ("adapter_config.json", "adapter_model.safetensors")
        return {"filenameToSignedUrls": {file: f"{self.url}/signed/weights/{name}/{file}?X-Goog-Signature=0a1b2c3d4e5f" for file in files}}

    @route("GET", "/signed/weights/{name...}", "weights")
    def weights(self, request: Request) -> Reply:
        """A file of a model, whole or from a byte on."""
        content = weights_of(request.params["name"])
        etag, wanted = f'"{hashlib.sha256(content).hexdigest()[:16]}"', request.headers.get("range", "")
        md5 = hashlib.md5(content, usedforsecurity=False).digest()
        told = f"crc32c=AAAAAA==, md5={b64encode(md5).decode()}"
        headers = {"Content-Type": "application/octet-stream", "ETag": etag, "x-goog-hash": told}
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and request.headers.get("if-range") == etag else 0
        if start >= len(content):
            return Reply(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
        rest = content[start:]
        headers |= {"Content-Length": str(len(rest))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.cut_after is not None:
            rest, self.cut_after = rest[: self.cut_after], None
            headers["Connection"] = "close"
        return Reply(rest, 206 if start else 200, headers)

    @route("POST", "/v1/chat/completions", "chat")
    def chat(self, request: Request) -> dict[str, Any]:
        """Answers with the last message in it; a tuned model only on its deployment."""
        body = request.json()
        name, _, deployment = body["model"].partition("#")
        if not name.startswith("accounts/fireworks/") and deployment not in self._deployments_of(name):
            raise VendorError(404, "Model not found, inaccessible, and/or not deployed", "NOT_FOUND")
        text = f"{name} says: {body['messages'][-1]['content']}"
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": int(self.now()), "model": name,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
        }  # fmt: skip

    # Inner parts

    def _family(self, request: Request) -> str:
        if request.params["family"] not in FAMILIES:
            raise VendorError(404, "Not Found")
        return request.params["family"]

    def _named(self, request: Request) -> str:
        return f"accounts/{self._account(request)}/{self._family(request)}/{request.params['id']}"

    def _dataset(self, request: Request) -> dict[str, Any]:
        name = f"accounts/{self._account(request)}/datasets/{request.params['id']}"
        with self.books() as books:
            found: dict[str, Any] | None = books["files"].get(name)
        if found is None:
            raise VendorError(404, f"dataset {name} not found")
        return found

    def _job(self, ref: str) -> dict[str, Any]:
        job = shown(self.job(ref))
        if "/supervisedFineTuningJobs/" in ref:
            job["metricsFileSignedUrl"] = self._metrics_url(ref)
        return job

    def _metrics_url(self, ref: str) -> str:
        return f"{self.url}/signed/metrics/{ref}?X-Goog-Signature=0a1b2c3d4e5f"

    def _tuned(self, job: Mapping[str, Any]) -> str:
        model = job.get("trainingConfig", job).get("outputModel") or job["name"].rpartition("/")[2]
        return model if "/" in model else f"accounts/{self.account}/models/{model}"

    def _point(self, job: Mapping[str, Any], step: int) -> dict[str, Any]:
        begun = datetime.fromisoformat(job["createTime"]).timestamp()
        data = {"train/epoch": 0, "train/token": 2048 * step, "train/loss": 2 / step}
        return {"timestamp": begun + 60 * step, "step": step, "data": data}


def weights_of(name: str) -> bytes:
    """The content of a file of a tuned model, e.g. ``accounts/acme/models/m/adapter_config.json``."""
    return hashlib.shake_128(name.encode()).digest(BLOCK)
