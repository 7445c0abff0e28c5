"""Together's answers about jobs, in portable words. Pure: JSON documents in, ``core.job`` values out.

Sources: SDK together 3.1.1, ``types/finetune_response.py`` (states), ``lib/types/fine_tuning.py`` (user_error, counters,
upper-case event types), ``lib/utils/tools.py`` (prices in nano-dollars).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from tuneport.core.errors import ProviderError
from tuneport.core.job import JobEvent, JobState, RemoteJob
from tuneport.providers.exchange import at

STATES: Mapping[str, JobState] = {
    "pending": JobState.QUEUED,
    "queued": JobState.QUEUED,
    "running": JobState.RUNNING,
    "compressing": JobState.FINALIZING,
    "uploading": JobState.FINALIZING,
    "cancel_requested": JobState.CANCELLING,
    "completed": JobState.SUCCEEDED,
    "error": JobState.FAILED,
    "user_error": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}
"""Together's word -> ours. Any other word is JobState.UNKNOWN and is polled on."""

KEY = re.compile(r"tp-[a-z0-9]{6}-[a-z0-9]{8}")
"""The shape of ``core.keys.new_key``."""

NANODOLLARS = 1e9
TRAINING_BEGUN = frozenset({"training_start", "epoch_complete", "eval_complete", "checkpoint_save", "training_complete", "job_complete"})
"""Event types after which there may be metrics."""

_STEP = ("global_step", "step")
_LOGGED = ("logged_at", "timestamp", "created_at")


def remote_job(job: Mapping[str, Any], address: str | None = None) -> RemoteJob:
    """What Together says of a job; ``address`` becomes part of the ref where it is not the environment's.

    Raises ProviderError (transient) when the document is not that of a job.
    """
    ident, raw = job.get("id"), job.get("status")
    if not isinstance(ident, str) or not ident or not isinstance(raw, str) or not raw:
        raise ProviderError("Together's answer is not that of a fine-tuning job (it has no id or no status)", fix="look again later")
    state = STATES.get(raw, JobState.UNKNOWN)
    tuned = next((job[name] for name in ("model_output_name", "model_object_name", "model_object_id") if job.get(name)), None)
    found = KEY.search(f"{job.get('suffix') or ''} {job.get('model_output_name') or ''}")
    price, tokens = _number(job.get("total_price")), _number(job.get("token_count"))
    # The price of a failed job is refunded, and that of a running one is not final.
    billed = state in (JobState.SUCCEEDED, JobState.CANCELLED)
    return RemoteJob(
        ref=at(ident, address),
        state=state,
        raw_state=raw,
        message=_message(job, state),
        progress=_progress(job, state),
        seconds_left=_seconds_left(job, state),
        billed_tokens=int(tokens) if billed and tokens is not None else None,
        billed_usd=price / NANODOLLARS if billed and price is not None else None,
        tuned_model=at(str(tuned), address) if tuned and state is JobState.SUCCEEDED else None,
        base_model=_text(job.get("model")) or None,
        created_at=moment(job.get("created_at")),
        key=found[0] if found else None,
    )


def job_events(events: Iterable[Mapping[str, Any]], metrics: Iterable[Mapping[str, Any]]) -> list[JobEvent]:
    """Events and points of the loss curve, oldest first. The ids are the same whenever they are made again.

    A point that carries no time is placed at the start of training; one without a step is no point of a curve.
    """
    found: list[JobEvent] = []
    seen: Counter[str] = Counter()
    begun: datetime | None = None
    for event in events:
        when, kind = moment(event.get("created_at")), _text(event.get("type")).lower()
        if when is None:
            continue
        if begun is None and kind in TRAINING_BEGUN:
            begun = when
        message = _text(event.get("message")) or kind.replace("_", " ")
        numbers = {"step": event.get("step"), "total_steps": event.get("total_steps"), "tokens": event.get("token_count")}
        numbers["eval_loss"] = event.get("early_stopping_best_metric_value")
        told = {name: value for name, given in numbers.items() if (value := _number(given)) is not None}
        mark = _text(event.get("hash")) or hashlib.sha256(f"{when.isoformat()} {kind} {message} {told}".encode()).hexdigest()[:16]
        seen[mark] += 1  # the same line twice is two events
        found.append(JobEvent(f"{mark}-{seen[mark]}" if seen[mark] > 1 else mark, when, _level(event), message, told))
    start = begun or (found[0].at if found else None)
    for point in metrics:
        step = next((value for name in _STEP if (value := _number(point.get(name))) is not None), None)
        when = next((time for name in _LOGGED if (time := moment(point.get(name))) is not None), start)
        values = {name: value for name, given in point.items() if name not in (*_STEP, *_LOGGED) and (value := _number(given)) is not None}
        if step is None or when is None or not values:
            continue
        names = hashlib.sha256(" ".join(sorted(values)).encode()).hexdigest()[:6]
        found.append(JobEvent(f"metrics-{step:g}-{names}", when, "info", f"step {step:g}", {"step": step, **values}))
    return sorted(found, key=lambda event: (event.at, event.metrics.get("step", -1.0)))


def hub_export(events: Iterable[Mapping[str, Any]]) -> str:
    """How far the export to Hugging Face is: "" while nothing was said of it, else uploading, done or failed."""
    state = ""
    for event in events:
        kind, message = _text(event.get("type")).lower(), _text(event.get("message")).lower()
        about = "to_hf" in kind or "hugging face" in message or "huggingface" in message
        if kind == "model_upload_to_hf_complete":
            state = "done"
        elif about and (_level(event) == "error" or "fail" in message):
            state = "failed"
        elif kind == "model_uploading_to_hf":
            state = "uploading"
    return state


def moment(value: Any) -> datetime | None:
    """A time from ISO 8601 text or from seconds or milliseconds since the epoch; None when it is neither."""
    number = _number(value)
    try:
        if number is not None:
            return datetime.fromtimestamp(number / 1000 if number > 1e11 else number, UTC)
        parsed = datetime.fromisoformat(_text(value).strip())
    except (ValueError, OverflowError, OSError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def metric_at(metrics: Iterable[Mapping[str, Any]], step: int) -> dict[str, float]:
    """The numbers logged at one step."""
    found: dict[str, float] = {}
    for point in metrics:
        if any(_number(point.get(name)) == step for name in _STEP):
            found |= {name: number for name, given in point.items() if name not in _LOGGED and (number := _number(given)) is not None}
    return {name: value for name, value in found.items() if name not in _STEP}


def _message(job: Mapping[str, Any], state: JobState) -> str:
    events = [event for event in job.get("events") or () if isinstance(event, Mapping)]
    if state is JobState.FAILED:
        said = [_text(event.get("message")) for event in events if _level(event) == "error" or "error" in _text(event.get("type")).lower()]
        return next((text for text in reversed(said) if text), "")
    depth = _number(job.get("queue_depth"))
    if state is JobState.QUEUED and depth:
        return f"place {depth:g} in the queue"
    if state is JobState.SUCCEEDED and job.get("early_stopped"):
        best = _number(job.get("early_stopping_best_step"))
        return "stopped early" + (f", the model is that of step {best:g}" if best is not None else "")
    exported = hub_export(events)
    return f"export to Hugging Face: {exported}" if exported else ""


def _progress(job: Mapping[str, Any], state: JobState) -> float | None:
    if state is JobState.SUCCEEDED:
        return 1.0
    done, total = _number(job.get("steps_completed")), _number(job.get("total_steps"))
    return min(max(done / total, 0.0), 1.0) if done is not None and total else None


def _seconds_left(job: Mapping[str, Any], state: JobState) -> float | None:
    """Together's estimate of the time to the next state; it is that of the job only while the job trains."""
    progress = job.get("progress")
    if state is not JobState.RUNNING or not isinstance(progress, Mapping) or not progress.get("estimate_available"):
        return None
    return _number(progress.get("seconds_remaining"))


def _level(event: Mapping[str, Any]) -> str:
    word = _text(event.get("level")).lower()
    return "error" if "error" in word else "warning" if "warning" in word else "info"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else None  # noqa: PLR0124
