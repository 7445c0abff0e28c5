"""Bedrock's answers about jobs, in portable words. Pure: answers of botocore in, ``core.job`` values out.

Sources: botocore's service model bedrock 2023-04-20 (ModelCustomizationJobStatus, StatusDetails); Bedrock user guide,
"Analyze the results of a model customization job" (files and columns of the metrics).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from tuneport.core.job import JobEvent, JobState, RemoteJob
from tuneport.providers.bedrock.errors import unreadable

STATES: Mapping[str, JobState] = {
    "InProgress/validation NotStarted": JobState.QUEUED,
    "InProgress/validation": JobState.VALIDATING,
    "InProgress/validation Completed": JobState.QUEUED,
    "InProgress/dataProcessing": JobState.RUNNING,
    "InProgress/dataProcessing Completed": JobState.QUEUED,
    "InProgress/training": JobState.RUNNING,
    "InProgress/training Completed": JobState.FINALIZING,
    "InProgress/validation Stopping": JobState.CANCELLING,
    "InProgress/dataProcessing Stopping": JobState.CANCELLING,
    "InProgress/training Stopping": JobState.CANCELLING,
    "InProgress": JobState.RUNNING,
    "Completed": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
    "Stopping": JobState.CANCELLING,
    "Stopped": JobState.CANCELLED,
}
"""Bedrock's words -> ours. ``status``, and while it is InProgress and ``statusDetails`` tells more, the furthest phase with
its own word unless that is InProgress too. Anything else is JobState.UNKNOWN and is polled on."""

PHASES = ("validation", "dataProcessing", "training")
"""In their order; each stands in ``statusDetails`` as ``<phase>Details``."""

METRICS: Mapping[str, tuple[str, str]] = {
    "step_wise_training_metrics.csv": ("train", "loss"),
    "validation_metrics.csv": ("validation", "eval_loss"),
}
"""Metrics file -> (what it is of, name of its loss in ``JobEvent.metrics``)."""

_COLUMNS = {"step_number": "step", "epoch_number": "epoch", "perplexity": "perplexity"}
_LOSSES = ("training_loss", "validation_loss")


def raw_state(job: Mapping[str, Any]) -> str:
    """Bedrock's words for the job's state; see ``STATES``."""
    status = str(job.get("status") or "")
    details = job.get("statusDetails") or {}
    if status != "InProgress" or not details:
        return status
    words = [(phase, str((details.get(f"{phase}Details") or {}).get("status") or "NotStarted")) for phase in PHASES]
    phase, word = next((pair for pair in reversed(words) if pair[1] != "NotStarted"), words[0])
    return f"{status}/{phase}" if word == "InProgress" else f"{status}/{phase} {word}"


def remote_job(job: Mapping[str, Any]) -> RemoteJob:
    """What Bedrock says of a job: an answer of GetModelCustomizationJob, or one summary of the list.

    Raises ProviderError (transient) when the answer is not that of a job.
    """
    ref, raw = job.get("jobArn"), raw_state(job)
    if not ref or not raw:
        raise unreadable("it holds no job")
    state = STATES.get(raw, JobState.UNKNOWN)
    succeeded = state is JobState.SUCCEEDED
    failure = str(job.get("failureMessage") or "") if state in (JobState.FAILED, JobState.CANCELLED, JobState.UNKNOWN) else ""
    base = str(job.get("baseModelArn") or "")
    return RemoteJob(
        ref=str(ref),
        state=state,
        raw_state=raw,
        message=failure or (f"Bedrock gives no reason for {raw}" if state is JobState.FAILED else ""),
        progress=1.0 if succeeded else None,
        tuned_model=(job.get("outputModelArn") or job.get("customModelArn")) if succeeded else None,
        base_model=base.rpartition("foundation-model/")[2] or None,
        created_at=moment(job.get("creationTime")),
        key=job.get("clientRequestToken"),
    )


def moment(value: Any) -> datetime | None:
    """A time as botocore parses it, with a time zone (AWS speaks UTC); None when there is none."""
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def job_events(job: Mapping[str, Any]) -> Iterator[JobEvent]:
    """What the job itself tells: creation, begin and end of each phase, the end with its final losses. Ids never change."""
    created = moment(job.get("creationTime"))
    if created:
        yield JobEvent("created", created, "info", f"job {job.get('jobName')} created")
    details = job.get("statusDetails") or {}
    for phase in PHASES:
        told = details.get(f"{phase}Details") or {}
        word, begun, changed = told.get("status"), moment(told.get("creationTime")), moment(told.get("lastModifiedTime"))
        if word in (None, "NotStarted"):
            continue
        if begun:
            yield JobEvent(f"{phase}-begun", begun, "info", f"{phase} begun")
        if word != "InProgress" and changed:
            yield JobEvent(f"{phase}-{word}", changed, "error" if word == "Failed" else "info", f"{phase} {word}")
    raw, state = raw_state(job), STATES.get(raw_state(job), JobState.UNKNOWN)
    end = moment(job.get("endTime")) or moment(job.get("lastModifiedTime"))
    if state.terminal and end:
        failed = state is JobState.FAILED
        why = f": {job.get('failureMessage')}" if failed and job.get("failureMessage") else ""
        yield JobEvent(f"ended-{raw}", end, "error" if failed else "info", f"job {raw}{why}", _final(job))


def metric_events(path: str, lines: Iterable[str], at: datetime) -> Iterator[JobEvent]:
    """The rows of a metrics file. They carry no time of their own: ``at`` is when S3 last changed the file."""
    folder, _, file = path.rpartition("/")
    kind, loss = METRICS[file]
    seen: Counter[str] = Counter()
    for number, row in enumerate(csv.DictReader(lines)):
        values: dict[str, float] = {}
        for column, text in row.items():
            name = loss if column in _LOSSES else _COLUMNS.get(column)
            value = _number(text)
            if name and value is not None:
                values[name] = value
        if loss in values:
            step = f"{values['step']:g}" if "step" in values else str(number)
            # A step may stand there once per epoch, so the epoch is part of what makes it unique; each validation set has its folder.
            mark = f"{folder.rpartition('/')[2]}-{values['epoch']:g}-{step}" if "epoch" in values else f"{folder.rpartition('/')[2]}-{step}"
            seen[mark] += 1
            yield JobEvent(f"{mark}-{seen[mark]}" if seen[mark] > 1 else mark, at, "info", f"{kind} step {step}", values)


def _final(job: Mapping[str, Any]) -> dict[str, float]:
    if STATES.get(str(job.get("status"))) is not JobState.SUCCEEDED:
        return {}
    losses = {"loss": (job.get("trainingMetrics") or {}).get("trainingLoss")}
    validated = [metric.get("validationLoss") for metric in job.get("validationMetrics") or ()]
    losses |= {f"eval_loss_{number}" if number else "eval_loss": value for number, value in enumerate(validated)}
    return {name: float(value) for name, value in losses.items() if value is not None}


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124 -- NaN is not JSON
