"""The decision: do nothing, a better prompt, retrieval, measure or pilot first, or fine-tune at a named offer.

Facts are gathered here, from the measurement, the decision file and the offers; the rules are data (``rules.yaml``).
Fine-tuning is only ever decided when a paired interval of the gain lies above zero and the best prompt misses the bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.advice import Option, changes_of, kill_criteria_of, next_steps_of, options_of, sentence_of
from tuneport.advisor.economics import economic_months
from tuneport.advisor.intake import CHANGE_MONTHS, Intake
from tuneport.advisor.measurement import Arm, Comparison, Estimate, Measurement
from tuneport.advisor.offers import Offer
from tuneport.advisor.rules import Fact, TraceLine, Verdict, apply, load_rules, verdict_of
from tuneport.core.catalogue import Catalogue, Offering

VALIDITY_METRICS = ("schema_valid", "json_valid")
"""Names under which a measurement may report the share of answers in the required format."""

Confidence = Literal["high", "medium", "low"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Decision(_Frozen):
    """The advisor's answer with its trace."""

    verdict: Verdict
    offer: str | None  # id of the offer to take, or to pilot
    sentence: str
    because: str
    confidence: Confidence
    trace: tuple[TraceLine, ...]
    doubts: tuple[TraceLine, ...]
    options: tuple[Option, ...]
    next_steps: tuple[str, ...]
    kill_criteria: tuple[str, ...]
    would_change: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms that the decision rests on. ``baseline`` is the best prompt measured; ``current`` the one in use, if known."""

    baseline: Arm | None = None
    current: Arm | None = None
    tuned: Arm | None = None
    comparison: Comparison | None = None
    incumbent_measured: bool = False


def pick_arms(intake: Intake, measurement: Measurement | None, catalogue: Catalogue) -> Arms:
    """The best prompt, the prompt in use, the best tuned arm and their paired comparison, on the decision's metric."""
    if measurement is None:
        return Arms()
    metric = intake.quality.metric

    def best(kind: str) -> Arm | None:
        arms = [a for a in measurement.arms if a.kind == kind and metric in a.metrics]
        return max(arms, key=lambda a: a.metrics[metric].value, default=None)

    def is_incumbent(arm: Arm) -> bool:
        one, other = (catalogue.name_of(m) or m for m in (arm.model, intake.incumbent.model))
        return arm.kind == "prompted" and arm.provider == intake.incumbent.provider and one == other

    baseline, tuned = best("prompted"), best("tuned")
    current = next((a for a in measurement.arms if a.name == intake.incumbent.arm and metric in a.metrics), None)
    pair = (baseline.name, tuned.name) if baseline and tuned else None
    comparison = next((c for c in measurement.comparisons if (c.baseline, c.challenger) == pair and c.metric == metric), None)
    return Arms(baseline, current, tuned, comparison, any(is_incumbent(a) for a in measurement.arms))


def choose_offer(offers: Sequence[Offer]) -> Offer | None:
    """The offer whose money the report shows: a measured one if there is any, then the highest median net present value.

    An offer that ends before it has paid back stands behind those that do not.
    """
    priced = [o for o in offers if o.status == "open" and o.economics]

    def rank(offer: Offer) -> tuple[bool, bool, float]:
        economics = offer.economics
        assert economics is not None  # noqa: S101 - filtered above
        return offer.quality != "not measured", not _dies(offer), economics.npv.p50 or 0.0

    return max(priced, key=rank, default=None)


def gather_facts(
    intake: Intake,
    measurement: Measurement | None,
    arms: Arms,
    offers: Sequence[Offer],
    *,
    training_rows: int | None,
    incumbent: Offering | None,
    today: date,
) -> dict[str, Fact]:
    """Every fact that the rules may ask for, under its name; None where it is not known."""
    metric = intake.quality.metric
    prompted = [a for a in measurement.arms if a.kind == "prompted"] if measurement else []
    measured_metrics = sorted({m for a in measurement.arms for m in a.metrics}) if measurement else []
    static = intake.tokens.static.high
    chosen = choose_offer(offers)
    backed = chosen if chosen and chosen.quality != "not measured" else None
    money = backed.economics if backed else None
    ends = incumbent.lifetime.inference_ends if incumbent else None
    gain = arms.comparison.difference if arms.comparison else None
    rejected = intake.quality.rejected_answer_usd
    facts: dict[str, Fact] = {
        "gap": intake.gap,
        "needs_facts": intake.facts.fresh_or_private,
        "change": intake.facts.change,
        "change_months": CHANGE_MONTHS[intake.facts.change],
        "data_may_leave": intake.privacy.data_may_leave,
        "metric": metric,
        "metrics": ", ".join(measured_metrics) or "none",
        "bar": intake.quality.bar,
        "measured": bool(prompted),
        "prompted_arms": len(prompted),
        "metric_measured": arms.baseline is not None if prompted else None,
        "task": measurement.task if measurement else None,
        "rows": measurement.power.n if measurement else None,
        "detectable": measurement.power.detectable if measurement else None,
        "power_statement": measurement.power.statement if measurement else None,
        "measurement_warnings": len(measurement.warnings) if measurement else None,
        "measured_models": ", ".join(sorted({f"{a.provider} {a.model}" for a in prompted})) or "none",
        "incumbent": f"{intake.incumbent.provider} {intake.incumbent.model}",
        "incumbent_measured": arms.incumbent_measured if measurement else None,
        "incumbent_ends": ends.isoformat() if ends else None,
        "incumbent_ends_inside": economic_months(intake.horizon_months, ends, today) < intake.horizon_months if incumbent else None,
        "tuned_measured": arms.tuned is not None,
        "tuned_arms": sum(a.kind == "tuned" for a in measurement.arms) if measurement else 0,
        "tuned_provider": arms.tuned.provider if arms.tuned else None,
        "gain_known": gain is not None,
        "gain_value": gain.value if gain else None,
        "gain_low": gain.low if gain else None,
        "gain_high": gain.high if gain else None,
        "gain_rows": gain.n if gain else None,
        "p_text": _p_text(arms.comparison),
        "baseline_validity": next((arms.baseline.metrics[m].value for m in VALIDITY_METRICS if m in arms.baseline.metrics), None)
        if arms.baseline
        else None,
        "current_arm": arms.current.name if arms.current else None,
        "current_value": arms.current.metrics[metric].value if arms.current else None,
        "training_rows": training_rows,
        "static_tokens": static,
        "static_saved_share": 1 - intake.tokens.static_tuned.high / static if static > 0 else 0.0,
        "open_offers": sum(o.status == "open" for o in offers) if offers else None,
        "closed_offers": sum(o.status == "closed" for o in offers),
        "unpriced_offers": sum(o.status == "unpriced" for o in offers),
        "measured_offers": sum(o.status == "open" and o.quality != "not measured" and o.economics is not None for o in offers),
        "offer": backed.id if backed else None,
        "measured_elsewhere": backed.quality != "measured" if backed else None,
        "inference_ends": backed.inference_ends.isoformat() if backed and backed.inference_ends else None,
        "ends_inside": money.months < intake.horizon_months if money else None,
        "stale_prices": sum(bool(p.stale) for p in backed.prices) if backed else None,
        "p_saves": money.p_saves if money else None,
        "p_pays_back": money.p_pays_back if money else None,
        "npv_low": money.npv.p10 if money else None,
        "npv_high": money.npv.p90 if money else None,
        "misses_counted": money.misses_counted if money else None,
        "rejected_usd": f"${rejected.low:,.2f} to ${rejected.high:,.2f}" if rejected else None,
    }
    for name, arm in (("baseline", arms.baseline), ("tuned", arms.tuned)):
        estimate: Estimate | None = arm.metrics[metric] if arm else None
        facts[f"{name}_arm"] = arm.name if arm else None
        facts |= {f"{name}_{end}": getattr(estimate, end) if estimate else None for end in ("value", "low", "high")}
    best, now = facts["baseline_value"], facts["current_value"]
    facts["prompt_gain"] = best - now if isinstance(best, float) and isinstance(now, float) else None
    return facts


def decide(
    intake: Intake,
    measurement: Measurement | None,
    arms: Arms,
    offers: Sequence[Offer],
    *,
    training_rows: int | None,
    incumbent: Offering | None,
    today: date,
    switching: Sequence[str] = (),
) -> Decision:
    """The decision with its trace. ``switching`` are sentences on which values of which input would turn the money round."""
    facts = gather_facts(intake, measurement, arms, offers, training_rows=training_rows, incumbent=incumbent, today=today)
    book = load_rules()
    trace = tuple(apply(rule, facts) for rule in book.rules)
    row = verdict_of(book, trace)
    doubts = tuple(apply(rule, facts) for rule in book.doubts if not rule.applies or row.verdict in rule.applies)
    cause = row.all[0] if row.all else ""
    offer = _offer_for(row.verdict, offers)
    lines = {line.rule: line for line in trace}
    weight = sum(1.0 if d.fired else 0.5 if d.fired is None else 0.0 for d in doubts)
    confidence: Confidence = "high" if weight < 1 else "medium" if weight < 3 else "low"
    return Decision(
        verdict=row.verdict,
        offer=offer.id if offer else None,
        sentence=sentence_of(row.verdict, cause, facts, offer),
        because=" ".join(lines[rule].says for rule in row.all) or "The measurement does not settle the question.",
        confidence=confidence,
        trace=trace,
        doubts=doubts,
        options=options_of(row.verdict, lines, facts, choose_offer(offers)),
        next_steps=next_steps_of(row.verdict, facts, offer, intake),
        kill_criteria=kill_criteria_of(row.verdict, facts, offer, intake),
        would_change=(*changes_of(row.verdict, facts), *switching),
    )


def _offer_for(verdict: Verdict, offers: Sequence[Offer]) -> Offer | None:
    if verdict == "fine_tune":
        return choose_offer(offers)
    if verdict == "pilot":
        ready = [o for o in offers if o.status == "open" and o.training_usd]
        return min(ready, key=lambda o: (_dies(o), o.training_usd.high if o.training_usd else 0.0), default=None)
    return None


def _dies(offer: Offer) -> bool:
    """True when the base model ends before the offer has, more likely than not, paid back."""
    return offer.inference_ends is not None and (offer.economics is None or offer.economics.p_pays_back < 0.5)


def _p_text(comparison: Comparison | None) -> str:
    if comparison is None or comparison.p_value is None:
        return "no exact test for this metric"
    p = comparison.p_value
    return f"exact McNemar p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
