"""Time and memory of a local job from a few of its real steps on this machine, instead of from tables."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path

from pydantic import JsonValue

from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.job import JobEvent, JobState
from tuneport.core.money import Duration, Range
from tuneport.core.plan import MachineFit, Plan
from tuneport.core.provider import OpenRows
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.schedule import total_steps
from tuneport.providers.local.client import LocalProvider

STEPS = 10
WARM = 3
"""Steps before the timed ones: memory is first asked for and kernels are compiled in them."""
LOOK = 0.5
"""Seconds between two looks at the trial."""
BAND = 0.15
"""Half width of the range of later steps' mean time, as a share, beside what the timed steps' own spread says."""


def calibrated(plan: Plan, rows: OpenRows, train_rows: int) -> Plan:
    """The plan with its time, and on a GPU this machine's peak memory, as ten real steps show them.

    The steps are those that the job begins with, in a folder that is removed afterwards; validation passes are not among them.
    Raises UsageError for a run of too few steps, ProviderError when the trial fails, and whatever ``LocalProvider.create`` raises.
    """
    config = TrainConfig.model_validate(plan.payload)
    steps = total_steps(max(1, round(train_rows * config.train_share)), config.batch_size, config.epochs, config.steps)
    if steps < WARM + 2:
        raise UsageError(f"the whole run is {steps} steps, too few to calibrate on", fix="submit it; it is no longer than the trial")
    changes: dict[str, JsonValue] = {"steps": min(STEPS, steps), "epochs": None, "evaluations": 0, "early_stopping": None, "checkpoints": 1}
    changes |= {"validation_file": None, "tracking": {}}
    uploads = tuple(upload for upload in plan.uploads if upload.role == "train")
    trial = plan.model_copy(update={"payload": plan.payload | changes, "uploads": uploads})
    with tempfile.TemporaryDirectory(prefix="tuneport-calibrate-") as folder:
        provider, key, began = LocalProvider(jobs=Path(folder)), "calibrate", time.time()
        job = provider.create(trial, provider.upload(trial, rows, key), key)
        try:
            while not job.state.terminal and job.state is not JobState.PAUSED:
                time.sleep(LOOK)
                job = provider.poll(job.ref)
        except KeyboardInterrupt:
            provider.cancel(job.ref)
            raise
        if job.state is not JobState.SUCCEEDED:
            raise ProviderError(f"the trial steps failed: {job.message}", fix="mend that; the job itself would fail alike")
        events = [event for event in provider.events(job.ref) if "loss" in event.metrics]
    ends = [event.at.timestamp() for event in events]
    each = [end - start for start, end in pairwise(ends[WARM - 1 :])]
    mean = sum(each) / len(each)
    error = (sum((one - mean) ** 2 for one in each) / (len(each) - 1) / len(each)) ** 0.5
    start = ends[0] - began
    # Twice the standard error covers which rows the timed steps happened to hold; the band, what changes later (heat, other load).
    low, high = (max(0.0, mean + sign * (2 * error + BAND * mean)) * steps + start for sign in (-1, 1))
    basis = f"{len(each)} timed steps on this machine, {mean:.3g} s each, times {steps}; {start:.0f} s to start; validation is not in it"
    return plan.model_copy(update={"time": Duration(seconds=Range(low=low, high=high), basis=basis), "machines": _with_peak(plan, events)})


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
