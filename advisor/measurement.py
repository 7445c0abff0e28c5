"""What was measured: the arms of a suite, their metrics with intervals, and paired comparisons. Pure data, kept as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tuneport.core.errors import DataError
from tuneport.core.money import Range


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
    """One arm's answer to one row. ``scores`` maps metric to 0..1; an unanswered row has ``error`` and scores 0.

    A metric that the row has no use for (no context, no verdict of the judge) is not among its scores. Of several repeats the scores
    are means, ``text`` is the first and ``others`` are the rest.
    """

    row: int  # index in the suite, 0-based
    text: str
    scores: dict[str, float]
    error: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    others: tuple[str, ...] = ()
    declined: bool = False  # the vendor itself marks the answer as a refusal
    unanswered: tuple[int, ...] = ()  # the repeats, counted from 0, that got no answer


class Spread(_Frozen):
    """Percentiles of a time in seconds over n calls (the inverted empirical distribution: times that were really met)."""

    p50: float
    p95: float
    p99: float
    n: int


class Calls(_Frozen):
    """What the calls of an arm took and cost. Times are those of single calls; an arm answered in batches has none."""

    answered: int
    accepted: int  # rows whose primary score is full marks, or at least 0.5 for a graded metric
    latency: Spread | None = None  # whole answers
    first_token: Spread | None = None  # None unless streamed
    tokens_per_call: float | None = None  # prompt and answer; None when a count is missing
    tokens_per_accepted: float | None = None  # all calls over the accepted rows; None also when none was accepted
    usd_per_call: Range | None = None  # None: a price or a token count is unknown
    usd_per_accepted: Range | None = None  # all calls over the accepted rows; None also when none was accepted
    price_source: str = ""


class Confusion(_Frozen):
    """Rows by expected label (down) and answered label (across); the last column counts answers with none of the labels."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class FailureGroup(_Frozen):
    """Answers that failed for one reason; ``rows`` are examples, the first ones in the suite's order."""

    kind: str
    count: int
    rows: tuple[int, ...]


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
    prompt: str = ""  # how rows were asked, in words, e.g. "6 few-shot examples, context from column passage"
    columns: dict[str, str] = {}  # SHA-256 of the rows' columns that stood in the prompts: "context", "row"
    repeats: int = 1
    calls: Calls | None = None
    confusion: Confusion | None = None  # suites with labels
    failures: tuple[FailureGroup, ...] = ()  # most frequent first

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
    p_value: float | None = None  # two-sided
    test: str = ""  # what gave the p-value, e.g. "exact McNemar"
    p_holm: float | None = None  # corrected for the number of pairs (primary metric only)
    margin: float | None = None  # the loss that is accepted, as a share (primary metric only)
    non_inferior: bool | None = None  # whether the whole interval lies above -margin


class Power(_Frozen):
    """What the suite can detect: the smallest true difference found with 80 % power at alpha 0.05."""

    n: int
    discordant: float  # share of rows on which two arms disagree
    discordant_source: Literal["assumed", "measured"]
    detectable: float  # as a share, e.g. 0.11
    statement: str  # "120 rows can detect about 11 points"


class Look(_Frozen):
    """One time that an arm was scored on a sealed test set, as the ledger recorded it."""

    at: datetime
    arm: str
    provider: str
    model: str
    rows: int


class Judge(_Frozen):
    """An LLM judge's work under one fixed rubric. ``agreement`` is Cohen's kappa with human labels, where they were given."""

    rubric: str
    rubric_sha256: str
    provider: str
    model: str
    asked: int
    unreadable: int  # verdicts that say nothing: refusals, rubbish, errors; they count for no side
    agreement: Estimate | None = None
    agreement_rows: int = 0
    note: str = ""  # "" while the judge is fit for use


class Duel(_Frozen):
    """Two arms' answers compared in pairs by a judge, each pair in both orders. A win needs the same verdict in both."""

    baseline: str
    challenger: str
    rubric: str
    wins: int  # of the challenger
    losses: int
    ties: int  # a tie, or another verdict in the other order
    swayed: int  # of the ties: pairs where the order decided
    unreadable: int
    win_rate: Estimate | None  # wins + half the ties over the readable pairs
    p_value: float | None  # exact sign test on wins and losses


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
    part: Literal["test", "validation"] = "test"
    clusters: int | None = None  # groups of rows that hang together; None when every row stands alone
    row_clusters: tuple[int, ...] = ()  # the group of each row; () when every row stands alone
    uniform: bool = False  # every row expects the same answer, so that a constant one would score full marks
    looks: tuple[Look, ...] = ()  # every time this test set was scored, oldest first
    judges: tuple[Judge, ...] = ()
    duels: tuple[Duel, ...] = ()
    general: Measurement | None = None  # the same models on a general suite: what tuning has cost elsewhere

    def arm(self, name: str) -> Arm:
        """The arm of that name. Raises KeyError."""
        return {a.name: a for a in self.arms}[name]

    def clusters_of(self, rows: Iterable[int]) -> tuple[int, ...]:
        """The groups that these rows belong to; () when each stands alone among them."""
        found = tuple(self.row_clusters[row] for row in rows) if self.row_clusters else ()
        return found if len(set(found)) < len(found) else ()

    def elsewhere(self, arm: Arm) -> Comparison | None:
        """What tuning has cost the arm's model on the general suite: base against it; None where that very model was not measured there."""
        if self.general is None:
            return None
        model = (arm.kind, arm.provider, arm.model, arm.job)
        names = {a.name for a in self.general.arms if (a.kind, a.provider, a.model, a.job) == model}
        pairs = (c for c in self.general.comparisons if c.metric == self.general.primary_metric and c.challenger in names)
        return next(pairs, None)


def load_measurement(path: Path) -> Measurement:
    """A measurement file. Raises DataError when there is none, or none in it."""
    try:
        return Measurement.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", fix="check the path; `tuneport baseline` writes measurements") from None
    except (ValidationError, UnicodeDecodeError):
        raise DataError(f"{path} is no measurement file", fix="make one with tuneport baseline, under a name of its own (--out)") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", fix="check the path and its permissions") from None


def _mean(values: list[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
