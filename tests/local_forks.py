"""Workers as forks of one process that has loaded the training libraries: processes of their own, without the cost of their start."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

import pytest

from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.process import worker_environment

PRELOADED = [
    "tuneport.local_backend.methods", "tuneport.local_backend.card", "transformers.models.llama.modeling_llama",
    *(f"trl.trainer.{method}_trainer" for method in ("dpo", "kto", "grpo")), "trl.experimental.orpo", "trl.experimental.cpo",
]  # fmt: skip

LIMIT_S = 240
KILLED = -signal.SIGKILL
Moment = int | Literal["save", "validate", "result", "line"]
What = Literal["kill", "cancel"]


@contextmanager
def forks(cache: Path) -> Iterator[Any]:
    """A context of multiprocessing for ``attempt``. ``cache``: the user's cache folder, as the workers see it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in worker_environment().items():
            patch.setenv(name, value)
        patch.setenv("TUNEPORT_CACHE", str(cache))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()  # with this environment
        yield context


def attempt(context: Any, job: JobDir, at: Moment | None = None, what: What = "kill", *, packed: bool = False) -> int:
    """One worker's attempt at the job, in a process of its own; returns its exit code. See ``work``."""
    process = started(context, job, at, what, packed=packed)
    process.join(LIMIT_S)
    code = process.exitcode
    if code is None:
        process.kill()
        raise AssertionError(f"the worker hangs: {job.state()}")
    return int(code)


def started(context: Any, job: JobDir, at: Moment | None = None, what: What = "kill", *, packed: bool = False) -> Any:
    """The process of an attempt that has begun."""
    process = context.Process(target=work, args=(str(job.path), at, what, packed))
    process.start()
    return process


def work(path: str, at: Moment | None, what: What, packed: bool) -> None:
    """A worker's whole life, by the ``packed`` pass or the usual one; at a moment of it comes kill -9, or the user's cancel.

    A moment is the writing of its n-th event, which a kill leaves torn; "save", before its second checkpoint is whole; "validate",
    within its second validation; "result", before the adapter is written; or "line": it stands in line for a GPU.
    """
    from tuneport.local_backend import best, card, story, train, trainer

    gc.freeze()  # as ``libraries.loading`` does in a worker
    job, met = JobDir(Path(path)), 0

    def met_at(moment: Moment) -> None:
        if moment != at:
            return
        if what == "kill":
            if isinstance(at, int):
                with (job.path / "events.jsonl").open("a") as file:
                    file.write('{"at": "2026-')
            os.kill(os.getpid(), signal.SIGKILL)
        job.ask("cancel")
        os.kill(os.getpid(), signal.SIGTERM)

    def before(owner: Any, name: str, when: Callable[[], None]) -> None:
        done = getattr(owner, name)

        def patched(*about: Any, **more: Any) -> Any:
            when()
            return done(*about, **more)

        setattr(owner, name, patched)

    def event() -> None:
        nonlocal met
        met += 1
        met_at(met)

    before(JobDir, "add_event", event)
    before(story.Story, "on_save", lambda: met_at("save") if job.whole_checkpoints() else None)
    before(best.BestAdapter, "offer", lambda: met_at("validate") if (job.best / "best.json").exists() else None)
    before(card, "save_result", lambda: met_at("result"))
    if packed:
        trainer.train = partial(_train_packed, trainer.train)
    if at == "line":
        train.choose_device = lambda _: "cuda"
    os._exit(train.main([path]))


def _train_packed(train: Callable[..., str], run: Any, *rest: Any) -> str:
    """The packed pass on the CPU, where its arithmetic runs without the kernels."""
    from tuneport.local_backend.models import shape_from_config
    from tuneport.local_backend.packed import packed_decoder
    from tuneport.local_backend.packed_trainer import FastPass
    from tuneport.local_backend.room import Room, footprint

    shape = shape_from_config(run.model.get_base_model().config.to_dict())
    decoder, found = packed_decoder(run.model), footprint(shape, rank=16, four_bit=False)
    assert not isinstance(decoder, str) and found is not None
    return train(replace(run, fast=FastPass(decoder, Room(found, 1.5 * found.least(200), 200))), *rest)
