"""The decision: do nothing, a better prompt, retrieval, measure or pilot first, or fine-tune at a named offer.

Facts are gathered here, from the measurement, the decision file and the offers; the rules are data (``rules.yaml``).
Fine-tuning is only ever decided when a paired interval of the gain lies above zero and the best prompt misses the bar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from tuneport.advisor.economics import economic_months
from tuneport.advisor.intake import CHANGE_MONTHS, Intake
from tuneport.advisor.measurement import Arm, Comparison, Estimate, Measurement
from tuneport.advisor.offers import Offer
from tuneport.advisor.rules import Fact, TraceLine, Verdict, apply, load_rules, verdict_of
from tuneport.core.catalogue import Catalogue, Offering

from pydantic import BaseModel, ConfigDict  # isort: skip

VALIDITY_METRICS = ("schema_valid", "json_valid")
"""Names under which a measurement may report the share of answers in the required format."""

Confidence = Literal["high", "medium", "low"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Option(_Frozen):
    """One way forward, and what speaks for or against it."""

    name: str
    standing: Literal["recommended", "possible", "ruled out", "not assessed"]
    because: str
    cost: str


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
        sentence=_sentence(row.verdict, cause, facts, offer),
        because=" ".join(lines[rule].says for rule in row.all) or "The measurement does not settle the question.",
        confidence=confidence,
        trace=trace,
        doubts=doubts,
        options=_options(row.verdict, lines, facts, offers),
        next_steps=_next_steps(row.verdict, facts, offer, intake),
        kill_criteria=_kill_criteria(row.verdict, facts, offer, intake),
        would_change=(*_would_change(row.verdict, facts), *switching),
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


def _percent(value: Fact) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, int | float) else "an unknown share"


def _points(value: Fact) -> str:
    return f"{100 * value:.0f}" if isinstance(value, int | float) else "an unknown number of"


def _money(offer: Offer) -> str:
    cost = offer.training_usd
    if cost is None:
        return "at an unknown price"
    top = f"{cost.high:,.0f}" if cost.high >= 10 else f"{cost.high:,.2f}"
    return f"for at most ${top} a run" if cost.high > 0 else "at no charge"


def _sentence(verdict: Verdict, cause: str, facts: Mapping[str, Fact], offer: Offer | None) -> str:
    """The decision in one sentence."""
    arm, bar, metric = facts["baseline_arm"], _percent(facts["bar"]), str(facts["metric"]).replace("_", " ")
    base = _percent(facts["baseline_value"])
    where = "the cheapest open offer"
    if offer:
        where = f"{offer.model} on your own machine" if offer.provider == "local" else f"{offer.model} at {offer.provider} ({offer.serving})"
    gain = f"{_points(facts['gain_value'])} points ({_points(facts['gain_low'])} to {_points(facts['gain_high'])})"
    written: dict[tuple[str, str], str] = {
        ("retrieval", "knowledge-gap"): "Build retrieval, not a tuned model: what is missing are facts.",
        ("retrieval", "facts-change-monthly"): f"Build retrieval: the answers need facts that change {facts['change']}.",
        ("measure", "nothing-measured"): "Measure the prompted baseline first: without it nobody knows whether there is anything to gain.",
        ("measure", "metric-missing"): f"Measure {metric} first: the decision rests on it and no arm has it.",
        ("measure", "gain-unpaired"): "Compare the tuned model with the best prompt on the same rows before deciding.",
        ("measure", "incumbent-not-measured"): f"Measure today's model ({facts['incumbent']}) on the same rows before deciding: "
        f"the tuned model beats another model's prompt by {gain}, which says nothing of the one in use.",
        ("better_prompt", "baseline-meets-bar"): f"Do not fine-tune: switch to the prompt {arm!r}, which already reaches {base} "
        f"{metric} against a bar of {bar}.",
        ("better_prompt", "facts-change-monthly"): f"Do not fine-tune: requirements change {facts['change']}, so work on the prompt.",
        ("better_prompt", "too-few-rows"): f"Do not fine-tune yet: {facts['training_rows']} training rows are too few; improve the prompt "
        "and collect data.",
        ("better_prompt", "gain-not-shown"): f"Do not fine-tune: no gain over the prompt {arm!r} is shown ({gain}).",
        ("do_nothing", "baseline-meets-bar"): f"Do not fine-tune: the prompt {arm!r} already reaches {base} {metric} against a bar of {bar}.",
        ("do_nothing", "no-open-offer"): "Do nothing for now: the data may not leave, and no offer keeps it inside.",
        ("do_nothing", "dies-before-payback"): f"Do not fine-tune at {facts['offer']}: the base model ends on {facts['inference_ends']}, "
        "before the money is earned back.",
        ("do_nothing", "quality-priced"): f"Do not fine-tune: the model gains {gain}, but that costs more than the wrong answers do.",
        ("pilot", "tuned-not-measured"): f"Run one pilot: tune {where} {_money(offer) if offer else 'once its price is known'} and measure it; "
        f"the best prompt reaches {base} {metric}, short of the bar of {bar}.",
        ("pilot", "tuned-misses-bar"): f"Do not ship the tuned model: it gains {gain} but reaches only {_percent(facts['tuned_value'])} "
        f"{metric} against a bar of {bar}; run another pilot with more data or a larger base model.",
        ("find_offer", "no-measured-offer"): "Find a place to run it first: the tuned model is good enough, but no open offer with a known "
        "price serves it.",
        ("fine_tune", "gain-shown"): f"Fine-tune {where}: {metric} rises by {gain} over the best prompt, to "
        f"{_percent(facts['tuned_value'])} against a bar of {bar}.",
    }  # fmt: skip
    sentence = written.get((verdict, cause), "Measure more before deciding: what is known does not settle the question.")
    if verdict == "fine_tune" and facts["gap"] == "both":
        sentence = sentence.removesuffix(".") + ", together with retrieval for the facts."
    return sentence


def _options(verdict: Verdict, lines: Mapping[str, TraceLine], facts: Mapping[str, Fact], offers: Sequence[Offer]) -> tuple[Option, ...]:
    """Every option of the report, including the ones that nobody asked for."""

    def fired(*rules: str) -> str:
        return " ".join(f"{lines[r].says.rstrip('.')}: {lines[r].evidence}." for r in rules if lines[r].fired)

    known = facts["baseline_value"] is not None
    against = fired(
        "knowledge-gap", "baseline-meets-bar", "gain-not-shown", "tuned-misses-bar", "facts-change-monthly", "too-few-rows",
        "tuned-not-measured", "no-open-offer", "no-measured-offer", "dies-before-payback",
    )  # fmt: skip
    tune_standing: Literal["recommended", "possible", "ruled out"] = "ruled out"
    if verdict == "fine_tune":
        tune_standing = "recommended"
    elif verdict in ("pilot", "measure", "find_offer"):
        tune_standing = "possible"
    chosen = choose_offer(offers)
    money = chosen.economics if chosen else None
    paid = f"One-time about ${money.one_time.p50:,.0f}" if money and money.one_time.p50 is not None else "Unknown: no offer with known prices"
    nothing = f"Today's quality: {facts['current_arm'] or facts['baseline_arm']}, " if known else "Quality not measured. "
    if known:
        nothing += f"{_percent(facts['current_value'] if facts['current_value'] is not None else facts['baseline_value'])}. "
    if known and not lines["baseline-meets-bar"].fired:
        nothing += f"That misses the bar of {_percent(facts['bar'])}. "
    ends = f"Not open for long: {lines['incumbent-ends'].evidence}. " if lines["incumbent-ends"].fired else ""
    misses = known and verdict == "fine_tune"
    facts_needed = bool(facts["needs_facts"])
    return (
        Option(
            name="Do nothing",
            standing="recommended" if verdict == "do_nothing" else "ruled out" if ends or misses else "possible",
            because=(ends + nothing).strip(),
            cost="What it costs today",
        ),
        Option(
            name="Better prompt",
            standing="recommended" if verdict == "better_prompt" else "possible" if known else "not assessed",
            because=f"Best prompt measured: {facts['baseline_arm']}, {_percent(facts['baseline_value'])} against a bar of {_percent(facts['bar'])}."
            if known
            else "No prompt was measured.",
            cost="Hours of work; a longer prompt costs more per call",
        ),
        Option(
            name="Retrieval",
            standing="recommended" if verdict == "retrieval" else "possible" if facts_needed else "ruled out",
            because="Answers need fresh or private facts (all sources)." if facts_needed else "Answers need no facts from outside the request.",
            cost="Days to weeks to build, 20 to 200 ms per call (S2); not priced here",
        ),
        Option(
            name="Routing, or a smaller prompted model",
            standing="not assessed",
            because=f"Models measured with a prompt: {facts['measured_models']}. Measure a smaller one as one more arm to assess this.",
            cost="Not priced: no such arm was named",
        ),
        Option(
            name="Fine-tune",
            standing=tune_standing,
            because=fired("gain-shown", "tuned-meets-bar", "saves-money", "loses-money") if verdict == "fine_tune" else against or "See the trace.",
            cost=paid,
        ),
    )


def _next_steps(verdict: Verdict, facts: Mapping[str, Fact], offer: Offer | None, intake: Intake) -> tuple[str, ...]:
    bar, metric = _percent(intake.quality.bar), intake.quality.metric.replace("_", " ")
    steps: dict[Verdict, tuple[str, ...]] = {
        "do_nothing": ("Keep the measurement as a regression gate and repeat it when prompt, data or prices change.",),
        "better_prompt": (
            "Write the better prompt, measure it as one more arm on the same rows, and put it into use when it wins.",
            "Keep logging answers that miss: they are the training rows of a later attempt.",
        ),
        "retrieval": ("Build a retrieval prototype and measure it as one more arm (a column with the context) on the same rows.",),
        "measure": ("Run `tuneport baseline` on held-out rows, with today's model among the arms, then `tuneport advise` again.",),
        "pilot": (
            f"Tune once at {offer.id}." if offer else "Find one open offer with a known price.",
            f"Measure the tuned model on the sealed test rows: it must reach {bar} {metric}, and the interval of its gain must lie above zero.",
            "Stop if it does not; decide again if it does.",
        ),
        "find_offer": ("Add the missing prices to the price book (TUNEPORT_PRICES), or plan the same base model at another provider.",),
        "fine_tune": (
            f"Train at {offer.id} with the price limit in the spec (budget.max_usd)." if offer else "Choose an offer.",
            "Run it in the shadow of today's model for two weeks and compare on live requests (S0, S4).",
            "Switch over behind a gate: `tuneport evaluate --gate` must pass on every new version.",
        ),
    }
    more = []
    if facts["incumbent_ends_inside"]:
        more.append(f"Plan the move away from {facts['incumbent']} before {facts['incumbent_ends']}, whatever is decided here.")
    detectable = facts["detectable"]
    if isinstance(detectable, float) and detectable > 0.1:
        more.append(f"Add test rows: the suite detects only about {_points(detectable)} points.")
    return (*steps[verdict], *more)


def _kill_criteria(verdict: Verdict, facts: Mapping[str, Fact], offer: Offer | None, intake: Intake) -> tuple[str, ...]:
    bar, metric = _percent(intake.quality.bar), intake.quality.metric.replace("_", " ")
    if verdict == "pilot":
        return (
            f"Stop when the pilot's {metric} is below {bar}, or the interval of its gain over {facts['baseline_arm']} includes zero.",
            f"Stop after {intake.runs.planned} runs, whatever the last one promises.",
        )
    if verdict == "fine_tune":
        criteria = [
            f"Back to the prompt when {metric} on 200 fresh, labelled rows falls below {bar}.",
            "Back to the prompt when the base suite loses more than 5 % (S4).",
        ]
        money = offer.economics if offer else None
        if money and money.break_even_volume.p50:
            criteria.append(f"Review when volume stays under {money.break_even_volume.p50:,.0f} requests a month for two months.")
        if offer and offer.inference_ends:
            criteria.append(f"Move before {offer.inference_ends}, when the base model ends; review at once when the date moves forward.")
        else:
            criteria.append("Review at once when the provider announces an end of the base model.")
        return tuple(criteria)
    return (f"Reopen the question when {metric} in use falls below {bar} on 200 fresh, labelled rows.",)


def _would_change(verdict: Verdict, facts: Mapping[str, Fact]) -> tuple[str, ...]:
    found: list[str] = []
    high, gain_high = facts["baseline_high"], facts["gain_high"]
    if facts["baseline_value"] is not None and verdict in ("do_nothing", "better_prompt"):
        found.append(f"A bar above {_percent(facts['baseline_value'])} (beyond doubt above {_percent(high)}).")
    if verdict == "better_prompt" and isinstance(gain_high, float) and gain_high > 0:
        found.append(f"More test rows: a gain of up to {_points(gain_high)} points is not excluded.")
    if verdict == "fine_tune":
        found.append(f"A prompt that reaches {_percent(facts['bar'])} on the same rows.")
        found.append("A repeat on fresh rows in which the interval of the gain includes zero.")
    if verdict in ("pilot", "measure", "find_offer"):
        found.append("The result of the next step above.")
    if facts["data_may_leave"] is False:
        found.append("Permission for the data to leave: the managed vendors would then be open.")
    if facts["training_rows"] is not None and verdict == "better_prompt":
        found.append("More curated training rows: 500 or better 1,000 (S0, S1, S4).")
    return tuple(found)
