"""Together's files, fine-tuning jobs, weights and chat completions, as its own SDK meets them.

Shapes: together 3.1.1 (``types/``, ``lib/resources/files.py`` for the upload: an address by 302, the content by PUT, then
``preprocess``; in parts above the SDK's threshold). Error bodies are those of Together's OpenAPI description. That a file counts
as known, so that its checksum answers 409, from ``preprocess`` on is a guess; so are the names in a point of the loss curve.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tuneport.core.keys import KEY_LENGTH
from tuneport.providers.conformance.server import Reply, Request, VendorError, route
from tuneport.providers.conformance.together_serving import TogetherServing

FINAL = frozenset({"completed", "error", "user_error", "cancelled"})
STEPS = (10, 20, 30)
"""Steps at which there are a point of the loss curve and a checkpoint."""
SIGNED = "X-Amz-Credential=conformance-credential&X-Amz-Signature=0a1b2c3d4e5f"
"""What makes an address for content its own permission: a secret."""
LONGEST_SUFFIX = 40
CREATE_FIELDS = frozenset(
    {
        "training_file", "validation_file", "packing", "model", "n_epochs", "learning_rate", "lr_scheduler", "warmup_ratio",
        "max_grad_norm", "weight_decay", "n_checkpoints", "n_evals", "max_seq_length", "batch_size", "gradient_accumulation_steps",
        "suffix", "wandb_key", "wandb_base_url", "wandb_project_name", "wandb_name", "wandb_entity", "random_seed",
        "early_stopping_enabled", "early_stopping_patience", "early_stopping_min_delta", "early_stopping_warmup_evals", "training_type",
        "training_method", "from_checkpoint", "multimodal_params", "from_hf_model", "hf_model_revision", "hf_api_token",
        "hf_output_repo_name",
    }
)  # fmt: skip
"""Fields of the SDK's FinetuneRequest."""
LIMITS: Mapping[str, Any] = {
    "default_gradient_accumulation_steps": 1,
    "lora_training": {
        "default_rank": 64, "max_rank": 64, "min_batch_size": 8, "max_batch_size": 64, "max_batch_size_dpo": 32,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    },
    "full_training": {"min_batch_size": 8, "max_batch_size": 64, "max_batch_size_dpo": 32},
    "min_learning_rate": 1e-8, "max_learning_rate": 0.01, "max_num_epochs": 20, "max_num_evals": 100, "max_num_checkpoints": 100,
    "max_seq_length_sft": 131072, "max_seq_length_dpo": 65536, "min_max_seq_length": 512, "merge_output_lora": True,
    "supports_full_training": True, "supports_reasoning": False, "supports_tools": True, "supports_vision": False,
}  # fmt: skip


class TogetherVendor(TogetherServing):
    """A stateful fake of Together."""

    secret = "tgp_v1_conformance0123456789abcdef"  # noqa: S105 -- of a fake
    script = ("pending", "queued", "running", "compressing", "uploading", "completed")
    submission_routes = ("upload", "content", "preprocess", "create")
    events_of: ClassVar[Mapping[str, tuple[str, str]]] = {
        "pending": ("job_pending", "Fine tune request created"),
        "queued": ("training_data_downloading", "Downloading the training data"),
        "running": ("training_start", "Training started"),
        "compressing": ("model_compressing", "Compressing the model"),
        "uploading": ("model_uploading", "Uploading the model"),
        "completed": ("job_complete", "Job finished"),
        "error": ("job_error", "The training data is not valid. line 3: messages must end with the assistant's"),
        "user_error": ("job_error", "The training data is not valid. line 3: messages must end with the assistant's"),
        "cancel_requested": ("cancel_requested", "Cancel requested"),
        "cancelled": ("job_stopped", "Job cancelled"),
    }

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.limits: dict[str, Any] = json.loads(json.dumps(LIMITS))
        self.price: dict[str, Any] = {"allowed_to_proceed": True, "user_limit": 100.0}  # of an estimate, beside the sum itself
        self.check_takes = 0  # so many looks at a new file find the check still running
        self.rejected_lines: tuple[int, ...] = ()  # lines that the check rejects
        self.shown_suffix: int | None = None  # so many characters of a job's suffix are shown; None: all
        self.cut_after: int | None = None  # the next download breaks off after so many bytes

    @property
    def environment(self) -> dict[str, str]:
        """Address (without /v1) and key."""
        return {"TOGETHER_BASE_URL": self.url, "TOGETHER_API_KEY": self.secret}

    def error(self, status: int, message: str, code: str | None) -> dict[str, Any]:
        """Together's error body."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"id": "oX1", "error": {"message": message, "type": kind, "param": None, "code": code}}

    def authorise(self, request: Request) -> None:
        """A bearer token; an address for content is its own permission."""
        if not request.path.startswith("/storage/") and request.headers.get("authorization") != f"Bearer {self.secret}":
            raise VendorError(401, "Invalid API key provided. You can find your API key at api.together.ai.", "invalid_api_key")

    def key_of(self, body: Mapping[str, Any]) -> str | None:
        """The end of the suffix."""
        key = str(body.get("suffix") or "")[-KEY_LENGTH:]
        return key if key.startswith("tp-") else None

    def set_state(self, ref: str, raw: str) -> None:
        """Bring a job into a state."""
        with self.books() as books:
            job = self.job(ref)
            if job["status"] == raw:
                return
            job["status"], job["updated_at"] = raw, self._time()
            job["progress"] = {"estimate_available": raw == "running", "seconds_remaining": 600 if raw == "running" else 0}
            self._event(ref, *self.events_of.get(raw, ("warning", f"The job is {raw}")), level="error" if "error" in raw else "info")
            tokens = max(1, len(books["files"].get(job["training_file"], {}).get("content") or "") // 4) * int(job["n_epochs"])
            if raw == "running":
                job |= {"total_steps": STEPS[-1], "steps_completed": STEPS[0]}
                points = [{"global_step": s, "train/loss": 2 / s, "learning_rate": 1e-5, "logged_at": self.now() + s / 1e4} for s in STEPS]
                books.setdefault("metrics", {})[ref] = points
            if raw == "completed":
                base, suffix = str(job["model"] or job["from_checkpoint"]).rpartition("/")[2], job["suffix"]
                job |= {"model_output_name": f"acme/{base}-{suffix}-{ref[-4:]}", "model_object_id": f"ml_{ref[-6:]}"}
            if raw in FINAL:
                job |= {"total_price": tokens * 480, "token_count": tokens}  # nano-dollars: 0.48 USD per million tokens

    # Files

    @route("POST", "/v1/files", "upload")
    def begin_file(self, request: Request) -> Reply:
        """An address for the content, or the file that has this content already."""
        fields, _ = request.form()
        if fields.get("purpose") != "fine-tune" or fields.get("file_type") not in ("jsonl", "parquet"):
            raise VendorError(400, "purpose and file_type are required.")
        return self._known(fields["checksum"]) or self._address(fields["file_name"], fields["checksum"])

    @route("PUT", "/storage/{id}", "content")
    def put_content(self, request: Request) -> Reply:
        """The content of a file."""
        entry = self._entry(request.params["id"])
        if hashlib.sha256(request.body).hexdigest() != entry["checksum"]:
            raise VendorError(400, "The content does not have the announced checksum.")
        with self.books():
            entry |= {"content": request.body.decode(), "bytes": len(request.body)}
        return Reply(b"", headers={"Content-Type": "text/plain"})

    @route("POST", "/v1/files/{id}/preprocess", "preprocess")
    def preprocess(self, request: Request) -> dict[str, Any]:
        """The content is there: check it."""
        entry = self._entry(request.params["id"])
        with self.books():
            entry |= {"processing_status": "PENDING", "checks_left": self.check_takes}
        return self._shown(entry)

    @route("POST", "/v1/files/multipart/initiate", "upload")
    def begin_parts(self, request: Request) -> Reply:
        """Addresses for the parts of a large file."""
        body = request.json()
        known = self._known(body["checksum"])
        if known is not None:
            return known
        ident = str(self._address(body["file_name"], body["checksum"]).headers["X-Together-File-Id"])
        place = f"{self.url}/storage/{ident}"
        urls = [{"PartNumber": n, "URL": f"{place}/{n}?{SIGNED}", "Headers": {}} for n in range(1, body["num_parts"] + 1)]
        return Reply({"upload_id": f"up-{ident}", "file_id": ident, "parts": urls})

    @route("PUT", "/storage/{id}/{part}", "content")
    def put_part(self, request: Request) -> Reply:
        """The content of a part."""
        with self.books():
            parts = self._entry(request.params["id"]).setdefault("parts", {})
            parts[request.params["part"]] = request.body.decode("latin-1")
        return Reply(b"", headers={"ETag": f'"{hashlib.sha256(request.body).hexdigest()[:32]}"', "Content-Type": "text/plain"})

    @route("POST", "/v1/files/multipart/complete", "preprocess")
    def complete_parts(self, request: Request) -> dict[str, Any]:
        """Join the parts and check the file."""
        body = request.json()
        entry = self._entry(body["file_id"])
        content = "".join(entry["parts"][str(part["part_number"])] for part in body["parts"]).encode("latin-1")
        if hashlib.sha256(content).hexdigest() != entry["checksum"]:
            raise VendorError(400, "The parts do not make up the announced checksum.")
        with self.books():
            entry |= {"content": content.decode(), "bytes": len(content), "processing_status": "PENDING", "checks_left": self.check_takes}
        return {"file": self._shown(entry)}

    @route("POST", "/v1/files/multipart/abort", "abort")
    def abort_parts(self, request: Request) -> dict[str, Any]:
        """Give an upload up."""
        with self.books() as books:
            books["files"].pop(request.json()["file_id"], None)
        return {}

    @route("GET", "/v1/files/{id}", "file")
    def get_file(self, request: Request) -> dict[str, Any]:
        """A file's entry; a file that is looked at often enough has been checked."""
        entry = self._entry(request.params["id"])
        if entry["processing_status"] in ("PENDING", "RUNNING"):
            with self.books():
                entry["processing_status"] = "RUNNING" if entry["checks_left"] > 0 else "COMPLETED"
                entry["checks_left"] -= 1
                if entry["processing_status"] == "COMPLETED":
                    self._check(entry)
        return self._shown(entry)

    @route("GET", "/v1/files", "file_list")
    def list_files(self, _request: Request) -> dict[str, Any]:
        """Every file."""
        with self.books() as books:
            return {"object": "list", "data": [self._shown(entry) for entry in books["files"].values()]}

    @route("DELETE", "/v1/files/{id}", "file_delete")
    def delete_file(self, request: Request) -> dict[str, Any]:
        """Remove a file."""
        self._entry(request.params["id"])
        with self.books() as books:
            del books["files"][request.params["id"]]
        return {"id": request.params["id"], "deleted": True}

    # Jobs

    @route("POST", "/v1/fine-tunes", "create")
    def create(self, request: Request) -> dict[str, Any]:
        """Make a job."""
        body = request.json()
        if self.closed:
            raise VendorError(403, "Fine-tuning is not available to this account.", "training_not_available")
        if unknown := body.keys() - CREATE_FIELDS:
            raise VendorError(400, f"Unknown field {sorted(unknown)[0]}")
        if ("model" in body) == ("from_checkpoint" in body):
            raise VendorError(400, "Exactly one of model and from_checkpoint must be given.")
        if len(body.get("suffix") or "") > LONGEST_SUFFIX:
            raise VendorError(400, f"suffix is longer than {LONGEST_SUFFIX} characters.")
        for name in ("training_file", "validation_file"):
            if body.get(name) and self.snapshot()["files"].get(body[name], {}).get("processing_status") != "COMPLETED":
                raise VendorError(400, f"The file {body[name]} does not exist or has not been checked.", "invalid_file")
        ref, when = self.new_id("ft-"), self._time()
        kept = {name: value for name, value in body.items() if name not in ("wandb_key", "hf_api_token")}
        job = {
            "id": ref, "status": self.script[0], "created_at": when, "updated_at": when, "user_id": "user-acme", "model": None,
            "from_checkpoint": None, "suffix": None, "model_output_name": None, "total_price": 0, "token_count": 0, "queue_depth": 0,
            **kept,
        }  # fmt: skip
        with self.books() as books:
            books["jobs"][ref] = job
        self.record_made(ref, body)
        self._event(ref, *self.events_of[self.script[0]])
        return self._job_shown(job)

    @route("GET", "/v1/fine-tunes", "list")
    def list_jobs(self, _request: Request) -> dict[str, Any]:
        """Every job of the account, in one answer."""
        return {"data": [self._job_shown(job) for job in self.listed()]}

    @route("GET", "/v1/fine-tunes/{id}", "poll")
    def get_job(self, request: Request) -> dict[str, Any]:
        """One job with its events."""
        job = self.job(request.params["id"])
        return self._job_shown(job) | {"events": self.snapshot().get("events", {}).get(job["id"], [])}

    @route("DELETE", "/v1/fine-tunes/{id}", "delete")
    def delete_job(self, request: Request) -> dict[str, Any]:
        """Remove a job and its model."""
        job = self.job(request.params["id"])
        with self.books() as books:
            del books["jobs"][job["id"]]
        return {"message": f"Fine-tune job {job['id']} deleted"}

    @route("POST", "/v1/fine-tunes/{id}/cancel", "cancel")
    def cancel(self, request: Request) -> dict[str, Any]:
        """Stop a job that has not ended, some time later."""
        job = self.job(request.params["id"])
        if job["status"] in FINAL or job["status"] == "cancel_requested":
            raise VendorError(400, f"Job {job['id']} cannot be cancelled: it is {job['status']}")
        self.set_state(job["id"], "cancel_requested")
        return self._job_shown(job)

    @route("GET", "/v1/fine-tunes/{id}/events", "events")
    def list_events(self, request: Request) -> dict[str, Any]:
        """Oldest first."""
        ref = self.job(request.params["id"])["id"]
        return {"data": self.snapshot().get("events", {}).get(ref, [])}

    @route("GET", "/v1/fine-tunes/{id}/metrics", "metrics")
    def list_metrics(self, request: Request) -> dict[str, Any]:
        """The loss curve."""
        ref = self.job(request.params["id"])["id"]
        return {"metrics": self.snapshot().get("metrics", {}).get(ref)}

    @route("GET", "/v1/fine-tunes/{id}/checkpoints", "checkpoints")
    def list_checkpoints(self, request: Request) -> dict[str, Any]:
        """Model and adapter of every step, newest first."""
        job = self.job(request.params["id"])
        steps = STEPS[::-1] if job["status"] == "completed" else ()
        found = [
            {"step": step, "checkpoint": kind, "checkpoint_type": f"{kind} (step {step})", "created_at": job["updated_at"], "path": f"s3://{step}"}
            for step in steps
            for kind in ("model", "adapter")
        ]
        return {"data": found}

    @route("GET", "/v1/fine-tunes/models/limits", "limits")
    def get_limits(self, request: Request) -> dict[str, Any]:
        """A model's limits; a name with "untunable" in it has none."""
        name = request.query["model_name"]
        if "untunable" in name:
            raise VendorError(404, f"Model {name} is not supported for fine-tuning", "model_not_supported")
        return {"model_name": name, **self.limits}

    @route("POST", "/v1/fine-tunes/estimate-price", "estimate")
    def estimate(self, request: Request) -> dict[str, Any]:
        """A price for files that were checked."""
        body = request.json()
        entry = self.snapshot()["files"].get(body["training_file"])
        if entry is None or entry["processing_status"] != "COMPLETED":
            return {"estimation_available": False, "unavailable_reason": "train_file_not_validated"}
        tokens = max(1, len(entry["content"]) // 4) * int(body.get("n_epochs", 1))
        told = {"estimated_total_price": 4.0 + tokens * 0.48e-6, "estimated_train_token_count": tokens, "estimated_eval_token_count": 0}
        return {"estimation_available": True, **told, **self.price}

    # Weights and chat

    @route("GET", "/v1/finetune/download", "download")
    def download(self, request: Request) -> Reply:
        """The archive, or the rest of it."""
        job = self.job(request.query["ft_id"])
        if job["status"] != "completed" and "checkpoint_step" not in request.query:
            raise VendorError(400, "The job is not completed.")
        content = self.weights(job["id"], request.query.get("checkpoint_step") or request.query.get("checkpoint", ""))
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        start = 0
        if "range" in request.headers and request.headers.get("if-range", tag) == tag:
            start = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
        headers = {"Content-Type": "application/octet-stream", "ETag": tag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest, cut = content[start:], self.cut_after
        if cut is not None:
            self.cut_after = None
            headers |= {"Content-Length": str(len(rest)), "Connection": "close"}
            rest = rest[:cut]
        return Reply(rest, 206 if start else 200, headers)

    def weights(self, ref: str, what: str) -> bytes:
        """The archive of a job: "adapter", "merged", "model_output_path", or a step."""
        block = hashlib.sha256(f"{ref} {what}".encode()).digest()
        return b"\x28\xb5\x2f\xfd" + block * 3000

    @route("POST", "/v1/chat/completions", "chat")
    def chat(self, request: Request) -> dict[str, Any]:
        """Answers with the last message in it. A tuned model needs an endpoint."""
        body = request.json()
        if body["model"].startswith("acme/") and not self._answers(body["model"]):
            message = f"Unable to access non-serverless model {body['model']}. Please create and start a new dedicated endpoint for it."
            raise VendorError(400, message, "model_not_available")
        text = f"{body['model']} says: {body['messages'][-1]['content']}"
        return {
            "id": "chat-1", "object": "chat.completion", "created": int(self.now()), "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
        }  # fmt: skip

    # Inner parts

    def _known(self, checksum: str) -> Reply | None:
        with self.books() as books:
            same = [f for f in books["files"].values() if f["checksum"] == checksum and f["content"] and f["processing_status"]]
        return Reply({"file_id": same[0]["id"], "message": "File already exists"}, 409) if same else None

    def _address(self, name: str, checksum: str) -> Reply:
        ident = self.new_id("file-")
        entry = {
            "id": ident, "object": "file", "bytes": 0, "created_at": int(self.now()), "filename": name, "FileType": "jsonl",
            "purpose": "fine-tune", "processing_status": None, "validation_report": None, "checksum": checksum, "content": None,
        }  # fmt: skip
        with self.books() as books:
            books["files"][ident] = entry
        return Reply({}, 302, {"Location": f"{self.url}/storage/{ident}?{SIGNED}", "X-Together-File-Id": ident})

    def _entry(self, ident: str) -> dict[str, Any]:
        with self.books() as books:
            found: dict[str, Any] | None = books["files"].get(ident)
        if found is None:
            raise VendorError(404, f"File {ident} not found")
        return found

    def _shown(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entry.items() if name not in ("content", "checksum", "checks_left", "parts")}

    def _job_shown(self, job: Mapping[str, Any]) -> dict[str, Any]:
        if self.shown_suffix is None:
            return dict(job)
        return dict(job) | {"suffix": str(job["suffix"])[: self.shown_suffix] or None, "model_output_name": None}

    def _check(self, entry: dict[str, Any]) -> None:
        content = entry["content"] or ""
        report: dict[str, Any] = {"file_id": entry["id"], "valid": True, "nlines": content.count("\n")}
        if not content:
            report |= {"valid": False, "error": "The file has no content"}
            entry["processing_status"] = "FAILED"
        elif self.rejected_lines:
            said = "; ".join(f"line {line}: the last message must be from the assistant" for line in self.rejected_lines)
            report |= {"valid": False, "error_type": "INVALID_FORMAT", "error": said}
            entry["processing_status"] = "INVALID_FORMAT"
        entry["validation_report"] = report

    def _event(self, ref: str, kind: str, message: str, level: str = "info") -> None:
        with self.books() as books:
            events = books.setdefault("events", {}).setdefault(ref, [])
            events.append({"object": "fine-tune-event", "type": kind, "message": message, "level": level, "created_at": self._time()})
