"""Time and memory of a local job from a few of its real steps on this machine, instead of from tables."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from pydantic import JsonValue

from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.job import JobEvent, JobState
from tuneport.core.money import Duration, Range
from tuneport.core.plan import MachineFit, Plan
from tuneport.core.provider import OpenRows
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.schedule import total_steps
from tuneport.providers.local.client import LocalProvider

STEPS = 10
WARM = 3
"""Steps before the timed ones: memory is first asked for and kernels are compiled in them."""
LOOK = 0.5
"""Seconds between two looks at the trial."""
BAND = 0.15
"""Half width of the range of later steps' mean time, as a share, beside what the timed steps' own spread says."""


def calibrated(plan: Plan, rows: OpenRows) -> Plan:
    """The plan with its time, and on a GPU this machine's peak memory, as ten real steps show them.

    The trial begins as the job does, in a folder that is removed afterwards; validation passes are not part of it. It tells how many
    sequences the rows make, and so how many steps the whole run has.

    Raises UsageError for a run of too few steps, ProviderError when the trial fails, and whatever ``LocalProvider.create`` raises.
    """
    config = TrainConfig.model_validate(plan.payload)
    if config.steps is not None and config.steps < WARM + 2:
        raise UsageError(f"the whole run is {config.steps} steps, too few to calibrate on", fix="submit it; it is no longer than the trial")
    changes: dict[str, JsonValue] = {"steps": min(STEPS, config.steps or STEPS), "epochs": None, "checkpoints": 1, "evaluations": 0}
    changes |= {"early_stopping": None, "validation_file": None, "tracking": {}}
    uploads = tuple(upload for upload in plan.uploads if upload.role == "train")
    trial = plan.model_copy(update={"payload": plan.payload | changes, "uploads": uploads})
    with tempfile.TemporaryDirectory(prefix="tuneport-calibrate-") as folder:
        provider, key, began = LocalProvider(jobs=Path(folder)), "calibrate", time.time()
        try:
            job = provider.create(trial, provider.upload(trial, rows, key), key)
            while not job.state.terminal and job.state is not JobState.PAUSED:
                time.sleep(LOOK)
                job = provider.poll(job.ref)
        finally:
            _kill(JobDir(Path(folder) / key))
        if job.state is not JobState.SUCCEEDED:
            raise ProviderError(f"the trial steps failed: {job.message}", fix="mend that; the job itself would fail alike")
        told = list(provider.events(job.ref))
    events = [event for event in told if "loss" in event.metrics]
    sequences = int(next(event.metrics["sequences"] for event in told if "sequences" in event.metrics))
    steps = total_steps(sequences, config.batch_size, config.epochs, config.steps)
    ends = [event.at.timestamp() for event in events]
    each = [end - start for start, end in pairwise(ends[WARM - 1 :])]
    mean = sum(each) / len(each)
    error = (sum((one - mean) ** 2 for one in each) / (len(each) - 1) / len(each)) ** 0.5
    start = ends[0] - began
    # Twice the standard error covers which rows the timed steps happened to hold; the band, what changes later (heat, other load).
    low, high = (max(0.0, mean + sign * (2 * error + BAND * mean)) * steps + start for sign in (-1, 1))
    basis = f"{len(each)} timed steps on this machine, {mean:.3g} s each, times {steps}; {start:.0f} s to start; validation is not in it"
    if config.rewards is not None:
        basis += "; answers may grow longer or shorter as the model learns"
    return plan.model_copy(update={"time": Duration(seconds=Range(low=low, high=high), basis=basis), "machines": _with_peak(plan, events)})


def _kill(trial: JobDir) -> None:
    """End the trial's worker if it still runs, whatever happened here: its folder goes next, and nothing of it is kept."""
    while trial.worker_alive():
        worker = trial.worker()
        if worker is not None:
            with suppress(ProcessLookupError):
                os.kill(worker[0], signal.SIGKILL)
        time.sleep(0.05)


def _with_peak(plan: Plan, events: list[JobEvent]) -> tuple[MachineFit, ...]:
    """The plan's machines; this one with the peak that was seen, below which a longer run does not stay."""
    peak = max((event.metrics.get("peak_memory_gib", 0.0) for event in events), default=0.0)
    if not peak:
        return plan.machines
    return tuple(
        one.model_copy(update={"peak_gib": Range(low=peak, high=max(peak, one.peak_gib.high if one.peak_gib else peak)), "fits": True})
        if one.here
        else one
        for one in plan.machines
    )
