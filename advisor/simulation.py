"""Monte-Carlo over the unit economics: what tuning saves, with what probability, and what drives it.

10,000 draws by default, vectorised, with a fixed seed. All offers share the draws of volume, tokens, people's cost and
quality, so that two offers differ only by what is theirs (common random numbers).

Distributions: a pair [low, high] given by a person is the 10th and 90th percentile of a lognormal (uniform when low is 0);
prices are triangular over their range, widened by grade; shares are triangular; failed runs are negative binomial;
retrainings are Poisson; acceptance is drawn jointly for both arms from the measured rows, so that quality and cost stay
correlated.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tuneport.advisor.economics import (
    FloatArray,
    Request,
    TokenPrices,
    break_even_volume,
    cost_per_accepted,
    discount_factors,
    hosting_per_month,
    monthly_rate,
    payback_months,
    request_cost,
)
from tuneport.advisor.intake import Intake
from tuneport.core.money import Range

DRAWS = 10_000
Z90 = 1.2815515655446004
"""The 90th percentile of the standard normal distribution."""

LABELS: Mapping[str, str] = {
    "volume": "Requests per month",
    "cache_hit": "Cache-hit share today",
    "cache_hit_tuned": "Cache-hit share after tuning",
    "fresh": "Fresh input tokens",
    "static": "Static prompt tokens today",
    "static_tuned": "Static prompt tokens after tuning",
    "output": "Answer tokens today",
    "output_tuned": "Answer tokens after tuning",
    "data": "Cost of data",
    "labelling": "Cost of labelling",
    "engineering": "Cost of engineering",
    "evaluation": "Cost of evaluation",
    "runs": "Training runs until one is kept",
    "retrain_people": "People's cost per retraining",
    "retrainings": "Number of retrainings",
    "migration": "Cost of moving at the model's end",
    "monitoring": "Monitoring per month",
    "accepted": "Share of answers accepted today",
    "accepted_tuned": "Share of answers accepted after tuning",
    "rejected_usd": "Cost of one answer that misses",
    "train_run": "Price of one training run",
    "p_in": "Input price today",
    "p_cached": "Cached input price today",
    "p_out": "Output price today",
    "p_hour": "Hosting price per hour today",
    "p_rate": "Requests per hour and machine today",
    "q_in": "Input price after tuning",
    "q_cached": "Cached input price after tuning",
    "q_out": "Output price after tuning",
    "q_hour": "Hosting price per hour after tuning",
    "q_rate": "Requests per hour and machine after tuning",
    "storage": "Storage per month",
}
"""Every uncertain input of the model, in the words of the report."""

FREE = Range(low=0, high=0)
Drivers = dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Terms:
    """What one side (today's model, or an offer) charges. A part that is not charged is 0; prices per million tokens."""

    input: Range
    cached: Range
    output: Range
    hour: Range = FREE
    requests_per_hour: Range | None = None  # of one machine; None: unknown, one machine is taken to do
    always_on: bool = True


@dataclass(frozen=True, slots=True)
class OfferTerms:
    """An offer whose prices are all known. ``spread`` widens each price by its grade (0.1 = 10 % either way)."""

    id: str
    today: Terms
    tuned: Terms
    train_run: Range
    storage: Range
    months: float  # the horizon, capped by the base model's remaining life
    ends_inside: bool  # the base model ends before the horizon does
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results per draw. ``payback`` and ``break_even`` are infinite where tuning never pays."""

    per_request_today: FloatArray
    per_request_tuned: FloatArray
    one_time: FloatArray
    fixed: FloatArray
    saving_per_month: FloatArray
    break_even: FloatArray
    payback: FloatArray
    npv: FloatArray


def draw(rng: np.random.Generator, value: Range, n: int) -> FloatArray:
    """Draws of a non-negative amount whose 10th and 90th percentile are given: lognormal; uniform when low is 0."""
    if value.low == value.high:
        return np.full(n, value.low)
    if value.low <= 0:
        return rng.uniform(0.0, value.high, n)
    centre = (np.log(value.low) + np.log(value.high)) / 2
    sigma = (np.log(value.high) - np.log(value.low)) / (2 * Z90)
    return np.exp(rng.normal(centre, sigma, n))


def draw_price(rng: np.random.Generator, value: Range, n: int, spread: float = 0.0) -> FloatArray:
    """Draws of a price: triangular over its range with the mode in the middle, widened by ``spread`` either way."""
    low, high = value.low * (1 - spread), value.high * (1 + spread)
    return np.full(n, low) if low == high else rng.triangular(low, (low + high) / 2, high, n)


def draw_acceptance(rng: np.random.Generator, today: FloatArray, tuned: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    """Joint draws of two arms' mean score over the same rows.

    Right-or-wrong scores: Dirichlet over the four cells of the paired table with a prior of 1/4 each, so that either share
    is Beta with Jeffreys' prior. Other scores: the rows are resampled together (paired bootstrap).
    """
    if np.isin(today, (0, 1)).all() and np.isin(tuned, (0, 1)).all():
        cells = [float(((today == a) & (tuned == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))]
        both, only_today, only_tuned, _ = rng.dirichlet(np.array(cells) + 0.25, n).T
        return both + only_today, both + only_tuned
    means: list[FloatArray] = []
    for start in range(0, n, 1000):  # in parts: rows x draws would not fit for a long suite
        rows = rng.integers(0, len(today), (min(1000, n - start), len(today)))
        means.append(np.stack([today[rows].mean(axis=1), tuned[rows].mean(axis=1)]))
    joined = np.concatenate(means, axis=1)
    return joined[0], joined[1]


def shared_drivers(intake: Intake, *, seed: int, draws: int = DRAWS) -> Drivers:
    """Draws of everything that does not depend on the offer."""
    rng = np.random.default_rng(seed)
    tokens, costs = intake.tokens, intake.costs
    amounts = {
        "volume": intake.volume_per_month,
        "fresh": tokens.fresh,
        "static": tokens.static,
        "output": tokens.output,
        "data": costs.data_usd,
        "labelling": costs.labelling_usd,
        "engineering": costs.engineering_usd,
        "evaluation": costs.evaluation_usd,
        "monitoring": costs.monitoring_usd_per_month,
        "retrain_people": intake.retraining.people_usd,
    }
    drivers = {name: draw(rng, value, draws) for name, value in amounts.items()}
    drivers["static_tuned"] = np.minimum(draw(rng, tokens.static_tuned, draws), drivers["static"])
    drivers["output_tuned"] = draw(rng, tokens.output_tuned, draws) if tokens.output_tuned else drivers["output"]
    drivers["cache_hit"] = draw_price(rng, intake.cache_hit_share, draws)
    drivers["cache_hit_tuned"] = draw_price(rng, intake.cache_hit_share_tuned, draws)
    failed = rng.negative_binomial(intake.runs.planned, 1 - intake.runs.failure_share, draws)
    drivers["runs"] = intake.runs.planned + failed.astype(np.float64)
    moving = costs.migration_usd
    drivers["migration"] = draw(rng, moving, draws) if moving else drivers["engineering"] + drivers["evaluation"]
    return drivers


def offer_drivers(
    shared: Drivers,
    offer: OfferTerms,
    intake: Intake,
    *,
    seed: int,
    scores: tuple[FloatArray, FloatArray | None] | None = None,
) -> Drivers:
    """The shared draws plus those of one offer's prices, retrainings and quality.

    ``scores`` are today's and the tuned arm's scores per row; without tuned scores the tuned model is taken to reach the bar
    and no more. Without scores, or without ``quality.rejected_answer_usd``, the money counts calls only.
    """
    n = len(shared["volume"])
    rng = np.random.default_rng([seed, zlib.crc32(offer.id.encode())])
    drivers = dict(shared)
    for mark, side in (("p", offer.today), ("q", offer.tuned)):
        drivers[f"{mark}_in"] = draw_price(rng, side.input, n, offer.spread)
        drivers[f"{mark}_cached"] = draw_price(rng, side.cached, n, offer.spread)
        drivers[f"{mark}_out"] = draw_price(rng, side.output, n, offer.spread)
        drivers[f"{mark}_hour"] = draw_price(rng, side.hour, n, offer.spread)
        rate = side.requests_per_hour
        drivers[f"{mark}_rate"] = draw(rng, rate, n) if rate else np.full(n, np.inf)
    drivers["train_run"] = draw_price(rng, offer.train_run, n, offer.spread)
    drivers["storage"] = draw_price(rng, offer.storage, n, offer.spread)
    every = intake.retraining.every_months
    drivers["retrainings"] = rng.poisson(offer.months / every, n).astype(np.float64) if every else np.zeros(n)
    rejected = intake.quality.rejected_answer_usd
    if scores is not None and rejected is not None:
        today, tuned = scores
        drivers["accepted"], drivers["accepted_tuned"] = draw_acceptance(rng, today, today if tuned is None else tuned, n)
        if tuned is None:
            drivers["accepted_tuned"] = np.maximum(intake.quality.bar, drivers["accepted"])
        drivers["rejected_usd"] = draw(rng, rejected, n)
    else:
        drivers |= {"accepted": np.ones(n), "accepted_tuned": np.ones(n), "rejected_usd": np.zeros(n)}
    return drivers


def evaluate(drivers: Drivers, offer: OfferTerms, annual_rate: float) -> Outcome:
    """The economics of an offer against today's model, for every draw."""
    d = drivers
    today, hosting_today = _side(d, "p", "", offer.today)
    tuned, hosting_tuned = _side(d, "q", "_tuned", offer.tuned)
    saving = today - tuned
    fixed = hosting_tuned - hosting_today + d["storage"] + d["monitoring"]
    one_time = d["data"] + d["labelling"] + d["engineering"] + d["evaluation"] + d["train_run"] * d["runs"]
    retraining = d["retrainings"] * (d["train_run"] + d["retrain_people"]) / max(offer.months, 1e-9)
    monthly = d["volume"] * saving - fixed - retraining
    end = (1 + monthly_rate(annual_rate)) ** -offer.months
    migration = d["migration"] * end if offer.ends_inside else 0.0
    npv = monthly * discount_factors(offer.months, annual_rate).sum() - one_time - migration
    return Outcome(
        per_request_today=today,
        per_request_tuned=tuned,
        one_time=one_time,
        fixed=fixed,
        saving_per_month=monthly,
        break_even=break_even_volume(one_time=one_time, fixed=fixed, retraining=retraining, horizon=max(offer.months, 1e-9), saving=saving),
        payback=payback_months(one_time=one_time, saving_per_month=monthly),
        npv=npv,
    )


def _side(d: Drivers, mark: str, suffix: str, side: Terms) -> tuple[FloatArray, FloatArray]:
    """(USD per request, hosting per month) of one side; answers that miss and metered machine time are per request."""
    request = Request(d["fresh"], d[f"static{suffix}"], d[f"output{suffix}"], d[f"cache_hit{suffix}"])
    each = request_cost(request, TokenPrices(d[f"{mark}_in"], d[f"{mark}_cached"], d[f"{mark}_out"]))
    each = cost_per_accepted(each, d[f"accepted{suffix}"], d["rejected_usd"])
    hour, rate = d[f"{mark}_hour"], d[f"{mark}_rate"]
    if side.hour.high <= 0:
        return each, np.zeros_like(each)
    if not side.always_on:
        return each + hour / rate, np.zeros_like(each)
    return each, hosting_per_month(hour, d["volume"], rate)


def cumulative(drivers: Drivers, offer: OfferTerms, annual_rate: float, months: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cash spent up to each month (undiscounted) today and with the offer, as arrays [months, draws].

    After the base model's end the offer costs what today's model costs, plus the migration.
    """
    result = evaluate(drivers, offer, annual_rate)
    per_request, hosting = _side(drivers, "p", "", offer.today)
    today = drivers["volume"] * per_request + hosting
    time = months[:, None]
    spent = time * today
    served = np.minimum(time, offer.months)
    moved = (time >= offer.months) * drivers["migration"] if offer.ends_inside else 0.0
    return spent, spent + result.one_time - served * result.saving_per_month + moved


@dataclass(frozen=True, slots=True)
class Swing:
    """One bar of the tornado: the NPV when one driver stands at its 10th or 90th percentile, all others at their median."""

    driver: str
    low: float  # the driver's 10th percentile
    high: float
    npv_low: float
    npv_high: float
    rank_correlation: float  # Spearman, over all draws: a check on the one-at-a-time swing


def tornado(drivers: Drivers, offer: OfferTerms, annual_rate: float, npv: FloatArray) -> list[Swing]:
    """One-at-a-time swings of the NPV, widest first; drivers that do not vary are left out."""
    middle = {name: np.array([_median(values)]) for name, values in drivers.items()}
    ranks = _ranks(npv)
    swings: list[Swing] = []
    for name, values in drivers.items():
        low, high = np.percentile(values, [10, 90]) if np.isfinite(values).all() else (np.inf, np.inf)
        if low == high:
            continue
        ends = evaluate({**{k: np.repeat(v, 2) for k, v in middle.items()}, name: np.array([low, high])}, offer, annual_rate).npv
        correlation = float(np.corrcoef(_ranks(values), ranks)[0, 1]) if np.ptp(npv) > 0 else 0.0
        swings.append(Swing(name, float(low), float(high), float(ends[0]), float(ends[1]), correlation))
    return sorted(swings, key=lambda s: -abs(s.npv_high - s.npv_low))


def switching_value(drivers: Drivers, offer: OfferTerms, annual_rate: float, name: str) -> tuple[float, float | None]:
    """(median, value of the driver at which the median NPV changes sign); None when no value within reach does.

    Reach: 0 to 1 for shares, a thousandth to a thousand times the median for the rest.
    """
    middle = {key: _median(values) for key, values in drivers.items()}
    share = name in ("cache_hit", "cache_hit_tuned", "accepted", "accepted_tuned")
    centre = middle[name]
    grid = np.linspace(0, 1, 1001) if share else centre * np.geomspace(1e-3, 1e3, 6001)
    trial = {key: np.full(len(grid), value) for key, value in middle.items()}
    trial[name] = grid
    npv = evaluate(trial, offer, annual_rate).npv
    crossings = np.flatnonzero(np.diff(np.sign(npv)) != 0)
    if not len(crossings):
        return centre, None
    nearest = crossings[np.argmin(np.abs(grid[crossings] - centre))]
    left, right = npv[nearest], npv[nearest + 1]
    step = 0.0 if left == right else left / (left - right)
    return centre, float(grid[nearest] + step * (grid[nearest + 1] - grid[nearest]))


def _median(values: FloatArray) -> float:
    return float(np.median(values))


def _ranks(values: FloatArray) -> FloatArray:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values), dtype=np.float64)
    return ranks
