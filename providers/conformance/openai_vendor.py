"""OpenAI's files, uploads, fine-tuning jobs, models and chat completions, as its own SDK meets them.

Shapes: openai 3.54.0 (types/), error bodies as the SDK reads them. What a paused job says is a guess ("paused").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from tuneport.providers.conformance.server import FakeVendor, Reply, Request, VendorError, route

KEY = "tuneport_key"
FINAL = frozenset({"succeeded", "failed", "cancelled"})
STEPS = (10, 20, 30)
"""Steps of a finished job at which there is a checkpoint and an event with metrics."""
CREATE_FIELDS = frozenset(
    {"model", "training_file", "validation_file", "method", "seed", "suffix", "metadata", "integrations", "hyperparameters"}
)


class OpenAIVendor(FakeVendor):
    """A stateful fake of OpenAI."""

    secret = "sk-proj-conformance0123456789abcdef"  # noqa: S105 -- of a fake
    script = ("validating_files", "queued", "running", "succeeded")
    submission_routes = ("file_list", "upload", "create")
    events_of: ClassVar[Mapping[str, str]] = {
        "validating_files": "Validating training file",
        "queued": "Files validated, moving job to queued state",
        "running": "Fine-tuning job started",
        "succeeded": "The job has successfully completed",
        "failed": "The job failed due to an invalid training file. line 3: the last message must be from the assistant",
        "cancelled": "Fine-tuning job cancelled",
    }

    @property
    def environment(self) -> dict[str, str]:
        """Address and key."""
        return {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": self.secret}

    def error(self, status: int, message: str, code: str | None) -> dict[str, Any]:
        """OpenAI's error body."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def authorise(self, request: Request) -> None:
        """A bearer token."""
        if request.headers.get("authorization") != f"Bearer {self.secret}":
            raise VendorError(401, "Incorrect API key provided.", "invalid_api_key")

    def key_of(self, body: Mapping[str, Any]) -> str | None:
        """In the metadata."""
        return (body.get("metadata") or {}).get(KEY)

    def set_state(self, ref: str, raw: str) -> None:
        """Bring a job into a state."""
        with self.books() as books:
            job = self.job(ref)
            if job["status"] == raw:
                return
            job["status"] = raw
            job["finished_at"] = int(self.now()) if raw in FINAL else None
            job["estimated_finish"] = int(self.now()) + 600 if raw == "running" else None
            error = {"code": "invalid_training_file", "message": self.events_of["failed"], "param": "training_file"}
            job["error"] = error if raw == "failed" else None
            self._event(ref, self.events_of.get(raw, f"The job is {raw}"), "error" if raw == "failed" else "info")
            job["fine_tuned_model"] = job["trained_tokens"] = None
            if raw == "succeeded":
                name = f"ft:{job['model'].removeprefix('ft:')}:acme:{job['user_provided_suffix'] or ''}:{ref[-6:]}"
                job |= {"fine_tuned_model": name, "trained_tokens": self._tokens(job) * 3}
                for step in STEPS:
                    self._event(ref, f"Step {step}/30", "info", {"step": step, "train_loss": round(2 / step, 4), "total_steps": STEPS[-1]})
                models = {name, *(self._checkpoint_model(job, step) for step in STEPS)}
                books["models"] = sorted({*books.get("models", []), *models})

    # Files

    @route("POST", "/v1/files", "upload")
    def create_file(self, request: Request) -> dict[str, Any]:
        """One file by multipart/form-data."""
        fields, files = request.form()
        if fields.get("purpose") != "fine-tune" or "file" not in files:
            raise VendorError(400, "purpose and file are required.")
        name, content = files["file"]
        return self._store(name, content)

    @route("GET", "/v1/files", "file_list")
    def list_files(self, request: Request) -> dict[str, Any]:
        """Newest first unless order=asc."""
        with self.books() as books:
            found = [_shown(entry) for entry in books["files"].values() if request.query.get("purpose", "fine-tune") == entry["purpose"]]
        return _page(found if request.query.get("order") == "asc" else found[::-1], request, most=10_000)

    @route("GET", "/v1/files/{id}", "file")
    def get_file(self, request: Request) -> dict[str, Any]:
        """One file's entry."""
        return _shown(self._file_entry(request.params["id"]))

    @route("DELETE", "/v1/files/{id}", "file_delete")
    def delete_file(self, request: Request) -> dict[str, Any]:
        """Remove a file."""
        self._file_entry(request.params["id"])
        with self.books() as books:
            del books["files"][request.params["id"]]
        return {"id": request.params["id"], "object": "file", "deleted": True}

    @route("POST", "/v1/uploads", "upload_begin")
    def begin_upload(self, request: Request) -> dict[str, Any]:
        """An upload in parts."""
        body, ref = request.json(), self.new_id("upload_")
        upload = {"id": ref, "object": "upload", "status": "pending", "created_at": int(self.now()), "expires_at": int(self.now()) + 3600}
        upload |= {name: body[name] for name in ("bytes", "filename", "purpose")}
        with self.books() as books:
            books.setdefault("uploads", {})[ref] = {**upload, "parts": {}}
        return upload

    @route("POST", "/v1/uploads/{id}/parts", "upload_part")
    def add_part(self, request: Request) -> dict[str, Any]:
        """One part."""
        _, files = request.form()
        ref = self.new_id("part_")
        with self.books() as books:
            self._upload(request)["parts"][ref] = files["data"][1].decode("latin-1")
            books["touched"] = ref
        return {"id": ref, "object": "upload.part", "created_at": int(self.now()), "upload_id": request.params["id"]}

    @route("POST", "/v1/uploads/{id}/complete", "upload")
    def complete_upload(self, request: Request) -> dict[str, Any]:
        """Join the parts in the given order; size and checksum must agree."""
        upload, body = self._upload(request), request.json()
        content = "".join(upload["parts"][part] for part in body["part_ids"]).encode("latin-1")
        if len(content) != upload["bytes"] or body.get("md5") not in (None, hashlib.md5(content).hexdigest()):  # noqa: S324 -- the API's
            raise VendorError(400, "The bytes uploaded do not match what was announced.")
        with self.books():
            upload["status"], upload["parts"] = "completed", {}
            return {key: value for key, value in upload.items() if key != "parts"} | {"file": self._store(upload["filename"], content)}

    @route("POST", "/v1/uploads/{id}/cancel", "upload_cancel")
    def cancel_upload(self, request: Request) -> dict[str, Any]:
        """Give an upload up."""
        upload = self._upload(request)
        upload |= {"status": "cancelled", "parts": {}}
        return {key: value for key, value in upload.items() if key != "parts"}

    # Jobs

    @route("POST", "/v1/fine_tuning/jobs", "create")
    def create(self, request: Request) -> dict[str, Any]:
        """Make a job."""
        body = request.json()
        if self.closed:
            raise VendorError(403, "Your organization is not allowed to create fine-tuning jobs.", "training_not_available")
        if unknown := body.keys() - CREATE_FIELDS:
            raise VendorError(400, f"Unrecognized request argument supplied: {sorted(unknown)[0]}")
        if len(body.get("metadata") or {}) > 16:
            raise VendorError(400, "metadata has more than 16 pairs.")
        for name in ("training_file", "validation_file"):
            if name in body and body[name] not in self.snapshot()["files"]:
                raise VendorError(400, f"File '{body[name]}' does not exist.", "invalid_" + name)
        ref = self.new_id("ftjob-")
        job = {
            "id": ref, "object": "fine_tuning.job", "created_at": int(self.now()), "error": None, "fine_tuned_model": None,
            "finished_at": None, "hyperparameters": {"n_epochs": "auto"}, "model": body["model"], "organization_id": "org-acme",
            "result_files": [], "seed": body.get("seed", 42), "status": self.script[0], "trained_tokens": None,
            "training_file": body["training_file"], "validation_file": body.get("validation_file"), "estimated_finish": None,
            "integrations": body.get("integrations") or [], "metadata": body.get("metadata"), "method": body.get("method"),
            "user_provided_suffix": body.get("suffix"),
        }  # fmt: skip
        with self.books() as books:
            books["jobs"][ref] = job
        self.record_made(ref, body)
        self._event(ref, f"Created fine-tuning job: {ref}")
        self._event(ref, self.events_of[self.script[0]])
        return job

    @route("GET", "/v1/fine_tuning/jobs", "list")
    def list_jobs(self, request: Request) -> dict[str, Any]:
        """Newest first, by metadata when asked."""
        wanted = {name[len("metadata[") : -1]: value for name, value in request.query.items() if name.startswith("metadata[")}
        found = [job for job in self.listed() if all((job["metadata"] or {}).get(key) == value for key, value in wanted.items())]
        return _page(found, request, most=100)

    @route("GET", "/v1/fine_tuning/jobs/{id}", "poll")
    def get_job(self, request: Request) -> dict[str, Any]:
        """One job."""
        return self.job(request.params["id"])

    @route("POST", "/v1/fine_tuning/jobs/{id}/cancel", "cancel")
    def cancel(self, request: Request) -> dict[str, Any]:
        """Stop a job that has not ended."""
        return self._move(request, "cancelled")

    @route("POST", "/v1/fine_tuning/jobs/{id}/pause", "pause")
    def pause(self, request: Request) -> dict[str, Any]:
        """Halt a job."""
        return self._move(request, "paused")

    @route("POST", "/v1/fine_tuning/jobs/{id}/resume", "resume")
    def resume(self, request: Request) -> dict[str, Any]:
        """Go on."""
        return self._move(request, "queued")

    @route("GET", "/v1/fine_tuning/jobs/{id}/events", "events")
    def list_events(self, request: Request) -> dict[str, Any]:
        """Newest first."""
        self.job(request.params["id"])
        return _page(self.snapshot().get("events", {}).get(request.params["id"], [])[::-1], request, most=100)

    @route("GET", "/v1/fine_tuning/jobs/{id}/checkpoints", "checkpoints")
    def list_checkpoints(self, request: Request) -> dict[str, Any]:
        """Newest first."""
        job = self.job(request.params["id"])
        found = [
            {
                "id": f"ftckpt-{job['id'][-6:]}-{step}", "object": "fine_tuning.job.checkpoint", "created_at": job["created_at"] + step,
                "fine_tuned_model_checkpoint": self._checkpoint_model(job, step), "fine_tuning_job_id": job["id"],
                "metrics": {"step": float(step), "train_loss": round(2 / step, 4)}, "step_number": step,
            }
            for step in (STEPS if job["status"] == "succeeded" else ())
        ]  # fmt: skip
        return _page(found[::-1], request, most=100)

    # Models

    @route("GET", "/v1/models/{id...}", "model")
    def get_model(self, request: Request) -> dict[str, Any]:
        """Base models are all known; a tuned one until it is deleted."""
        name = request.params["id"]
        if name.startswith("ft:") and name not in self.snapshot().get("models", []):
            raise VendorError(404, f"The model '{name}' does not exist", "model_not_found")
        return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "acme" if name.startswith("ft:") else "system"}

    @route("DELETE", "/v1/models/{id...}", "model_delete")
    def delete_model(self, request: Request) -> dict[str, Any]:
        """Remove a tuned model."""
        name = request.params["id"]
        with self.books() as books:
            if name not in books.get("models", []):
                raise VendorError(404, f"The model '{name}' does not exist", "model_not_found")
            books["models"].remove(name)
        return {"id": name, "object": "model", "deleted": True}

    @route("POST", "/v1/chat/completions", "chat")
    def chat(self, request: Request) -> dict[str, Any]:
        """Answers with the last message in it. Reasoning models take no temperature."""
        body = request.json()
        name = body["model"]
        if name.startswith("ft:") and name not in self.snapshot().get("models", []):
            raise VendorError(404, f"The model '{name}' does not exist", "model_not_found")
        if name.removeprefix("ft:").startswith("o") and body.get("temperature") is not None:
            detail = {"message": "Unsupported value: 'temperature'", "type": "invalid_request_error", "param": "temperature"}
            return Reply({"error": {**detail, "code": "unsupported_value"}}, 400)  # type: ignore[return-value]
        text = f"{name} says: {body['messages'][-1]['content']}"
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": int(self.now()), "model": name,
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
        }  # fmt: skip

    # Inner parts

    def _store(self, name: str, content: bytes) -> dict[str, Any]:
        ref = self.new_id("file-")
        entry = {
            "id": ref, "object": "file", "bytes": len(content), "created_at": int(self.now()), "filename": name, "purpose": "fine-tune",
            "status": "processed", "expires_at": None,
        }  # fmt: skip
        with self.books() as books:
            books["files"][ref] = {**entry, "content": content.decode()}
        return entry

    def _file_entry(self, ref: str) -> dict[str, Any]:
        with self.books() as books:
            found: dict[str, Any] | None = books["files"].get(ref)
        if found is None:
            raise VendorError(404, f"No such File object: {ref}")
        return found

    def _upload(self, request: Request) -> dict[str, Any]:
        with self.books() as books:
            found: dict[str, Any] | None = books.get("uploads", {}).get(request.params["id"])
        if found is None or found["status"] != "pending":
            raise VendorError(404, f"No pending upload {request.params['id']}")
        return found

    def _move(self, request: Request, raw: str) -> dict[str, Any]:
        job = self.job(request.params["id"])
        if job["status"] in FINAL:
            raise VendorError(400, f"Job has already completed: {job['id']}")
        self.set_state(job["id"], raw)
        return self.job(job["id"])

    def _event(self, ref: str, message: str, level: str = "info", metrics: Mapping[str, float] | None = None) -> None:
        with self.books() as books:
            events: list[dict[str, Any]] = books.setdefault("events", {}).setdefault(ref, [])
            event = {"id": self.new_id("ftevent-"), "object": "fine_tuning.job.event", "created_at": int(self.now()), "level": level}
            events.append({**event, "message": message, "type": "metrics" if metrics else "message", "data": dict(metrics or {})})

    def _tokens(self, job: Mapping[str, Any]) -> int:
        with self.books() as books:
            content = books["files"].get(job["training_file"], {}).get("content", "")
        return max(1, len(content) // 4)

    def _checkpoint_model(self, job: Mapping[str, Any], step: int) -> str:
        return f"{job['fine_tuned_model']}" if step == STEPS[-1] else f"{job['fine_tuned_model']}:ckpt-step-{step}"


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "content"}


def _page(found: Iterable[dict[str, Any]], request: Request, most: int) -> dict[str, Any]:
    rows = list(found)
    after = request.query.get("after")
    if after is not None:
        ids = [row["id"] for row in rows]
        rows = rows[ids.index(after) + 1 :] if after in ids else []
    limit = min(int(request.query.get("limit", "20")), most)
    shown = rows[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, "has_more": len(rows) > limit, **ends}
