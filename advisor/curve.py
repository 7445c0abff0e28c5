"""The learning curve: quality against training rows, ``a - b * n^-c``, and whether more rows are worth their price.

The form is that of the data term of the published scaling laws for tuning (Zhang et al., arXiv 2402.17193); the exponents are the
task's own, so they are fitted, never taken from a paper. Few points give an interval, not a number (economics notes 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneport.advisor.economics import FloatArray
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Estimate, Measurement

EXPONENTS = np.linspace(0.05, 1.0, 20)
"""Values of c that are tried; for each, a and b follow by least squares."""
BOOTSTRAP = 1000
MIN_POINTS = 3


class CurveRun(BaseModel):
    """One measured point."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    arm: str
    rows: int
    quality: Estimate


class LearningCurve(BaseModel):
    """The fit and what it says of twice the rows. ``gain`` is the expected rise from the largest run to twice its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    runs: tuple[CurveRun, ...]
    ceiling: float | None  # a: what endless rows would reach
    exponent: float | None  # c
    next_rows: int | None
    gain: Estimate | None  # None: fewer than three runs
    worth_usd: float | None  # value of the gain over the horizon, at the middle of the stated ranges
    price_usd: float | None  # data and labels for the added rows, at the stated cost of the first ones
    more_is_worth: bool | None  # None: not known
    says: str


def learning_curve(intake: Intake, measurement: Measurement | None, training_rows: int | None, *, seed: int = 0) -> LearningCurve | None:
    """The curve through the arms that the decision file names; None when it names none that was measured."""
    metric = intake.quality.metric
    arms = {a.name: a for a in measurement.arms if metric in a.metrics} if measurement else {}
    points = sorted((p for p in intake.learning_curve if p.arm in arms), key=lambda p: p.rows)
    if not points:
        return None
    runs = tuple(CurveRun(arm=p.arm, rows=p.rows, quality=arms[p.arm].metrics[metric]) for p in points)
    sizes = np.array([r.rows for r in runs], dtype=np.float64)
    if len(set(sizes)) < MIN_POINTS:
        return _unfitted(runs, f"{len(set(sizes))} sizes were measured; a curve needs {MIN_POINTS}, e.g. 25, 50 and 100 % of the rows.")
    by_row = [{a.row: a.scores[metric] for a in arms[p.arm].answers if metric in a.scores} for p in points]
    rows = sorted(set.intersection(*(set(scores) for scores in by_row)))
    if not rows:
        return _unfitted(runs, "The runs share no measured row, so no curve can be fitted.")
    scores = np.array([[s[r] for r in rows] for s in by_row])
    ceiling, exponent, gain = _fit(sizes, scores.mean(axis=1)[:, None])
    rng = np.random.default_rng(seed)
    draws = np.concatenate(
        [scores[:, rng.integers(0, len(rows), (BOOTSTRAP // 10, len(rows)))].mean(axis=2) for _ in range(10)], axis=1
    )  # the same rows for every run: the noise that they share cancels
    _, _, gains = _fit(sizes, draws)
    low, high = (float(v) for v in np.percentile(gains, [2.5, 97.5]))
    method = f"bootstrap over rows ({BOOTSTRAP:,} resamples, seed {seed})"
    estimate = Estimate(value=float(gain[0]), low=min(low, float(gain[0])), high=max(high, float(gain[0])), n=len(rows), method=method)
    added = int(sizes[-1])
    worth, price = _worth(intake, estimate.value), _price(intake, added, training_rows)
    shown = estimate.low > 0.0005
    worthwhile = False if not shown else None if worth is None or price is None else worth > price
    percent = [f"{100 * v:.1f}" for v in (estimate.value, estimate.low, estimate.high)]
    says = f"Twice the rows ({2 * added:,}) would add about {percent[0]} points ({percent[1]} to {percent[2]})"
    if not shown:
        says += ": the interval covers no gain, so do not buy more rows on this evidence."
    elif worthwhile is None:
        says += "; whether that is worth their price is open, because the cost of a miss or of a row is not stated."
    else:
        says += f", worth about {_rounded(worth)} over the horizon against {_rounded(price)} for the rows: "
        says += "buy them." if worthwhile else "do not buy them."
    return LearningCurve(
        runs=runs, ceiling=float(ceiling[0]), exponent=float(exponent[0]), next_rows=2 * added, gain=estimate, worth_usd=worth,
        price_usd=price, more_is_worth=worthwhile, says=says,
    )  # fmt: skip


def _rounded(usd: float | None) -> str:
    return "an unknown sum" if usd is None else f"${float(f'{usd:.2g}'):,.0f}"


def _unfitted(runs: tuple[CurveRun, ...], says: str) -> LearningCurve:
    return LearningCurve(
        runs=runs, ceiling=None, exponent=None, next_rows=None, gain=None, worth_usd=None, price_usd=None, more_is_worth=None, says=says
    )


def _fit(sizes: FloatArray, means: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(a, c, rise from the largest size to twice it) for each column of ``means``; b >= 0 and a <= 1, so the curve never falls."""
    best = np.full(means.shape[1], np.inf)
    ceiling, exponent, gain = (np.zeros(means.shape[1]) for _ in range(3))
    for c in EXPONENTS:
        x = (sizes / sizes[-1]) ** -c
        centred = x - x.mean()
        slope = np.maximum(0.0, -(centred @ means) / (centred @ centred))  # b, in units of the largest size
        a = means.mean(axis=0) + slope * x.mean()
        over = a > 1
        slope = np.where(over, np.maximum(0.0, x @ (1 - means) / (x @ x)), slope)  # through the ceiling of 1
        a = np.where(over, 1.0, a)
        error = ((means - (a - slope * x[:, None])) ** 2).sum(axis=0)
        better = error < best - 1e-15
        best = np.where(better, error, best)
        ceiling, exponent = np.where(better, a, ceiling), np.where(better, c, exponent)
        gain = np.where(better, slope * (1 - 2.0**-c), gain)
    return ceiling, exponent, gain


def _worth(intake: Intake, gain: float) -> float | None:
    rejected = intake.quality.rejected_answer_usd
    if rejected is None:
        return None
    volume = intake.volume_per_month
    return (volume.low + volume.high) / 2 * intake.horizon_months * gain * (rejected.low + rejected.high) / 2


def _price(intake: Intake, added: int, training_rows: int | None) -> float | None:
    known = training_rows or intake.data.labelled_rows
    if not known:
        return None
    costs: Sequence[float] = (
        intake.costs.data_usd.low,
        intake.costs.data_usd.high,
        intake.costs.labelling_usd.low,
        intake.costs.labelling_usd.high,
    )
    return sum(costs) / 2 / known * added
