"""Puts a report together: offers, simulation, decision and everything that a reader needs to check them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from tuneport import __version__
from tuneport.advisor.curve import learning_curve
from tuneport.advisor.decide import VERDICT_WORDS, decide, verdict_if
from tuneport.advisor.diagnosis import diagnose
from tuneport.advisor.economics import FloatArray, economic_months
from tuneport.advisor.experiments import Pilot, pilot_of
from tuneport.advisor.facts import SUITE_ROWS, Arms, Situation, gather_facts, pick_arms
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Arm, Measurement
from tuneport.advisor.offers import Candidate, Offer, OfferEconomics, build_offers, choose_offer, dies, percentiles, ranked
from tuneport.advisor.pricing import Desk
from tuneport.advisor.prior import Prior, prior_for
from tuneport.advisor.report.assumptions import assumptions_of, risks_of
from tuneport.advisor.report.evidence import evidence_of
from tuneport.advisor.report.model import (
    CashFlow,
    CashPoint,
    Report,
    Reproducibility,
    Savings,
    Sensitivity,
    SwingRow,
    Switch,
)
from tuneport.advisor.report.words import count, percent, usd
from tuneport.advisor.routing import build_routes
from tuneport.advisor.rules import Fact, Verdict
from tuneport.advisor.sensitivity import SHARES, switching_value, tornado
from tuneport.advisor.simulation import (
    DRAWS,
    LABELS,
    Drivers,
    Outcome,
    Setting,
    Terms,
    cumulative,
    evaluate,
    offer_drivers,
    shared_drivers,
)
from tuneport.core.catalogue import Catalogue, Offering, load_catalogue
from tuneport.core.money import Range
from tuneport.core.plan import Plan
from tuneport.core.prices import PriceBook, load_prices

MAX_SWINGS = 8
"""Bars of the tornado; smaller ones change nothing that a reader could see."""
MAX_POINTS = 12
SWITCHES = ("volume", "cache_hit", "accepted", "accepted_tuned", "rejected_usd", "train_run", "q_in", "q_out", "q_hour", "engineering")
"""Inputs for which the report states the value that turns the money round."""


def build_report(
    intake: Intake,
    measurement: Measurement | None,
    plans: Sequence[Plan],
    *,
    today: date,
    seed: int = 0,
    tuned_from: Mapping[str, str] | None = None,
    unavailable: Mapping[str, str] | None = None,
    catalogue: Catalogue | None = None,
    prices: PriceBook | None = None,
) -> Report:
    """The decision report for one intake, what was measured so far, and the plans of the places to run it.

    ``tuned_from`` maps the name of a tuned arm to its base model (as in the spec); without it the base is taken from the plan
    at the arm's provider. ``catalogue`` and ``prices`` default to the built-in facts with the user's overrides.
    Raises CatalogueError when those files are faulty.
    """
    catalogue = catalogue or load_catalogue()
    prices = prices or load_prices()
    desk = Desk(intake, catalogue, prices, today)
    incumbent = desk.offering_of(intake.incumbent.provider, intake.incumbent.model)
    arms = pick_arms(intake, measurement, desk)
    candidates, now = build_offers(
        intake, plans, catalogue, prices, today=today, baseline=arms.today, tuned=arms.tuned, tuned_from=tuned_from
    )
    situation = Situation(
        intake, measurement, arms, (), diagnose(intake, tuple(plans)), today, plans, incumbent, _parameters_b(desk, plans)
    )
    prior = prior_for(measurement.task if measurement else None, situation.training_rows)
    simulation = _Simulation(intake, arms, seed, setting_of(intake, incumbent, today), prior)
    offers = ranked([simulation.with_economics(c) for c in candidates])
    chosen = choose_offer(offers)
    sensitivity = simulation.sensitivity(chosen) if chosen else None
    situation = replace(
        situation,
        offers=offers,
        routes=build_routes(desk, measurement, arms.current or arms.incumbent, now, simulation.shared, seed=seed),
        pilot=simulation.pilot(offers, candidates),
        measuring_usd=_measuring(intake, now.terms),
        curve=learning_curve(intake, measurement, situation.training_rows, seed=seed),
    )
    if sensitivity:
        sensitivity = _with_verdicts(sensitivity, situation)
        situation = replace(situation, switching=[s.statement for s in sensitivity.switches if s.at is not None])
    decision = decide(situation)
    return Report(
        title=intake.title,
        made_on=today,
        intake=intake,
        decision=decision,
        diagnosis=situation.diagnosis,
        savings=_savings(chosen, offers, decision.verdict),
        offers=offers,
        unavailable=dict(unavailable or {}),
        routes=situation.routes,
        prior=prior,
        pilot=situation.pilot,
        curve=situation.curve,
        measuring_usd=situation.measuring_usd,
        todays_prices=tuple(now.notes),
        evidence=evidence_of(intake, measurement),
        cash_flow=simulation.cash_flow(chosen) if chosen else None,
        sensitivity=sensitivity,
        assumptions=assumptions_of(intake, chosen, now.notes, incumbent, prior),
        risks=risks_of(intake, chosen, incumbent, measurement, today),
        reproducibility=Reproducibility(
            inputs_sha256=_digest(intake, measurement, plans, today, seed), seed=seed, draws=DRAWS, versions=_versions()
        ),
    )


def _measuring(intake: Intake, terms: Terms | None) -> Range | None:
    """USD to ask today's model once for every row of a suite, without cache hits; None where a price is unknown."""
    if terms is None:
        return None
    tokens = intake.tokens
    each = (tokens.static + tokens.fresh) * terms.input * 1e-6 + tokens.output * terms.output * 1e-6
    if terms.hour.high > 0:
        if terms.requests_per_hour is None:
            return None
        rate = terms.requests_per_hour
        each = each + terms.hour * Range(low=1 / rate.high, high=1 / rate.low)
    return each * SUITE_ROWS


def _parameters_b(desk: Desk, plans: Sequence[Plan]) -> float | None:
    """Billions of parameters of the base model that the spec names for this machine."""
    local = next((p for p in plans if p.provider == "local"), None)
    offering = desk.offering_of("local", local.model) if local else None
    return offering.parameters_b if offering else None


def _with_verdicts(sensitivity: Sensitivity, situation: Situation) -> Sensitivity:
    """Each switching value with the verdict beyond it: money that turns round need not turn the decision."""
    facts = gather_facts(situation)
    now = verdict_if(facts, {})
    saves = facts["p_saves"]
    turned: dict[str, Fact] = {}
    if isinstance(saves, float):
        turned = {"p_saves": 0.0 if saves >= 0.5 else 1.0, "p_pays_back": 0.0 if saves >= 0.5 else 1.0}
    other = verdict_if(facts, turned)
    switches = tuple(
        s
        if s.at is None or s.rival
        else s.model_copy(update={"verdict": other, "statement": f"{s.statement} {_then(now, other, bool(turned))}"})
        for s in sensitivity.switches
    )
    return sensitivity.model_copy(update={"switches": switches})


def _then(now: Verdict, other: Verdict, known: bool) -> str:
    if not known:
        return "The decision does not rest on this offer's money."
    return f"The decision: {VERDICT_WORDS[other]}." if other != now else "The decision stays: it rests on other grounds."


def setting_of(intake: Intake, incumbent: Offering | None, today: date) -> Setting:
    """What every offer of the decision shares."""
    ends = incumbent.lifetime.inference_ends if incumbent else None
    months = economic_months(intake.horizon_months, ends, today) if ends else None
    return Setting(intake.discount_rate, intake.seasonality, months if months is not None and months < intake.horizon_months else None)


class _Simulation:
    """The draws of one report, shared by its offers."""

    def __init__(self, intake: Intake, arms: Arms, seed: int, setting: Setting, prior: Prior) -> None:
        self.intake = intake
        self.setting = setting
        self.seed = seed
        self.baseline = arms.baseline
        self.shared = shared_drivers(intake, seed=seed, prior=prior.removed)
        self.scores = _paired_scores(arms, intake.quality.metric)
        self.kept: dict[str, tuple[Candidate, Drivers, Outcome]] = {}

    def with_economics(self, candidate: Candidate) -> Offer:
        """The offer with its simulated money, where its prices are known."""
        offer, terms = candidate.offer, candidate.terms
        if terms is None or terms.months <= 0:
            return offer
        before, after = self.scores
        scores = None if before is None else (before, after if offer.quality != "not measured" else None)
        counted = scores is not None and self.intake.quality.rejected_answer_usd is not None
        drivers = offer_drivers(self.shared, terms, self.intake, seed=self.seed, scores=scores)
        result = evaluate(drivers, terms, self.setting)
        self.kept[offer.id] = (candidate, drivers, result)
        economics = OfferEconomics(
            months=terms.months,
            per_request_today=percentiles(result.per_request_today),
            per_request_tuned=percentiles(result.per_request_tuned),
            one_time=percentiles(result.one_time),
            fixed_per_month=percentiles(result.fixed),
            saving_per_month=percentiles(result.saving_per_month),
            break_even_volume=percentiles(result.break_even),
            payback_months=percentiles(result.payback),
            npv=percentiles(result.npv),
            p_saves=float((result.npv > 0).mean()),
            p_pays_back=float((result.payback <= terms.months).mean()),
            misses_counted=counted,
            quality_assumed=counted and scores is not None and scores[1] is None,
        )
        reasons = offer.reasons
        if terms.ends_inside and economics.p_pays_back < 0.5:
            reasons = (*reasons, f"more likely than not it does not pay back in the {terms.months:.1f} months that the model has left")
        return offer.model_copy(update={"economics": economics, "reasons": reasons})

    def pilot(self, offers: Sequence[Offer], candidates: Sequence[Candidate]) -> Pilot | None:
        """The cheapest pilot that is worth its price, once a prompt was measured.

        One of an offer that was measured already, or whose base model ends before it could pay, stands behind the others.
        """
        if self.baseline is None:
            return None
        found = {}
        for offer in (o for o in offers if o.status == "open" and o.training_usd):
            candidate = next(c for c in candidates if c.offer.id == offer.id)
            _, drivers, result = self.kept.get(offer.id, (None, None, None))
            found[offer.id] = pilot_of(
                candidate, drivers, result.npv if result else None, baseline=self.baseline, metric=self.intake.quality.metric,
                bar=self.intake.quality.bar, removed=self.shared["removed"], seed=self.seed,
                priced=offer.economics is not None and offer.economics.misses_counted,
            )  # fmt: skip
        by_id = {o.id: o for o in offers}

        def order(pilot: Pilot) -> tuple[bool, bool, bool, float]:
            offer, price = by_id[pilot.offer], pilot.usd.high if pilot.usd else float("inf")
            return pilot.worth_it is False, dies(offer), offer.quality != "not measured", price

        return min(found.values(), key=order, default=None)

    def _overtaken(self, offer: Offer) -> list[Switch]:
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
            return []
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
        return found

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

    def sensitivity(self, offer: Offer) -> Sensitivity:
        """The tornado and the switching values of one offer."""
        candidate, drivers, result = self.kept[offer.id]
        terms, setting = candidate.terms, self.setting
        assert terms is not None  # noqa: S101 - only offers with terms are kept
        swings = [
            SwingRow(
                driver=LABELS[s.driver],
                low_shown=_shown(s.driver)(s.low),
                high_shown=_shown(s.driver)(s.high),
                low=s.low,
                high=s.high,
                npv_low=s.npv_low,
                npv_high=s.npv_high,
                rank_correlation=s.rank_correlation,
            )
            for s in tornado(drivers, terms, setting, result.npv)
            if s.npv_low != s.npv_high
        ]
        switches = []
        for name in SWITCHES:
            if not np.isfinite(drivers[name]).all() or drivers[name].max() <= 0:
                continue
            if name in ("accepted", "accepted_tuned") and not (drivers["rejected_usd"] > 0).any():
                continue
            middle, at = switching_value(drivers, terms, setting, name)
            switches.append(_switch(name, middle, at))
        switches += self._overtaken(offer)
        base = evaluate({name: np.array([np.median(values)]) for name, values in drivers.items()}, terms, setting).npv
        return Sensitivity(offer=offer.id, middle_npv=float(base[0]), swings=tuple(swings[:MAX_SWINGS]), switches=tuple(switches))


DOLLARS = frozenset(
    {
        "data", "labelling", "engineering", "evaluation", "retrain_people", "migration", "incumbent_move", "monitoring", "rejected_usd",
        "train_run", "storage", *(f"{side}_{part}" for side in "pq" for part in ("in", "cached", "out", "batch_in", "batch_out", "hour")),
    }
)  # fmt: skip
"""Inputs that are money."""


def _shown(name: str) -> Callable[[float], str]:
    """How a value of an input is written."""
    if name in SHARES or name in ("growth", "drift"):
        return percent
    return usd if name in DOLLARS else count


def _switch(name: str, middle: float, at: float | None) -> Switch:
    share, shown = name in SHARES, _shown(name)
    label = LABELS[name]
    if at is None:
        statement = f"{label}: no value within reach turns the money round (now about {shown(middle)})."
    else:
        statement = f"{label} {'below' if at < middle else 'above'} {shown(at)} turns the money round (now about {shown(middle)})."
    return Switch(driver=label, share=share, middle=middle, at=at, statement=statement)


def _paired_scores(arms: Arms, metric: str) -> tuple[FloatArray | None, FloatArray | None]:
    """Scores of today's (or the best) prompt and of the tuned arm, on the rows that both have; None for what was not measured."""

    def by_row(arm: Arm | None) -> dict[int, float]:
        return {a.row: a.scores[metric] for a in arm.answers if metric in a.scores} if arm else {}

    one, two = by_row(arms.today), by_row(arms.tuned)
    rows = sorted(one.keys() & two.keys()) if two else sorted(one)
    if not rows:
        return None, None
    return np.array([one[r] for r in rows]), np.array([two[r] for r in rows]) if two else None


def _savings(chosen: Offer | None, offers: Sequence[Offer], verdict: str) -> Savings:
    if chosen is None:
        closed = sum(o.status == "closed" for o in offers)
        why = (
            f"None of the {len(offers)} offers is open with all its prices known ({closed} closed); the table of offers says why."
            if offers
            else "No plan was given, so there is no offer to price."
        )
        return Savings(subject="No offer can be priced", offer=None, economics=None, why_unknown=why)
    subject = {
        "measured": "The tuned model as it was measured",
        "same model, measured elsewhere": "The same base model as was measured, at another provider",
        "not measured": "If tuning does what the stated prior says (no tuned model of this base was measured)",
    }[chosen.quality]
    if verdict not in ("fine_tune", "migrate"):
        subject += "; shown for comparison, not recommended"
    return Savings(subject=subject, offer=chosen.id, economics=chosen.economics)


def _digest(intake: Intake, measurement: Measurement | None, plans: Sequence[Plan], today: date, seed: int) -> str:
    parts = [intake.model_dump_json(), measurement.model_dump_json() if measurement else "", *(p.model_dump_json() for p in plans)]
    return hashlib.sha256("\n".join([*parts, today.isoformat(), str(seed)]).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"tuneport": __version__, "python": platform.python_version()}
    for package in ("numpy", "pydantic", "altair", "vl-convert-python"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
