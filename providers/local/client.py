"""The provider that trains on this machine: a folder per job, a worker process per attempt, no network.

A job's ref is its folder; a tuned model is called ``local:<folder>``. The folder is named by the key, and a lock in it makes
sure that one key never has two workers (``local_backend.jobdir``). The worker outlives the process that started it.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from tuneport.core.data.facts import JobData
from tuneport.core.errors import ProviderError, RefusedError, TuneportError, UsageError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.options import LocalOptions
from tuneport.core.plan import Plan, PlanWarning
from tuneport.core.provider import ChatReply, ChatRequest, Deployer, OnProgress, OpenRows
from tuneport.core.secrets import redact
from tuneport.core.spec import JobSpec
from tuneport.local_backend.archives import ENDINGS, unpacked
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.estimate import detect_hardware
from tuneport.local_backend.jobdir import JobDir, WorkerState, holds_adapter, holds_model, write_atomically
from tuneport.local_backend.models import base_of, locate, packaged_name, require_training_stack
from tuneport.local_backend.parent import keep
from tuneport.local_backend.process import start_generation, start_worker, worker_fault
from tuneport.local_backend.records import write_records
from tuneport.local_backend.tracking import require_trackers
from tuneport.local_backend.turns import place
from tuneport.providers.exchange import split
from tuneport.providers.local.compile import compile_plan
from tuneport.providers.local.deployments import LocalDeployer, answers

MODEL_PREFIX = "local:"
STATES: Mapping[str, JobState] = {
    "starting": JobState.QUEUED,
    "queued": JobState.QUEUED,
    "preparing": JobState.VALIDATING,
    "training": JobState.RUNNING,
    "stopping": JobState.CANCELLING,
    "saving": JobState.FINALIZING,
    "paused": JobState.PAUSED,
    "interrupted": JobState.PAUSED,
    "succeeded": JobState.SUCCEEDED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}
"""The worker's phase -> state. interrupted: the worker is gone without a word (killed); ``resume`` goes on from its checkpoint."""
ENDED = frozenset({"paused", "succeeded", "failed", "cancelled"})
"""Phases that a worker leaves behind when it ends by itself."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STDERR_LINES = 3


def jobs_folder() -> Path:
    """Where job folders lie: ``jobs`` beside a ledger file named by TUNEPORT_LEDGER, else ``.tuneport/jobs``."""
    ledger = os.environ.get("TUNEPORT_LEDGER", "")
    return (Path(ledger).parent if ledger and "://" not in ledger else Path(".tuneport")) / "jobs"


class LocalProvider:
    """Implements ``core.provider.Provider`` on this machine. ``jobs`` is the folder of the job folders.

    ``options`` are those of the spec; device and precision hold for base models too, tuned ones have their own.
    """

    name = "local"
    settle_seconds = 0.0
    reads_per_minute = float("inf")  # this machine's own disk
    unoffered: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: LocalOptions | None = None, *, jobs: Path | None = None) -> None:
        self._options, self._jobs = options or LocalOptions(), jobs

    # -- planning ------------------------------------------------------------------------------------------------------

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        """The exact training configuration for this machine."""
        return compile_plan(spec, data, today, jobs=self._root())

    def online(self, plan: Plan, files: Mapping[str, str] | None = None) -> Plan:  # noqa: ARG002
        """The plan with a warning (code "online") for what is missing on this machine."""
        try:
            require_training_stack()
            locate(plan.vendor_model)
        except TuneportError as error:
            return plan.model_copy(update={"warnings": (*plan.warnings, PlanWarning(code="online", message=str(error)))})
        return plan

    # -- submitting ----------------------------------------------------------------------------------------------------

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:
        """Write the rows into the job's folder; leaves a job that was made already as it is."""
        job = self._new(key)
        files: dict[str, str] = {}
        for upload in plan.uploads:
            path = job.rows(upload.role)
            if not job.config.exists():
                job.path.mkdir(parents=True, exist_ok=True)
                write_records(path, rows(upload.role), TrainConfig.model_validate(plan.payload).method)
            files[upload.role] = str(path)
            if on_progress is not None:
                size = path.stat().st_size
                on_progress(upload.filename, size, size)
        return files

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        """Start the training worker, once per key: an existing job is returned as it stands.

        Raises RefusedError, MissingExtraError without the training libraries, CatalogueError without the base model.
        """
        if plan.refusals:
            raise RefusedError(self.name, plan.refusals)
        require_training_stack()
        require_trackers(TrainConfig.model_validate(plan.payload).tracking)
        source = locate(plan.vendor_model)
        existing = self.find(plan, key)
        if existing is not None:
            return existing
        job = self._new(key)
        text = json.dumps(plan.payload)
        for role, file in files.items():
            text = text.replace(json.dumps(f"${{upload:{role}}}"), json.dumps(file))
        config = TrainConfig.model_validate_json(text)
        if source.path is not None and packaged_name(config.model) is None:
            config = config.model_copy(update={"model": str(source.path.absolute())})  # the worker runs elsewhere
        if config.chat_template is not None:
            _copy_template(Path(config.chat_template), job.chat_template)
        if config.parent is not None:
            keep(config.parent, job.parent)
        write_atomically(job.config, config.model_dump_json(indent=2) + "\n")
        start_worker(job, gpu=_wants_gpu(config))
        return self._remote(job)

    def find(self, plan: Plan, key: str) -> RemoteJob | None:  # noqa: ARG002 - the key is the folder's name
        """The job whose worker was started with this key; exact at once."""
        job = self._new(key)
        begun = job.config.exists() and (job.worker_alive() or job.state() is not None or job.asked() == "cancel")
        return self._remote(job) if begun else None

    # -- following -----------------------------------------------------------------------------------------------------

    def poll(self, ref: str) -> RemoteJob:
        """The job's present state. A worker that vanished (killed, power cut) shows as paused, raw state "interrupted"."""
        return self._remote(self._job(ref))

    def events(self, ref: str) -> Iterator[JobEvent]:
        """The worker's story: loss, learning rate, gradient norm, tokens per second; validation losses; checkpoints."""
        for event in self._job(ref).events():
            yield JobEvent(str(event.number), event.at, event.level, redact(event.message), event.metrics)

    def checkpoints(self, ref: str) -> list[Checkpoint]:
        """Whole checkpoints by step, with the losses of that step. Each can be called as a model."""
        job = self._job(ref)
        metrics: dict[int, dict[str, float]] = {}
        for event in job.events():
            if "step" in event.metrics:
                known = metrics.setdefault(int(event.metrics["step"]), {})
                known |= {name: value for name, value in event.metrics.items() if name in ("loss", "eval_loss")}
        return [Checkpoint(step, f"{MODEL_PREFIX}{folder}", metrics.get(step, {})) for step, folder in job.whole_checkpoints()]

    def log(self, ref: str) -> Path:
        """The file that holds whatever the worker and its libraries printed."""
        return self._job(ref).log

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:
        """Every job in the jobs folder, newest first."""
        root = self._root()
        jobs = [JobDir(path) for path in root.iterdir() if (path / "config.json").exists()] if root.is_dir() else []
        jobs.sort(key=lambda job: job.config.stat().st_mtime, reverse=True)
        for job in jobs[:limit]:
            yield self._remote(job)

    # -- steering ------------------------------------------------------------------------------------------------------

    def cancel(self, ref: str) -> RemoteJob:
        """Stop the job for good. The worker finishes its step, saves a checkpoint and ends as cancelled."""
        return self._stop(ref, "cancel")

    def pause(self, ref: str) -> RemoteJob:
        """Halt the job after the step in hand; ``resume`` goes on from there."""
        return self._stop(ref, "pause")

    def resume(self, ref: str) -> RemoteJob:
        """Go on from the last checkpoint with a paused, interrupted or failed job; harmless on one that runs or succeeded.

        Raises ProviderError on a cancelled job.
        """
        job = self._job(ref)
        phase = _phase(job)[0]
        if phase == "cancelled":
            raise ProviderError(f"job {job.path.name} was cancelled", fix="submit it anew", retry="no")
        if phase in ("paused", "interrupted", "failed"):
            require_training_stack()
            start_worker(job, gpu=_wants_gpu(TrainConfig.read(job.config)))
        return self._remote(job)

    def _stop(self, ref: str, request: Any) -> RemoteJob:
        job = self._job(ref)
        phase = _phase(job)[0]
        if phase in ("succeeded", "failed", "cancelled") or (phase == "paused" and request == "pause"):
            return self._remote(job)
        lock = job.take_lock()
        job.ask(request)  # not before: whoever held the lock to start a worker has forgotten older requests by now
        if lock is not None:  # no worker: the request is carried out here
            try:
                state = job.state() or WorkerState("paused")
                if state.phase not in ("succeeded", "failed"):
                    phase, message = ("cancelled", "cancelled by the user") if request == "cancel" else ("paused", "paused by the user")
                    job.set_state(WorkerState(phase, message, state.step, state.total_steps, attempt=max(1, job.attempt())))
            finally:
                os.close(lock)
        elif (worker := job.worker()) is not None:
            with suppress(ProcessLookupError):  # it ended in this very moment; the request stands all the same
                os.kill(worker[0], signal.SIGTERM)
        return self._remote(job)

    # -- results -------------------------------------------------------------------------------------------------------

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:
        """Copy the finished adapter with its card and configuration into ``folder``; what an earlier call brought whole stays.

        Raises ProviderError before there is an adapter, and when a copy is not what was read.
        """
        job = self._job(ref)
        if not job.finished():
            what = f"job {job.path.name} has no finished adapter"
            raise ProviderError(what, fix="wait for it, or take one of its checkpoints", retry="no")
        folder.mkdir(parents=True, exist_ok=True)
        copied: list[Path] = []
        for source in sorted(path for path in job.adapter.iterdir() if path.is_file()):
            target = folder / source.name
            if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
                partial = target.with_name(f".{target.name}.part")
                shutil.copyfile(source, partial)
                if not filecmp.cmp(source, partial, shallow=False):
                    raise ProviderError(f"the copy of {source} in {folder} differs from it", fix="look to that disk, then export again")
                partial.replace(target)
            copied.append(target)
            if on_progress is not None:
                size = target.stat().st_size
                on_progress(source.name, size, size)
        return copied

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        """Remove the job's folder with its rows, checkpoints and adapter. Raises ProviderError while its worker lives."""
        path = self._path(ref)
        if not path.exists():
            return []
        job = self._job(ref)
        lock = job.take_lock()
        if lock is None:
            raise ProviderError(f"job {path.name} is being trained", fix="cancel it first", retry="no")
        try:
            if not dry_run:
                shutil.rmtree(path)
        finally:
            os.close(lock)
        return [f"folder {path}"]

    def deployments(self) -> Deployer:
        """A server on loopback, in a process of its own."""
        folder = self._root().parent / "deployments"
        return LocalDeployer(folder, self.answering, self._options.gpu_usd_per_hour)

    def chat(self, model: str, requests: Iterable[ChatRequest], *, concurrency: int = 8) -> Iterator[ChatReply]:  # noqa: ARG002
        """Answer requests in a process of its own, batched and greedy; replies come while batches finish.

        ``model`` is a base model, a deployment's name, or ``local:`` and the folder or key of a finished job, or of any adapter.
        ``seconds`` of a reply is the time its row spent in a batch, not a latency. Raises what the worker raised.
        """
        name, address = split(model)
        if address is not None:  # a deployment of ours
            yield from answers(name, address, requests)
            return
        require_training_stack()
        settings = self.answering(model)
        with tempfile.TemporaryDirectory(prefix="tuneport-chat-") as folder:
            file, log = Path(folder) / "requests.jsonl", Path(folder) / "stderr"
            lines = [{"id": r.id, "messages": [dict(m) for m in r.messages], "max_tokens": r.max_tokens} for r in requests]
            if not lines:
                return
            file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (settings, *lines)), encoding="utf-8")
            process = start_generation(file, log)
            with process:
                try:
                    assert process.stdout is not None  # noqa: S101 - it was asked for
                    for line in process.stdout:
                        yield _reply(json.loads(line))
                    status = process.wait()
                finally:
                    if process.poll() is None:
                        process.kill()
            if status != 0:
                last = " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_STDERR_LINES:])
                killed = f"was killed by signal {-status}; memory may have run out" if status < 0 else f"ended with status {status}"
                raise ProviderError(f"the inference worker {killed} ({redact(last)})", fix="free memory, or send fewer or shorter prompts")

    def fingerprint(self, model: str) -> str:
        """SHA-256 over the settings, and the size and time of every file, that decide what the model answers."""
        if split(model)[1] is not None:  # a deployment: a server that holds the weights it began with
            return model
        settings = self.answering(model)
        known = [locate(settings["model"]).path, *(Path(settings[name]) for name in ("adapter", "chat_template") if settings[name])]
        files = (file for path in known if path is not None for file in (sorted(path.iterdir()) if path.is_dir() else [path]))
        told = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        return sha256(json.dumps([settings["dtype"], settings["model"], told]).encode()).hexdigest()

    # -- inner parts ---------------------------------------------------------------------------------------------------

    def _root(self) -> Path:
        return (self._jobs if self._jobs is not None else jobs_folder()).absolute()

    def _new(self, key: str) -> JobDir:
        if not _KEY.fullmatch(key):
            raise UsageError(f"{key!r} cannot name a job's folder", fix="use letters, digits, '.', '_' and '-'")
        return JobDir(self._root() / key)

    def _path(self, ref: str) -> Path:
        return Path(ref) if os.sep in ref else self._root() / ref

    def _job(self, ref: str) -> JobDir:
        job = JobDir(self._path(ref))
        if not job.config.exists():
            raise ProviderError(f"no local job lies in {job.path}", fix="was its folder moved or deleted?", retry="no")
        return job

    def _remote(self, job: JobDir) -> RemoteJob:
        phase, state = _phase(job)
        request = job.asked()
        line = place(job) if phase in ("starting", "preparing", "queued") else None
        phase = "queued" if line else phase
        shown = STATES[phase]
        if shown in (JobState.VALIDATING, JobState.RUNNING) and request == "cancel":
            shown = JobState.CANCELLING
        if phase == "stopping" and request != "cancel":
            shown = JobState.RUNNING
        config = TrainConfig.read(job.config)
        step, total = (state.step, state.total_steps) if state else (0, None)
        message = line.words() if line else redact(state.message) if state and phase != "starting" else ""
        if phase == "cancelled" and (state is None or state.phase != phase):  # its worker was ended before it could say so
            message = "cancelled by the user"
        return RemoteJob(
            ref=str(job.path),
            state=shown,
            raw_state=phase,
            message=_interrupted(job, step, total) if phase == "interrupted" else message,
            progress=1.0 if phase == "succeeded" else step / total if total else None,
            seconds_left=state.seconds_left if state and phase == "training" else None,
            tuned_model=f"{MODEL_PREFIX}{job.path}" if phase == "succeeded" else None,
            base_model=config.model,
            created_at=datetime.fromtimestamp(job.config.stat().st_mtime, UTC),
            key=job.path.name,
        )

    def answering(self, model: str) -> dict[str, Any]:
        """What must be loaded for this model: model (the base), adapter, chat_template, device, dtype. Raises ProviderError."""
        device, dtype = self._options.device or "auto", self._options.dtype or "bf16"
        template = self._options.chat_template
        settings: dict[str, Any] = {"model": model, "adapter": None, "chat_template": template, "device": device, "dtype": dtype}
        settings["trust_remote_code"] = bool(self._options.trust_remote_code)
        if not model.startswith(MODEL_PREFIX):
            if packaged_name(model) is None:
                locate(model)  # a clear error now, rather than from the worker
            return settings
        folder = self._path(model.removeprefix(MODEL_PREFIX))
        if folder.name.endswith(ENDINGS) and folder.is_file():
            folder = unpacked(folder)
        adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
        own = adapter / "chat_template.jinja"
        settings["chat_template"] = str(own) if own.exists() else None
        if holds_model(adapter):  # full tuning
            return settings | base_of(adapter) | {"model": str(adapter)}
        if not holds_adapter(adapter):
            raise ProviderError(f"{folder} holds no finished adapter", fix="wait for the job, or name an adapter's folder", retry="no")
        return settings | {"adapter": str(adapter)} | base_of(adapter)


def _wants_gpu(config: TrainConfig) -> bool:
    """Will the job stand in line for a GPU? Where only torch can tell, its worker joins the line once it has asked torch."""
    return config.device == "cuda" or (config.device == "auto" and detect_hardware().gpu is not None)


def _phase(job: JobDir) -> tuple[str, WorkerState | None]:
    """(phase, last state). The lock is looked at first: whatever a worker that has ended wrote is then read after it.

    A request to cancel outlives a worker that was ended by it before it could say so: starting one anew forgets the request.
    """
    alive = job.worker_alive()
    state = job.state()
    if alive:
        started = state is None or job.attempt() not in (0, state.attempt)  # 0: started by hand
        return ("starting" if started or state is None else state.phase), state
    if state is not None and state.phase in ENDED and state.attempt == (job.attempt() or state.attempt):
        return state.phase, state
    return ("cancelled" if job.asked() == "cancel" else "interrupted"), state


def _interrupted(job: JobDir, step: int, total: int | None) -> str:
    where = f"at step {step} of {total}" if total else "before its first step"
    found = job.last_checkpoint()
    start = f"from its checkpoint at step {found[0]}" if found else "from the start"
    return f"the worker ended without a result {where} (killed? see {job.log}); go on {start} with: tuneport resume"


def _copy_template(source: Path, target: Path) -> None:
    try:
        write_atomically(target, source.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"options.local.chat_template {source} cannot be read ({error})", fix="name a Jinja file in UTF-8") from error


def _reply(line: dict[str, Any]) -> ChatReply:
    """A line of the worker as a reply. Raises the fault that a line may hold instead, as the same class of error."""
    if "fault" in line:
        raise worker_fault(line)
    return ChatReply(
        id=line["id"],
        text=line.get("text", ""),
        prompt_tokens=line.get("prompt_tokens"),
        completion_tokens=line.get("completion_tokens"),
        seconds=line.get("seconds"),
        error=line.get("error", ""),
        batched=True,
    )
