"""One job at a time on each GPU of this machine, in the order in which they were submitted; the rest wait in line.

The line of a device is a folder in the user's cache. It has an entry for each job whose worker was started: ``1.<submitted>.<key>``,
or ``0.<submitted>.<key>`` for the one that has the device, each a file that names the job's folder. Whoever starts a worker enters
its job first, so that no worker overtakes one that starts slowly. An entry counts while its worker lives: while the job's lock is
held, or that of the entry itself, which a worker that has the device keeps until its process is gone, memory and all. The kernel
frees both however the worker ends, so a killed one holds nobody up. The line is that of one user on one machine, whatever the ledgers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tuneport.local_backend.jobdir import JobDir, fcntl_module
from tuneport.local_backend.models import cache_dir

PAUSE = 0.5
"""Seconds between two looks at the line."""
HAS_IT, WAITS = "0", "1"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands in line. ``ahead`` holds the keys of the jobs before it, the one that has the device first."""

    device: str
    ahead: tuple[str, ...]

    @property
    def number(self) -> int:
        """1 for the job that has the device, or is to have it next."""
        return len(self.ahead) + 1

    def words(self) -> str:
        """For people."""
        *others, last = self.ahead
        return f"place {self.number} in line for {self.device}, behind {', '.join(others) + ' and ' if others else ''}{last}"


def gpu_name(visible: str | None) -> str:
    """The device of a worker that sees the first of these GPUs (CUDA_VISIBLE_DEVICES), as its line is called."""
    return f"cuda:{(visible or '0').split(',')[0]}"


def enter(device: str, job: JobDir) -> None:
    """Put the job in line, by when it was submitted. Its lock must be held already, or the entry counts for nothing."""
    folder = _folder(device)
    submitted = job.config.stat().st_mtime_ns  # it is written once, when the job is made
    with _alone(folder):
        entry = folder / f"{WAITS}.{submitted:020d}.{job.path.name}"
        hidden = folder / f".{entry.name}"
        hidden.write_text(str(job.path.absolute()), encoding="utf-8")
        hidden.rename(entry)


def take_turn(device: str, job: JobDir, waiting: Callable[[Place], None]) -> int:
    """Wait until the device is the job's; the open descriptor holds it for as long as it stays open.

    ``waiting`` is called at each look while others are ahead; it may raise, to leave the line.
    """
    fcntl, folder = fcntl_module(), _folder(device)
    try:
        while True:
            with _alone(folder):
                mine, ahead = _place(folder, job)
                for entry in _entries(folder):
                    if entry != mine and not _alive(entry, job):
                        entry.unlink(missing_ok=True)
                if mine is not None and not ahead:
                    descriptor = os.open(mine, os.O_RDWR)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    mine.rename(folder / f"{HAS_IT}{mine.name[1:]}")
                    return descriptor
            if mine is None:
                enter(device, job)
            else:
                waiting(Place(device, ahead))
                time.sleep(PAUSE)
    except BaseException:
        leave(device, job)
        raise


def leave(device: str, job: JobDir) -> None:
    """Take a waiting job out of the line."""
    folder = _path(device)
    entry = _place(folder, job)[0] if folder.is_dir() else None
    if entry is not None:
        entry.unlink(missing_ok=True)


def place(job: JobDir) -> Place | None:
    """Where the job waits; None when no other is ahead of it, or it stands in no line. Changes nothing."""
    root = cache_dir() / "devices"
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        mine, ahead = _place(folder, job)
        if mine is not None:
            return Place(folder.name.replace("-", ":", 1), ahead) if ahead else None
    return None


def _place(folder: Path, job: JobDir) -> tuple[Path | None, tuple[str, ...]]:
    """(the job's entry, if it waits there; keys of the jobs ahead of it)."""
    found = _entries(folder)
    mine = next((entry for entry in found if entry.name.startswith(WAITS) and _job(entry).path == job.path.absolute()), None)
    if mine is None:
        return None, ()
    return mine, tuple(_job(entry).path.name for entry in found[: found.index(mine)] if _alive(entry, job))


def _alive(entry: Path, me: JobDir) -> bool:
    """Is there a worker behind this entry, other than that of ``me``, or one of ``me`` that is not quite gone yet?"""
    fcntl, job = fcntl_module(), _job(entry)
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return job.path != me.path.absolute() and job.worker_alive()


def _path(device: str) -> Path:
    return cache_dir() / "devices" / device.replace(":", "-", 1).replace("/", "-")


def _folder(device: str) -> Path:
    folder = _path(device)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _entries(folder: Path) -> list[Path]:
    """The one that has the device, then the others by when they were submitted."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _job(entry: Path) -> JobDir:
    path = ""
    with suppress(FileNotFoundError):  # it left in this very moment
        path = entry.read_text(encoding="utf-8")
    return JobDir(Path(path or os.devnull))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else changes this line meanwhile."""
    fcntl = fcntl_module()
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
