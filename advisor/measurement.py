"""What was measured: the arms of a suite, their metrics with intervals, and paired comparisons. Pure data, kept as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Estimate(_Frozen):
    """A metric over n rows with its two-sided 95 % interval, all in 0..1 unless the metric says otherwise."""

    value: float
    low: float
    high: float
    n: int
    method: str  # how the interval was made: "Wilson", "bootstrap (2,000 resamples, seed 0)", "t"


class Answer(_Frozen):
    """One arm's answer to one row. ``scores`` maps metric to 0..1; an unanswered row has ``error`` and scores 0."""

    row: int  # index in the suite, 0-based
    text: str
    scores: dict[str, float]
    error: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None


class Arm(_Frozen):
    """One thing measured: a model with a prompt, or a tuned model."""

    name: str  # unique in the measurement, e.g. "few-shot (6)", "tuned"
    kind: Literal["prompted", "tuned"]
    provider: str
    model: str
    shots: int = 0
    job: str | None = None  # ledger id of the job that made a tuned model
    metrics: dict[str, Estimate]
    answers: tuple[Answer, ...]

    @property
    def mean_prompt_tokens(self) -> float | None:
        """Tokens per prompt; None when no answer carries a count."""
        return _mean([a.prompt_tokens for a in self.answers])

    @property
    def mean_completion_tokens(self) -> float | None:
        """Tokens per answer; None when no answer carries a count."""
        return _mean([a.completion_tokens for a in self.answers])


class Comparison(_Frozen):
    """Two arms on the same rows. ``difference`` is challenger minus baseline, with a paired 95 % interval."""

    baseline: str
    challenger: str
    metric: str
    difference: Estimate
    only_baseline: int | None = None  # rows only the baseline got right (binary metrics)
    only_challenger: int | None = None
    p_value: float | None = None  # exact McNemar, two-sided (binary metrics)


class Power(_Frozen):
    """What the suite can detect: the smallest true difference found with 80 % power at alpha 0.05."""

    n: int
    discordant: float  # share of rows on which two arms disagree
    discordant_source: Literal["assumed", "measured"]
    detectable: float  # as a share, e.g. 0.11
    statement: str  # "120 rows can detect about 11 points"


class Measurement(_Frozen):
    """All arms on one suite."""

    version: Literal[1] = 1
    suite: str  # path of the test rows
    suite_sha256: str
    task: str  # "json", "label" or "text"
    primary_metric: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    power: Power
    warnings: tuple[str, ...] = ()

    def arm(self, name: str) -> Arm:
        """The arm of that name. Raises KeyError."""
        return {a.name: a for a in self.arms}[name]


def _mean(values: list[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
