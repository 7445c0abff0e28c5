"""The decision: do nothing, a better prompt, retrieval, routing, measure or pilot first, migrate, or fine-tune at a named offer.

Facts are gathered here, from the measurement, the decision file and the offers; the rules are data (``rules.yaml``).
Fine-tuning is only ever decided on a measured tuned model: when a paired interval of the gain lies above zero and the best prompt misses
the bar; or when the prompt meets it, the tuned model too and no worse, and it saves money with a probability of nine in ten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.advice import Option, changes_of, kill_criteria_of, next_steps_of, options_of, sentence_of
from tuneport.advisor.facts import Situation, gather_facts
from tuneport.advisor.methods import MethodAdvice, method_for
from tuneport.advisor.offers import Offer, choose_offer
from tuneport.advisor.rules import Fact, TraceLine, Verdict, apply, fires, load_rules, verdict_of

Confidence = Literal["high", "medium", "low"]

VERDICT_WORDS: Mapping[Verdict, str] = {
    "do_nothing": "do not fine-tune",
    "better_prompt": "better prompt",
    "retrieval": "build retrieval",
    "measure": "measure first",
    "pilot": "run a pilot",
    "find_offer": "find an offer",
    "route": "route to another model",
    "migrate": "migrate",
    "fine_tune": "fine-tune",
}
"""The verdicts in the reader's words."""


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
    method: MethodAdvice


def decide(situation: Situation) -> Decision:
    """The decision with its trace."""
    intake, offers = situation.intake, situation.offers
    facts = gather_facts(situation)
    book = load_rules()
    trace = tuple(apply(rule, facts) for rule in book.rules)
    row = verdict_of(book, frozenset(line.rule for line in trace if line.fired))
    doubts = tuple(apply(rule, facts) for rule in book.doubts if not rule.applies or row.verdict in rule.applies)
    cause = row.all[0] if row.all else ""
    if row.verdict == "migrate" and "gain-shown" in row.all:
        cause = "gain-shown"
    offer = _offer_for(row.verdict, cause, situation)
    lines = {line.rule: line for line in trace}
    weight = sum(1.0 if d.fired else 0.5 if d.fired is None else 0.0 for d in doubts)
    confidence: Confidence = "high" if weight < 1 else "medium" if weight < 3 else "low"
    changes = (*changes_of(row.verdict, facts), *turning_points(facts, row.verdict, situation.money_at), *situation.switching)
    return Decision(
        verdict=row.verdict,
        offer=offer.id if offer else None,
        sentence=sentence_of(row.verdict, cause, facts, offer),
        because=" ".join(lines[rule].says for rule in row.all) or "The measurement does not settle the question.",
        confidence=confidence,
        trace=trace,
        doubts=doubts,
        options=options_of(row.verdict, lines, facts, choose_offer(offers, situation.leaving)),
        next_steps=next_steps_of(row.verdict, facts, offer, intake, situation.pilot),
        kill_criteria=kill_criteria_of(row.verdict, facts, offer, intake),
        would_change=changes,
        method=method_for(facts),
    )


def verdict_if(facts: Mapping[str, Fact], changed: Mapping[str, Fact]) -> Verdict:
    """The verdict if these facts were otherwise."""
    book, altered = load_rules(), {**facts, **changed}
    return verdict_of(book, frozenset(rule.id for rule in book.rules if fires(rule, altered))).verdict


GRID, STRIDE = 200, 8
"""Steps in which a quality is varied to find where the verdict turns: half points, of which every eighth is tried first."""


def at_quality(facts: Mapping[str, Fact], subject: str, value: float) -> dict[str, Fact]:
    """What would be otherwise, were the best prompt ("baseline") or the tuned model ("tuned") of this quality: intervals move along."""
    now, sign = facts[f"{subject}_value"], -1 if subject == "baseline" else 1
    moved: dict[str, Fact] = {f"{subject}_value": value}
    if isinstance(now, float):
        moved |= {key: g + sign * (value - now) for key in ("gain_value", "gain_low", "gain_high") if isinstance(g := facts[key], float)}
    if subject == "baseline":
        moved |= {f"{arm}_value": value for arm in ("lasting", "current") if facts[f"{arm}_arm"] == facts["baseline_arm"]}
    return moved


def turning_points(
    facts: Mapping[str, Fact], verdict: Verdict, money_at: Callable[[str, float], Mapping[str, Fact]] | None = None
) -> list[str]:
    """At which quality of the best prompt, and of the tuned model, another verdict would stand; the nearest value on either side."""
    found: list[str] = []
    metric = str(facts["metric"]).replace("_", " ")
    for name, subject in (("baseline", "best prompt"), ("tuned", "tuned model")):
        now = facts[f"{name}_value"]
        if not isinstance(now, float):
            continue

        def verdict_at(value: float, name: str = name) -> Verdict:
            return verdict_if(facts, {**(money_at(name, value) if money_at else {}), **at_quality(facts, name, value)})

        for side, word in ((1, "or more"), (-1, "or less")):
            steps = [k / GRID for k in range(GRID + 1) if (k / GRID - now) * side > 1e-9][::side]
            turn = _first_turn(steps, verdict_at, verdict)
            if turn:
                found.append(f"The {subject} at {100 * turn[0]:.1f} % {metric} {word} (now {100 * now:.1f} %): {VERDICT_WORDS[turn[1]]}.")
    return found


def _first_turn(steps: Sequence[float], verdict_at: Callable[[float], Verdict], now: Verdict) -> tuple[float, Verdict] | None:
    """The first step with another verdict, and that verdict; one that holds for less than the stride may be passed over."""
    far = next((k for k in (*range(STRIDE - 1, len(steps), STRIDE), len(steps) - 1) if k >= 0 and verdict_at(steps[k]) != now), None)
    if far is None:
        return None
    return next((v, other) for v in steps[max(0, far - STRIDE + 1) : far + 1] if (other := verdict_at(v)) != now)


def _offer_for(verdict: Verdict, cause: str, situation: Situation) -> Offer | None:
    if verdict == "fine_tune" or (verdict == "migrate" and cause == "gain-shown"):
        return choose_offer(situation.offers, situation.leaving)
    if verdict == "pilot" and situation.pilot is not None:
        return next(o for o in situation.offers if situation.pilot and o.id == situation.pilot.offer)
    return None
