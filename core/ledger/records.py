"""What the ledger gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tuneport.core.job import JobState
from tuneport.core.money import Range


class Step(StrEnum):
    """How far a submission has come. Each value is committed before the step it names begins."""

    INTENT = "intent"  # written down; files may be on their way
    UPLOADED = "uploaded"  # files are at the provider, create has not been called
    CREATING = "creating"  # create has been called: only the provider knows whether the job exists
    CREATED = "created"  # the job exists and its ref is recorded


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the ledger knows it. Moments are timezone-aware; None means unknown or not yet."""

    id: str
    key: str
    provider: str
    model: str
    method: str
    state: JobState
    raw_state: str
    step: Step
    ref: str | None
    tuned_model: str | None
    message: str
    progress: float | None
    seconds_left: float | None
    estimate_low_usd: float | None
    estimate_high_usd: float | None
    billed_usd: float | None
    billed_tokens: int | None
    created_at: datetime
    updated_at: datetime
    create_called_at: datetime | None
    last_seen_at: datetime | None
    read_error_at: datetime | None
    read_error: str | None
    cancel_requested_at: datetime | None
    uploads: Mapping[str, str] | None

    @property
    def estimate_usd(self) -> Range | None:
        """The estimate made before submission, in USD; None when it was unknown."""
        if self.estimate_low_usd is None or self.estimate_high_usd is None:
            return None
        return Range(low=self.estimate_low_usd, high=self.estimate_high_usd)

    def freshness(self, now: datetime) -> str:
        """How old the state is when the last read failed, e.g. ``seen 4 min ago; <why>``. Empty while reads succeed."""
        if self.state.terminal or self.read_error is None:
            return ""
        seen = f"seen {_ago((now - self.last_seen_at).total_seconds())} ago" if self.last_seen_at else "never seen"
        return f"{seen}; {self.read_error}"


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, with the provider's own word for it."""

    at: datetime
    state: JobState
    raw_state: str
    note: str


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
