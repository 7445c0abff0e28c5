"""Trackers of local training: what the real packages wrote is read back, and nothing but loopback is reached."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.errors import MissingExtraError
from tuneport.local_backend.config import Tracking
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.tracking import PACKAGES, require_trackers
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import made, plan_of, run, work
from tuneport.tests.local_tiny import write_model

if not all(find_spec(library) for library in ("torch", "peft", *PACKAGES.values())):
    pytest.skip("the training libraries and trackers are not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # the libraries'
KEY = "wandb_v1_0123456789abcdefghij"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store that several jobs share: making its tables is slow."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tracked") / "tiny")


def told(job: JobDir) -> dict[tuple[str, int], float]:
    """What the job's own events say of each metric and step at last; TensorBoard holds it in single precision."""
    return {
        (name, int(event.metrics["step"])): pytest.approx(value, rel=1e-5)
        for event in job.events()
        if "step" in event.metrics
        for name, value in event.metrics.items()
        if name != "step"
    }


def in_tensorboard(job: JobDir) -> Iterator[tuple[str, int, float]]:
    """From the event files: records of length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((job.path / "tracking" / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value if value.HasField("simple_value"))


def in_wandb(job: JobDir) -> Iterator[tuple[str, int, float]]:
    """From the offline run's transaction log: LevelDB's log format, here of whole records."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (job.path / "tracking" / "wandb").glob(f"offline-run-*/run-{job.path.name}.wandb")
    data, at = path.read_bytes(), 7
    while at + 7 < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1
        record = Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                yield name, record.history.step.num, json.loads(item.value_json)


def in_mlflow(address: str, job: JobDir) -> tuple[dict[str, str], Iterator[tuple[str, int, float]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    runs = client.search_runs([client.get_experiment_by_name("tuneport").experiment_id])
    (found,) = [one for one in runs if one.info.run_name == job.path.name]
    assert found.info.status == "FINISHED"
    names = found.data.metrics
    entries = ((name, entry.step, entry.value) for name in names for entry in client.get_metric_history(found.info.run_id, name))
    return found.data.params, entries


def same(read: Iterator[tuple[str, int, float]], job: JobDir) -> bool:
    """Does the tracker hold just what the events hold?"""
    held = {(name, step): value for name, step, value in read}
    return {("loss", 1), ("loss", 2), ("eval_loss", 2), ("learning_rate", 1)} <= held.keys() and held == told(job)


def test_every_tracker_holds_the_metrics_of_every_pass(tiny: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """sft in our own loop and dpo in TRL's trainer; offline, with a key in the environment that is written nowhere."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")  # the spec decides, not what was left in a shell
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    local: Any = {"device": "cpu", "dtype": "fp32", "tracking": ["tensorboard", "mlflow"], "mlflow_uri": store}
    plan = plan_of("sft", "lora", tiny, options__local=local, tracking__wandb={"project": "tickets", "tags": ["a"]})
    assert plan.payload["tracking"]["trackers"] == ["tensorboard", "mlflow", "wandb"]  # type: ignore[index,call-overload]
    job = run(plan, tmp_path / "chats")
    assert same(in_tensorboard(job), job) and same(in_wandb(job), job)
    params, entries = in_mlflow(store, job)
    assert same(entries, job) and params["learning_rate"] == str(plan.payload["learning_rate"])
    board = local | {"tracking": ["tensorboard"], "mlflow_uri": None}
    preferences = run(plan_of("dpo", "lora", tiny, options__local=board), tmp_path / "pairs")
    assert same(in_tensorboard(preferences), preferences)
    assert any(name == "rewards/margins" for name, _, _ in in_tensorboard(preferences))
    files = [path for folder in (job.path, tmp_path / "home") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_nothing_is_tracked_unless_asked(tiny: Path, tmp_path: Path) -> None:
    job = run(plan_of("sft", "lora", tiny), tmp_path / "job")
    assert not (job.path / "tracking").exists()


def test_a_resumed_job_goes_on_in_the_same_runs(tiny: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneport.local_backend import methods, train

    local: Any = {"device": "cpu", "dtype": "fp32", "tracking": ["tensorboard", "mlflow"], "mlflow_uri": store}
    plan = plan_of("sft", "lora", tiny, options__local=local, training__steps=4, evaluation__checkpoints=4)
    job = made(plan, tmp_path / "resumed")
    whole = methods.train

    def cut(running: Any, *rest: Any) -> str:
        add = running.job.add_event

        def until_step_three(message: str, **more: Any) -> None:
            add(message, **more)
            if message.startswith("step 3"):
                raise KeyboardInterrupt

        running.job.add_event = until_step_three
        return whole(running, *rest)

    monkeypatch.setattr(methods, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        train.Worker(job).run()
    monkeypatch.undo()
    work(JobDir(job.path))
    read = list(in_tensorboard(job))
    assert [step for name, step, _ in read if name == "loss"][-1] == 4
    assert {(name, step): value for name, step, value in read} == told(job)
    _, entries = in_mlflow(store, job)
    assert {step for name, step, _ in entries if name == "loss"} == {1, 2, 3, 4}


def test_a_tracker_that_fails_is_told_of_and_training_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorboardX

    def full(*_: Any) -> None:
        raise OSError(28, f"No space left on device, said with {KEY}")

    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_scalar", full)
    local: Any = {"device": "cpu", "dtype": "fp32", "tracking": ["tensorboard"]}
    job = run(plan_of("sft", "lora", tiny, options__local=local), tmp_path / "job")
    (warned,) = [event.message for event in job.events() if event.level == "warning" and "chance" not in event.message]
    assert "no longer tracked by tensorboard" in warned and "No space left" in warned and KEY not in warned


def test_a_package_that_is_not_there_is_named_with_its_command(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the plan as a warning; submitting is refused."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in PACKAGES.values() else find(name))
    plan = plan_of("sft", "lora", tiny, options__local={"device": "cpu", "tracking": ["mlflow"]})
    (warning,) = [w.message for w in plan.warnings if w.code == "tracking"]
    assert "needs mlflow" in warning and "pip install 'tuneport[tracking]'" in warning
    with pytest.raises(MissingExtraError, match="needs mlflow"):
        LocalProvider(jobs=tmp_path).create(plan, {}, "key")
    with pytest.raises(MissingExtraError, match=r"tensorboardX, wandb, which are not installed; .*pip install 'tuneport\[tracking\]'"):
        require_trackers(Tracking(trackers=("tensorboard", "wandb")))
    require_trackers(Tracking())


def test_what_leaves_the_machine_is_said_and_a_store_that_cannot_be_opened_ends_the_job(tiny: Path, tmp_path: Path) -> None:
    local: Any = {"device": "cpu", "tracking": ["wandb", "mlflow"], "wandb_mode": "online", "mlflow_uri": "http://127.0.0.1:9/"}
    (warning,) = [w.message for w in plan_of("sft", "lora", tiny, options__local=local).warnings if w.code == "network"]
    assert "to W&B and MLflow at http://127.0.0.1:9/" in warning
    from tuneport.local_backend.train import Worker

    (tmp_path / "file").touch()
    broken = {"device": "cpu", "dtype": "fp32", "tracking": ["mlflow"], "mlflow_uri": f"sqlite:///{tmp_path}/file/runs.db"}
    job = made(plan_of("sft", "lora", tiny, options__local=broken), tmp_path / "job")
    assert Worker(job).run() == 1
    state = job.state()
    assert state is not None and "mlflow cannot be opened" in state.message and "resume" in state.message
