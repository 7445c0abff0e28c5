"""The life of a job: its states, what a provider reports of it, and what comes out.

    planned → submitting → validating → queued → running → finalizing → succeeded | failed | cancelled
    plus paused, cancelling and unknown; the vendor's raw word is always kept beside the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class JobState(StrEnum):
    """The portable states (DESIGN vocabulary)."""

    PLANNED = "planned"
    SUBMITTING = "submitting"
    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    FINALIZING = "finalizing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True when the job will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """What a provider says of a job at one moment. None means the provider does not say."""

    ref: str  # the provider's id of the job
    state: JobState
    raw_state: str  # the provider's own word
    message: str = ""  # why it failed, or what it is doing
    progress: float | None = None  # 0..1
    seconds_left: float | None = None
    billed_tokens: int | None = None
    billed_usd: float | None = None
    tuned_model: str | None = None  # what to call; set once succeeded
    base_model: str | None = None
    created_at: datetime | None = None  # timezone-aware, by the provider's clock
    key: str | None = None  # the key that ``create`` gave the job, where the provider hands it back


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of the weights at one step of a job. ``metrics`` holds numbers such as train_loss, valid_loss."""

    step: int
    model: str  # what to call, or to continue from
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's story. ``metrics`` holds numbers such as step, loss, eval_loss."""

    id: str  # unique within the job, so that reading twice stores once
    at: datetime  # timezone-aware
    level: str  # info, warning or error
    message: str
    metrics: dict[str, float] = field(default_factory=dict)
