"""One job at a time on each GPU of this machine: workers stand in line, first come, first served.

Each worker in line holds a locked file in the device's folder, named by when it came. The first whose predecessors are all gone
has its turn. The kernel frees the lock of a worker however it ends, so a killed one holds nobody up. The line is that of one
user on one machine, whatever the ledgers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tuneport.local_backend.jobdir import fcntl_module
from tuneport.local_backend.models import cache_dir

PAUSE = 0.5
"""Seconds between two looks at the line."""


def take_turn(device: str, job: str, waiting: Callable[[str], None]) -> int:
    """Wait until the device is free; the open descriptor holds it for as long as it stays open.

    ``waiting`` is called at each look while another job is ahead, with that job's name; it may raise to leave the line.
    """
    fcntl = fcntl_module()
    folder = cache_dir() / "devices" / device.replace(":", "-").replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.time_ns():020d}.{os.getpid()}.{job}"
    hidden = folder / f".{name}"
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o644)
    ticket = folder / name
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        hidden.rename(ticket)  # it appears locked, so that nobody takes it for one left behind
        while (ahead := _ahead(folder, name)) is not None:
            waiting(ahead)
            time.sleep(PAUSE)
    except BaseException:
        for path in (hidden, ticket):
            path.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def _ahead(folder: Path, name: str) -> str | None:
    """The job just ahead in line that is still alive; tickets of dead workers are removed."""
    fcntl = fcntl_module()
    for earlier in sorted((entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name < name), reverse=True):
        try:
            descriptor = os.open(folder / earlier, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return earlier.split(".", 2)[2]
        else:
            (folder / earlier).unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    return None
