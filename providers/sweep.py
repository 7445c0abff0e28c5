"""Sweeps: many settings of one job, each a job of its own in the ledger, cut down by successive halving.

Every setting gets a short run, the better third a run three times as long, and so on until one is left (Jamieson and Talwalkar
2016). Runs begin anew on each level, since a learning-rate schedule belongs to its length. Jobs are found again by their names,
so a sweep that was broken off goes on where it stood and makes no job twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tuneport.core.engine import Engine
from tuneport.core.errors import JobFailedError, UsageError
from tuneport.core.job import JobState
from tuneport.core.jobs import Job
from tuneport.core.plan import Plan
from tuneport.core.spec import JobSpec
from tuneport.core.spec_file import validate

KEPT = 3
"""One in so many settings goes on to the next level, with a run so many times as long."""


@dataclass(slots=True)
class Trial:
    """One setting: which fields differ, the lowest validation loss on each level that it reached, and its jobs."""

    number: int
    changes: Mapping[str, Any]
    losses: list[float] = field(default_factory=list)  # math.inf where a job failed or told none
    jobs: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """The setting in one line."""
        return ", ".join(f"{path.rsplit('.', 1)[-1]} {value}" for path, value in self.changes.items())


@dataclass(frozen=True, slots=True)
class Level:
    """``count`` settings with this share of the whole run."""

    count: int
    share: float


def levels(settings: int, halving: bool = True) -> list[Level]:
    """The levels of a sweep over so many settings, the whole run last."""
    if not halving:
        return [Level(settings, 1.0)]
    counts = [settings]
    while counts[-1] > 1:
        counts.append(max(1, counts[-1] // KEPT))
    return [Level(count, KEPT ** -(len(counts) - 1 - i)) for i, count in enumerate(counts)]


class Sweep:
    """A grid over a spec's fields at one provider. ``over`` maps dotted paths to the values to try.

    Raises UsageError for an unknown path, or when no length of the run is set to be shared out; SpecError for values that do not fit.
    """

    def __init__(self, spec: JobSpec, over: Mapping[str, Sequence[Any]], *, halving: bool = True) -> None:
        known = dict(spec.fields())
        for path, values in over.items():
            if path not in known or path in ("name", "budget.max_usd"):
                raise UsageError(f"{path} is no field of a spec that can be swept", fix="name one such as training.learning_rate")
            if not values:
                raise UsageError(f"{path} has no values to try", fix=f"write {path}=1,2,3")
        self.spec = spec
        self.trials = [Trial(i, dict(zip(over, values, strict=True))) for i, values in enumerate(product(*over.values()))]
        self.levels = levels(len(self.trials), halving)
        length = any(known[path] is not None or path in over for path in ("training.epochs", "training.steps"))
        if len(self.levels) > 1 and not length:
            raise UsageError("a sweep shares out the length of the run, and none is set", fix="set training.epochs or training.steps")
        text = json.dumps([spec.model_dump(mode="json"), [dict(trial.changes) for trial in self.trials], halving], sort_keys=True)
        self.id = hashlib.sha256(text.encode()).hexdigest()[:8]

    def spec_of(self, trial: Trial, level: int) -> JobSpec:
        """The job of a setting on a level, named so that it is found again."""
        document = self.spec.model_dump(mode="json", exclude_none=True)
        for path, value in {**trial.changes, "name": f"sweep-{self.id}-{level}-{trial.number}"}.items():
            _put(document, path, value)
        training = document.setdefault("training", {})
        share = self.levels[level].share
        if training.get("epochs") is not None:
            training["epochs"] = training["epochs"] * share
        if training.get("steps") is not None:
            training["steps"] = max(1, round(training["steps"] * share))
        return validate(JobSpec, document, f"setting {trial.number} ({trial.shown})")

    def run(self, engine: Engine, provider: str, plan: Callable[[JobSpec], Plan], tell: Callable[[str], None], at_once: int = 1) -> Trial:
        """Carry out every level, ``at_once`` jobs at a time; returns the best setting of the last. This spends.

        Raises UsageError when no job of a level tells a validation loss, and what planning and submitting raise.
        """
        stem = f"sweep-{self.id}-"
        named = ((job.spec.name, job) for job in engine.jobs(limit=None, provider=provider))
        known = {name: job for name, job in named if name and name.startswith(stem)}
        left = self.trials
        for number, level in enumerate(self.levels):
            left = left[: level.count]
            for start in range(0, len(left), at_once):
                batch = left[start : start + at_once]
                jobs = [self._job(trial, number, engine, plan, known) for trial in batch]
                for trial, job in zip(batch, jobs, strict=True):
                    loss = _lowest_loss(job)
                    trial.jobs.append(job.id)
                    trial.losses.append(loss)
                    why = job.message or job.state.value
                    told = f"validation loss {loss:.4f}" if math.isfinite(loss) else f"no validation loss ({why})"
                    tell(f"{level.share:.0%} of the run, {trial.shown}: {told} ({job.id})")
            if not any(math.isfinite(trial.losses[-1]) for trial in left):
                what = "no job of the sweep told a validation loss"
                raise UsageError(what, fix="give validation rows (data.validation or data.split.validation), and see `tuneport jobs`")
            left = sorted(left, key=lambda trial: trial.losses[-1])
        return left[0]

    def _job(self, trial: Trial, level: int, engine: Engine, plan: Callable[[JobSpec], Plan], known: Mapping[str, Job]) -> Job:
        spec = self.spec_of(trial, level)
        job = known.get(spec.name or "")
        if job is None:
            return engine.submit(spec, plan(spec))
        job.refresh()
        return job.resume() if job.state is JobState.PAUSED else job


def best_document(spec: JobSpec, trial: Trial) -> dict[str, Any]:
    """The spec with the setting's values, as a document to write."""
    document = spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for path, value in trial.changes.items():
        _put(document, path, value)
    return document


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    place = document
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value


def _lowest_loss(job: Job) -> float:
    """The lowest validation loss of a job once it has ended; infinity when it failed or told none."""
    try:
        job.wait()
    except JobFailedError:
        if not job.state.terminal:  # paused: the user will go on with it
            raise
        return math.inf
    return min((event.metrics["eval_loss"] for event in job.events() if "eval_loss" in event.metrics), default=math.inf)
