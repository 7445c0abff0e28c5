"""Unit economics of prompting against tuning: formulas only, no prices and no randomness.

Every function takes numbers or numpy arrays (one entry per draw) and returns arrays. Money is USD, time is months.
Each formula stands in its function's docstring. They reproduce the worked example of the AWS Machine Learning blog on
text-to-SQL with Amazon Nova Micro (2026-03-23) to the cent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tuneport.core.deployment import HOURS_PER_MONTH

FloatArray: TypeAlias = NDArray[np.float64]
Amount: TypeAlias = float | FloatArray

DAYS_PER_MONTH = 365.25 / 12


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """USD per million tokens. A provider without a cache discount has ``cached`` equal to ``input``.

    ``write`` is what writing to the cache costs beyond ``input``; ``store`` is per million tokens and hour in the cache.
    """

    input: Amount
    cached: Amount
    output: Amount
    write: Amount = 0.0
    store: Amount = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens of one request; ``cache_hit`` is the share of the static part that is read from the cache.

    ``cache_writes`` and ``cache_hours`` are those of ``cache_traffic``.
    """

    fresh: Amount
    static: Amount
    output: Amount
    cache_hit: Amount = 0.0
    cache_writes: Amount = 0.0
    cache_hours: Amount = 0.0


def request_cost(request: Request, prices: TokenPrices) -> FloatArray:
    """USD of one request: ``fresh*p_in + static*((1-h)*p_in + h*p_cached + w*p_write + t*p_store) + out*p_out``.

    A request in a batch tier is ``Request(..., cache_hit=0)`` at the prices of that tier.
    """
    hit = np.asarray(request.cache_hit, dtype=np.float64)
    kept = request.cache_writes * prices.write + request.cache_hours * prices.store
    static = request.static * ((1 - hit) * prices.input + hit * prices.cached + kept)
    return np.asarray((request.fresh * prices.input + static + request.output * prices.output) / 1e6)


def cache_traffic(requests_per_hour: Amount, ttl_hours: Amount, cache_hit: Amount) -> tuple[FloatArray, FloatArray]:
    """(share of requests that write the static part to the cache, hours per request that it lies there); both 0 without cache hits.

    Assumes one static prompt and requests that come one by one at random (Poisson, rate r) with a cache that forgets what was
    not read for T hours. A request finds nothing, and writes, when the one before came more than T earlier: ``exp(-r*T)``, at most
    the share that misses. Between two requests the prompt lies there for the gap, at most T: on average ``(1 - exp(-r*T)) / r``.
    """
    rate, ttl, hit = (np.asarray(value, dtype=np.float64) for value in (requests_per_hour, ttl_hours, cache_hit))
    missed = np.exp(-rate * ttl)
    return np.where(hit > 0, np.minimum(1 - hit, missed), 0.0), np.where(hit > 0, (1 - missed) / rate, 0.0)


def cost_per_accepted(cost: Amount, acceptance: Amount, fallback: Amount | None = None) -> FloatArray:
    """USD of one accepted answer: ``(c + (1-a)*c_fallback) / P(accepted in the end)``.

    With a fallback every answer is accepted in the end; without one only the share ``acceptance`` is.
    """
    accepted = np.asarray(acceptance, dtype=np.float64)
    if fallback is not None:
        return np.asarray(cost + (1 - accepted) * fallback)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(accepted > 0, cost / np.where(accepted > 0, accepted, 1), np.inf))


def training_cost(tokens: Amount, epochs: Amount, usd_per_million: Amount) -> FloatArray:
    """USD of one steady training run: price x tokens x epochs."""
    return np.asarray(tokens * np.asarray(epochs, dtype=np.float64) * usd_per_million / 1e6)


def hosting_per_month(
    usd_per_hour: Amount,
    requests: Amount = 0.0,
    requests_per_hour: Amount = np.inf,
    *,
    open_hours: Amount = HOURS_PER_MONTH,
    paid_hours: Amount = HOURS_PER_MONTH,
) -> FloatArray:
    """USD per month of machines that answer ``requests`` a month: ``ceil(requests / (throughput * open hours))``, at least one.

    ``open_hours`` are the hours of a month in which requests arrive; ``paid_hours`` those that each machine is paid for: all
    730 where it is always on, the open hours where the host stops it when idle (scale to zero).
    """
    return np.asarray(machines_needed(requests, requests_per_hour * np.asarray(open_hours)) * paid_hours * usd_per_hour)


def machines_needed(requests: Amount, capacity: Amount) -> FloatArray:
    """Machines that answer so many requests when each answers ``capacity`` of them: rounded up, at least one."""
    machines: FloatArray = np.asarray(np.divide(requests, capacity, dtype=np.float64))
    np.ceil(machines, out=machines)
    np.maximum(machines, 1.0, out=machines)
    return machines


def requests_to_cover(usd: Amount, usd_per_request: Amount) -> FloatArray:
    """Requests whose saving (or price) adds up to ``usd``; infinite when each brings nothing."""
    each = np.asarray(usd_per_request, dtype=np.float64)
    return np.asarray(np.where(each > 0, usd / np.where(each > 0, each, 1), np.inf))


def break_even_volume(*, one_time: Amount, fixed: Amount, retraining: Amount, horizon: Amount, saving: Amount) -> FloatArray:
    """Requests per month from which tuning pays within the horizon: ``(F + K_r/R + K/H) / d``; infinite when d <= 0.

    ``fixed`` and ``retraining`` (K_r / R) are USD per month, ``saving`` (d) USD per request. Never below 0.
    """
    needed = np.asarray(fixed + retraining + one_time / np.asarray(horizon, dtype=np.float64))
    return np.maximum(0.0, requests_to_cover(needed, saving))


def monthly_volumes(growth_per_year: Amount, seasonality: Sequence[float], months: float) -> Iterator[FloatArray]:
    """Requests of each month in turn as a multiple of the stated volume, one for each draw: ``(1 + g)^(t/12) * s_t``.

    Month 0 is now, and the seasonal weights (one for each calendar month from now on) average 1. Growth that is the same in
    every draw gives one number a month.
    """
    growth = np.atleast_1d(np.asarray(growth_per_year, dtype=np.float64))
    year = 1 + (growth[:1] if np.ptp(growth) == 0 else growth)
    month = year ** (1 / 12)
    weights = np.asarray(seasonality or [1.0], dtype=np.float64)
    weights = weights / weights.mean()
    anniversary = level = np.ones(len(year))
    for t in range(int(np.ceil(months))):
        if t % 12:
            level = level * month  # a product is far cheaper than a power, and whole years stay exact
        elif t:
            anniversary = level = anniversary * year
        yield level * weights[t % len(weights)] if seasonality else level


def volume_path(growth_per_year: Amount, seasonality: Sequence[float], months: float) -> FloatArray:
    """``monthly_volumes`` as an array [months, draws]. A volume that neither grows nor has seasons is one row for every month."""
    if is_steady(growth_per_year, seasonality):
        return np.ones((1, 1))
    return np.stack(list(monthly_volumes(growth_per_year, seasonality, months)))


def is_steady(growth_per_year: Amount, seasonality: Sequence[float]) -> bool:
    """Does the volume neither grow nor have seasons?"""
    return not seasonality and not np.any(growth_per_year)


def mean_growth(growth_per_year: Amount, months: float) -> FloatArray:
    """The mean of ``(1 + g)^(t/12)`` over the first ``months``: what a price that drifts by g a year averages to."""
    rate = np.log1p(np.asarray(growth_per_year, dtype=np.float64)) * months / 12
    return np.asarray(np.where(np.abs(rate) > 1e-9, np.expm1(rate) / np.where(np.abs(rate) > 1e-9, rate, 1), 1.0))


def payback_months(*, one_time: Amount, saving_per_month: Amount) -> FloatArray:
    """Months until the one-time cost is earned back: ``K / (V*d - F - K_r/R)``; infinite ("never") when nothing is saved."""
    return requests_to_cover(one_time, saving_per_month)


class Payback:
    """The same for savings that differ by month and are told one after the other: the first time that their sum reaches ``one_time``.

    What is still open at the end is earned at the mean rate of the last twelve months; infinite when that is not above 0.
    """

    def __init__(self, one_time: FloatArray) -> None:
        self._one_time = one_time
        self._total = np.zeros_like(one_time)
        self._found = np.zeros_like(one_time)
        self._open = np.ones(one_time.shape, dtype=bool)
        self._last: deque[FloatArray] = deque(maxlen=12)
        self._count = 0

    def add(self, flow: FloatArray) -> None:
        """The next month's savings, one for each draw."""
        before, self._total = self._total, self._total + flow
        self._last.append(flow)
        self._count += 1
        now = np.flatnonzero((self._total >= self._one_time) & self._open)
        if not len(now):
            return
        gained = flow[now]
        part = np.where(gained > 0, (self._one_time[now] - before[now]) / np.where(gained > 0, gained, 1), 0.0)
        self._found[now] = np.maximum(self._count - 1 + part, 0.0)
        self._open[now] = False

    def months(self) -> FloatArray:
        """Months until it is earned back."""
        rate = sum(self._last, np.zeros_like(self._total)) / len(self._last)
        beyond = self._count + payback_months(one_time=self._one_time - self._total, saving_per_month=rate)
        return np.where(self._open, beyond, self._found)


def monthly_rate(annual: float) -> float:
    """The monthly discount rate that compounds to ``annual``."""
    return float((1 + annual) ** (1 / 12) - 1)


def discount_factors(months: float, annual_rate: float) -> FloatArray:
    """Weights of the monthly flows in a window of ``months``: discounted at each month's end, the last month pro rata."""
    count = int(np.ceil(months))
    time = np.minimum(np.arange(1, count + 1, dtype=np.float64), months)
    share = np.minimum(1.0, months - np.arange(count))
    return np.asarray(share / (1 + monthly_rate(annual_rate)) ** time)


def total_cost(
    *,
    one_time: Amount,
    volume: Amount,
    per_request: Amount,
    fixed: Amount,
    retraining: Amount,
    months: float,
    annual_rate: float = 0.0,
    end_cost: Amount = 0.0,
) -> FloatArray:
    """Total cost of ownership: ``K + sum_t (V*c + F + K_r/R)/(1+r)^t``, plus ``end_cost`` (migration) at the end."""
    flows = np.asarray(volume * np.asarray(per_request, dtype=np.float64) + fixed + retraining)
    end = (1 + monthly_rate(annual_rate)) ** -months
    return np.asarray(one_time + flows * discount_factors(months, annual_rate).sum() + end_cost * end)


def remaining_days(ends: date, today: date) -> int:
    """Days that a model still serves; 0 when it has ended."""
    return max(0, (ends - today).days)


def economic_months(horizon: float, ends: date | None, today: date) -> float:
    """The months that count: the horizon, capped by the base model's remaining life."""
    return horizon if ends is None else min(horizon, remaining_days(ends, today) / DAYS_PER_MONTH)
