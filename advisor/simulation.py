"""Monte-Carlo over the unit economics: what tuning saves, with what probability, and what drives it.

10,000 draws by default, vectorised, with a fixed seed. All offers share the draws of volume, tokens, people's cost, quality and today's
prices, so that two offers differ only by what is theirs (common random numbers).

Distributions: a pair [low, high] given by a person is the 10th and 90th percentile of a lognormal (uniform when low is 0);
prices are triangular over their range, widened by grade; shares are triangular; failed runs are negative binomial;
retrainings are Poisson; acceptance is drawn jointly for both arms from the measured rows, so that quality and cost stay
correlated.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tuneport.advisor.economics import (
    FloatArray,
    Payback,
    Request,
    TokenPrices,
    break_even_volume,
    cache_traffic,
    cost_per_accepted,
    discount_factors,
    is_steady,
    machines_needed,
    mean_growth,
    monthly_rate,
    monthly_volumes,
    payback_months,
    request_cost,
    volume_path,
)
from tuneport.advisor.intake import Intake
from tuneport.advisor.statistics import cluster_covariance
from tuneport.core.deployment import HOURS_PER_MONTH
from tuneport.core.money import Range

DRAWS = 10_000
Z90 = 1.2815515655446004
"""The 90th percentile of the standard normal distribution."""

LABELS: Mapping[str, str] = {
    "volume": "Requests per month",
    "growth": "Growth of the volume per year",
    "batch_share": "Share of requests that can wait for a batch tier",
    "open_hours": "Hours of a month in which requests arrive",
    "drift": "Change of hourly machine prices per year",
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
    "incumbent_move": "Cost of moving when today's model ends",
    "monitoring": "Monitoring per month",
    "accepted": "Share of answers accepted today",
    "accepted_tuned": "Share of answers accepted after tuning",
    "rejected_usd": "Cost of one answer that misses",
    "train_run": "Price of one training run",
    "p_in": "Input price today",
    "p_cached": "Cached input price today",
    "p_out": "Output price today",
    "p_batch_in": "Batch input price today",
    "p_batch_out": "Batch output price today",
    "p_hour": "Hosting price per hour today",
    "p_rate": "Requests per hour and machine today",
    "q_in": "Input price after tuning",
    "q_cached": "Cached input price after tuning",
    "q_out": "Output price after tuning",
    "q_batch_in": "Batch input price after tuning",
    "q_batch_out": "Batch output price after tuning",
    "q_hour": "Hosting price per hour after tuning",
    "q_rate": "Requests per hour and machine after tuning",
    "storage": "Storage per month",
    "p_write": "Surcharge for writing to the cache today",
    "p_store": "Price of storage in the cache today",
    "p_ttl": "Minutes that the cache keeps a prompt today",
    "q_write": "Surcharge for writing to the cache after tuning",
    "q_store": "Price of storage in the cache after tuning",
    "q_ttl": "Minutes that the cache keeps a prompt after tuning",
    "removed": "Share of misses that tuning removes",
}
"""Every uncertain input of the model, in the words of the report."""
TOGETHER: Mapping[str, str] = {
    "output": "Answer tokens", "p_hour": "Price of an hour of the own machine", "p_rate": "Requests per hour of the own machine",
}  # fmt: skip
"""The same for inputs that stand for today and for the tuned model at once: both names then hold one and the same array."""

FREE = Range(low=0, high=0)
Drivers = dict[str, FloatArray]


Paid = Literal["worked", "open hours", "always"]
"""What a machine is paid for: the time it works, the hours in which requests arrive, or every hour of the month."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What a cache charges beside its reads: per 1M tokens written, per 1M tokens and hour; and how long it keeps a prompt."""

    write: Range = FREE
    store: Range = FREE
    ttl_minutes: Range = FREE


@dataclass(frozen=True, slots=True)
class Terms:
    """What one side (today's model, or an offer) charges. A part that is not charged is 0; prices per million tokens."""

    input: Range
    cached: Range
    output: Range
    batch_input: Range | None = None  # None: no batch tier is known, and what could wait is charged like the rest
    batch_output: Range | None = None
    hour: Range = FREE
    requests_per_hour: Range | None = None  # of one machine; None: unknown, one machine is taken to do
    paid: Paid = "always"
    own: bool = False  # one's own machine, the same one whatever runs on it
    cache: Cache | None = None  # None: nothing beside the reads is charged, or nobody knows


@dataclass(frozen=True, slots=True)
class Setting:
    """What all offers of one decision share and nobody draws."""

    annual_rate: float = 0.0
    seasonality: tuple[float, ...] = ()
    incumbent_ends: float | None = None  # months from now, when that is known


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
    today_per_month: FloatArray
    tuned_per_month: FloatArray
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


def draw_acceptance(
    rng: np.random.Generator, today: FloatArray, tuned: FloatArray, n: int, clusters: Sequence[int] = ()
) -> tuple[FloatArray, FloatArray]:
    """Joint draws of two arms' mean score over the same rows.

    Right-or-wrong scores: Dirichlet over the four cells of the paired table with a prior of 1/4 each, so that either share
    is Beta with Jeffreys' prior. Other scores: the rows are resampled together (paired bootstrap). Rows that hang together
    (``clusters``, one for each row): the two means' t distribution with their cluster-robust covariance, cut at 0 and 1, so that either
    spreads as its cluster-robust interval says; where that has no width, the first rule with as many rows as there are clusters.
    """
    if clusters:
        centre, covariance, groups = cluster_covariance(np.stack([today, tuned]), clusters)
        if groups > 1 and (np.diag(covariance) > 0).all():
            normal = rng.standard_normal((n, 2)) @ _square_root(covariance)
            spread = np.sqrt((groups - 1) / rng.chisquare(groups - 1, n))
            drawn = np.clip(centre + normal * spread[:, None], 0.0, 1.0)
            return drawn[:, 0], drawn[:, 1]
        shares = [float((a * b).mean()) for a in (today, 1 - today) for b in (tuned, 1 - tuned)]
        both, only_today, only_tuned, _ = rng.dirichlet(groups * np.array(shares) + 0.25, n).T
        return both + only_today, both + only_tuned
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


def _square_root(covariance: FloatArray) -> FloatArray:
    """The symmetric root of a covariance matrix; also of a singular one, where two arms answer alike."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T)


def draw_removed(rng: np.random.Generator, value: Range, n: int) -> FloatArray:
    """Draws of the share of misses that tuning removes, from its 10th and 90th percentile: normal, within -1 and 1."""
    return np.clip(rng.normal((value.low + value.high) / 2, (value.high - value.low) / (2 * Z90), n), -1.0, 1.0)


def after_tuning(accepted: FloatArray, removed: FloatArray) -> FloatArray:
    """Share accepted once the share ``removed`` of the misses is gone; a negative one takes that share of the hits."""
    return np.asarray(accepted + np.where(removed >= 0, 1 - accepted, accepted) * removed)


def shared_drivers(intake: Intake, *, seed: int, draws: int = DRAWS, prior: Range = FREE) -> Drivers:
    """Draws of everything that does not depend on the offer. ``prior``: the share of misses that tuning removes."""
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
    for name, change in (("growth", intake.volume_growth_per_year), ("drift", intake.machine_price_drift_per_year)):
        drivers[name] = draw(rng, Range(low=1 + change.low, high=1 + change.high), draws) - 1
    drivers["open_hours"] = np.minimum(draw(rng, intake.open_hours_per_month, draws), HOURS_PER_MONTH)
    drivers["batch_share"] = draw_price(rng, intake.batch_share, draws)
    drivers["cache_hit"] = draw_price(rng, intake.cache_hit_share, draws)
    drivers["cache_hit_tuned"] = draw_price(rng, intake.cache_hit_share_tuned, draws)
    failed = rng.negative_binomial(intake.runs.planned, 1 - intake.runs.failure_share, draws)
    drivers["runs"] = intake.runs.planned + failed.astype(np.float64)
    if costs.migration_usd is not None:  # else it is engineering and evaluation again (``_migration``)
        drivers["migration"] = draw(rng, costs.migration_usd, draws)
    drivers["removed"] = draw_removed(rng, prior, draws)
    drivers["incumbent_move"] = draw(rng, costs.incumbent_move_usd or FREE, draws)
    return drivers


def quality_drivers(
    intake: Intake, removed: FloatArray, today: FloatArray | None, tuned: FloatArray | None = None, *, seed: int,
    clusters: Sequence[int] = (),
) -> Drivers:  # fmt: skip
    """Draws of the shares accepted and of what a miss costs, the same for every offer that they are given to.

    ``today`` and ``tuned`` are the arms' scores per row, ``clusters`` which rows hang together; without tuned scores the shares
    ``removed`` of the misses (a prior) stand for the tuned model, and are among the draws. Without scores, or without
    ``quality.rejected_answer_usd``, the money counts calls only.
    """
    n, rejected = len(removed), intake.quality.rejected_answer_usd
    if today is None or rejected is None:
        return {"accepted": np.ones(n), "accepted_tuned": np.ones(n), "rejected_usd": np.zeros(n)}
    rng = np.random.default_rng([seed, zlib.crc32(b"quality")])
    before, after = draw_acceptance(rng, today, today if tuned is None else tuned, n, clusters)
    assumed = {"removed": removed} if tuned is None else {}
    after = after_tuning(before, removed) if tuned is None else after
    return {"accepted": before, "accepted_tuned": after, "rejected_usd": draw(rng, rejected, n), **assumed}


def offer_drivers(shared: Drivers, offer: OfferTerms, intake: Intake, *, seed: int, quality: Drivers | None = None) -> Drivers:
    """The shared draws plus those of today's prices (the same numbers for every offer), and of one offer's prices and retrainings.

    ``quality`` are ``quality_drivers``; without them the money counts calls only.
    """
    n = len(shared["volume"])
    drivers = dict(shared)
    removed = drivers.pop("removed")
    drivers |= quality if quality is not None else quality_drivers(intake, removed, None, seed=seed)
    for mark, side, whose in (("p", offer.today, "today"), ("q", offer.tuned, offer.id)):
        rng = np.random.default_rng([seed, zlib.crc32(whose.encode())])
        drivers[f"{mark}_in"] = draw_price(rng, side.input, n, offer.spread)
        drivers[f"{mark}_cached"] = draw_price(rng, side.cached, n, offer.spread)
        drivers[f"{mark}_out"] = draw_price(rng, side.output, n, offer.spread)
        for tier, price, plain in (("in", side.batch_input, "in"), ("out", side.batch_output, "out")):
            drivers[f"{mark}_batch_{tier}"] = draw_price(rng, price, n, offer.spread) if price else drivers[f"{mark}_{plain}"]
        machine = np.random.default_rng([seed, zlib.crc32(b"own machine")]) if side.own else rng  # the same machine for every offer
        drivers[f"{mark}_hour"] = draw_price(machine, side.hour, n, offer.spread)
        rate = side.requests_per_hour
        drivers[f"{mark}_rate"] = draw(machine, rate, n) if rate else np.full(n, np.inf)
        if side.cache is not None:
            drivers |= draw_cache(rng, mark, side.cache, n, offer.spread)
    for name in ("hour", "rate"):
        if offer.today.own and offer.tuned.own and np.array_equal(drivers[f"p_{name}"], drivers[f"q_{name}"]):
            drivers[f"q_{name}"] = drivers[f"p_{name}"]
    drivers["train_run"] = draw_price(rng, offer.train_run, n, offer.spread)
    drivers["storage"] = draw_price(rng, offer.storage, n, offer.spread)
    every = intake.retraining.every_months
    drivers["retrainings"] = rng.poisson(offer.months / every, n).astype(np.float64) if every else np.zeros(n)
    return drivers


def draw_cache(rng: np.random.Generator, mark: str, cache: Cache, n: int, spread: float = 0.0) -> Drivers:
    """Draws of what a cache charges and how long it keeps a prompt, under the names of one side."""
    drawn = {"write": (cache.write, spread), "store": (cache.store, spread), "ttl": (cache.ttl_minutes, 0.0)}
    return {f"{mark}_{name}": draw_price(rng, value, n, wide) for name, (value, wide) in drawn.items()}


def evaluate(drivers: Drivers, offer: OfferTerms, setting: Setting) -> Outcome:
    """The economics of an offer against today's model, for every draw.

    ``fixed`` (machines beyond today's, storage, monitoring) and the three sums per month are means over the months that count;
    ``tuned_per_month`` holds all that recurs. The payback leaves out the two moves, which are
    dated: away from the offer's base model, and (spared, when it ends first) away from today's model.
    """
    d, months = drivers, max(offer.months, 1e-9)
    if "removed" in d:  # a prior stands for the tuned model, so that it is as good as today's quality lets it be
        d = d | {"accepted_tuned": after_tuning(d["accepted"], d["removed"])}
    weights = discount_factors(months, setting.annual_rate)
    share = np.clip(months - np.arange(len(weights)), 0, 1) / months
    steady = is_steady(d["growth"], setting.seasonality)
    if steady:  # one month stands for all
        weights, share = weights.sum(keepdims=True), np.ones(1)
    today, machines_today = side_cost(d, "p", "", offer.today, months)
    tuned, machines_tuned = side_cost(d, "q", "_tuned", offer.tuned, months)
    saving = today - tuned
    one_time = d["data"] + d["labelling"] + d["engineering"] + d["evaluation"] + d["train_run"] * d["runs"]
    retraining = d["retrainings"] * (d["train_run"] + d["retrain_people"]) / months
    running, gained = d["storage"] + d["monitoring"], d["volume"] * saving
    always = running + retraining
    npv, hosting, hosting_today, mean_volume = (np.zeros_like(one_time) for _ in range(4))
    payback = Payback(one_time)
    # Month by month, so that what is worked on stays in the processor's cache: arrays [months, draws] take twice as long.
    for weight, part, shape in zip(weights, share, monthly_volumes(d["growth"], setting.seasonality, len(weights)), strict=True):
        requests = d["volume"] * shape
        now = machines_today.cost(requests)
        more = machines_tuned.cost(requests) - now
        flow = gained * shape
        flow -= more
        flow -= always
        npv += flow * weight
        hosting += more * part
        hosting_today += now * part
        mean_volume += shape * part
        payback.add(flow)
    standing = hosting + running
    average = gained * mean_volume - standing - retraining
    today_per_month = d["volume"] * today * mean_volume + hosting_today
    return Outcome(
        per_request_today=today,
        per_request_tuned=tuned,
        one_time=one_time,
        fixed=standing,
        today_per_month=today_per_month,
        tuned_per_month=today_per_month - average,
        saving_per_month=average,
        break_even=break_even_volume(
            one_time=one_time, fixed=standing, retraining=retraining, horizon=months, saving=saving * mean_volume
        ),
        payback=payback_months(one_time=one_time, saving_per_month=average) if steady else payback.months(),
        npv=npv - one_time + moves(d, offer, setting),
    )


def moves(d: Drivers, offer: OfferTerms, setting: Setting) -> FloatArray:
    """Discounted: the move at the base model's end counts against the offer, the move that it spares counts for it."""

    def at(months: float) -> float:
        return float((1 + monthly_rate(setting.annual_rate)) ** -months)

    due = _migration(d) * at(offer.months) if offer.ends_inside else np.zeros_like(d["engineering"])
    ends = setting.incumbent_ends
    return np.asarray(d["incumbent_move"] * at(ends) - due if ends is not None and ends < offer.months else -due)


def _migration(d: Drivers) -> FloatArray:
    """The move when the offer's base model ends: as stated, else engineering and evaluation again."""
    return d["migration"] if "migration" in d else d["engineering"] + d["evaluation"]


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines that one side pays for, whatever they do. ``capacity`` is what one answers in a month; None: one is taken to do."""

    usd: FloatArray  # of one, per month
    capacity: FloatArray | None = None

    def cost(self, requests: FloatArray) -> FloatArray:
        """USD of a month with so many requests."""
        return self.usd if self.capacity is None else machines_needed(requests, self.capacity) * self.usd


def side_cost(d: Drivers, mark: str, suffix: str, side: Terms, months: float) -> tuple[FloatArray, Machines]:
    """(USD per request, machines) of one side. Answers that miss and machine time that is paid by the work are per request."""
    fresh, static, output, hit = d["fresh"], d[f"static{suffix}"], d[f"output{suffix}"], d[f"cache_hit{suffix}"]
    each = call_cost(d, mark, side, fresh=fresh, static=static, output=output, hit=hit)
    if side.batch_input is not None:
        batch_in, batch_out = d[f"{mark}_batch_in"], d[f"{mark}_batch_out"]
        waiting = request_cost(Request(fresh, static, output), TokenPrices(batch_in, batch_in, batch_out))
        each = each + d["batch_share"] * (waiting - each)
    each = cost_per_accepted(each, d[f"accepted{suffix}"], d["rejected_usd"])
    if side.hour.high <= 0:
        return each, Machines(np.zeros_like(each))
    hour, rate = d[f"{mark}_hour"] * mean_growth(d["drift"], months), d[f"{mark}_rate"]
    if side.paid == "worked":
        return each + hour / rate, Machines(np.zeros_like(each))
    usd = hour * (HOURS_PER_MONTH if side.paid == "always" else d["open_hours"])
    return each, Machines(usd, rate * d["open_hours"] if np.isfinite(rate).all() else None)


def call_cost(
    d: Drivers, mark: str, side: Terms, *, fresh: FloatArray, static: FloatArray, output: FloatArray, hit: FloatArray
) -> FloatArray:
    """USD of one request outside a batch tier. The cache is written at the rate of the volume of now, spread over the open hours."""
    prices = TokenPrices(d[f"{mark}_in"], d[f"{mark}_cached"], d[f"{mark}_out"])
    if side.cache is None:
        return request_cost(Request(fresh, static, output, hit), prices)
    plain = 1 - d["batch_share"] if side.batch_input is not None else 1.0
    rate = d["volume"] * np.maximum(plain, 1e-9) / d["open_hours"]
    writes, hours = cache_traffic(rate, d[f"{mark}_ttl"] / 60, hit)
    prices = replace(prices, write=d[f"{mark}_write"], store=d[f"{mark}_store"])
    return request_cost(Request(fresh, static, output, hit, writes, hours), prices)


def cumulative(drivers: Drivers, offer: OfferTerms, setting: Setting, horizon: int) -> tuple[FloatArray, FloatArray]:
    """Cash spent up to the end of each month (undiscounted) today and with the offer, as arrays [1 + horizon, draws].

    After the base model's end the offer costs what today's model costs, plus the migration.
    """
    d = drivers
    path = np.broadcast_to(volume_path(d["growth"], setting.seasonality, horizon), (horizon, len(d["volume"])))
    month = np.arange(horizon)[:, None]
    served = np.clip(offer.months - month, 0, 1)
    spent = []
    for mark, suffix, side in (("p", "", offer.today), ("q", "_tuned", offer.tuned)):
        each, machines = side_cost(d, mark, suffix, side, offer.months)
        spent.append(d["volume"] * each * path + machines.cost(d["volume"] * path))
    retraining = d["retrainings"] * (d["train_run"] + d["retrain_people"]) / max(offer.months, 1e-9)
    today, tuned = spent[0], served * (spent[1] + d["storage"] + d["monitoring"] + retraining) + (1 - served) * spent[0]
    if offer.ends_inside:
        tuned = tuned + ((month < offer.months) & (offer.months <= month + 1)) * _migration(d)
    if (ends := setting.incumbent_ends) is not None and ends < offer.months:
        today = today + ((month < ends) & (ends <= month + 1)) * d["incumbent_move"]
    one_time = d["data"] + d["labelling"] + d["engineering"] + d["evaluation"] + d["train_run"] * d["runs"]
    start = np.zeros((1, len(one_time)))
    return np.concatenate([start, np.cumsum(today, axis=0)]), one_time + np.concatenate([start, np.cumsum(tuned, axis=0)])
