"""Compares rows by their hashes: duplicates in one file, and rows of one part that stand in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneport.core.data.gather import Gathered
from tuneport.core.data.judge import Findings
from tuneport.core.data.near import NearPair, candidate_pairs, pairs_across, verified_pairs
from tuneport.core.data.split import Part
from tuneport.core.data.tally import KEPT

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMMON_GRAM_ROWS = 10
"""A 13-gram in more training rows than this is a phrase, not a copy (GPT-3, appendix C, leaves such out)."""


def repeats(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows repeat an earlier one."""
    marks = np.ones(hashes.size, np.bool_)
    marks[np.unique(hashes, return_index=True)[1]] = False
    return marks


def judge_duplicates(findings: Findings, found: Gathered, *, near: float | None, answered: bool) -> list[NearPair]:
    """Duplicates within a file, exact and (from Jaccard similarity ``near``) near ones, which are returned."""
    lines = found.array("lines")
    again = repeats(found.array("whole"))
    message = "{n} row{|s} {repeats|repeat} an earlier row exactly; remove {it|them} (S2): tuneport prepare --dedupe exact"
    findings.rows("duplicate_rows", int(again.sum()), lines[again][:KEPT].tolist(), "warning", message)
    if answered:
        _conflicts(findings, found, again)
    if near is None:
        return []
    pairs = list(verified_pairs(candidate_pairs(found.bands, again), found.store, near))
    later = sorted({pair.later for pair in pairs})
    shown = [f"{lines[pair.earlier]} ~ {lines[pair.later]} ({pair.similarity:.2f})" for pair in pairs[:KEPT]]
    how = f"(Jaccard similarity of word triples at least {near:g})"
    message = f"{{n}} row{{|s}} nearly {{repeats|repeat}} another {how}; remove {{it|them}} (S2)"
    findings.rows("near_duplicates", len(later), lines[later[:KEPT]].tolist(), "warning", message, shown)
    return pairs


def _conflicts(findings: Findings, found: Gathered, again: NDArray[np.bool_]) -> None:
    """Rows that answer a question in another way than an earlier row does."""
    asked = found.array("asked")[~again]
    more = repeats(asked)
    answers = found.array("answered")[~again]
    order = np.argsort(asked, kind="stable")
    first_of = order[np.searchsorted(asked[order], asked)]
    differs = more & (answers != answers[first_of])
    lines = found.array("lines")[~again][differs]
    message = "{n} row{|s} {answers|answer} the input of an earlier row differently; keep one answer, unless several are right"
    findings.rows("conflicting_answers", int(differs.sum()), lines[:KEPT].tolist(), "info", message)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Rows of a part that another part has too, by index."""

    exact: NDArray[np.int64]
    normalised: NDArray[np.int64]
    near: NDArray[np.int64]
    grams: NDArray[np.int64]


def find_overlap(part: Gathered, other: Gathered, near: float | None) -> Overlap:
    """Rows of ``part`` whose input ``other`` has: exactly, in the same words, nearly, or with a passage of 13 words.

    Each row counts once, under the first that holds. The passages are those that ``other`` was watched for.
    """
    taken = np.zeros(len(part), np.bool_)

    def fresh(marks: Any) -> NDArray[np.int64]:
        rows = np.flatnonzero(marks & ~taken)
        taken[rows] = True
        return rows

    exact = fresh(np.isin(part.array("asked"), other.array("asked")))
    likeness = part.array("likeness")
    normalised = fresh((likeness != 0) & np.isin(likeness, other.array("likeness")))
    nearly = np.zeros(len(part), np.bool_)
    if near is not None:
        nearly[[pair.later - len(other) for pair in _cross_pairs(other, part, near)]] = True
    copied = np.zeros(len(part), np.bool_)
    rare = np.array([gram for gram, rows in other.watched.items() if rows <= COMMON_GRAM_ROWS], np.uint64)
    copied[part.array("gram_rows")[np.isin(part.array("grams"), rare)].astype(np.int64)] = True
    return Overlap(exact, normalised, fresh(nearly), fresh(copied))


def _cross_pairs(first: Gathered, second: Gathered, threshold: float) -> list[NearPair]:
    """Near pairs with one row on each side; rows of the second are numbered after those of the first."""
    border = len(first)
    pairs = pairs_across(first.all_bands(), second.all_bands())

    class Both:
        def row(self, row: int) -> NDArray[np.uint32]:
            return first.store.row(row) if row < border else second.store.row(row - border)

        def close(self) -> None:
            first.store.close()
            second.store.close()

    return list(verified_pairs(pairs, Both(), threshold))


def judge_overlap(findings: Findings, part: Part, other: Part, found: Gathered, overlap: Overlap) -> None:
    """Rows of one part that another has: an error in the test rows, which they make worthless."""
    lines = found.array("lines")
    for code, rows, what in (
        (f"overlap_{other}", overlap.exact, f"{{has|have}} an input that the {other} rows have too"),
        (f"normalised_overlap_{other}", overlap.normalised, f"{{has|have}} an input that stands in the {other} rows in the same words"),
        (f"near_overlap_{other}", overlap.near, f"nearly {{repeats|repeat}} one of the {other} rows"),
        (f"passage_overlap_{other}", overlap.grams, f"{{shares|share}} a passage of 13 words with the {other} rows"),
    ):
        severe = part == "test" and "passage" not in code
        message = f"{{n}} row{{|s}} {what}: no overlap between splits (S2); remove {{it|them}} from one side"
        findings.rows(code, rows.size, lines[rows[:KEPT]].tolist(), "error" if severe else "warning", message)
