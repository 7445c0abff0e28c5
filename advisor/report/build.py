"""Puts a report together: offers, simulation, decision and everything that a reader needs to check them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic_core import to_jsonable_python

from tuneport import __version__
from tuneport.advisor.curve import learning_curve
from tuneport.advisor.decide import decide
from tuneport.advisor.diagnosis import diagnose
from tuneport.advisor.facts import SUITE_ROWS, Situation, pick_arms
from tuneport.advisor.incumbent import about_incumbent
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Measurement
from tuneport.advisor.offers import Offer, build_offers, choose_offer, ranked
from tuneport.advisor.pricing import Desk
from tuneport.advisor.prior import prior_for
from tuneport.advisor.report.appraisal import Appraisal, setting_of
from tuneport.advisor.report.assumptions import assumptions_of, risks_of
from tuneport.advisor.report.evidence import evidence_of
from tuneport.advisor.report.model import Report, Reproducibility, Savings
from tuneport.advisor.report.whatif import WhatIf
from tuneport.advisor.routing import Route, build_routes
from tuneport.advisor.runs import RunFamily
from tuneport.advisor.simulation import DRAWS, Drivers, Terms
from tuneport.core.catalogue import Catalogue, load_catalogue
from tuneport.core.money import Range
from tuneport.core.plan import Plan
from tuneport.core.prices import PriceBook, load_prices


def build_report(
    intake: Intake,
    measurement: Measurement | None,
    plans: Sequence[Plan],
    *,
    today: date,
    seed: int = 0,
    tuned_from: Mapping[str, str] | None = None,
    unavailable: Mapping[str, str] | None = None,
    families: Sequence[RunFamily] = (),
    notes: Sequence[str] = (),
    spec_file: str = "",
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
        intake, measurement, arms, (), diagnose(intake, tuple(plans)), today, plans, incumbent, _parameters_b(desk, plans),
        spec_file=spec_file,
    )  # fmt: skip
    prior = prior_for(measurement.task if measurement else None, situation.training_rows)
    simulation = Appraisal(intake, measurement, arms, seed, setting_of(intake, incumbent, today), prior)
    offers = ranked([simulation.with_economics(c) for c in candidates], situation.leaving)
    chosen = choose_offer(offers, situation.leaving)
    best = arms.current or arms.incumbent

    def routes(shared: Drivers, miss: float = 1.0) -> tuple[Route, ...]:
        """Routes with these draws, where a miss costs so many times what is stated."""
        quality = intake.quality
        dearer = {"rejected_answer_usd": quality.rejected_answer_usd * miss if quality.rejected_answer_usd else None}
        asked = intake.model_copy(update={"quality": quality.model_copy(update=dearer)})
        return build_routes(Desk(asked, catalogue, prices, today), measurement, best, now, shared, seed=seed)

    situation = replace(
        situation,
        offers=offers,
        routes=routes(simulation.shared),
        pilot=simulation.pilot(offers, candidates, situation.leaving),
        measuring_usd=_measuring(intake, now.terms),
        curve=learning_curve(
            intake,
            measurement,
            situation.training_rows,
            families,
            seed=seed,
            months=chosen.economics.months if chosen and chosen.economics else None,
            spec_file=spec_file,
        ),
    )
    sensitivity = None
    if chosen:
        what_if = WhatIf(simulation, situation, chosen, routes)
        sensitivity = simulation.sensitivity(chosen, (*what_if.switches(), *simulation.overtaken(chosen)))
        turned = [s.statement for s in sensitivity.switches if s.at is not None]
        situation = replace(situation, switching=turned, money_at=what_if.money_at)
    decision = decide(situation)
    facts = [catalogue.models(), prices.prices(), dict(tuned_from or {}), dict(unavailable or {})]
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
        assumptions=assumptions_of(intake, chosen, now, incumbent, prior),
        risks=risks_of(intake, chosen, incumbent, measurement, today),
        warnings=(*about_incumbent(intake.incumbent, incumbent, desk, now), *now.clashes, *notes),
        reproducibility=Reproducibility(
            inputs_sha256=_digest(intake, measurement, plans, families, facts, seed), seed=seed, draws=DRAWS, versions=_versions()
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


def _digest(
    intake: Intake, measurement: Measurement | None, plans: Sequence[Plan], families: Sequence[RunFamily], facts: Any, seed: int
) -> str:
    """Of all that decides the report but the day and the program. ``facts``: catalogue, price book and what the caller stated."""
    parts = [intake.model_dump_json(), measurement.model_dump_json() if measurement else ""]
    parts += [part.model_dump_json() for part in (*plans, *families)]
    told = to_jsonable_python(facts)
    return hashlib.sha256("\n".join([*parts, json.dumps(_sorted(told), sort_keys=True), str(seed)]).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    """The value with its lists in order of their content: sets have none of their own, and none matters here."""
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(inner) for inner in value), key=lambda inner: json.dumps(inner, sort_keys=True))
    return value


def _versions() -> dict[str, str]:
    found = {"tuneport": __version__, "python": platform.python_version()}
    for package in ("numpy", "pydantic", "altair", "vl-convert-python"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
