"""The rule engine: rules are data (``rules.yaml``), facts are named values, and every rule leaves a line in the trace."""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

Fact = float | int | str | bool | None
"""None: not known."""
Verdict = Literal["do_nothing", "better_prompt", "retrieval", "measure", "pilot", "find_offer", "route", "migrate", "fine_tune"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Condition(_Frozen):
    """A fact compared with a number, a word, or another fact (when the word is a fact's name)."""

    fact: str
    is_: Literal["<", "<=", ">", ">=", "==", "!="] = Field(alias="is")
    than: bool | float | str


class Rule(_Frozen):
    """One rule. ``sources`` are tags: S0-S4 practitioners' documents, E economics notes, T tuneport's own."""

    id: str
    says: str
    kind: Literal["for", "against", "constraint", "doubt"] = "doubt"
    when: tuple[Condition, ...]
    evidence: str
    sources: tuple[str, ...]
    applies: tuple[Verdict, ...] = ()  # doubts: the verdicts that they bear on; all when empty


class VerdictRow(_Frozen):
    """One row of the decision table."""

    verdict: Verdict
    all: tuple[str, ...]
    none: tuple[str, ...] = ()


class SymptomRow(_Frozen):
    """What a symptom of the questionnaire points to."""

    says: str
    points_to: Literal["knowledge", "behaviour", "prompt", "cost"]
    sources: tuple[str, ...]


class MethodRow(_Frozen):
    """One way to tune, and when it is the right one. The first row that holds counts."""

    id: str
    name: str
    method: str | None  # as in a spec; None: do not tune
    tuning: str | None
    says: str
    when: tuple[Condition, ...]
    data: str
    ceiling: str
    cost: str
    sources: tuple[str, ...]


class RuleBook(_Frozen):
    """rules.yaml."""

    version: Literal[1]
    symptoms: dict[str, SymptomRow]
    methods: tuple[MethodRow, ...]
    rules: tuple[Rule, ...]
    verdicts: tuple[VerdictRow, ...]
    doubts: tuple[Rule, ...]


class TraceLine(_Frozen):
    """What became of one rule. ``fired`` None: undecided, because a fact is not known."""

    rule: str
    says: str
    kind: Literal["for", "against", "constraint", "doubt"]
    fired: bool | None
    evidence: str
    sources: tuple[str, ...]


@lru_cache(maxsize=1)
def load_rules() -> RuleBook:
    """The rules that ship with the package."""
    text = files("tuneport.advisor").joinpath("rules.yaml").read_text(encoding="utf-8")
    return RuleBook.model_validate(yaml.safe_load(text))


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def holds(condition: Condition, facts: Mapping[str, Fact]) -> bool | None:
    """Does the condition hold? None when a fact in it is not known."""
    left = facts[condition.fact]
    right: Fact = facts[condition.than] if isinstance(condition.than, str) and condition.than in facts else condition.than
    return None if left is None or right is None else _COMPARE[condition.is_](left, right)


def fires(rule: Rule, facts: Mapping[str, Fact]) -> bool | None:
    """Do all conditions of the rule hold? None when that is undecided."""
    found = [holds(condition, facts) for condition in rule.when]
    return False if False in found else None if None in found else True


def apply(rule: Rule, facts: Mapping[str, Fact]) -> TraceLine:
    """The rule's line in the trace."""
    fired = fires(rule, facts)
    return TraceLine(
        rule=rule.id, says=rule.says, kind=rule.kind, fired=fired, evidence=_WORDS.vformat(rule.evidence, (), facts), sources=rule.sources
    )


def verdict_of(book: RuleBook, fired: frozenset[str]) -> VerdictRow:
    """The first row of the decision table that agrees with the ids of the rules that fired."""
    return next(row for row in book.verdicts if fired.issuperset(row.all) and fired.isdisjoint(row.none))


class _Words(string.Formatter):
    """Format specs of the rules.

    ``%`` percent, ``prob`` a simulated probability, ``pts`` and ``+pts`` percentage points, ``$`` US dollars, ``s`` seconds, ``p`` a
    p-value, ``n`` a count.
    """

    def get_value(self, key: int | str, args: Any, kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG002 - the base class sets the arguments
        return kwargs[str(key)]

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return "unknown"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if format_spec == "%":
            return f"{100 * value:.1f} %"
        if format_spec in ("pts", "+pts"):
            return f"{100 * value:{'+' if format_spec[0] == '+' else ''}.1f}"
        if format_spec == "$":
            return f"{'-' if value < 0 else ''}${abs(value):,.0f}"
        if format_spec == "prob":
            return "over 99 %" if value > 0.99 else "under 1 %" if value < 0.01 else f"{100 * value:.0f} %"
        if format_spec == "p":
            return "< 0.001" if value < 0.001 else f"= {value:.3f}"
        if format_spec == "s":
            return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
        if format_spec == "n":
            return f"{value:,.0f}"
        return str(value)


_WORDS = _Words()
