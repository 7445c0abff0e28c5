"""Kill -9 and go on: a run that was cut off reaches the losses, and the weights, of one that was not. By every trainer. And cancel.

test_local_provider does the same to SFT through the provider.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft", "bitsandbytes")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.data.rows import Row
from tuneport.core.job import JobState
from tuneport.local_backend import turns
from tuneport.local_backend.jobdir import JobDir
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_forks import KILLED, LIMIT_S, Moment, attempt, forks, started
from tuneport.tests.local_jobs import made, plan_of
from tuneport.tests.local_tiny import write_model

CLOCK = frozenset({"tokens_per_second", "eval_seconds", "epoch"})
TRAINERS = [
    ("cpt", "packed"), ("dpo", "lora"), ("dpo", "full"), ("kto", "prompt"), ("orpo", "qlora"), ("simpo", "rslora"), ("rft", "lora"),
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def workers(cache: Path) -> Iterator[Any]:
    with forks(cache) as context:
        yield context


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


def told(job: JobDir) -> dict[int, dict[str, float]]:
    """What the events of each step said last, but for speeds."""
    steps: dict[int, dict[str, float]] = {}
    for event in job.events():
        if "step" in event.metrics:
            known = steps.setdefault(int(event.metrics["step"]), {})
            known |= {name: value for name, value in event.metrics.items() if name not in CLOCK}
    return steps


def result(job: JobDir) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in job.adapter.glob("*.safetensors")}


@pytest.mark.parametrize(("method", "kind"), TRAINERS, ids=[f"{method}-{kind}" for method, kind in TRAINERS])
def test_killed_at_random_it_reaches_the_same_losses(method: str, kind: str, model: Path, workers: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"training__steps": 6, "training__learning_rate": 5e-3}
    settings |= {"evaluation__checkpoints": 3, "evaluation__evaluations": 3, "evaluation__early_stopping": {"patience": 3}}
    packed = kind == "packed"  # lora by the packed pass
    plan = plan_of(method, "lora" if packed else kind, model, **settings | ({"tuning__dropout": 0.1} if kind == "lora" else {}))
    whole, cut = made(plan, tmp_path / "whole"), made(plan, tmp_path / "cut")
    assert attempt(workers, whole, packed=packed) == 0, whole.state()
    count = len(list(whole.events()))
    draw = random.Random(f"{method} {kind}")
    kills: list[Moment] = ["save", draw.randrange(3, count - 5)]  # the second save leaves steps to do
    draw.shuffle(kills)
    for kill in kills:
        assert attempt(workers, cut, kill, packed=packed) == KILLED, (kills, cut.state())
    assert attempt(workers, cut, packed=packed) == 0, (kills, cut.state())
    assert told(cut) == told(whole), kills
    assert result(cut) == result(whole) != {}


def test_a_run_that_stopped_early_and_was_killed_before_its_result_trains_no_further(model: Path, workers: Any, tmp_path: Path) -> None:
    answers = ({"role": "user", "content": f"say {i}"} for i in range(8))
    held = [Row("chat", "held.jsonl", i, (asked, {"role": "assistant", "content": "QUITE OTHER"})) for i, asked in enumerate(answers)]
    settings: dict[str, Any] = {"training__steps": 60, "training__learning_rate": 3e-2, "training__gradient_accumulation": 1}
    plan = plan_of("sft", "lora", model, **settings, evaluation__evaluations=10, evaluation__checkpoints=10)
    whole, cut = made(plan, tmp_path / "whole", iter(held)), made(plan, tmp_path / "cut", iter(held))
    assert attempt(workers, whole) == 0, whole.state()
    last = next(event.number for event in whole.events() if "stopped early" in event.message)
    assert max(told(whole)) < 60
    assert attempt(workers, cut, last) == KILLED
    assert attempt(workers, cut) == 0, cut.state()
    assert told(cut) == told(whole) and result(cut) == result(whole)
    assert sum("stopped early: overfitting" in event.message for event in cut.events()) == 1


@pytest.mark.parametrize(("moment", "step"), [("save", 5), ("validate", 4), (4, 1)])  # the fourth event is that of step 1
def test_a_cancelled_run_leaves_whole_checkpoints_up_to_the_step_in_hand(
    moment: Moment, step: int, model: Path, workers: Any, tmp_path: Path
) -> None:
    from tuneport.local_backend.checkpoint import check_checkpoint

    plan = plan_of("sft", "lora", model, training__steps=8, evaluation__checkpoints=4, evaluation__evaluations=4)
    job = made(plan, tmp_path / "job")
    assert attempt(workers, job, moment, "cancel") == 0
    assert job.last_checkpoint() is not None and job.last_checkpoint()[0] == step, list(job.events())
    assert {folder for _, folder in job.whole_checkpoints()} == set(job.checkpoints.iterdir())
    for _, folder in job.whole_checkpoints():
        check_checkpoint(folder)
    there = LocalProvider(jobs=tmp_path).poll("job")
    assert there.state is JobState.CANCELLED and f"the last checkpoint is of step {step}" in there.message


def test_a_cancel_that_comes_with_the_result_comes_too_late(model: Path, workers: Any, tmp_path: Path) -> None:
    job = made(plan_of("sft", "lora", model), tmp_path / "job")
    assert attempt(workers, job, "result", "cancel") == 0
    there = LocalProvider(jobs=tmp_path).poll("job")
    assert there.state is JobState.SUCCEEDED and job.finished()


def test_a_job_cancelled_in_line_keeps_its_checkpoint_and_leaves_the_line(
    model: Path, workers: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEPORT_CACHE", str(cache))
    plan = plan_of("sft", "lora", model, training__steps=4, evaluation__checkpoints=2, options__local={"device": "auto", "dtype": "fp32"})
    holder, job = made(plan, tmp_path / "jobs" / "j-first"), made(plan, tmp_path / "jobs" / "j-second")
    assert attempt(workers, job, "save") == KILLED
    lock = holder.take_lock()
    turn = turns.take_turn(turns.gpu_name(None), holder, lambda place: pytest.fail(place.words()))
    process = started(workers, job, "line")
    provider = LocalProvider(jobs=tmp_path / "jobs")
    while (there := provider.poll("j-second")).state is not JobState.QUEUED or not job.worker_alive():
        assert process.exitcode is None, job.state()
        time.sleep(0.01)
    assert there.message == "place 2 in line for cuda:0, behind j-first"
    provider.cancel("j-second")
    process.join(LIMIT_S)
    assert provider.poll("j-second").state is JobState.CANCELLED and "step 2" in provider.poll("j-second").message
    assert job.last_checkpoint() is not None and turns.place(job) is None
    for descriptor in (turn, lock):
        assert descriptor is not None
        os.close(descriptor)
