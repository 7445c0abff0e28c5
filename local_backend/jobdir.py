"""The folder of one local job: what is in it, and how it is read and written so that a crash never leaves half a file.

    config.json      the resolved configuration (``TrainConfig``), written once
    train.jsonl      {"messages": [...], "tools": [...]} per line; validation.jsonl likewise, when there are such rows
    parent/          the earlier adapter that training goes on from, when there is one
    worker.lock      locked by the worker as long as it lives; the kernel frees it however the worker ends
    worker.json      process id of the last worker, and which attempt it was
    request          "cancel" or "pause" when the user asked the worker to stop
    began.json       what the run began with: the base's fingerprint, the device, the versions
    state.json       the last known state; events.jsonl the story, one line per event; worker.log the worker's output
    checkpoints/     checkpoint-N, each with a file COMPLETE once it is whole
    tracking/        what TensorBoard, W&B or MLflow are to read, when the job asks for them
    best/, adapter/  the adapter with the lowest validation loss so far; the finished adapter with its model card. Full tuning
                     leaves a whole model in their place

Needs POSIX (file locks, signals). Imports nothing heavy: the command line reads job folders too.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tuneport.core.errors import ProviderError, UsageError

COMPLETE = "COMPLETE"
"""Marker inside a checkpoint folder; a checkpoint without it was cut off and is not used."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DISK_FULL = ("No space left on device", "os error 28", "PytorchStreamWriter failed writing file", "unexpected pos")
_LOCK_TRIES, _LOCK_PAUSE = 10, 0.02
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker last said of itself. Phases: preparing, queued, training, saving, stopping, succeeded, failed, cancelled, paused."""

    phase: str
    message: str = ""
    step: int = 0
    total_steps: int | None = None
    seconds_left: float | None = None
    attempt: int = 1
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of events.jsonl. ``number`` counts from 1 through all attempts."""

    number: int
    at: datetime
    level: str
    message: str
    metrics: dict[str, float]


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step: readers see the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def disk_full(error: Exception) -> bool:
    """Is there no room left, as the system, safetensors or PyTorch (twice) say it?"""
    return any(sign in str(error) for sign in _DISK_FULL)


def holds_adapter(folder: Path) -> bool:
    """Is there a whole adapter in the folder?"""
    return all((folder / name).exists() for name in ADAPTER_FILES)


def holds_model(folder: Path) -> bool:
    """Is there a whole model in the folder?"""
    return (folder / "config.json").exists() and any((folder / name).exists() for name in _MODEL_WEIGHTS)


class JobDir:
    """A job's folder. Opening one reads nothing and creates nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.log = path / "worker.log"
        self.checkpoints = path / "checkpoints"
        self.parent = path / "parent"
        self.best = path / "best"
        self.adapter = path / "adapter"
        self.chat_template = path / "chat_template.jinja"
        self.follower: Callable[[dict[str, float]], None] | None = None  # is told the metrics of every event that is added
        self._state = path / "state.json"
        self._events = path / "events.jsonl"
        self._worker = path / "worker.json"
        self._lock = path / "worker.lock"
        self._request = path / "request"
        self._began = path / "began.json"

    def rows(self, role: str) -> Path:
        """Where the rows of this role (train or validation) stand."""
        return self.path / f"{role}.jsonl"

    # -- state and events ----------------------------------------------------------------------------------------------

    def state(self) -> WorkerState | None:
        """The last state that a worker wrote; None before the first. Raises ProviderError when the file is damaged."""
        stored = _read_json(self._state)
        if stored is None:
            return None
        known = {f.name for f in fields(WorkerState)}
        return WorkerState(**{name: value for name, value in stored.items() if name in known})

    def set_state(self, state: WorkerState, *, last: bool = False) -> None:
        """Store the state, stamped with the time. ``last``: a worker's last word, which on a full disk takes the earlier one's place."""
        told = asdict(state) | {"updated_at": datetime.now(UTC).isoformat()}
        try:
            write_json(self._state, told)
        except OSError:
            if not last or not self._state.exists():
                raise
            with self._state.open("r+", encoding="utf-8") as file:
                file.write(json.dumps(told, ensure_ascii=False))
                file.truncate()

    def add_event(self, message: str, *, level: str = "info", metrics: dict[str, float] | None = None) -> None:
        """Append one event in a single write, whole or not at all. Only the worker that holds the lock may call this."""
        line = {"at": datetime.now(UTC).isoformat(), "level": level, "message": message, "metrics": metrics or {}}
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._events.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            if file.write(data) != len(data):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._events))
        if metrics and self.follower is not None:
            self.follower(metrics)

    def beginning(self) -> dict[str, Any] | None:
        """What the run began with; None for one that did not say."""
        return _read_json(self._began)

    def set_beginning(self, told: dict[str, Any]) -> None:
        """Store what the run begins with."""
        write_json(self._began, told)

    def mend_events(self) -> None:
        """Cut off a last line that a killed worker left unfinished, so that later lines stay readable."""
        if not self._events.exists():
            return
        content = self._events.read_bytes()
        if content and not content.endswith(b"\n"):
            write_atomically(self._events, content[: content.rfind(b"\n") + 1].decode())

    def events(self) -> Iterator[Event]:
        """Every whole line of the story, oldest first."""
        if not self._events.exists():
            return
        with self._events.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith("\n"):
                    stored = json.loads(line)
                    at = datetime.fromisoformat(stored["at"])
                    yield Event(number, at, stored["level"], stored["message"], stored["metrics"])

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def whole_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every whole checkpoint, by step."""
        found = [
            (int(match[1]), entry)
            for entry in (self.checkpoints.iterdir() if self.checkpoints.is_dir() else ())
            if (match := _CHECKPOINT.fullmatch(entry.name)) and (entry / COMPLETE).exists()
        ]
        return sorted(found)

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the latest whole checkpoint, or None."""
        return max(self.whole_checkpoints(), default=None)

    def finished(self) -> bool:
        """True when the finished adapter, or the fully tuned model, lies there, whole."""
        return holds_adapter(self.adapter) or holds_model(self.adapter)

    def remove_partial(self) -> None:
        """Remove what saves that were broken off have left behind. Only the worker that holds the lock may call this."""
        best = _read_json(self.best / "best.json") or {}
        left = [entry for entry in self._entries(self.checkpoints) if _CHECKPOINT.fullmatch(entry.name) and not (entry / COMPLETE).exists()]
        left += [entry for entry in self._entries(self.best) if entry.is_dir() and entry.name != f"step-{best.get('step')}"]
        left += [entry for name in (self.adapter.name, self._state.name) for entry in self.path.glob(f".{name}.*.tmp")]
        for entry in left:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    @staticmethod
    def _entries(folder: Path) -> list[Path]:
        return list(folder.iterdir()) if folder.is_dir() else []

    # -- the worker ----------------------------------------------------------------------------------------------------

    def take_lock(self) -> int | None:
        """Lock the job for one worker; the open file's descriptor, or None when a worker holds it.

        The lock belongs to the open file, so a child that inherits the descriptor keeps it until it ends, even by kill -9.
        """
        fcntl = fcntl_module()
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        for _ in range(_LOCK_TRIES):  # a reader in ``worker_alive`` holds the lock for an instant
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE)
            else:
                return descriptor
        os.close(descriptor)
        return None

    def worker_alive(self) -> bool:
        """Does a worker hold the lock? Changes nothing."""
        if not self._lock.exists():
            return False
        fcntl = fcntl_module()
        descriptor = os.open(self._lock, os.O_RDONLY)
        try:
            # A shared lock, held for an instant: two readers never take each other for a worker.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def ask(self, request: Literal["cancel", "pause"]) -> None:
        """Ask the worker to stop; it looks after every step."""
        write_atomically(self._request, request)

    def asked(self) -> str | None:
        """What the user asked the worker for: "cancel", "pause" or None."""
        try:
            return self._request.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def clear_request(self) -> None:
        """Forget an earlier request; done when a worker is started anew."""
        self._request.unlink(missing_ok=True)

    def set_worker(self, pid: int | None, attempt: int) -> None:
        """Note which process works on the job; None while it is being started, so that nobody signals its forerunner."""
        write_json(self._worker, {"pid": pid, "attempt": attempt, "started_at": time.time()})

    def worker(self) -> tuple[int, int] | None:
        """(process id, attempt) of the last worker, as far as it has started; the process lives only while ``worker_alive``."""
        stored = _read_json(self._worker)
        return (stored["pid"], stored["attempt"]) if stored and stored["pid"] is not None else None

    def attempt(self) -> int:
        """Which attempt at the job is the last, from 1; 0 before the first."""
        stored = _read_json(self._worker)
        return int(stored["attempt"]) if stored else 0


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ProviderError(f"{path} cannot be read ({error})", fix="restore it, or submit the job anew") from error
    if not isinstance(value, dict):
        raise ProviderError(f"{path} does not hold a JSON object", fix="restore it, or submit the job anew")
    return value


def fcntl_module() -> Any:
    """The module of file locks. Raises UsageError where there is none."""
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows, where planning still works
    except ImportError as error:
        raise UsageError("local training needs POSIX file locks, which this system lacks", fix="run it on Linux, macOS or WSL") from error
    return fcntl
