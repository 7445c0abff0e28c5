"""Routing: would another prompted model do, for all requests or for those that it answers in the required format?

Two ways for every measured prompt of a model other than today's: *direct* (it answers everything) and *cascade* (it answers, and
where the answer is not in the required format, which anyone can see without knowing the right answer, today's model is asked).
Quality is measured on the same rows; money uses the tokens and cache hits of the decision file with each side's own prices.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneport.advisor.economics import FloatArray, cost_per_accepted
from tuneport.advisor.measurement import Arm, Estimate, Measurement
from tuneport.advisor.offers import Percentiles, percentiles
from tuneport.advisor.pricing import Desk, Side
from tuneport.advisor.simulation import Drivers, Terms, call_cost, draw, draw_acceptance, draw_cache, draw_price
from tuneport.advisor.statistics import clustered_mean, mean_interval, wilson

VALIDITY_METRICS = ("schema_valid", "json_valid")
"""Names under which a measurement may report whether an answer is in the required format."""


class Route(BaseModel):
    """One way to route. Money None: a price is unknown, and ``why_unknown`` says which."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    arm: str
    provider: str
    model: str
    kind: Literal["direct", "cascade"]
    quality: Estimate
    ends: date | None  # the day on which the first of its models stops answering, where that is known
    passed_on: float  # share of requests that today's model answers
    usd_per_request: Percentiles | None
    saving_per_month: Percentiles | None  # USD, misses counted where they are priced
    p_saves: float | None
    why_unknown: str = ""


def build_routes(
    desk: Desk, measurement: Measurement | None, current: Arm | None, now: Side, shared: Drivers, *, seed: int
) -> tuple[Route, ...]:
    """Every route that the measurement can speak for. ``current`` is the arm in use (or the best prompt of today's model)."""
    if measurement is None:
        return ()
    metric, incumbent = desk.intake.quality.metric, desk.intake.incumbent
    found: list[Route] = []
    for arm in measurement.arms:
        same = not incumbent.tuned and arm.provider == incumbent.provider and desk.same_model(arm.model, incumbent.model)
        if arm.kind != "prompted" or same or metric not in arm.metrics:
            continue
        own = arm.provider == "local"
        side = desk.own(arm) if own else desk.tokens(arm.provider, arm.model, tuned=False, hit=desk.intake.cache_hit_share)
        rest = (measurement, side, now, current, shared, seed)
        found.append(_route(desk, arm, "direct", _scores(arm, metric), 0.0, *rest))
        validity = next((m for m in VALIDITY_METRICS if m in arm.metrics), None)
        if validity and current is not None and arm.metrics[validity].value < 1:
            small, valid, other = _scores(arm, metric), _scores(arm, validity), _scores(current, metric)
            rows = sorted(small.keys() & valid.keys() & other.keys())
            mixed = {row: small[row] if valid[row] >= 1 else other[row] for row in rows}
            if mixed:
                passed = sum(valid[row] < 1 for row in rows) / len(rows)
                found.append(_route(desk, arm, "cascade", mixed, passed, *rest))
    return tuple(found)


def _route(
    desk: Desk, arm: Arm, kind: Literal["direct", "cascade"], scores: dict[int, float], passed: float, measurement: Measurement,
    side: Side, now: Side, current: Arm | None, shared: Drivers, seed: int,
) -> Route:  # fmt: skip
    intake = desk.intake
    values, clusters = [scores[row] for row in sorted(scores)], measurement.clusters_of(sorted(scores))
    binary = set(values) <= {0.0, 1.0}
    if not values:  # F1 over all rows, say: no mean over rows
        quality = arm.metrics[desk.intake.quality.metric]
    elif clusters:
        quality = clustered_mean(values, clusters)
    else:
        quality = wilson(int(sum(values)), len(values)) if binary else mean_interval(values)
    money = _money(desk, scores, passed, measurement, side.terms, now.terms, current, shared, seed)
    unknown = [*side.unknown, *(f"today's {item}" for item in now.unknown)]
    if money is None and not unknown:
        unknown.append("a machine that is always on cannot be shared out over requests")
    served_by = [(arm.provider, arm.model)] + ([(intake.incumbent.provider, intake.incumbent.model)] if kind == "cascade" else [])
    ends = [o.lifetime.inference_ends for p, m in served_by if (o := desk.offering_of(p, m)) and o.lifetime.inference_ends]
    then = f", then {intake.incumbent.model}" if kind == "cascade" else ""
    return Route(
        name=f"{arm.provider} {arm.model} ({arm.name}){then}",
        arm=arm.name, provider=arm.provider, model=arm.model, kind=kind, quality=quality, passed_on=passed,
        ends=min(ends, default=None),
        usd_per_request=percentiles(money[0]) if money else None,
        saving_per_month=percentiles(money[1]) if money else None,
        p_saves=float((money[1] > 0).mean()) if money else None,
        why_unknown="; ".join(unknown),
    )  # fmt: skip


def _money(
    desk: Desk, scores: dict[int, float], passed: float, measurement: Measurement, terms: Terms | None, today: Terms | None,
    current: Arm | None, shared: Drivers, seed: int,
) -> tuple[FloatArray, FloatArray] | None:  # fmt: skip
    """(USD per request, saving per month), per draw."""
    if terms is None or today is None:
        return None
    rng = np.random.default_rng([seed, len(scores)])
    small, big = _each(terms, shared, rng), _each(today, shared, rng)
    if small is None or big is None:
        return None
    cost = small + passed * big
    saving = big - cost
    rejected = desk.intake.quality.rejected_answer_usd
    if rejected is not None and current is not None:
        other = _scores(current, desk.intake.quality.metric)
        rows = sorted(scores.keys() & other.keys())
        if rows:
            one, two = np.array([other[r] for r in rows]), np.array([scores[r] for r in rows])
            before, after = draw_acceptance(rng, one, two, len(big), measurement.clusters_of(rows))
            each = draw(rng, rejected, len(big))
            saving = cost_per_accepted(big, before, each) - cost_per_accepted(cost, after, each)
    return cost, np.asarray(shared["volume"] * saving)


def _each(terms: Terms, shared: Drivers, rng: np.random.Generator) -> FloatArray | None:
    """USD of one request with the prompt of today, without the cost of misses."""
    n = len(shared["volume"])
    prices = {"p_in": terms.input, "p_cached": terms.cached, "p_out": terms.output}
    drawn = shared | {name: draw_price(rng, price, n) for name, price in prices.items()}
    if terms.cache is not None:
        drawn |= draw_cache(rng, "p", terms.cache, n)
    asked = {name: shared[name] for name in ("fresh", "static", "output")}
    each = call_cost(drawn, "p", terms, **asked, hit=shared["cache_hit"])
    if terms.hour.high <= 0:
        return each
    if terms.paid != "worked" or terms.requests_per_hour is None:
        return None
    return np.asarray(each + draw_price(rng, terms.hour, n) / draw(rng, terms.requests_per_hour, n))


def _scores(arm: Arm, metric: str) -> dict[int, float]:
    return {a.row: a.scores[metric] for a in arm.answers if metric in a.scores}
