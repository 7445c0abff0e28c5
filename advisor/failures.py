"""Why answers failed: groups by kind with examples, rather than one count (field-guide section 7, S1)."""

from __future__ import annotations

from collections.abc import Sequence

from tuneport.advisor.measurement import Answer, FailureGroup
from tuneport.advisor.metrics import MISSING, Scorer, normalise, parse_json, unfence
from tuneport.advisor.refusals import declines
from tuneport.advisor.suite import EvalSuite, Item
from tuneport.advisor.text_metrics import MAX_CHARS, contains

EXAMPLES = 5
KINDS = 40
"""Groups that are kept; with more, the rarest become one group."""


def failure_groups(suite: EvalSuite, answers: Sequence[Answer]) -> tuple[FailureGroup, ...]:
    """Answers whose primary score is not full marks, by kind, the most frequent first. Rows that the metric has no use for do not count."""
    rows: dict[str, list[int]] = {}
    primary = suite.scorer.primary
    for answer in answers:
        if answer.scores.get(primary, 1.0) < 1.0:
            rows.setdefault(failure_kind(suite, suite.items[answer.row], answer), []).append(answer.row)
    ordered = sorted(rows.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    if len(ordered) > KINDS:
        rest = sorted(row for _, found in ordered[KINDS - 1 :] for row in found)
        ordered = [*ordered[: KINDS - 1], ("other", rest)]
    return tuple(FailureGroup(kind=kind, count=len(found), rows=tuple(found[:EXAMPLES])) for kind, found in ordered)


def failure_kind(suite: EvalSuite, item: Item, answer: Answer) -> str:
    """One reason in words, the first that holds."""
    text, scorer = answer.text, suite.scorer
    if answer.error:
        return "no answer"
    if not text.strip():
        return "empty answer"
    if (answer.declined or declines(text)) and not item.should_decline:
        return "declined"
    if item.should_decline and scorer.primary.startswith(("refusal", "declines")):
        return "answered what it should decline"
    if (answer.completion_tokens or 0) >= suite.max_tokens:
        return "cut at the token limit"
    match scorer.task:
        case "json":
            return _json_kind(scorer, item, text)
        case "label":
            return _label_kind(scorer, item, text)
        case _:
            return "right answer within more text" if contains(item.expected, text[:MAX_CHARS]) else "another answer"


def _json_kind(scorer: Scorer, item: Item, text: str) -> str:
    got = scorer.read(text)
    if got is MISSING:
        inner = unfence(text)
        if inner is not None and parse_json(inner) is not MISSING:
            return "JSON inside a code fence"
        return "text around the JSON" if _has_object(text) else "no JSON"
    if not scorer.schema_valid(got):
        return "breaks the schema"
    want = parse_json(item.expected)
    if not isinstance(want, dict) or not isinstance(got, dict):
        return "another JSON value"
    missing, added = sorted(want.keys() - got.keys()), sorted(got.keys() - want.keys())
    if missing or added:
        said = [f"lacks {', '.join(missing[:3])}"] * bool(missing) + [f"adds {', '.join(added[:3])}"] * bool(added)
        return f"fields: {'; '.join(said)}"
    wrong = sorted(name for name, score in scorer.score(item.expected, text).items() if name.startswith("field.") and not score)
    return f"wrong {', '.join(name.removeprefix('field.') for name in wrong[:3])}" if wrong else "another JSON value"


def _label_kind(scorer: Scorer, item: Item, text: str) -> str:
    want = scorer.label(item.expected)
    text = text[:MAX_CHARS]
    if contains(item.expected, text):
        return "right label within more text"
    short = normalise(text)
    return f"{_cut(want or '')} taken for {_cut(short)}" if len(short) <= 60 and "\n" not in text.strip() else "no label"


def _has_object(text: str) -> bool:
    start, end = text.find("{"), text.rfind("}")
    return 0 <= start < end and parse_json(text[start : end + 1]) is not MISSING


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
