"""The learning curve: quality against training rows, ``a - b * n^-c``, and whether more rows are worth their price.

Points come from the decision file where it lists them, else from runs of the ledger that differ only in their share of the rows: with
the quality that was measured of them, or, where too few were measured, with their validation loss. The loss is a proxy: it is never
mixed with quality in one curve, and buys no rows.

The form is that of the data term of the published scaling laws for tuning (Zhang et al., arXiv 2402.17193); the exponents are the
task's own, so they are fitted, never taken from a paper. Few points give an interval, not a number (economics notes 2.4).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneport.advisor.economics import FloatArray
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Arm, Estimate, Measurement
from tuneport.advisor.runs import RunFamily, TrainedRun

EXPONENTS = np.linspace(0.05, 1.0, 20)
"""Values of c that are tried; for each, a and b follow by least squares."""
BOOTSTRAP = 1000
MIN_POINTS = 3


class CurveRun(BaseModel):
    """One point: a run, its rows, and what is known of it. ``origin`` says where both are from."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    arm: str  # as measured; "" where only the loss is known
    rows: int
    quality: Estimate | None
    job: str = ""
    loss: float | None = None  # lowest validation loss
    origin: str = "decision file: learning_curve"


class LearningCurve(BaseModel):
    """The fit and what it says of twice the rows. ``gain`` is the expected rise from the largest run to twice its rows.

    Where ``measured_by`` is the validation loss, ``gain`` is how far that would fall.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    runs: tuple[CurveRun, ...]
    ceiling: float | None  # a: what endless rows would reach
    exponent: float | None  # c
    next_rows: int | None
    gain: Estimate | None  # None: fewer than three sizes
    worth_usd: float | None  # value of the gain over the months that count, at the middle of the stated ranges
    price_usd: float | None  # data and labels for the added rows, at the stated cost of the first ones
    more_is_worth: bool | None  # None: not known
    says: str
    measured_by: Literal["quality", "validation loss"] = "quality"
    provider: str = ""  # where the runs of the ledger were trained
    notes: tuple[str, ...] = ()  # runs that were left out, and why


def named_spec(path: str) -> str:
    """A job spec as a command names it: its path, or a word for it where the advisor was given none."""
    return shlex.quote(path) if path else "YOUR-SPEC.yaml"


def learning_curve(
    intake: Intake,
    measurement: Measurement | None,
    training_rows: int | None,
    families: Sequence[RunFamily] = (),
    *,
    seed: int = 0,
    months: float | None = None,
    spec_file: str = "",
) -> LearningCurve | None:
    """The curve through the arms that the decision file names, else through the runs of the ledger; None when there are none.

    ``months`` are those in which better answers count, where the model to be tuned ends before the horizon does. ``spec_file`` stands in
    the commands that are named.
    Of several families the one with the most measured sizes counts, then the one with the most sizes.
    """
    metric = intake.quality.metric
    arms = [a for a in measurement.arms if metric in a.metrics] if measurement else []
    named = {a.name: a for a in arms}
    listed = [
        (CurveRun(arm=p.arm, rows=p.rows, quality=named[p.arm].metrics[metric]), named[p.arm])
        for p in intake.learning_curve
        if p.arm in named
    ]
    counted = intake.horizon_months if months is None else months
    if listed:
        return _by_quality(intake, measurement, listed, training_rows, seed, counted)
    found = [(_measured(family, arms, metric), family) for family in families]
    if not found:
        return None
    points, family = max(found, key=lambda pair: (_sizes(run for run, _ in pair[0]), _sizes(pair[1].runs)))
    told = {"provider": family.provider, "notes": family.notes}
    if _sizes(run for run, _ in points) >= MIN_POINTS:
        return _by_quality(intake, measurement, points, training_rows, seed, counted).model_copy(update=told)
    return _by_loss(family, {run.job for run, _ in points}, spec_file).model_copy(update=told)


def _sizes(runs: Iterable[CurveRun | TrainedRun]) -> int:
    return len({run.rows for run in runs})


def _measured(family: RunFamily, arms: Sequence[Arm], metric: str) -> list[tuple[CurveRun, Arm]]:
    """The family's runs that were measured, all asked in one way: the way that most sizes were asked in."""
    rows = {run.job: run for run in family.runs}
    ways: dict[str, list[tuple[CurveRun, Arm]]] = {}
    for arm in arms:
        run = rows.get(arm.job or "")
        if run is not None:
            point = CurveRun(arm=arm.name, rows=run.rows, quality=arm.metrics[metric], job=run.job, loss=run.loss, origin=run.origin)
            ways.setdefault(arm.prompt, []).append((point, arm))
    return max(ways.values(), key=lambda points: _sizes(run for run, _ in points), default=[])


def _by_quality(
    intake: Intake,
    measurement: Measurement | None,
    points: Sequence[tuple[CurveRun, Arm]],
    training_rows: int | None,
    seed: int,
    months: float,
) -> LearningCurve:
    """Fitted to the measured quality, with a bootstrap over the rows that all runs answered, or over their clusters."""
    metric = intake.quality.metric
    points = sorted(points, key=lambda p: p[0].rows)
    runs = tuple(run for run, _ in points)
    sizes = np.array([r.rows for r in runs], dtype=np.float64)
    if len(set(sizes)) < MIN_POINTS:
        return _unfitted(runs, f"{len(set(sizes))} sizes were measured; a curve needs {MIN_POINTS}, e.g. 25, 50 and 100 % of the rows.")
    by_row = [{a.row: a.scores[metric] for a in arm.answers if metric in a.scores} for _, arm in points]
    rows = sorted(set.intersection(*(set(scores) for scores in by_row)))
    if not rows:
        return _unfitted(runs, "The runs share no measured row, so no curve can be fitted.")
    scores = np.array([[s[r] for r in rows] for s in by_row])
    ceiling, exponent, gain = _fit(sizes, scores.mean(axis=1)[:, None])
    clusters = measurement.clusters_of(rows) if measurement else ()
    _, _, gains = _fit(sizes, _resampled_means(scores, clusters, seed))
    low, high = (float(v) for v in np.percentile(gains, [2.5, 97.5]))
    over = f"{len(set(clusters))} clusters" if clusters else "rows"
    method = f"bootstrap over {over} ({BOOTSTRAP:,} resamples, seed {seed})"
    estimate = Estimate(value=float(gain[0]), low=min(low, float(gain[0])), high=max(high, float(gain[0])), n=len(rows), method=method)
    added = int(sizes[-1])
    worth, price = _worth(intake, estimate.value, months), _price(intake, added, training_rows)
    shown = estimate.low > 0.0005
    worthwhile = False if not shown else None if worth is None or price is None else worth > price
    percent = [f"{100 * v:.1f}" for v in (estimate.value, estimate.low, estimate.high)]
    says = f"Twice the rows ({2 * added:,}) would add about {percent[0]} points ({percent[1]} to {percent[2]})"
    if not shown:
        says += ": the interval covers no gain, so do not buy more rows on this evidence."
    elif worthwhile is None:
        says += "; whether that is worth their price is open, because the cost of a miss or of a row is not stated."
    else:
        says += f", worth about {_rounded(worth)} over {months:.3g} months against {_rounded(price)} for the rows: "
        says += "buy them." if worthwhile else "do not buy them."
    return LearningCurve(
        runs=runs, ceiling=float(ceiling[0]), exponent=float(exponent[0]), next_rows=2 * added, gain=estimate, worth_usd=worth,
        price_usd=price, more_is_worth=worthwhile, says=says,
    )  # fmt: skip


def _by_loss(family: RunFamily, measured: Collection[str], spec_file: str) -> LearningCurve:
    """Fitted to the validation losses, a proxy. The range is over the exponents; a single run's noise is not in it."""
    runs = tuple(CurveRun(arm="", rows=r.rows, quality=None, job=r.job, loss=r.loss, origin=r.origin) for r in family.runs)
    missing = [r.job for r in runs if r.job not in measured]
    how = "Measure them to learn what more rows are worth: " + "; ".join(
        f"tuneport evaluate {named_spec(spec_file)} --job {job} --name {job}" for job in missing
    )  # fmt: skip
    known = [(r.rows, r.loss) for r in runs if r.loss is not None]
    if len({rows for rows, _ in known}) < MIN_POINTS:
        done = _sizes(r for r in runs if r.job in measured)
        told = f"The ledger has runs of {_sizes(runs)} sizes, {done} of them measured; a curve needs {MIN_POINTS}, e.g. 25, 50 and 100 %"
        return _unfitted(runs, f"{told} of the rows. {how}.")
    sizes, losses = np.array([rows for rows, _ in known], dtype=np.float64), np.array([loss for _, loss in known])
    floor, exponent, fall = _fit(sizes, -losses[:, None], ceiling=0.0)
    falls = [float(_fit(sizes, -losses[:, None], ceiling=0.0, exponents=[c])[2][0]) for c in EXPONENTS]
    method = f"range over exponents {EXPONENTS[0]:g} to {EXPONENTS[-1]:g}; the noise of single runs is not in it"
    gain = Estimate(value=float(fall[0]), low=min(falls), high=max(falls), n=len(known), method=method)
    doubled = 2 * int(sizes[-1])
    said = f"Judged by validation loss, a proxy of quality, twice the rows ({doubled:,}) would lower the loss by about {gain.value:.3f}"
    said = f"{said} ({gain.low:.3f} to {gain.high:.3f}, without the noise of single runs). No rows are bought on a loss. {how}."
    return LearningCurve(
        runs=runs, ceiling=-float(floor[0]), exponent=float(exponent[0]), next_rows=doubled, gain=gain, worth_usd=None, price_usd=None,
        more_is_worth=None, says=said, measured_by="validation loss",
    )  # fmt: skip


def _resampled_means(scores: FloatArray, clusters: Sequence[int], seed: int) -> FloatArray:
    """Means of each run [runs, resamples]: the same rows or clusters for every run, so that the noise which they share cancels."""
    rng = np.random.default_rng(seed)
    _, group = np.unique(clusters or range(scores.shape[1]), return_inverse=True)
    sums = np.stack([np.bincount(group, weights=row) for row in scores])
    sizes = np.bincount(group).astype(np.float64)
    means = []
    for _ in range(10):  # in parts: groups x resamples would not fit for a long suite
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), BOOTSTRAP // 10).astype(np.float64)
        means.append(sums @ drawn.T / (drawn @ sizes))
    return np.concatenate(means, axis=1)


def _rounded(usd: float | None) -> str:
    return "an unknown sum" if usd is None else f"${float(f'{usd:.2g}'):,.0f}"


def _unfitted(runs: tuple[CurveRun, ...], says: str) -> LearningCurve:
    return LearningCurve(
        runs=runs, ceiling=None, exponent=None, next_rows=None, gain=None, worth_usd=None, price_usd=None, more_is_worth=None, says=says
    )


def _fit(
    sizes: FloatArray, means: FloatArray, *, ceiling: float = 1.0, exponents: Sequence[float] | FloatArray = EXPONENTS
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(a, c, rise from the largest size to twice it) for each column of ``means``; b >= 0 and a <= ``ceiling``: the curve never falls."""
    best = np.full(means.shape[1], np.inf)
    asymptote, exponent, gain = (np.zeros(means.shape[1]) for _ in range(3))
    for c in exponents:
        x = (sizes / sizes[-1]) ** -c
        centred = x - x.mean()
        slope = np.maximum(0.0, -(centred @ means) / (centred @ centred))  # b, in units of the largest size
        a = means.mean(axis=0) + slope * x.mean()
        over = a > ceiling
        slope = np.where(over, np.maximum(0.0, x @ (ceiling - means) / (x @ x)), slope)  # through the ceiling
        a = np.where(over, ceiling, a)
        error = ((means - (a - slope * x[:, None])) ** 2).sum(axis=0)
        better = error < best - 1e-15
        best = np.where(better, error, best)
        asymptote, exponent = np.where(better, a, asymptote), np.where(better, c, exponent)
        gain = np.where(better, slope * (1 - 2.0**-c), gain)
    return asymptote, exponent, gain


def _worth(intake: Intake, gain: float, months: float) -> float | None:
    rejected = intake.quality.rejected_answer_usd
    if rejected is None:
        return None
    volume = intake.volume_per_month
    return (volume.low + volume.high) / 2 * months * gain * (rejected.low + rejected.high) / 2


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
