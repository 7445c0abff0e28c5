"""What each offer's money comes to, from one set of draws: economics, cash flow, sensitivity and the pilot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date

import numpy as np

from tuneport.advisor.breakdown import breakdown_of
from tuneport.advisor.economics import FloatArray, economic_months
from tuneport.advisor.experiments import Pilot, pilot_of
from tuneport.advisor.facts import Arms
from tuneport.advisor.intake import Intake
from tuneport.advisor.measure import MARGIN
from tuneport.advisor.measurement import Arm, Measurement
from tuneport.advisor.offers import Candidate, Offer, OfferEconomics, dies, outlives, percentiles
from tuneport.advisor.prior import Prior
from tuneport.advisor.report.model import CashFlow, CashPoint, Sensitivity, SwingRow, Switch
from tuneport.advisor.report.words import count, percent, usd
from tuneport.advisor.sensitivity import SHARES, tornado
from tuneport.advisor.simulation import (
    LABELS,
    Drivers,
    Outcome,
    Setting,
    cumulative,
    evaluate,
    offer_drivers,
    quality_drivers,
    shared_drivers,
)
from tuneport.core.catalogue import Offering

MAX_SWINGS = 8
"""Bars of the tornado; smaller ones change nothing that a reader could see."""
MAX_POINTS = 12


def setting_of(intake: Intake, incumbent: Offering | None, today: date) -> Setting:
    """What every offer of the decision shares."""
    ends = incumbent.lifetime.inference_ends if incumbent else None
    months = economic_months(intake.horizon_months, ends, today) if ends else None
    return Setting(intake.discount_rate, intake.seasonality, months if months is not None and months < intake.horizon_months else None)


class Appraisal:
    """The draws of one report, shared by its offers, and what each offer's money comes to."""

    def __init__(self, intake: Intake, measurement: Measurement | None, arms: Arms, seed: int, setting: Setting, prior: Prior) -> None:
        self.intake = intake
        self.setting = setting
        self.seed = seed
        self.baseline = arms.baseline
        self.shared = shared_drivers(intake, seed=seed, prior=prior.removed)
        self.measurement = measurement
        *self.scores, rows = _paired_scores(arms, intake.quality.metric)
        self.clusters = measurement.clusters_of(rows) if measurement else ()
        self.drawn: dict[bool, Drivers] = {}
        self.kept: dict[str, tuple[Candidate, Drivers, Outcome]] = {}
        self.pilots: dict[str, Pilot] = {}

    def with_economics(self, candidate: Candidate) -> Offer:
        """The offer with its simulated money, where its prices are known."""
        offer, terms = candidate.offer, candidate.terms
        if terms is None or terms.months <= 0:
            return offer
        before, after = self.scores
        scores = None if before is None else (before, after if offer.quality != "not measured" else None)
        counted = scores is not None and self.intake.quality.rejected_answer_usd is not None
        drivers = offer_drivers(self.shared, terms, self.intake, seed=self.seed, quality=self._quality(scores))
        result = evaluate(drivers, terms, self.setting)
        self.kept[offer.id] = (candidate, drivers, result)
        economics = OfferEconomics(
            months=terms.months,
            per_request_today=percentiles(result.per_request_today),
            per_request_tuned=percentiles(result.per_request_tuned),
            one_time=percentiles(result.one_time),
            fixed_per_month=percentiles(result.fixed),
            today_per_month=percentiles(result.today_per_month),
            tuned_per_month=percentiles(result.tuned_per_month),
            saving_per_month=percentiles(result.saving_per_month),
            break_even_volume=percentiles(result.break_even),
            payback_months=percentiles(result.payback),
            npv=percentiles(result.npv),
            likely=breakdown_of(drivers, terms, self.setting, result.npv),
            p_saves=float((result.npv > 0).mean()),
            p_pays_back=float((result.payback <= terms.months).mean()),
            misses_counted=counted,
            quality_assumed=counted and scores is not None and scores[1] is None,
        )
        reasons = offer.reasons
        if terms.ends_inside and economics.p_pays_back < 0.5:
            reasons = (*reasons, f"more likely than not it does not pay back in the {terms.months:.1f} months that the model has left")
        return offer.model_copy(update={"economics": economics, "reasons": reasons})

    def _quality(self, scores: tuple[FloatArray, FloatArray | None] | None) -> Drivers:
        """The draws of quality, made once for all offers that were measured and once for all that were not."""
        measured = scores is not None and scores[1] is not None
        if measured not in self.drawn:
            self.drawn[measured] = quality_drivers(
                self.intake, self.shared["removed"], *(scores or (None, None)), seed=self.seed, clusters=self.clusters
            )
        return self.drawn[measured]

    def pilot(self, offers: Sequence[Offer], candidates: Sequence[Candidate], leaving: date | None = None) -> Pilot | None:
        """The cheapest pilot that is worth its price (``best_pilot``), once a prompt was measured."""
        if self.baseline is None or self.measurement is None:
            return None
        quality = self.intake.quality
        as_good = "too_dear" in self.intake.symptoms and self.baseline.metrics[quality.metric].value >= quality.bar
        for offer in (o for o in offers if o.status == "open" and o.training_usd):
            candidate = next(c for c in candidates if c.offer.id == offer.id)
            _, drivers, result = self.kept.get(offer.id, (None, None, None))
            self.pilots[offer.id] = pilot_of(
                candidate, drivers, result.npv if result else None, baseline=self.baseline, metric=self.intake.quality.metric,
                bar=self.intake.quality.bar, clusters_of=self.measurement.clusters_of, removed=self.shared["removed"], seed=self.seed,
                priced=offer.economics is not None and offer.economics.misses_counted, loss=MARGIN if as_good else 0.0,
            )  # fmt: skip
        return best_pilot(self.pilots, offers, leaving)

    def overtaken(self, offer: Offer) -> tuple[Switch, ...]:
        """The volumes from which, or up to which, another offer is worth more than this one: the nearest on either side."""
        volume = float(np.median(self.shared["volume"]))
        grid = volume * np.geomspace(1e-3, 1e3, 601)
        values = {}
        for name, (candidate, drivers, _) in self.kept.items():
            assert candidate.terms is not None  # noqa: S101 - only offers with terms are kept
            trial = {key: np.full(len(grid), float(np.median(v))) for key, v in drivers.items()} | {"volume": grid}
            values[name] = evaluate(trial, candidate.terms, self.setting).npv
        rivals = {o: npv for o, npv in values.items() if o != offer.id and self.kept[o][0].offer.quality == offer.quality}
        if not rivals:
            return ()
        found = []
        for side, word in ((np.flatnonzero(grid > volume), "above"), (np.flatnonzero(grid < volume)[::-1], "below")):
            for k in side:
                best = max(rivals, key=lambda o: rivals[o][k])
                if rivals[best][k] > max(values[offer.id][k], 0.0):
                    statement = (
                        f"Requests per month {word} {count(float(f'{grid[k]:.2g}'))}: {best} is worth more (now about {count(volume)})."
                    )
                    found.append(
                        Switch(driver=LABELS["volume"], share=False, middle=volume, at=float(grid[k]), statement=statement, rival=best)
                    )
                    break
        return tuple(found)

    def cash_flow(self, offer: Offer) -> CashFlow:
        """Spent money over the horizon, at most a dozen points."""
        candidate, drivers, _ = self.kept[offer.id]
        assert candidate.terms is not None  # noqa: S101 - only offers with terms are kept
        horizon = self.intake.horizon_months
        step = max(1, -(-horizon // MAX_POINTS))
        months = sorted({*range(0, horizon + 1, step), horizon})
        today, tuned = cumulative(drivers, candidate.terms, self.setting, horizon)
        points = tuple(CashPoint(month=m, today=percentiles(today[m]), tuned=percentiles(tuned[m])) for m in months)
        return CashFlow(offer=offer.id, points=points, ends_month=candidate.terms.months if candidate.terms.ends_inside else None)

    def sensitivity(self, offer: Offer, switches: Sequence[Switch]) -> Sensitivity:
        """The tornado of one offer, with the values that change the decision."""
        candidate, drivers, result = self.kept[offer.id]
        terms, setting = candidate.terms, self.setting
        assert terms is not None  # noqa: S101 - only offers with terms are kept
        swings = [
            SwingRow(
                driver=s.label,
                low_shown=shown_as(s.driver)(s.low),
                high_shown=shown_as(s.driver)(s.high),
                low=s.low,
                high=s.high,
                npv_low=s.npv_low,
                npv_high=s.npv_high,
                rank_correlation=s.rank_correlation,
            )
            for s in tornado(drivers, terms, setting, result.npv)
            if s.npv_low != s.npv_high
        ]
        base = float(evaluate({name: np.array([np.median(values)]) for name, values in drivers.items()}, terms, setting).npv[0])
        return Sensitivity(offer=offer.id, middle_npv=base, swings=tuple(swings[:MAX_SWINGS]), switches=tuple(switches))


DOLLARS = frozenset(
    {
        "data", "labelling", "engineering", "evaluation", "retrain_people", "migration", "incumbent_move", "monitoring", "rejected_usd",
        "train_run", "storage",
        *(f"{side}_{part}" for side in "pq" for part in ("in", "cached", "write", "store", "out", "batch_in", "batch_out", "hour")),
    }
)  # fmt: skip
"""Inputs that are money."""


def shown_as(name: str) -> Callable[[float], str]:
    """How a value of an input is written."""
    if name in SHARES or name in ("growth", "drift"):
        return percent
    return usd if name in DOLLARS else count


def best_pilot(pilots: Mapping[str, Pilot], offers: Sequence[Offer], leaving: date | None) -> Pilot | None:
    """The cheapest pilot that is worth its price.

    One of an offer that was measured already, or whose base model ends before it could pay or with today's model (on ``leaving``),
    stands behind the others.
    """
    by_id = {o.id: o for o in offers}

    def order(pilot: Pilot) -> tuple[bool, bool, bool, bool, float]:
        offer, price = by_id[pilot.offer], pilot.usd.high if pilot.usd else float("inf")
        return not outlives(offer, leaving), pilot.worth_it is False, dies(offer), offer.quality != "not measured", price

    return min(pilots.values(), key=order, default=None)


def _paired_scores(arms: Arms, metric: str) -> tuple[FloatArray | None, FloatArray | None, list[int]]:
    """Scores of today's (or the best) prompt and of the tuned arm, on the rows that both have, and those rows; None: not measured."""

    def by_row(arm: Arm | None) -> dict[int, float]:
        return {a.row: a.scores[metric] for a in arm.answers if metric in a.scores} if arm else {}

    one, two = by_row(arms.today), by_row(arms.tuned)
    rows = sorted(one.keys() & two.keys()) if two else sorted(one)
    if not rows:
        return None, None, rows
    return np.array([one[r] for r in rows]), np.array([two[r] for r in rows]) if two else None, rows
