"""What moves the money: one-at-a-time swings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tuneport.advisor.economics import FloatArray
from tuneport.advisor.simulation import LABELS, TOGETHER, Drivers, OfferTerms, Setting, evaluate

SHARES = frozenset({"cache_hit", "cache_hit_tuned", "accepted", "accepted_tuned", "batch_share", "removed"})
"""Drivers between 0 and 1; ``removed`` begins at -1."""


@dataclass(frozen=True, slots=True)
class Swing:
    """One bar of the tornado: the NPV when one driver stands at its 10th or 90th percentile, all others at their median."""

    driver: str
    label: str  # in the words of the report
    low: float  # the driver's 10th percentile
    high: float
    npv_low: float
    npv_high: float
    rank_correlation: float  # Spearman, over all draws: a check on the one-at-a-time swing


def tornado(drivers: Drivers, offer: OfferTerms, setting: Setting, npv: FloatArray) -> list[Swing]:
    """One-at-a-time swings of the NPV, widest first; drivers that do not vary are left out. Names that hold one array are one input."""
    middle = {name: np.array([_median(values)]) for name, values in drivers.items()}
    ranks = _ranks(npv)
    swings: list[Swing] = []
    for names in _inputs(drivers):
        values = drivers[names[0]]
        low, high = np.percentile(values, [10, 90]) if np.isfinite(values).all() else (np.inf, np.inf)
        if low == high:
            continue
        trial = {k: np.repeat(v, 2) for k, v in middle.items()} | dict.fromkeys(names, np.array([low, high]))
        ends = evaluate(trial, offer, setting).npv
        correlation = float(np.corrcoef(_ranks(values), ranks)[0, 1]) if np.ptp(npv) > 0 else 0.0
        label = TOGETHER.get(names[0], LABELS[names[0]]) if len(names) > 1 else LABELS[names[0]]
        swings.append(Swing(names[0], label, float(low), float(high), float(ends[0]), float(ends[1]), correlation))
    return sorted(swings, key=lambda s: -abs(s.npv_high - s.npv_low))


def _median(values: FloatArray) -> float:
    return float(np.median(values))


def _inputs(drivers: Drivers) -> list[list[str]]:
    """The names of each input: two names that hold one and the same array are one."""
    found: dict[int, list[str]] = {}
    for name, values in drivers.items():
        found.setdefault(id(values), []).append(name)
    return list(found.values())


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)
