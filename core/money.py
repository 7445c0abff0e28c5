"""Ranges of money and time, each with its reasons. Unknown is a value of its own, never zero."""

from __future__ import annotations

from math import isnan

from pydantic import BaseModel, ConfigDict, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Range(_Frozen):
    """An interval with low <= high, in the unit that its place names."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if isnan(self.low) or isnan(self.high):
            raise ValueError("an end of the range is not a number")
        if self.low > self.high:
            raise ValueError(f"low {self.low} exceeds high {self.high}")
        return self

    def __mul__(self, other: Range | float) -> Range:
        """The product of two non-negative ranges, or of a range and a non-negative number."""
        factor = other if isinstance(other, Range) else Range(low=other, high=other)
        return Range(low=self.low * factor.low, high=self.high * factor.high)

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, high=self.high + other.high)


AT_MINIMUM = "lifted to the minimum charge"
"""Stands in the basis of a cost line that a minimum charge decides."""


class CostLine(_Frozen):
    """One part of a cost: what, the range in USD (None: unknown), and where the figure comes from."""

    item: str
    usd: Range | None
    basis: str  # e.g. "1.2M tokens x 0.48 USD/1M (together, observed 2026-03-01, grade M)"
    stale: str = ""  # "" while the price is current, else e.g. "61 days old"


class Cost(_Frozen):
    """A cost in USD. ``usd`` is None when any line is unknown; ``known_usd`` then holds what is known."""

    lines: tuple[CostLine, ...] = ()

    @property
    def usd(self) -> Range | None:
        """The total, or None when a line is unknown."""
        return None if any(line.usd is None for line in self.lines) or not self.lines else self.known_usd

    @property
    def known_usd(self) -> Range:
        """The total of the known lines."""
        total = Range(low=0, high=0)
        for line in self.lines:
            total = total + line.usd if line.usd else total
        return total


class Duration(_Frozen):
    """A time in seconds as a range, or None when nobody knows, with the source."""

    seconds: Range | None
    basis: str
