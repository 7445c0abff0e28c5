"""Two arms' answers beside each other, as one HTML page without script: everything in it that comes from data is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tuneport.advisor.failures import failure_kind
from tuneport.advisor.measurement import Answer, Arm
from tuneport.advisor.suite import EvalSuite, Item
from tuneport.core.errors import UsageError

MAX_CHARS = 4_000  # of each text
MAX_ROWS = 2_000


def side_by_side(suite: EvalSuite, baseline: Arm, challenger: Arm) -> str:
    """The page: rows that got worse first, then those that got better, both wrong, both right; failures by kind above.

    Raises UsageError when an arm has not answered this suite.
    """
    for arm in (baseline, challenger):
        if len(arm.answers) != len(suite):
            raise UsageError(f"arm {arm.name!r} has {len(arm.answers)} answers for {len(suite)} rows", fix="run it on this suite")
    order = ((True, False), (False, True), (False, False), (True, True))
    groups: dict[tuple[bool, bool], list[dict[str, Any]]] = {pair: [] for pair in order}
    for item, one, other in list(zip(suite.items, baseline.answers, challenger.answers, strict=True))[:MAX_ROWS]:
        sides = [_side(suite, item, arm.name, answer) for arm, answer in ((baseline, one), (challenger, other))]
        groups[sides[0]["right"], sides[1]["right"]].append(
            {
                "number": one.row + 1,
                "place": f"{item.file}:{item.line}",
                "turns": [(str(m.get("role")), _cut(str(m.get("content")))) for m in item.messages],
                "expected": _cut(item.expected),
                "sides": sides,
            }
        )
    titles = (f"Only {baseline.name} right", f"Only {challenger.name} right", "Both wrong", "Both right")
    environment = Environment(
        loader=PackageLoader("tuneport.advisor"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("answers.html.j2").render(
        suite=suite,
        one=baseline,
        other=challenger,
        metric=suite.scorer.primary,
        rows=suite.items,
        groups=list(zip(titles, groups.values(), strict=True)),
    )


def _side(suite: EvalSuite, item: Item, name: str, answer: Answer) -> dict[str, Any]:
    score = answer.scores.get(suite.scorer.primary)
    right = score is None or score >= 1
    return {
        "name": name,
        "right": right,
        "kind": "" if right else failure_kind(suite, item, answer),
        "scores": "" if score in (None, 0, 1) else f"{score:.2f}",
        "text": _cut(f"(no answer: {answer.error})" if answer.error else answer.text),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text) - MAX_CHARS:,} more characters)"
