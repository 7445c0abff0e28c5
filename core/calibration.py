"""What bills teach about estimates: how far off each one was, and the range that the next one deserves.

The rule. For each of a provider's latest jobs that succeeded, ``ratio = billed / midpoint of the planned range``. Taken as
exchangeable, the next ratio lies between the k-th smallest and the k-th largest of n with probability (n + 1 - 2k) / (n + 1),
whatever their distribution (Wilks 1941, "Determination of sample sizes for setting tolerance limits"). k is the largest that
keeps 80 %. With n < 9 not even smallest and largest reach 80 %, so the planned range, shifted by the median ratio, stays inside
the learnt one: few bills may move and widen an estimate, but not narrow it. With n < 3 nothing is changed.

Ratios are those of the plan's own estimate (``JobRecord.planned_usd``), never of a corrected one, so that corrections do not
feed on themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tuneport.core.job import JobState
from tuneport.core.money import AT_MINIMUM, Cost, CostLine, Range

FEWEST_BILLS = 3
LATEST_BILLS = 100
"""Older bills than the latest 100 of a provider are left out: prices and ways of billing change."""
COVERAGE = 0.8
CORRECTED = "corrected by bills"
"""Stands in the basis of a line that was calibrated, so that this happens once."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a provider's bills say about its estimates."""

    provider: str
    bills: int  # n
    median: float  # of billed / midpoint of the planned range
    low: float  # the next ratio lies between low and high ...
    high: float
    coverage: float  # ... with this probability

    def __str__(self) -> str:
        return (
            f"x {self.low:.2f} to {self.high:.2f}, median {self.median:.2f}, as n={self.bills} bills at {self.provider} were to their "
            f"estimates ({self.coverage:.0%} of the next bills fall in between)"
        )


def learn(provider: str, ratios: Sequence[float]) -> Calibration | None:
    """The calibration from ratios of billed to planned cost; None with fewer than 3."""
    n = len(ratios)
    if n < FEWEST_BILLS:
        return None
    ordered = sorted(ratios)
    k = max(1, int((1 - COVERAGE) / 2 * (n + 1) + 1e-9))  # + 1e-9: 0.1 * 10 is a whole number
    return Calibration(provider, n, median(ordered), ordered[k - 1], ordered[n - k], (n + 1 - 2 * k) / (n + 1))


def calibrated(cost: Cost, calibration: Calibration | None) -> Cost:
    """The cost as bills correct it; each changed line says so in its basis. Pure, and harmless to repeat.

    Unknown lines stay unknown. A line that a minimum charge decides stays as it is: the vendor's minimum is a fact.
    """
    if calibration is None:
        return cost
    return Cost(lines=tuple(_calibrated(line, calibration) for line in cost.lines))


def _calibrated(line: CostLine, by: Calibration) -> CostLine:
    if line.usd is None or line.usd.high == 0 or AT_MINIMUM in line.basis or CORRECTED in line.basis:
        return line
    middle = midpoint(line.usd)
    low, high = middle * by.low, middle * by.high
    if by.coverage < COVERAGE:
        low, high = min(low, line.usd.low * by.median), max(high, line.usd.high * by.median)
    basis = f"{line.basis}; {CORRECTED}, from {line.usd.low:.2f} to {line.usd.high:.2f} USD: {by}"
    return line.model_copy(update={"usd": Range(low=low, high=high), "basis": basis})


def midpoint(amount: Range) -> float:
    """The middle of a range."""
    return (amount.low + amount.high) / 2


@dataclass(frozen=True, slots=True)
class JobCost:
    """One job's estimate beside its bill, in USD. None means unknown."""

    job_id: str
    provider: str
    model: str
    state: JobState
    planned: Range | None  # the plan's own estimate
    estimate: Range | None  # what the user was told: the plan's, corrected by the bills until then
    billed: Range | None  # a range only where tokens were billed and their price is one
    billed_tokens: int | None
    basis: str  # where ``billed`` comes from, or why it is unknown

    @property
    def error(self) -> float | None:
        """How much more than the estimate's midpoint was billed, as a share of it: 0.2 is 20 % more. None when either is unknown or 0."""
        if self.estimate is None or self.billed is None or midpoint(self.estimate) == 0:
            return None
        return midpoint(self.billed) / midpoint(self.estimate) - 1

    @property
    def inside(self) -> bool | None:
        """Whether the bill fell into the estimate's range, to the cent; None when either is unknown."""
        if self.estimate is None or self.billed is None:
            return None
        return self.estimate.low - 0.005 <= self.billed.high and self.billed.low <= self.estimate.high + 0.005


@dataclass(frozen=True, slots=True)
class ProviderCost:
    """The jobs of one provider together: sums in USD over those whose estimate and bill are both known."""

    provider: str
    jobs: int  # all that were looked at
    compared: int  # those with both
    estimate: Range
    billed: Range
    inside: int  # bills within their range

    @property
    def error(self) -> float | None:
        """How much more than the midpoints of the estimates was billed, as a share; None when nothing can be compared."""
        return midpoint(self.billed) / midpoint(self.estimate) - 1 if midpoint(self.estimate) > 0 else None


def totals(costs: Sequence[JobCost]) -> list[ProviderCost]:
    """The sums per provider, by name."""
    found = []
    for provider in sorted({cost.provider for cost in costs}):
        own = [cost for cost in costs if cost.provider == provider]
        estimate = billed = Range(low=0, high=0)
        pairs = [(cost.estimate, cost.billed, cost.inside) for cost in own]
        both = [(e, b, inside) for e, b, inside in pairs if e is not None and b is not None]
        for one, bill, _ in both:
            estimate, billed = estimate + one, billed + bill
        found.append(ProviderCost(provider, len(own), len(both), estimate, billed, sum(bool(inside) for *_, inside in both)))
    return found
