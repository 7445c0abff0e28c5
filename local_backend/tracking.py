"""Experiment trackers of a run: TensorBoard, Weights & Biases and MLflow, fed from the job's own events.

So every pass and every trainer is tracked alike. Off unless the spec asks; what is tracked stays in ``JOBDIR/tracking`` unless
the spec says otherwise, and then keys come from the environment (WANDB_API_KEY, MLFLOW_TRACKING_TOKEN), never from the spec.
Imports the trackers' packages when a run opens them, and nothing heavy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneport.core.errors import MissingExtraError, ProviderError
from tuneport.core.options import Tracker
from tuneport.core.secrets import redact
from tuneport.local_backend.config import Tracking, TrainConfig
from tuneport.local_backend.jobdir import JobDir

PACKAGES: Mapping[Tracker, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""Tracker -> the module that writes for it."""
PROJECT = "tuneport"
"""Project at W&B, experiment in MLflow, when the spec names none."""
SILENT = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""The packages' own reports to their makers stay off; a user's own setting wins."""
_LONGEST_PARAM = 6000
"""Characters of a parameter's value in MLflow."""


def require_trackers(tracking: Tracking) -> None:
    """Raise MissingExtraError when the package of a wanted tracker is not installed. Imports none of them."""
    missing = [PACKAGES[name] for name in tracking.trackers if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(f"tracking needs {', '.join(missing)}, which {verb} not installed", "tracking")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A tracker at work: ``log`` takes the metrics of a step, ``close`` whether the run ended well."""

    log: Callable[[dict[str, float], int], None]
    close: Callable[[bool], None]


@contextmanager
def tracked(config: TrainConfig, job: JobDir, step: int) -> Iterator[None]:
    """While it lasts, every event with metrics goes to the trackers too. ``step`` is the one that the run goes on from.

    A tracker that fails later is told of and left out; training goes on. Raises ProviderError for one that cannot be opened.
    """
    opened: dict[Tracker, _Opened] = {}
    well = False

    def follow(metrics: Mapping[str, float]) -> None:
        values = {name: value for name, value in metrics.items() if name != "step"}
        if "step" not in metrics or not values:
            return
        for name, one in list(opened.items()):
            try:
                one.log(values, int(metrics["step"]))
            except Exception as error:  # noqa: BLE001 -- whatever it is, hours of training are worth more
                del opened[name]
                job.add_event(f"no longer tracked by {name}: {_words(error)}", level="warning")

    try:
        for name in config.tracking.trackers:
            opened[name] = _open(name, config, job, step)
        job.follower = follow
        yield
        well = True
    finally:
        job.follower = None
        for name, one in opened.items():
            try:
                one.close(well)
            except Exception as error:  # noqa: BLE001 -- as above
                job.add_event(f"{name} could not be closed: {_words(error)}", level="warning")


def _open(name: Tracker, config: TrainConfig, job: JobDir, step: int) -> _Opened:
    for variable, value in SILENT.items():
        os.environ.setdefault(variable, value)
    folder = job.path / "tracking"
    folder.mkdir(exist_ok=True)
    try:
        return _OPENERS[name](config, job, folder, step)
    except Exception as error:
        fix = "see tracking.wandb and options.local in the spec, and the tracker's key in the environment; then resume the job"
        raise ProviderError(f"the tracker {name} cannot be opened ({_words(error)})", fix=fix) from error


def _tensorboard(config: TrainConfig, job: JobDir, folder: Path, step: int) -> _Opened:  # noqa: ARG001 -- its folder is the job
    from tensorboardX import SummaryWriter  # noqa: PLC0415

    # What an earlier worker wrote of steps that are now repeated is struck out. Files are named by the second that they were opened in;
    # the step tells apart two of the same second.
    past: dict[str, Any] = {"purge_step": step + 1, "filename_suffix": f".from-{step}"} if step else {}
    writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10, **past)
    if not step:
        writer.add_text("configuration", f"```json\n{config.model_dump_json(indent=2)}\n```")

    def log(values: dict[str, float], at: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, at)

    return _Opened(log, lambda _: writer.close())


def _wandb(config: TrainConfig, job: JobDir, folder: Path, step: int) -> _Opened:  # noqa: ARG001 -- W&B joins runs by their id
    import wandb  # noqa: PLC0415

    wanted = config.tracking
    run = wandb.init(
        project=wanted.project or PROJECT,
        entity=wanted.entity,
        name=wanted.run_name or config.name or job.path.name,
        tags=wanted.run_tags,
        id=job.path.name,
        resume="allow",
        mode="online" if wanted.wandb_online else "offline",
        dir=folder,
        config=config.model_dump(mode="json"),
        # Nothing of this machine but the metrics and settings of the run: no console, code, repository, or list of packages.
        settings=wandb.Settings(
            silent=True, console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_machine_info=True,
            x_disable_stats=True, x_save_requirements=False,
        ),
    )  # fmt: skip
    return _Opened(lambda values, at: run.log(values, step=at), lambda well: run.finish(exit_code=0 if well else 1))


def _mlflow(config: TrainConfig, job: JobDir, folder: Path, step: int) -> _Opened:  # noqa: ARG001 -- a repeated step is a second entry
    from mlflow.entities import Metric, Param  # noqa: PLC0415
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    client = MlflowClient(config.tracking.mlflow_uri or f"sqlite:///{folder / 'mlflow.db'}")
    noted = folder / "mlflow_run"
    if noted.exists():
        run = noted.read_text(encoding="utf-8")
        client.update_run(run, status="RUNNING")
    else:
        experiment = client.get_experiment_by_name(PROJECT)
        artifacts = None if config.tracking.mlflow_uri else (folder / "artifacts").as_uri()
        number = experiment.experiment_id if experiment else client.create_experiment(PROJECT, artifacts)
        run = client.create_run(number, run_name=config.name or job.path.name, tags=config.tags).info.run_id
        noted.write_text(run, encoding="utf-8")
        client.log_batch(run, params=[Param(name, value[:_LONGEST_PARAM]) for name, value in _flat(config.model_dump(mode="json"))])

    def log(values: dict[str, float], at: int) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run, metrics=[Metric(name, value, now, at) for name, value in values.items()])

    return _Opened(log, lambda well: client.set_terminated(run, "FINISHED" if well else "FAILED"))


_OPENERS: Mapping[Tracker, Callable[[TrainConfig, JobDir, Path, int], _Opened]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow
}  # fmt: skip


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every setting that has one."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__)
