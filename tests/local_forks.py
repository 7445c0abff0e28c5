"""Workers as forks of one process that has loaded the training libraries: processes of their own, without the cost of their start."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.process import worker_environment

PRELOADED = [
    "tuneport.local_backend.methods", "tuneport.local_backend.card", "transformers.models.llama.modeling_llama",
    *(f"trl.trainer.{method}_trainer" for method in ("dpo", "kto", "grpo")), "trl.experimental.orpo", "trl.experimental.cpo",
]  # fmt: skip


@contextmanager
def forks() -> Iterator[Any]:
    """A context of multiprocessing for ``attempt``."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in worker_environment().items():
            patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        yield context


def attempt(context: Any, job: JobDir, kill_at: int | str | None = None) -> int:
    """One worker's attempt at the job, in a process of its own; returns its exit code. ``kill_at`` as for ``work``."""
    process = context.Process(target=work, args=(str(job.path), kill_at))
    process.start()
    process.join(120)
    code = process.exitcode
    if code is None:
        process.kill()
        raise AssertionError(f"the worker hangs: {job.state()}")
    return int(code)


def work(path: str, kill_at: int | str | None) -> None:
    """A worker's whole life, cut short by kill -9 in the midst of writing its n-th event, or of "save", a checkpoint."""
    from tuneport.local_backend import story, train

    written = 0
    add_event, saved = JobDir.add_event, story.Story.on_save

    def event(job: JobDir, *about: Any, **more: Any) -> None:
        nonlocal written
        written += 1
        if written == kill_at:
            with (job.path / "events.jsonl").open("a") as file:
                file.write('{"at": "2026-')
            os.kill(os.getpid(), signal.SIGKILL)
        add_event(job, *about, **more)

    def save(self: Any, *about: Any, **more: Any) -> None:
        if kill_at == "save" and self.run.job.whole_checkpoints():  # the second: the first is there to go on from
            os.kill(os.getpid(), signal.SIGKILL)
        saved(self, *about, **more)

    JobDir.add_event = event  # type: ignore[method-assign]
    story.Story.on_save = save  # type: ignore[method-assign]
    os._exit(train.main([str(Path(path))]))
