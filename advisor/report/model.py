"""The report as data: versioned, strict, the source of truth for every rendering.

The ten parts follow the order in which a reader asks: decision, savings, options, evidence, economics, sensitivity,
assumptions, risks, next step, reproducibility.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.curve import LearningCurve
from tuneport.advisor.decide import Decision
from tuneport.advisor.diagnosis import Diagnosis
from tuneport.advisor.experiments import Pilot
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Calls, Comparison, Confusion, Duel, Estimate, FailureGroup, Judge, Look, Power
from tuneport.advisor.offers import Offer, OfferEconomics, Percentiles
from tuneport.advisor.pricing import PriceNote
from tuneport.advisor.prior import Prior
from tuneport.advisor.routing import Route
from tuneport.core.money import Range


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Savings(_Frozen):
    """Part 2. ``subject`` says which offer the money is about, and under which condition."""

    subject: str
    offer: str | None
    economics: OfferEconomics | None
    why_unknown: str = ""


class ArmResult(_Frozen):
    """One measured arm, without its answers."""

    name: str
    kind: Literal["prompted", "tuned"]
    provider: str
    model: str
    shots: int
    metrics: dict[str, Estimate]
    failed: int  # rows without an answer; they score 0
    prompt_tokens: float | None
    completion_tokens: float | None
    seconds: float | None  # mean per answer
    prompt: str = ""  # how rows were asked, in words
    calls: Calls | None = None
    failures: tuple[FailureGroup, ...] = ()
    confusion: Confusion | None = None  # suites with labels


class Evidence(_Frozen):
    """Part 4."""

    suite: str
    suite_sha256: str
    rows: int
    clusters: int | None = None  # groups of rows that hang together; None when every row stands alone
    metric: str
    bar: float
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
    power: Power
    warnings: tuple[str, ...]
    looks: tuple[Look, ...] = ()  # every time that the sealed test rows were scored
    judges: tuple[Judge, ...] = ()
    duels: tuple[Duel, ...] = ()
    general_suite: str = ""  # what tuning has cost elsewhere: the suite's file, and the comparisons on its primary metric
    general: tuple[Comparison, ...] = ()


class CashPoint(_Frozen):
    """Money spent from the start to the end of a month, undiscounted."""

    month: float
    today: Percentiles
    tuned: Percentiles


class CashFlow(_Frozen):
    """Part 5: the break-even chart's data."""

    offer: str
    points: tuple[CashPoint, ...]
    ends_month: float | None  # when the base model ends, if that is inside the horizon


class SwingRow(_Frozen):
    """One bar of the tornado: net present value with one input at its 10th and 90th percentile, the rest at the median."""

    driver: str
    low: float
    high: float
    low_shown: str  # the same with its unit
    high_shown: str
    npv_low: float
    npv_high: float
    rank_correlation: float


class Switch(_Frozen):
    """The value of one input at which the money changes sign, or from which ``rival`` is the better offer.

    ``at`` None: none within reach.
    """

    driver: str
    share: bool  # the value is a share, shown in percent
    middle: float
    at: float | None
    statement: str
    rival: str = ""  # id of the offer that is better beyond that value
    verdict: str = ""  # the verdict beyond that value; "" where no value is within reach


class Sensitivity(_Frozen):
    """Part 6."""

    offer: str
    middle_npv: float  # net present value with every input at its median
    swings: tuple[SwingRow, ...]
    switches: tuple[Switch, ...]


class Assumption(_Frozen):
    """Part 7: something the report takes for granted, with where it comes from."""

    what: str
    value: str
    source: str
    observed_on: date | None = None
    grade: str = ""
    stale: str = ""


class Risk(_Frozen):
    """Part 8."""

    name: str
    statement: str
    answer: str  # what to do about it


class Reproducibility(_Frozen):
    """Part 10."""

    inputs_sha256: str
    seed: int
    draws: int
    versions: dict[str, str]


class Report(_Frozen):
    """A decision report. ``version`` is the version of this schema."""

    version: Literal[1] = 1
    title: str
    made_on: date
    intake: Intake
    decision: Decision
    diagnosis: Diagnosis
    savings: Savings
    offers: tuple[Offer, ...]  # best first
    unavailable: dict[str, str]  # providers that have no offer, and why
    routes: tuple[Route, ...]
    prior: Prior
    pilot: Pilot | None
    curve: LearningCurve | None
    measuring_usd: Range | None  # asking today's model once for every row of a suite; None: a price is unknown
    todays_prices: tuple[PriceNote, ...]
    evidence: Evidence | None
    cash_flow: CashFlow | None
    sensitivity: Sensitivity | None
    assumptions: tuple[Assumption, ...]
    risks: tuple[Risk, ...]
    warnings: tuple[str, ...] = ()  # of the decision file and of the ledger
    reproducibility: Reproducibility


def report_schema() -> dict[str, Any]:
    """JSON Schema of report.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
        "title": "tuneport report, version 1",
    }
