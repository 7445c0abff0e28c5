"""Where an offer's money comes from, line by line, in its likely case: lines that add up, as percentiles do not."""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneport.advisor.economics import FloatArray, Payback, break_even_volume, volume_path
from tuneport.advisor.simulation import Drivers, Machines, OfferTerms, Setting, evaluate, moves, side_cost

MIDDLE = (0.48, 0.52)
"""The draws that make the likely case, by rank of net present value: enough to average over, and few enough to stay at the median."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class MonthlyCost(_Frozen):
    """USD of an average month of the months that count, on one side. Nothing is discounted."""

    calls: float  # tokens, and machine time that is paid by the work
    machines: float  # that are paid by the hour
    misses: float  # answers that miss, at the stated cost of each
    upkeep: float = 0.0  # storage and monitoring
    retraining: float = 0.0

    @property
    def total(self) -> float:
        """All lines."""
        return self.calls + self.machines + self.misses + self.upkeep + self.retraining


class Breakdown(_Frozen):
    """The likely case of an offer: the mean of the draws in the middle (``MIDDLE``) by net present value.

    ``saved_per_month * months - spent_once + moves + discounting = npv``, exactly. USD.
    """

    draws: int
    months: float  # that count
    requests_per_month: float
    today: MonthlyCost
    tuned: MonthlyCost
    spent_once: float
    moves: float  # the move from today's model that is spared, less the one from the offer's base model; undiscounted
    discounting: float  # what later money is worth less, with its sign
    npv: float
    payback_months: float | None  # undiscounted; None: never
    break_even_volume: float | None  # requests a month, of now, that pay back within the months, undiscounted; None: no number does

    @property
    def saved_per_month(self) -> float:
        """What an average month saves against today, undiscounted."""
        return self.today.total - self.tuned.total

    @property
    def per_request_today(self) -> float | None:
        """One request, with its share of answers that miss and without machines that are paid by the hour; None where none is made."""
        return (self.today.calls + self.today.misses) / self.requests_per_month if self.requests_per_month else None

    @property
    def per_request_tuned(self) -> float | None:
        """The same after tuning."""
        return (self.tuned.calls + self.tuned.misses) / self.requests_per_month if self.requests_per_month else None

    @property
    def fixed_per_month(self) -> float:
        """What does not grow with the requests, beyond today's; retraining aside."""
        return self.tuned.machines + self.tuned.upkeep - self.today.machines


def breakdown_of(drivers: Drivers, offer: OfferTerms, setting: Setting, npv: FloatArray) -> Breakdown:
    """The likely case. ``npv`` are the net present values of ``drivers``."""
    start, end = (int(len(npv) * share) for share in MIDDLE)
    middle = np.argsort(npv, kind="stable")[start : max(end, start + 1)]
    d, months = {name: values[middle] for name, values in drivers.items()}, offer.months
    result = evaluate(d, offer, setting)
    path = volume_path(d["growth"], setting.seasonality, months)
    path = np.broadcast_to(path, (math.ceil(months), path.shape[1]))
    share = np.clip(months - np.arange(len(path)), 0, 1)[:, None]  # the last month counts in part

    def lines(mark: str, suffix: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        """USD of calls, machines and misses in each month, for each draw."""
        each, machines = side_cost(d, mark, suffix, offer.today if mark == "p" else offer.tuned, months)
        missed = (1 - d[f"accepted{suffix}"]) * d["rejected_usd"]
        requests = d["volume"] * path
        return (each - missed) * requests, _paid(machines, requests), missed * requests

    def mean(monthly: FloatArray) -> float:
        return float((monthly * share).sum(axis=0).mean() / months)

    now, then = lines("p", ""), lines("q", "_tuned")
    upkeep, retraining = (
        float((d["storage"] + d["monitoring"]).mean()),
        float((d["retrainings"] * (d["train_run"] + d["retrain_people"])).mean() / months),
    )
    today = MonthlyCost(**dict(zip(("calls", "machines", "misses"), map(mean, now), strict=True)))
    tuned = MonthlyCost(**dict(zip(("calls", "machines", "misses"), map(mean, then), strict=True)), upkeep=upkeep, retraining=retraining)
    spent, worth = float(result.one_time.mean()), float(result.npv.mean())
    moved = float(np.mean(moves(d, offer, Setting(incumbent_ends=setting.incumbent_ends))))
    payback = Payback(np.array([spent]))
    for flow in (sum(now) - sum(then)).mean(axis=1) - upkeep - retraining:  # type: ignore[union-attr]
        payback.add(np.array([flow]))
    saved, requests = today.total - tuned.total, mean(d["volume"] * path)
    each = (today.calls + today.misses - tuned.calls - tuned.misses) / float(d["volume"].mean())
    fixed = tuned.machines - today.machines + upkeep
    needed = break_even_volume(one_time=spent, fixed=fixed, retraining=retraining, horizon=months, saving=each)
    return Breakdown(
        draws=len(middle),
        months=months,
        requests_per_month=requests,
        today=today,
        tuned=tuned,
        spent_once=spent,
        moves=moved,
        discounting=worth - (saved * months - spent + moved),
        npv=worth,
        payback_months=_finite(payback.months()[0]),
        break_even_volume=_finite(float(needed)),
    )


def _paid(machines: Machines, requests: FloatArray) -> FloatArray:
    return np.broadcast_to(machines.cost(requests), requests.shape)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
