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


def asked_labels(suite: EvalSuite, answers: Sequence[Answer], times: int = 0) -> tuple[list[str], list[str | None], tuple[int, ...]]:
    """(expected, answered, cluster) of every asking: repeats of a row hang together, so that they add no rows.

    ``times`` askings of each row, a multiple of the arm's repeats, make arms with other repeats comparable; 0: as many as there are.
    """
    expected = expected_labels(suite)
    wanted: list[str] = []
    given: list[str | None] = []
    clusters: list[int] = []
    for answer in answers:
        texts = [answer.text, *answer.others]
        labels = [None if answer.error or k in answer.unanswered else _label(suite.scorer, text) for k, text in enumerate(texts)]
        told = labels * ((times or len(texts)) // len(texts))
        given += told
        wanted += [expected[answer.row]] * len(told)
        clusters += [suite.clusters[answer.row] if suite.clusters else answer.row] * len(told)
    return wanted, given, tuple(clusters) if suite.clusters or len(given) > len(answers) else ()


def _label(scorer: Scorer, text: str) -> str | None:
    """A readable JSON answer that lacks the field says "(none)"; one that cannot be read says nothing."""
    label = scorer.label(text)
    return NONE if label is None and scorer.task == "json" and isinstance(scorer.read(text), dict) else label


def confusion(suite: EvalSuite, answers: Sequence[Answer]) -> Confusion | None:
    """Expected against answered labels, of each row's first answer; None for a suite without labels, or with more than 60."""
    if not suite.scorer.has_labels:
        return None
    expected = expected_labels(suite)
    labels = sorted(set(expected))
    if len(labels) > MOST_LABELS:
        return None
    place = {label: index for index, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for answer in answers:
        got = None if answer.error or 0 in answer.unanswered else _label(suite.scorer, answer.text)
        counts[place[expected[answer.row]]][place.get(got or "", len(labels))] += 1
    return Confusion(labels=tuple(labels), counts=tuple(map(tuple, counts)))
