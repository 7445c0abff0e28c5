"""The local provider over real worker processes: train, follow, cancel, kill and resume, answer."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.data.facts import DatasetFacts, JobData, TokenFacts
from tuneport.core.data.rows import Row
from tuneport.core.errors import CatalogueError, ProviderError, RefusedError
from tuneport.core.job import JobState, RemoteJob
from tuneport.core.plan import Plan
from tuneport.core.provider import ChatRequest, Provider
from tuneport.core.spec import JobSpec
from tuneport.local_backend.jobdir import JobDir
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_tiny import write_model

STEPS = 160
LIMIT_S = 240


def rows(role: str) -> Iterator[Row]:
    for i in range(24 if role == "train" else 6):
        messages = ({"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i % 5}"})
        yield Row("chat", f"{role}.jsonl", i + 1, messages)


@dataclass
class Bench:
    """A tiny model, a provider and one plan."""

    folder: Path
    model: Path

    @property
    def provider(self) -> LocalProvider:
        return LocalProvider(jobs=self.folder / "jobs")

    def plan(self, **training: Any) -> Plan:
        document = {
            "model": {"local": str(self.model)},
            "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "tuning": {"dropout": 0.1},  # so that the random numbers of a resumed run matter
            "training": {"steps": STEPS, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 5e-3} | training,
            "evaluation": {"evaluations": 4, "checkpoints": 16},
            "options": {"local": {"device": "cpu", "dtype": "fp32"}},
        }
        facts = DatasetFacts("train.jsonl", "ab" * 32, "chat", 24, TokenFacts(700, 900, 60, "estimate", False))
        return self.provider.compile(JobSpec.model_validate(document), JobData(facts, facts))

    def start(self, key: str, open_rows: Any = rows, **training: Any) -> RemoteJob:
        plan = self.plan(**training)
        files = self.provider.upload(plan, open_rows, key)
        return self.provider.create(plan, files, key)

    def until(self, ref: str, reached: Callable[[RemoteJob], bool]) -> RemoteJob:
        deadline = time.monotonic() + LIMIT_S
        while not reached(job := self.provider.poll(ref)):
            assert time.monotonic() < deadline and not job.state.terminal, f"{job}\n{self.provider.log(ref).read_text()[-2000:]}"
            time.sleep(0.02)
        return job

    def ended(self, ref: str) -> RemoteJob:
        return self.until(ref, lambda job: job.state.terminal or job.raw_state == "paused")

    def losses(self, ref: str) -> dict[tuple[str, int], float]:
        """The last loss told for each step; a resumed run repeats some."""
        return {
            (name, int(e.metrics["step"])): e.metrics[name]
            for e in self.provider.events(ref)
            for name in ("loss", "eval_loss")
            if name in e.metrics
        }


@pytest.fixture(autouse=True, scope="module")
def _quick_workers() -> Iterator[None]:
    """The tiny model runs fastest on one thread, most of all beside other tests; conftest's HF_HUB_OFFLINE is per test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("local")
    return Bench(folder, write_model(folder / "tiny"))


@pytest.fixture(scope="module")
def finished(bench: Bench) -> RemoteJob:
    """A job that ran without interruption."""
    return bench.ended(bench.start("tp-whole").ref)


def test_it_is_a_provider(bench: Bench) -> None:
    assert isinstance(bench.provider, Provider)


def test_a_job_trains_and_leaves_an_adapter_with_its_card(bench: Bench, finished: RemoteJob, tmp_path: Path) -> None:
    assert (finished.state, finished.progress) == (JobState.SUCCEEDED, 1.0), finished.message
    losses = bench.losses(finished.ref)
    assert [step for name, step in losses if name == "eval_loss"] == [40, 80, 120, 160]
    assert losses["loss", STEPS] < 0.8 * losses["loss", 1]
    first = next(e for e in bench.provider.events(finished.ref) if e.metrics.get("step") == 2)
    assert {"loss", "learning_rate", "tokens_per_second", "grad_norm", "epoch"} <= first.metrics.keys()
    copied = {path.name for path in bench.provider.download(finished.ref, tmp_path / "out")}
    assert copied == {"adapter_model.safetensors", "adapter_config.json", "README.md", "resolved_config.json"}
    resolved = json.loads((tmp_path / "out/resolved_config.json").read_text())
    best = min((loss, step) for (name, step), loss in losses.items() if name == "eval_loss")
    assert (resolved["validation_loss"], resolved["kept_step"]) == best
    assert resolved["config"]["seed"] == 0 and {"torch", "transformers", "peft", "trl"} <= resolved["versions"].keys()
    assert f"step {best[1]}" in (tmp_path / "out/README.md").read_text()


def test_one_key_makes_one_job_and_a_finished_one_trains_no_step_more(bench: Bench, finished: RemoteJob) -> None:
    events = len(list(bench.provider.events(finished.ref)))
    plan = bench.plan()
    again = bench.provider.create(plan, bench.provider.upload(plan, rows, "tp-whole"), "tp-whole")
    assert again == bench.provider.find(plan, "tp-whole") == bench.provider.resume(finished.ref) == finished
    assert bench.provider.find(plan, "tp-other") is None
    assert [job.ref for job in bench.provider.list_jobs()][-1] == finished.ref
    assert len(list(bench.provider.events(finished.ref))) == events


def test_the_tuned_model_answers_as_it_was_taught(bench: Bench, finished: RemoteJob) -> None:
    requests = [ChatRequest(str(i), [{"role": "user", "content": f"say {i}"}], 12) for i in range(6)]
    assert finished.tuned_model is not None
    replies = {r.id: r for r in bench.provider.chat(finished.tuned_model, [*requests, ChatRequest("long", requests[0].messages, 600)])}
    assert "exceed" in replies.pop("long").error
    assert replies.keys() == {r.id for r in requests}
    assert all(r.text.startswith("it is") and r.completion_tokens == len(r.text) and r.prompt_tokens for r in replies.values()), replies
    with pytest.raises(ProviderError, match="no finished adapter"):
        list(bench.provider.chat("local:/nowhere", requests))
    with pytest.raises(CatalogueError):
        list(bench.provider.chat("./nowhere", requests))


def test_killed_and_resumed_it_reaches_the_same_losses_and_the_same_adapter(bench: Bench, finished: RemoteJob) -> None:
    ref = bench.start("tp-killed").ref
    bench.until(ref, lambda job: bool(job.progress and job.progress > 0.2 and bench.provider.checkpoints(ref)))
    worker = JobDir(Path(ref)).worker()
    assert worker is not None
    os.kill(worker[0], signal.SIGKILL)
    dead = bench.until(ref, lambda job: job.raw_state == "interrupted")
    assert dead.state is JobState.PAUSED and "tuneport resume" in dead.message
    reached = max(step for _, step in bench.losses(ref))
    assert reached < STEPS
    bench.provider.resume(ref)
    done = bench.ended(ref)
    assert done.state is JobState.SUCCEEDED, done.message
    assert any("resumed from the checkpoint" in e.message for e in bench.provider.events(ref))
    assert bench.losses(ref) == bench.losses(finished.ref)
    weights = "adapter/adapter_model.safetensors"
    assert (Path(ref) / weights).read_bytes() == (Path(finished.ref) / weights).read_bytes()
    # Cut off between the last step and the adapter, it trains no step more.
    events = len(list(bench.provider.events(ref)))
    (Path(ref) / weights).unlink()
    job = JobDir(Path(ref))
    state = json.loads((Path(ref) / "state.json").read_text())
    (Path(ref) / "state.json").write_text(json.dumps(state | {"phase": "saving"}))
    assert bench.until(ref, lambda job: job.raw_state == "interrupted").state is JobState.PAUSED
    bench.provider.resume(ref)
    assert bench.ended(ref).state is JobState.SUCCEEDED
    assert not [e for e in list(bench.provider.events(ref))[events:] if "loss" in e.metrics]
    assert (Path(ref) / weights).read_bytes() == (Path(finished.ref) / weights).read_bytes()
    assert bench.provider.delete(ref) == [f"folder {ref}"] and bench.provider.delete(ref) == []
    assert not job.path.exists()


def test_pause_resume_and_cancel(bench: Bench) -> None:
    ref = bench.start("tp-stopped", steps=100_000).ref
    bench.until(ref, lambda job: job.state is JobState.RUNNING)
    with pytest.raises(ProviderError, match="being trained"):
        bench.provider.delete(ref)
    bench.provider.pause(ref)
    paused = bench.ended(ref)
    assert (paused.state, paused.tuned_model) == (JobState.PAUSED, None)
    step = bench.provider.checkpoints(ref)[-1].step
    assert f"step {step}" in paused.message
    bench.provider.resume(ref)
    bench.until(ref, lambda job: job.state is JobState.RUNNING)
    assert bench.provider.cancel(ref).state in (JobState.CANCELLING, JobState.CANCELLED)
    cancelled = bench.ended(ref)
    assert cancelled.state is JobState.CANCELLED
    assert bench.provider.checkpoints(ref)[-1].step >= step
    assert bench.provider.cancel(ref) == cancelled
    with pytest.raises(ProviderError, match="was cancelled"):
        bench.provider.resume(ref)


@pytest.mark.filterwarnings("ignore")  # the libraries', in a process that is not a worker
def test_a_row_longer_than_the_model_fails_the_job_by_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def long(role: str) -> Iterator[Row]:
        yield Row("chat", "mine.jsonl", 17, ({"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y"}))

    def work(job: JobDir, *, gpu: bool) -> bool:
        """A worker's work, here: that it has a process of its own is tested above."""
        from tuneport.local_backend.train import Worker

        monkeypatch.setattr("signal.signal", lambda *_: None)
        Worker(job).run()
        return True

    monkeypatch.setattr("tuneport.providers.local.client.start_worker", work)
    job = bench.ended(bench.start("tp-long", long).ref)
    assert job.state is JobState.FAILED
    assert "mine.jsonl:17" in job.message and "longer than 512 tokens" in job.message


def test_refusals_and_missing_models_start_nothing(bench: Bench) -> None:
    plan = bench.plan(packing=True)
    with pytest.raises(RefusedError, match="packing"):
        bench.provider.create(plan, {}, "tp-refused")
    absent = bench.plan().model_copy(update={"vendor_model": "./absent"})
    with pytest.raises(CatalogueError):
        bench.provider.create(absent, {}, "tp-absent")
    assert bench.provider.find(plan, "tp-refused") is None
    assert any(w.code == "online" for w in bench.provider.online(absent).warnings)
