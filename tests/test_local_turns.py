"""One job at a time on each GPU: real processes in line, in the order of their submission, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tuneport.core.job import JobState
from tuneport.local_backend import turns
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.process import worker_environment
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import plan_of
from tuneport.tests.local_tiny import write_model

GPU = "cuda:7"
LIMIT_S = 120
WORKER = """
import sys
from pathlib import Path
from tuneport.local_backend import turns
from tuneport.local_backend.jobdir import JobDir, WorkerState
turns.PAUSE = 0.02
job = JobDir(Path(sys.argv[1]))
lock = job.take_lock()
turns.enter(sys.argv[2], job)
print("in line", flush=True)
sys.stdin.readline()  # libraries load
turn = turns.take_turn(sys.argv[2], job, lambda place: job.set_state(WorkerState("queued", place.words())))
job.set_state(WorkerState("training"))
print("has it", flush=True)
sys.stdin.readline()
"""
"""A worker without its training: it stands in line, says so, and has the device until its input ends."""


@dataclass
class Line:
    """Jobs of one ledger, in the order of their submission, and their workers."""

    folder: Path
    model: Path
    workers: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def provider(self) -> LocalProvider:
        return LocalProvider(jobs=self.folder)

    def submitted(self, *keys: str) -> None:
        for number, key in enumerate(keys):
            config = JobDir(self.folder / key).config
            config.parent.mkdir(parents=True)
            config.write_text(json.dumps(plan_of("sft", "lora", self.model).payload | {"device": "cuda"}))
            os.utime(config, ns=(0, 10**18 + number))

    def start(self, key: str, device: str = GPU) -> None:
        """A worker that stands in line and is still loading."""
        command = [sys.executable, "-c", WORKER, str(self.folder / key), device]
        pipe = subprocess.PIPE
        self.gone(key)
        self.workers[key] = worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=worker_environment())
        assert worker.stdout is not None and worker.stdout.readline() == "in line\n"

    def loaded(self, *keys: str) -> None:
        for key in keys:
            self.say(key)

    def say(self, key: str) -> None:
        stdin = self.workers[key].stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()

    def end(self, key: str) -> None:
        self.say(key)
        assert self.workers[key].wait(LIMIT_S) == 0

    def kill(self, key: str) -> None:
        self.workers[key].send_signal(signal.SIGKILL)
        self.workers[key].wait(LIMIT_S)

    def gone(self, key: str) -> None:
        """Its pipes too."""
        if key in self.workers:
            self.workers[key].kill()
            with suppress(BrokenPipeError):
                self.workers[key].communicate()

    def has_it(self, key: str) -> None:
        stdout = self.workers[key].stdout
        assert stdout is not None and stdout.readline() == "has it\n"

    def shows(self, key: str) -> tuple[JobState, str]:
        job = self.provider.poll(str(self.folder / key))
        return job.state, job.message

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setenv("TUNEPORT_CACHE", str(tmp_path / "cache"))
    made = Line(tmp_path / "jobs", tmp_path / "model")
    yield made
    for key in made.workers:
        made.gone(key)


def test_the_order_is_that_of_submission_whichever_worker_is_quickest(line: Line) -> None:
    line.submitted("j-a", "j-b", "j-c")
    for key in ("j-c", "j-a", "j-b"):
        line.start(key)
    line.loaded("j-c", "j-b")  # the first to be submitted is the slowest to load
    line.until(lambda: line.shows("j-c") == (JobState.QUEUED, f"place 3 in line for {GPU}, behind j-a and j-b"))
    assert line.shows("j-b") == (JobState.QUEUED, f"place 2 in line for {GPU}, behind j-a")
    line.loaded("j-a")
    line.has_it("j-a")
    assert turns.place(JobDir(line.folder / "j-a")) is None and line.shows("j-a")[0] is JobState.RUNNING
    line.end("j-a")
    line.has_it("j-b")
    assert line.shows("j-c") == (JobState.QUEUED, f"place 2 in line for {GPU}, behind j-b")
    line.start("j-a")  # resumed: before whatever was submitted later, but nobody loses the device
    line.loaded("j-a")
    line.until(lambda: line.shows("j-c")[1] == f"place 3 in line for {GPU}, behind j-b and j-a")
    line.until(lambda: line.shows("j-a")[1] == f"place 2 in line for {GPU}, behind j-b")
    line.end("j-b")
    line.has_it("j-a")
    line.end("j-a")
    line.has_it("j-c")


def test_kill_9_of_anyone_in_line_holds_nobody_up(line: Line) -> None:
    line.submitted("j-a", "j-b", "j-c", "j-d")
    for key in ("j-a", "j-b", "j-c", "j-d"):
        line.start(key)
    line.loaded("j-a", "j-c", "j-d")
    line.has_it("j-a")
    line.kill("j-b")  # while it loads
    line.until(lambda: line.shows("j-c")[1] == f"place 2 in line for {GPU}, behind j-a")
    line.kill("j-c")  # while it waits
    line.kill("j-a")  # while it has the device
    line.has_it("j-d")
    for key in ("j-a", "j-b", "j-c"):  # after a restart of the machine, say
        line.start(key)
    line.loaded("j-c", "j-b", "j-a")
    line.until(lambda: line.shows("j-c")[1] == f"place 4 in line for {GPU}, behind j-d, j-a and j-b")
    line.kill("j-d")
    line.has_it("j-a")


def test_another_device_is_another_line(line: Line) -> None:
    line.submitted("j-a", "j-b")
    line.start("j-a")
    line.start("j-b", "cuda:GPU-8f6e")
    line.loaded("j-b", "j-a")
    line.has_it("j-b")
    line.has_it("j-a")


def test_the_ledger_shows_who_waits_for_whom_from_submission_on(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from tuneport.cli import application

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("tuneport.providers.local.client.require_training_stack", lambda: None)
    interpreter = tmp_path / "slow"
    interpreter.write_text("#!/bin/sh\nexec sleep 600\n")  # workers that still load
    interpreter.chmod(0o755)
    monkeypatch.setattr("tuneport.local_backend.process.sys.executable", str(interpreter))
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i}"}]} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"model": {"local": str(write_model(line.model))}, "data": {"train": "rows.jsonl"}, "options": {"local": {"device": "cuda"}}}
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))

    def said(*command: str) -> str:
        found = CliRunner().invoke(application(), list(command))
        assert found.exit_code == 0, (found.output, found.exception)
        return found.stdout

    try:
        for _ in range(3):
            said("submit", "spec.yaml", "-p", "local", "--yes", "--detach")
        third, second, first = json.loads(said("jobs", "--json"))
        key = {job["id"]: Path(job["ref"]).name for job in (first, second, third)}
        behind = f"{key[first['id']]} and {key[second['id']]}"
        assert (third["state"], third["message"]) == ("queued", f"place 3 in line for {GPU}, behind {behind}")
        assert f"queued: place 2 in line for {GPU}, behind {key[first['id']]}" in said("jobs")
        said("cancel", second["id"])
        assert f"place 2 in line for {GPU}, behind {key[first['id']]}" in said("status", third["id"])
    finally:
        for job in JobDir(tmp_path / "jobs").path.iterdir():
            worker = JobDir(job).worker()
            if worker is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker[0], signal.SIGKILL)
