"""What the ledger gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from tuneport.core.deployment import DeploymentState
from tuneport.core.errors import MissingExtraError, TuneportError
from tuneport.core.job import JobState
from tuneport.core.retry import verdict

if TYPE_CHECKING:
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
    key: str  # the idempotency key that travels to the vendor
    provider: str
    model: str  # base model, as planned
    method: str
    state: JobState
    raw_state: str
    step: Step
    ref: str | None  # the vendor's id
    tuned_model: str | None
    message: str
    progress: float | None  # 0..1
    seconds_left: float | None
    estimate_low_usd: float | None  # as shown to the user; both None: unknown
    estimate_high_usd: float | None
    planned_low_usd: float | None  # the plan's own, before bills corrected it
    planned_high_usd: float | None
    billed_usd: float | None
    billed_tokens: int | None
    created_at: datetime
    updated_at: datetime  # last change of any kind
    create_called_at: datetime | None  # set just before Provider.create
    last_seen_at: datetime | None  # last good read of the vendor
    read_error_at: datetime | None  # set while reads fail
    read_error: str | None
    cancel_requested_at: datetime | None
    pause_requested_at: datetime | None  # last time; so are the next two
    resumed_at: datetime | None
    deleted_at: datetime | None  # what the job left at the vendor was removed
    uploads: Mapping[str, str] | None  # {role: file id}; None until uploaded

    @property
    def estimate_usd(self) -> Range | None:
        """The estimate made before submission, in USD, as corrected by earlier bills; None when it was unknown."""
        return _range(self.estimate_low_usd, self.estimate_high_usd)

    @property
    def planned_usd(self) -> Range | None:
        """The plan's own estimate, before earlier bills corrected it, in USD; None when it was unknown."""
        return _range(self.planned_low_usd, self.planned_high_usd)

    @property
    def pausing(self) -> bool:
        """True when pausing was asked for, and going on was not asked for since."""
        asked, resumed = self.pause_requested_at, self.resumed_at
        return asked is not None and (resumed is None or resumed < asked)

    def freshness(self, now: datetime) -> str:
        """How old the state is when the last read failed; empty while reads succeed.

        E.g. ``seen 4 min ago, vendor unreachable: <why>``; ``unread`` makes the part behind the comma.
        """
        return "" if self.state.terminal else _freshness(self.last_seen_at, self.read_error, now)

    def seen(self, now: datetime) -> str:
        """How old the state is, e.g. ``seen 4 min ago``."""
        return _seen(self.last_seen_at, now)


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state with the provider's own word for it, or something that was asked for; then the state is the one before."""

    at: datetime
    state: JobState
    raw_state: str
    note: str


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A deployment as the ledger knows it. Moments are timezone-aware; None means unknown or not yet."""

    id: str
    key: str  # the idempotency key that travels to the vendor
    job_id: str
    provider: str
    model: str  # the tuned model, as the vendor calls it
    mode: str
    state: DeploymentState
    raw_state: str
    step: Step  # never UPLOADED
    ref: str | None
    call_as: str | None
    message: str
    low_usd_per_hour: float | None  # both None: unknown
    high_usd_per_hour: float | None
    committed_hours: float
    may_idle: bool
    stands_on: str | None  # id of the deployment that it shares
    created_at: datetime
    updated_at: datetime
    create_called_at: datetime | None  # set just before Deployer.create
    ready_at: datetime | None  # first seen serving
    last_seen_at: datetime | None
    read_error_at: datetime | None
    read_error: str | None
    expires_at: datetime | None  # when it shall be undeployed; None: never by itself
    undeploy_requested_at: datetime | None
    ended_at: datetime | None  # seen gone, or refused

    @property
    def usd_per_hour(self) -> Range | None:
        """Price while it runs at its largest, in USD; None when it is unknown."""
        return _range(self.low_usd_per_hour, self.high_usd_per_hour)

    def cost_usd(self, at: datetime) -> Range | None:
        """What it has cost until ``at``, in USD; None when its price is unknown.

        From the create call at most, from the first answer at least; not at all where it may have idled; no less than what
        was committed to.
        """
        from tuneport.core.money import Range  # noqa: PLC0415 - see _range

        price, began = self.usd_per_hour, self.create_called_at
        if price is None:
            return None
        if began is None or self.state is DeploymentState.REFUSED:
            return Range(low=0, high=0)
        until = min(at, self.ended_at) if self.ended_at else at
        most = max((until - began).total_seconds() / 3600, 0.0)
        least = 0.0 if self.may_idle or self.ready_at is None else max((until - self.ready_at).total_seconds() / 3600, 0.0)
        return price * Range(low=max(least, self.committed_hours), high=max(most, least, self.committed_hours))

    def freshness(self, now: datetime) -> str:
        """As ``JobRecord.freshness``."""
        return _freshness(self.last_seen_at, self.read_error, now) if self.state.standing else ""


@dataclass(frozen=True, slots=True)
class DeploymentChange:
    """One change of a deployment's state, or something that was asked for; then the state is the one before."""

    at: datetime
    state: DeploymentState
    raw_state: str
    note: str


def unread(error: TuneportError) -> str:
    """What a failed read says of the vendor, e.g. ``vendor unreachable: connection reset``."""
    said = {"transient": "vendor unreachable", "rate_limit": "vendor asks to slow down", "no": "vendor refused to answer"}
    if isinstance(error, MissingExtraError):
        return f"vendor not asked: {error}"
    return f"{said[verdict(error).kind]}: {error}"


def _range(low: float | None, high: float | None) -> Range | None:
    from tuneport.core.money import Range  # noqa: PLC0415 - loads pydantic, which listing jobs does not need

    return None if low is None or high is None else Range(low=low, high=high)


def _freshness(last_seen_at: datetime | None, read_error: str | None, now: datetime) -> str:
    if read_error is None:
        return ""
    return f"{_seen(last_seen_at, now)}, {read_error}"


def _seen(at: datetime | None, now: datetime) -> str:
    return f"seen {_ago((now - at).total_seconds())} ago" if at else "never seen"


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@dataclass(frozen=True, slots=True)
class LookRecord:
    """One time that a model's answers were scored on a sealed test set."""

    at: datetime
    suite_sha256: str  # of prompts and expected answers
    suite: str
    arm: str
    provider: str
    model: str
    rows: int
