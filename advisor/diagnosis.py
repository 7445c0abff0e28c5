"""Knowledge or behaviour: what the answers point to, what they contradict, and how a contradiction is read.

The first question of every fine-tuning decision (S2): what lacks facts wants retrieval, what answers in the wrong way wants
tuning, what does both wants both. A contradiction is never an error: it is said, read with care, and lowers the confidence.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.intake import CHANGE_MONTHS, Intake
from tuneport.advisor.rules import load_rules
from tuneport.core.plan import Plan

Gap = Literal["knowledge", "behaviour", "both", "unknown"]
LATE_BATCH_HOURS = 24
"""What a batch tier may take (OpenAI's completion window)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Sign(_Frozen):
    """One answer that points somewhere, with the sources of the rule behind it."""

    says: str
    points_to: Literal["knowledge", "behaviour", "prompt", "cost"]
    sources: tuple[str, ...]


class Contradiction(_Frozen):
    """Answers that cannot all be true, and how they are read here."""

    statement: str
    read_as: str


class Diagnosis(_Frozen):
    """What is missing. ``stated`` is the decision file's own word, ``gap`` the one that the rules work with."""

    gap: Gap
    stated: Gap
    signs: tuple[Sign, ...]
    contradictions: tuple[Contradiction, ...]


def diagnose(intake: Intake, plans: tuple[Plan, ...] = ()) -> Diagnosis:
    """The diagnosis from the decision file and the spec's plans. Raises nothing: contradictions are part of the answer."""
    table = load_rules().symptoms
    signs = [Sign(says=table[s].says, points_to=table[s].points_to, sources=table[s].sources) for s in dict.fromkeys(intake.symptoms)]
    if intake.facts.fresh_or_private:
        signs.append(Sign(says="Answers need fresh or private facts", points_to="knowledge", sources=("S0", "S1", "S2", "S3", "S4")))
    if intake.needs.format == "strict":
        signs.append(
            Sign(says="A program reads the answers: the format must be exact", points_to="behaviour", sources=("S0", "S1", "S2", "S4"))
        )
    pointed = {sign.points_to for sign in signs}
    found: Gap = "unknown"
    if {"knowledge", "behaviour"} <= pointed:
        found = "both"
    elif "knowledge" in pointed:
        found = "knowledge"
    elif pointed & {"behaviour", "prompt"}:
        found = "behaviour"
    gap = found if intake.gap == "unknown" else intake.gap
    clashes: list[Contradiction] = []
    if intake.gap == "behaviour" and "knowledge" in pointed:
        gap = "both"
        clashes.append(_clash(f"The gap is stated as behaviour, yet: {_told(signs, 'knowledge')}.", "both are missing"))
    if intake.gap == "knowledge" and not intake.facts.fresh_or_private and "knowledge" not in pointed:
        gap = "both" if "behaviour" in pointed else "knowledge"
        clashes.append(_clash("The gap is stated as knowledge, yet no answer needs fresh or private facts.", f"the gap is {_words(gap)}"))
    elif intake.gap == "knowledge" and "behaviour" in pointed:
        gap = "both"
        clashes.append(_clash(f"The gap is stated as knowledge, yet: {_told(signs, 'behaviour')}.", "both are missing"))
    return Diagnosis(gap=gap, stated=intake.gap, signs=tuple(signs), contradictions=(*clashes, *_other_clashes(intake, plans)))


def _other_clashes(intake: Intake, plans: tuple[Plan, ...]) -> list[Contradiction]:
    found: list[Contradiction] = []
    if intake.tokens.static_tuned.low > intake.tokens.static.high:
        found.append(_clash("The static prompt is said to grow when a model is tuned.", "it stays as long as it is"))
    if not intake.privacy.data_may_leave and intake.incumbent.provider != "local":
        found.append(
            _clash(
                f"Data may not leave, yet today's model runs at {intake.incumbent.provider}.", "no vendor is open to training or serving"
            )
        )
    if intake.incumbent.provider == "local" and intake.cache_hit_share.high > 0:
        found.append(_clash("A cache-hit share is stated for one's own machine, which bills no tokens.", "it saves nothing there"))
    if "stale_facts" in intake.symptoms and intake.facts.change == "never":
        found.append(_clash("Facts go stale, yet they are said never to change.", "facts do change; ask how often"))
    every, change = intake.retraining.every_months, CHANGE_MONTHS[intake.facts.change]
    if intake.facts.fresh_or_private and every is not None and change < every:
        found.append(
            _clash(
                f"Facts change {intake.facts.change}, yet retraining is planned every {every:g} months.",
                "a tuned model is out of date between",
            )
        )
    latency = intake.needs.latency_p95_seconds
    if latency is not None and intake.batch_share.low >= 1 and latency < LATE_BATCH_HOURS * 3600:
        found.append(_clash("Every request can wait for a batch tier, yet answers are due within seconds.", "the batch price is counted"))
    if intake.skills in ("prompting", "api") and intake.self_hosting.usd_per_hour is not None and intake.incumbent.provider != "local":
        found.append(_clash("A machine of one's own is priced, yet nobody is there to run it.", "the offer stands, with that against it"))
    rows = next((u.rows for p in plans for u in p.uploads if u.role == "train"), None)
    stated = intake.data.labelled_rows
    if rows is not None and stated is not None and stated < rows * 0.8:
        found.append(_clash(f"{stated:,} labelled rows are stated, yet the spec trains on {rows:,}.", f"there are {rows:,}"))
    return found


def _clash(statement: str, read_as: str) -> Contradiction:
    return Contradiction(statement=statement, read_as=read_as)


def _told(signs: list[Sign], points_to: str) -> str:
    told = [sign.says for sign in signs if sign.points_to == points_to]
    return "; ".join(f"{t[:1].lower()}{t[1:]}" for t in told)


def _words(gap: Gap) -> str:
    return "knowledge and behaviour" if gap == "both" else gap
