"""What Fireworks says of a job, in our words: states, progress, cost, the tuned model. Pure.

The 18 states are those of fireworks-ai 1.2.28, the same in all three families of jobs. Which of them are final is not
written there: COMPLETED, EARLY_STOPPED, FAILED, EXPIRED and CANCELLED are taken to be.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from tuneport.core.job import JobEvent, JobState, RemoteJob
from tuneport.core.secrets import redact

STATES: Mapping[str, JobState] = {
    "JOB_STATE_UNSPECIFIED": JobState.UNKNOWN,
    "JOB_STATE_CREATING": JobState.QUEUED,
    "JOB_STATE_PENDING": JobState.QUEUED,
    "JOB_STATE_RE_QUEUEING": JobState.QUEUED,
    "JOB_STATE_IDLE": JobState.QUEUED,
    "JOB_STATE_CREATING_INPUT_DATASET": JobState.VALIDATING,
    "JOB_STATE_VALIDATING": JobState.VALIDATING,
    "JOB_STATE_RUNNING": JobState.RUNNING,
    "JOB_STATE_WRITING_RESULTS": JobState.FINALIZING,
    "JOB_STATE_PAUSED": JobState.PAUSED,
    "JOB_STATE_CANCELLING": JobState.CANCELLING,
    "JOB_STATE_COMPLETED": JobState.SUCCEEDED,
    "JOB_STATE_EARLY_STOPPED": JobState.SUCCEEDED,
    "JOB_STATE_FAILED": JobState.FAILED,
    "JOB_STATE_EXPIRED": JobState.FAILED,
    "JOB_STATE_CANCELLED": JobState.CANCELLED,
    # Somebody removes the job; what it had come to is no longer said.
    "JOB_STATE_DELETING": JobState.UNKNOWN,
    "JOB_STATE_DELETING_CLEANING_UP": JobState.UNKNOWN,
}
"""Fireworks' word -> ours. Any other word is ``unknown`` and kept as it is."""

NOTES: Mapping[str, str] = {
    "JOB_STATE_EARLY_STOPPED": "stopped early by Fireworks",
    "JOB_STATE_EXPIRED": "expired at Fireworks",
    "JOB_STATE_PAUSED": "paused by Fireworks, as happens when the account is suspended",
    "JOB_STATE_DELETING": "being deleted at Fireworks",
    "JOB_STATE_DELETING_CLEANING_UP": "being deleted at Fireworks",
}
"""What a state means, where Fireworks' own message may be missing."""

_OUR_KEY = re.compile(r"tp-[0-9a-z]+-[0-9a-z]+")


def is_our_key(job_id: str) -> bool:
    """Whether a job's id has the form of a key of ``core.keys``: tuneport made the job, and the id is its key."""
    return _OUR_KEY.fullmatch(job_id) is not None


def remote_job(job: Mapping[str, Any], *, account: str, at: Callable[[str], str] = str) -> RemoteJob:
    """The job as Fireworks shows it (a JSON document of any family).

    ``at`` makes the ref, and the model's name, carry the service's address where it is not the environment's.
    ``billed_usd`` is Fireworks' ``estimatedCost``, taken once the job has ended; before that it is only told in ``message``.
    """
    raw = str(job.get("state") or "JOB_STATE_UNSPECIFIED")
    state = STATES.get(raw, JobState.UNKNOWN)
    name = str(job["name"])
    job_id = name.rpartition("/")[2]
    training = job.get("trainingConfig") or job
    cost = money(job.get("estimatedCost"))
    percent = _number((job.get("jobProgress") or {}).get("percent"))
    return RemoteJob(
        ref=at(name),
        state=state,
        raw_state=raw,
        message=redact("; ".join(filter(None, (_status(job), NOTES.get(raw, ""), _cost_note(cost, state))))),
        progress=None if percent is None else min(max(percent / 100, 0.0), 1.0),
        billed_usd=cost[0] if cost and cost[1] == "USD" and state.terminal else None,
        tuned_model=at(model_name(training.get("outputModel") or job_id, account)) if state is JobState.SUCCEEDED else None,
        base_model=training.get("baseModel") or training.get("warmStartFrom"),
        created_at=moment(job.get("createTime")),
        key=job_id if is_our_key(job_id) else None,
    )


def model_name(model: str, account: str) -> str:
    """The full resource name of a model that is given by name or by id."""
    return model if "/" in model else f"accounts/{account}/models/{model}"


def money(amount: Mapping[str, Any] | None) -> tuple[float, str] | None:
    """An amount and its currency from Google's Money (whole ``units`` as text, ``nanos`` = 1e-9 units). None when there is none."""
    if not amount:
        return None
    return float(amount.get("units") or 0) + float(amount.get("nanos") or 0) / 1e9, str(amount.get("currencyCode") or "USD")


def moment(text: str | None) -> datetime | None:
    """An RFC 3339 time, timezone-aware; None when there is none or it cannot be read."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def metric_events(text: str, begun: str | None) -> list[JobEvent]:
    """The lines of a metrics file as events, by step. The same line has the same id whenever it is read again.

    Each line is ``{"timestamp": seconds, "step": n, "data": {"train/loss": ...}}`` or has the numbers beside ``step``
    (seen in files of July 2026; Fireworks documents no format). A line without a time gets ``begun``, the job's start;
    a line that is not whole, because it is just being written, is left out.
    """
    start = moment(begun) or datetime.fromtimestamp(0, UTC)
    found: dict[str, JobEvent] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or _number(record.get("step")) is None:
            continue
        step = _number(record["step"]) or 0.0
        data = record.get("data")
        pairs = (data if isinstance(data, dict) else record).items()
        numbers = {_metric(name): value for name, given in pairs if name not in _NOT_METRICS and (value := _number(given)) is not None}
        seconds = _number(record.get("timestamp"))
        ident = f"metrics-{step:g}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"
        at = start if seconds is None else datetime.fromtimestamp(seconds, UTC)
        found[ident] = JobEvent(ident, at, "info", f"step {step:g}", {"step": step, **numbers})
    return sorted(found.values(), key=lambda event: (event.at, event.metrics["step"]))


_NOT_METRICS = frozenset({"step", "timestamp"})


def _metric(name: str) -> str:
    """``train/loss`` -> loss, ``eval/loss`` -> eval_loss."""
    return name.removeprefix("train/").replace("/", "_")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _status(job: Mapping[str, Any]) -> str:
    """Fireworks' structured status, e.g. ``INVALID_ARGUMENT: <message>``; empty while all is well."""
    status = job.get("status") or {}
    code, message = str(status.get("code") or ""), str(status.get("message") or "")
    return message if code in ("", "OK") else f"{code}: {message}".removesuffix(": ")


def _cost_note(cost: tuple[float, str] | None, state: JobState) -> str:
    if cost is None or (state.terminal and cost[1] == "USD"):
        return ""
    return f"Fireworks' estimate of the cost: {cost[0]:.2f} {cost[1]}"
