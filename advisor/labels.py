"""Labels of a suite's rows and of an arm's answers, for F1 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

from tuneport.advisor.measurement import Answer, Confusion
from tuneport.advisor.metrics import Scorer
from tuneport.advisor.suite import EvalSuite

NONE = "(none)"
MOST_LABELS = 60
"""A larger confusion matrix is no help to anybody."""


def expected_labels(suite: EvalSuite) -> list[str]:
    """Each item's label; rows that lack the label field form a class of their own."""
    return [suite.scorer.label(item.expected) or NONE for item in suite.items]


def answered_labels(scorer: Scorer, answers: Sequence[Answer]) -> list[str | None]:
    """Each answer's label. A readable JSON answer that lacks the field says "(none)"; one that cannot be read says nothing."""
    found = []
    for answer in answers:
        label = None if answer.error else scorer.label(answer.text)
        lacking = label is None and not answer.error and isinstance(scorer.read(answer.text), dict)
        found.append(NONE if lacking and scorer.task == "json" else label)
    return found


def confusion(suite: EvalSuite, answers: Sequence[Answer]) -> Confusion | None:
    """Expected against answered labels; None for a suite without labels, or with more than 60."""
    if not suite.scorer.has_labels:
        return None
    expected = expected_labels(suite)
    labels = sorted(set(expected))
    if len(labels) > MOST_LABELS:
        return None
    place = {label: index for index, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for want, got in zip(expected, answered_labels(suite.scorer, answers), strict=True):
        counts[place[want]][place.get(got or "", len(labels))] += 1
    return Confusion(labels=tuple(labels), counts=tuple(map(tuple, counts)))
