"""The facts that the rules ask for: gathered from the measurement, the decision file, the offers and what was computed from them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from tuneport.advisor.curve import LearningCurve, named_spec
from tuneport.advisor.diagnosis import Diagnosis
from tuneport.advisor.economics import economic_months
from tuneport.advisor.experiments import Pilot
from tuneport.advisor.intake import CHANGE_MONTHS, Intake
from tuneport.advisor.measure import MARGIN
from tuneport.advisor.measurement import Arm, Comparison, Estimate, Measurement
from tuneport.advisor.methods import LORA_GB_PER_BILLION
from tuneport.advisor.offers import Offer, choose_offer, outlives
from tuneport.advisor.pricing import Desk
from tuneport.advisor.routing import VALIDITY_METRICS, Route
from tuneport.advisor.rules import Fact
from tuneport.core.catalogue import Offering, base_of
from tuneport.core.money import Range
from tuneport.core.plan import Plan

SUITE_ROWS = 200
"""Rows of a suite that is still to be made: S4 asks for 200 to 500, S2 sees 150 to 200."""


UNCOMPARED = ("judge.", "refusal", "declines", "answers_when", "json_valid", "schema_valid", "regex", "context_precision")
"""Beginnings of the names of metrics that do not compare an answer with the expected one."""


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms that the decision rests on. ``baseline`` is the best prompt measured; ``current`` the one in use, if known.

    ``incumbent`` is the best arm of today's model.
    """

    baseline: Arm | None = None
    current: Arm | None = None
    tuned: Arm | None = None
    comparison: Comparison | None = None
    incumbent: Arm | None = None
    incumbent_measured: bool = False
    lasting: Arm | None = None  # the best prompt of a model that serves to the end of the horizon

    @property
    def today(self) -> Arm | None:
        """The arm whose quality stands for today's: the one in use, else the best of today's model, else the best prompt."""
        return self.current or self.incumbent or self.baseline


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that the decision rests on."""

    intake: Intake
    measurement: Measurement | None
    arms: Arms
    offers: Sequence[Offer]
    diagnosis: Diagnosis
    today: date
    plans: Sequence[Plan] = ()
    incumbent: Offering | None = None
    parameters_b: float | None = None  # of the base model that the spec names for this machine
    routes: Sequence[Route] = ()
    pilot: Pilot | None = None
    curve: LearningCurve | None = None
    measuring_usd: Range | None = None  # asking today's model once for every row of a suite; None: a price is unknown
    switching: Sequence[str] = field(default=())  # which values of which input would change the decision, or turn the net present value
    money_at: Callable[[str, float], Mapping[str, Fact]] | None = None  # facts of money, were the "baseline" or "tuned" arm of such quality
    spec_file: str = ""  # path of the job spec, as the user wrote it

    @property
    def leaving(self) -> date | None:
        """The day on which today's model ends, where that is within the horizon."""
        return leaving_on(self.intake, self.incumbent, self.today)

    @property
    def training_rows(self) -> int | None:
        """Rows of the spec; without one, what the decision file states."""
        rows = next((u.rows for p in self.plans for u in p.uploads if u.role == "train"), None)
        return rows if rows is not None else self.intake.data.labelled_rows


def leaving_on(intake: Intake, incumbent: Offering | None, today: date) -> date | None:
    """The day on which today's model ends, where that is within the horizon."""
    ends = incumbent.lifetime.inference_ends if incumbent else None
    return ends if economic_months(intake.horizon_months, ends, today) < intake.horizon_months else None


def pick_arms(intake: Intake, measurement: Measurement | None, desk: Desk) -> Arms:
    """The best prompt, the prompt in use, the best tuned arm and their paired comparison, on the decision's metric."""
    if measurement is None:
        return Arms()
    metric = intake.quality.metric

    def is_incumbent(arm: Arm) -> bool:
        tuned = arm.kind == "tuned"
        return (
            tuned == intake.incumbent.tuned
            and arm.provider == intake.incumbent.provider
            and desk.same_model(arm.model, intake.incumbent.model)
        )

    def lasts(arm: Arm) -> bool:
        offering = desk.offering_of(arm.provider, arm.model)
        ends = offering.lifetime.inference_ends if offering else None
        return economic_months(intake.horizon_months, ends, desk.today) >= intake.horizon_months

    def best(arms: Sequence[Arm]) -> Arm | None:
        return max(arms, key=lambda a: a.metrics[metric].value, default=None)

    scored = [a for a in measurement.arms if metric in a.metrics]
    prompted = [a for a in scored if a.kind == "prompted"]
    baseline = best(prompted)
    tuned = best([a for a in scored if a.kind == "tuned" and not is_incumbent(a)])
    current = next((a for a in scored if a.name == intake.incumbent.arm), None)
    pair = (baseline.name, tuned.name) if baseline and tuned else None
    comparison = next((c for c in measurement.comparisons if (c.baseline, c.challenger) == pair and c.metric == metric), None)
    lasting = best([a for a in prompted if lasts(a)])
    incumbent = best([a for a in scored if is_incumbent(a)])
    return Arms(baseline, current, tuned, comparison, incumbent, any(is_incumbent(a) for a in measurement.arms), lasting)


def gather_facts(situation: Situation) -> dict[str, Fact]:
    """Every fact that the rules may ask for, under its name; None where it is not known."""
    intake, measurement, arms = situation.intake, situation.measurement, situation.arms
    incumbent = situation.incumbent
    metric = intake.quality.metric
    prompted = [a for a in measurement.arms if a.kind == "prompted"] if measurement else []
    measured_metrics = sorted({m for a in measurement.arms for m in a.metrics}) if measurement else []
    static = intake.tokens.static.high
    ends = incumbent.lifetime.inference_ends if incumbent else None
    gain = arms.comparison.difference if arms.comparison else None
    facts: dict[str, Fact] = {
        "needs_facts": intake.facts.fresh_or_private,
        "change": intake.facts.change,
        "change_months": CHANGE_MONTHS[intake.facts.change],
        "data_may_leave": intake.privacy.data_may_leave,
        "regions": ", ".join(intake.privacy.regions),
        "regulations": ", ".join(intake.privacy.regulations) or "none named",
        "skills": intake.skills,
        "nobody_trains": intake.skills == "prompting",
        "metric": metric,
        "metrics": ", ".join(measured_metrics) or "none",
        "bar": intake.quality.bar,
        "measured": bool(prompted),
        "prompted_arms": len(prompted),
        "metric_measured": arms.baseline is not None if prompted else None,
        "uniform": measurement.uniform and not metric.startswith(UNCOMPARED) if measurement else None,
        "task": measurement.task if measurement else None,
        "exact_format": intake.needs.format == "strict" or (measurement is not None and measurement.task == "json"),
        "rows": measurement.power.n if measurement else None,  # that count one by one: groups, where rows hang together
        "rows_text": _rows_text(measurement) if measurement else None,
        "detectable": measurement.power.detectable if measurement else None,
        "power_statement": measurement.power.statement if measurement else None,
        "measurement_warnings": len(measurement.warnings) if measurement else None,
        "measured_models": ", ".join(sorted({f"{a.provider} {a.model}" for a in prompted})) or "none",
        "unanswered_share": _unanswered(arms),
        "incumbent": f"{intake.incumbent.provider} {intake.incumbent.model}",
        "incumbent_measured": arms.incumbent_measured if measurement else None,
        "incumbent_ends": ends.isoformat() if ends else None,
        "incumbent_ends_inside": situation.leaving is not None if incumbent else None,
        "tuned_measured": arms.tuned is not None,
        "tuned_arms": sum(a.kind == "tuned" for a in measurement.arms) if measurement else 0,
        "tuned_provider": arms.tuned.provider if arms.tuned else None,
        "gain_known": gain is not None,
        "gain_value": gain.value if gain else None,
        "gain_low": gain.low if gain else None,
        "gain_high": gain.high if gain else None,
        "gain_rows": gain.n if gain else None,
        "accepted_loss": -(arms.comparison.margin if arms.comparison and arms.comparison.margin is not None else MARGIN),
        "p_text": _p_text(arms.comparison),
        "p_holm": arms.comparison.p_holm if arms.comparison else None,
        "looks": len(measurement.looks) if measurement else None,
        "baseline_validity": next((arms.baseline.metrics[m].value for m in VALIDITY_METRICS if m in arms.baseline.metrics), None)
        if arms.baseline
        else None,
        "current_arm": arms.current.name if arms.current else None,
        "current_value": arms.current.metrics[metric].value if arms.current else None,
        "lasting_arm": arms.lasting.name if arms.lasting else None,
        "lasting_model": f"{arms.lasting.provider} {arms.lasting.model}" if arms.lasting else None,
        "lasting_value": arms.lasting.metrics[metric].value if arms.lasting else None,
        "training_rows": situation.training_rows,
        "static_tokens": static,
        "static_saved_share": max(0.0, 1 - intake.tokens.static_tuned.high / static) if static > 0 else 0.0,
        "latency_need": intake.needs.latency_p95_seconds,
        "baseline_p95": p95_seconds(arms.baseline),
        "tuned_p95": p95_seconds(arms.tuned),
        "rejected_usd": _dollars(intake.quality.rejected_answer_usd),
    }
    for name, arm in (("baseline", arms.baseline), ("tuned", arms.tuned)):
        estimate: Estimate | None = arm.metrics[metric] if arm else None
        facts[f"{name}_arm"] = arm.name if arm else None
        facts |= {f"{name}_{end}": getattr(estimate, end) if estimate else None for end in ("value", "low", "high")}
    best, now = facts["baseline_value"], facts["current_value"]
    facts["prompt_gain"] = best - now if isinstance(best, float) and isinstance(now, float) else None
    return facts | _general(situation) | _said(situation) | money_facts(situation)


def money_facts(situation: Situation) -> dict[str, Fact]:
    """The facts that rest on offers, routes and the pilot."""
    offers = situation.offers
    chosen = choose_offer(offers, situation.leaving)
    backed = chosen if chosen and chosen.quality != "not measured" else None
    money, priced = (offer.economics if offer else None for offer in (backed, chosen))
    facts: dict[str, Fact] = {
        "open_offers": sum(o.status == "open" for o in offers) if offers else None,
        "closed_offers": sum(o.status == "closed" for o in offers),
        "unpriced_offers": sum(o.status == "unpriced" for o in offers),
        "measured_offers": sum(o.status == "open" and o.quality != "not measured" and o.economics is not None for o in offers),
        "offer": backed.id if backed else None,
        "measured_elsewhere": backed.quality != "measured" if backed else None,
        "inference_ends": backed.inference_ends.isoformat() if backed and backed.inference_ends else None,
        "outlives": outlives(backed, situation.leaving) if backed else None,
        "ends_inside": money.months < situation.intake.horizon_months if money else None,
        "stale_prices": sum(bool(p.stale) for p in backed.prices) if backed else None,
        "p_saves": money.p_saves if money else None,
        "saving_month": money.likely.saved_per_month if money else None,
        "p_pays_back": money.p_pays_back if money else None,
        "npv_low": money.npv.p10 if money else None,
        "npv_high": money.npv.p90 if money else None,
        "misses_counted": money.misses_counted if money else None,
        "today_month": priced.likely.today.total if priced else None,
        "tuned_month": priced.likely.tuned.total if priced else None,
        "tuned_saves": priced.likely.saved_per_month if priced else None,
    }
    return facts | _route_facts(situation) | _next_facts(situation, backed)


def _rows_text(measurement: Measurement) -> str:
    rows = f"{len(measurement.arms[0].answers):,} rows"
    return f"{rows} in {measurement.clusters:,} groups that hang together" if measurement.clusters else rows


def _dollars(value: Range | None) -> str | None:
    if value is None:
        return None
    low, high = f"${value.low:,.2f}", f"${value.high:,.2f}"
    return low if low == high else f"{low} to {high}"


def _command(situation: Situation) -> str:
    """What measures today's model."""
    spec = named_spec(situation.spec_file)
    now, offering = situation.intake.incumbent, situation.incumbent
    provider, asked = shlex.quote(now.provider), shlex.quote(offering.vendor_id if offering and not now.tuned else now.model)
    if not now.tuned:
        return f"tuneport baseline {spec} -p {provider} -m {asked}"
    if offering and base_of(now.model) == now.model:  # a name of the base: who answers is not known
        asked = "ID-OF-THE-TUNED-MODEL"
    return f"tuneport evaluate {spec} -p {provider} -m {asked} --name today, and for prompts tuneport baseline {spec} -p PROVIDER"


def _general(situation: Situation) -> dict[str, Fact]:
    """What tuning has cost elsewhere: the loss of the tuned arm's model on the general suite, when that was measured."""
    measurement, tuned = situation.measurement, situation.arms.tuned
    lost = measurement.elsewhere(tuned) if measurement and tuned else None
    return {
        "general_loss": -lost.difference.value if lost else None,
        "general_metric": lost.metric.replace("_", " ") if lost else None,
        "general_rows": lost.difference.n if lost else None,
    }


def _said(situation: Situation) -> dict[str, Fact]:
    """Facts from the questionnaire and its diagnosis."""
    intake, diagnosis = situation.intake, situation.diagnosis
    asked = [p for p in situation.plans if p.provider == "local"] or list(situation.plans)
    values = {o.path: o.value for o in asked[0].outcomes} if asked else {}
    method, tuning = values.get("method"), values.get("tuning.kind")
    return {
        "gap": diagnosis.gap,
        "gap_words": "facts and behaviour" if diagnosis.gap == "both" else diagnosis.gap,
        "gap_stated": diagnosis.stated,
        "gap_signs": "; ".join(sign.says for sign in diagnosis.signs) or "none given",
        "missing_facts": "; ".join(s.says for s in diagnosis.signs if s.points_to == "knowledge") or "stated in the decision file",
        "contradictions": len(diagnosis.contradictions),
        "subjective": bool({"wrong_style", "wrong_refusals"} & set(intake.symptoms)),
        "too_dear": "too_dear" in intake.symptoms,
        "domain_terms": "domain_terms" in intake.symptoms,
        "prompt_first": bool(intake.symptoms) and set(intake.symptoms) <= {"too_long"},
        "preference_pairs": intake.data.preference_pairs,
        "raw_tokens": intake.data.raw_tokens,
        "gpu_memory_gb": intake.self_hosting.gpu_memory_gb,
        "lora_memory_gb": LORA_GB_PER_BILLION * situation.parameters_b if situation.parameters_b else None,
        "spec_method": str(method) if method is not None else None,
        "spec_tuning": str(tuning) if tuning is not None else None,
    }


def best_route(routes: Sequence[Route], bar: float) -> Route | None:
    """The route that meets the bar and most likely saves; else the one of the best quality."""
    known = [r for r in routes if r.p_saves is not None] or list(routes)
    return max(known, key=lambda r: (r.quality.value >= bar, r.p_saves or 0.0, r.quality.value), default=None)


def _route_facts(situation: Situation) -> dict[str, Fact]:
    intake = situation.intake
    route = best_route(situation.routes, intake.quality.bar)
    return {
        "route": route.name if route else None,
        "route_value": route.quality.value if route else None,
        "route_low": route.quality.low if route else None,
        "route_high": route.quality.high if route else None,
        "route_lasts": economic_months(intake.horizon_months, route.ends, situation.today) >= intake.horizon_months if route else None,
        "route_saves": route.p_saves if route else None,
        "route_saving": route.saving_per_month.p50 if route and route.saving_per_month else None,
    }


def _next_facts(situation: Situation, backed: Offer | None) -> dict[str, Fact]:
    """Facts of the experiment and the learning curve, and of the offer that would be taken or piloted."""
    pilot, curve, offers = situation.pilot, situation.curve, situation.offers
    piloted = next((o for o in offers if pilot and o.id == pilot.offer), None)
    place = backed or piloted
    elsewhere = place is not None and place.provider != "local" and bool(situation.intake.privacy.regions) and not place.regions
    return {
        "pilot_offer": piloted.id if piloted else None,
        "pilot_outlives": outlives(piloted, situation.leaving) if piloted else None,
        "pilot_rows_needed": pilot.rows_needed if pilot else None,
        "pilot_saves": piloted.economics.p_saves if piloted and piloted.economics else None,
        "pilot_worth_it": pilot.worth_it if pilot else None,
        "pilot_worth": pilot.worth_usd if pilot else None,
        "pilot_usd": pilot.usd.low if pilot and pilot.usd else None,
        "measuring": _dollars(situation.measuring_usd),
        "measuring_command": _command(situation),
        "measuring_rows": SUITE_ROWS,
        "more_data": curve.more_is_worth if curve else None,
        "curve": curve.says if curve else None,
        "place": place.id if place else None,
        "residency_unknown": elsewhere if place else None,
    }


def p95_seconds(arm: Arm | None) -> float | None:
    """The time within which 19 of 20 answers came (nearest rank); None when fewer than 20 carry a time."""
    if arm is not None and arm.calls is not None and arm.calls.latency is not None and arm.calls.latency.n >= 20:
        return arm.calls.latency.p95
    times = sorted(a.seconds for a in arm.answers if a.seconds) if arm else []
    return times[math.ceil(0.95 * len(times)) - 1] if len(times) >= 20 else None


def _unanswered(arms: Arms) -> float | None:
    deciding = [a for a in (arms.baseline, arms.current, arms.tuned) if a and a.answers]
    return max((sum(bool(x.error) for x in a.answers) / len(a.answers) for a in deciding), default=None)


def _p_text(comparison: Comparison | None) -> str:
    if comparison is None or comparison.p_value is None:
        return "no test for this metric"
    p, test = comparison.p_value, comparison.test or ("exact McNemar" if comparison.only_baseline is not None else "two-sided")
    return f"{test} p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
