"""Unit economics of prompting against tuning: formulas only, no prices and no randomness.

Every function takes numbers or numpy arrays (one entry per draw) and returns arrays. Money is USD, time is months.
Each formula stands in its function's docstring. They reproduce the worked example of the AWS Machine Learning blog on
text-to-SQL with Amazon Nova Micro (2026-03-23) to the cent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Amount: TypeAlias = float | FloatArray

HOURS_PER_MONTH = 730.0
"""Hours of an average month (8,760 / 12)."""
DAYS_PER_MONTH = 365.25 / 12


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """USD per million tokens. A provider without a cache discount has ``cached`` equal to ``input``."""

    input: Amount
    cached: Amount
    output: Amount


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens of one request; ``cache_hit`` is the share of the static part that is read from the cache."""

    fresh: Amount
    static: Amount
    output: Amount
    cache_hit: Amount = 0.0


def request_cost(request: Request, prices: TokenPrices) -> FloatArray:
    """USD of one request: ``fresh*p_in + static*((1-h)*p_in + h*p_cached) + out*p_out``."""
    hit = np.asarray(request.cache_hit, dtype=np.float64)
    static = request.static * ((1 - hit) * prices.input + hit * prices.cached)
    return np.asarray((request.fresh * prices.input + static + request.output * prices.output) / 1e6)


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
    always_on: bool = True,
) -> FloatArray:
    """USD per month of machines that answer ``requests`` a month.

    Always on: ``ceil(volume / throughput)`` machines, at least one, for every hour. Otherwise only the hours worked.
    """
    hours = np.asarray(requests, dtype=np.float64) / requests_per_hour
    if always_on:
        hours = np.maximum(1.0, np.ceil(hours / HOURS_PER_MONTH)) * HOURS_PER_MONTH
    return np.asarray(hours * usd_per_hour)


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


def payback_months(*, one_time: Amount, saving_per_month: Amount) -> FloatArray:
    """Months until the one-time cost is earned back: ``K / (V*d - F - K_r/R)``; infinite ("never") when nothing is saved."""
    return requests_to_cover(one_time, saving_per_month)


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
