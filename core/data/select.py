"""Decides which rows stay, how often, and in which part: by numpy arrays of a few bytes a row, never by the rows.

Every choice among equals goes by a hash of the seed and the row's number, so it is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneport.core.data.shingles import Words
from tuneport.core.data.split import TEST, TRAIN, VALIDATION, Key, assign, deal, refuse_empty, rows_wanted
from tuneport.core.spec import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

HARD_SHARE = 0.3
"""The hard test set is drawn from this share of rows, the most difficult ones: harder than average (S2), but not only outliers."""

_WORD_TABLE = 1 << 20
_RANKED_ALONE = 10  # rows of a class from which it has hard rows of its own


def ranks(count: int, seed: int, what: str) -> NDArray[np.uint64]:
    """A pseudo-random number for each row, by seed and purpose (SplitMix64, Steele et al. 2014)."""
    start = int.from_bytes(hashlib.blake2b(f"{seed}:{what}".encode(), digest_size=8).digest(), "little")
    x = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def first_of(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For every row the first row with the same hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])


def cap_classes(classes: Sequence[str | None], keep: NDArray[np.bool_], most: int, seed: int) -> int:
    """Leave at most ``most`` rows of each class in ``keep``; returns how many were taken out. Rows without a class stay."""
    members = _members(classes, keep)
    order = ranks(len(classes), seed, "cap")
    removed = 0
    for rows in members.values():
        extra = sorted(rows, key=lambda row: (order[row], row))[most:]
        keep[extra] = False
        removed += len(extra)
    return removed


def copies_to_balance(classes: Sequence[str | None], keep: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """How often to write each kept row so that every class has as many rows as the largest."""
    copies = keep.astype(np.int64)
    members = _members(classes, keep)
    most = max(map(len, members.values()), default=0)
    order = ranks(len(classes), seed, "balance")
    for rows in members.values():
        whole, rest = divmod(most, len(rows))
        copies[rows] = whole
        copies[sorted(rows, key=lambda row: (order[row], row))[:rest]] += 1
    return copies


def _members(classes: Sequence[str | None], keep: NDArray[np.bool_]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for row in np.flatnonzero(keep).tolist():
        name = classes[row]
        if name is not None:
            members.setdefault(name, []).append(row)
    return members


def sample(classes: Sequence[str | None], keep: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.int64]:
    """Up to ``count`` kept rows, as evenly over the classes as there are rows; rows without a class are a class."""
    order = ranks(len(classes), seed, "review")
    groups: dict[str, list[int]] = {}
    for row in sorted(np.flatnonzero(keep).tolist(), key=lambda row: (order[row], row)):
        groups.setdefault(classes[row] or "", []).append(row)
    chosen: list[int] = []
    depth = 0
    while len(chosen) < count and any(len(rows) > depth for rows in groups.values()):
        chosen += [rows[depth] for _, rows in sorted(groups.items()) if len(rows) > depth]
        depth += 1
    return np.array(sorted(chosen[:count]), np.int64)


class WordRarity:
    """How rare the words of texts are: counted in a first pass, scored in a second."""

    def __init__(self) -> None:
        self._rows_with = np.zeros(_WORD_TABLE, np.int64)
        self._texts = 0

    def count(self, words: Words) -> None:
        """Count the words of some texts."""
        at = (words.hashes % np.uint64(_WORD_TABLE)).astype(np.int64)
        self._rows_with += np.bincount(at, minlength=_WORD_TABLE)
        self._texts += len(words.offsets) - 1

    def score(self, words: Words) -> NDArray[np.float64]:
        """Mean rarity of each text's words: the negative logarithm of a word's share of all words."""
        total = max(int(self._rows_with.sum()), 1)
        at = (words.hashes % np.uint64(_WORD_TABLE)).astype(np.int64)
        rarity = np.log(total) - np.log(np.maximum(self._rows_with[at], 1))
        sums = np.concatenate(([0.0], np.cumsum(rarity)))
        sizes = np.diff(words.offsets)
        return np.asarray((sums[words.offsets[1:]] - sums[words.offsets[:-1]]) / np.maximum(sizes, 1))


def difficulty(rarity: NDArray[np.float64], length: NDArray[Any], classes: Sequence[str | None]) -> NDArray[np.float64]:
    """0 (easiest) to 1 (hardest) within each row's class: mean of the ranks of word rarity and length.

    Within classes, so that a test set of hard rows keeps their proportions; classes of few rows are ranked together.
    """
    sizes = Counter(classes)
    numbers: dict[str | None, int] = {}
    own = np.array([numbers.setdefault(name if sizes[name] >= _RANKED_ALONE else None, len(numbers)) for name in classes], np.int64)
    result = np.zeros(len(classes))
    for number in range(len(numbers)):
        rows = np.flatnonzero(own == number)
        result[rows] = _ranked(_ranked(rarity[rows]) + _ranked(length[rows]))
    return result


def _ranked(values: NDArray[Any]) -> NDArray[np.float64]:
    """Rank of each value as a share; equal values share the mean of their ranks."""
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray(((ends - (counts - 1) / 2)[inverse]) / max(values.size, 1)) if unique.size else np.zeros(0)


def split_parts(
    split: Split, keys: Sequence[Key], hard: NDArray[np.float64] | None, twins: NDArray[np.int64], name: str
) -> NDArray[np.uint8]:
    """The part of every row; ``hard`` (difficulty) draws the test set from the most difficult rows instead.

    ``twins`` names for each row the first of its like (same input, near duplicates): they are drawn together, so that no
    part holds what another has. Splits by time keep their border instead, and splits by group their groups.
    Raises DataError when a part would be empty.
    """
    if split.by in ("time", "group"):
        return np.frombuffer(assign(split, keys, name), np.uint8)
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(twins != np.arange(twins.size)).tolist():
        groups.setdefault(int(twins[row]), [int(twins[row])]).append(row)
    if hard is None:
        return np.frombuffer(assign(split, keys, name, groups), np.uint8)
    parts = bytearray(len(keys))
    wanted = rows_wanted(split, len(keys))
    order = ranks(len(keys), split.seed, "hard")
    sizes = np.bincount(twins, minlength=twins.size)
    heads = np.flatnonzero(sizes)
    hardest = heads[np.lexsort((order[heads], -hard[heads]))]
    pool = max(wanted[TEST], round(len(keys) * HARD_SHARE))
    drawn = hardest[: int(np.searchsorted(np.cumsum(sizes[hardest]), pool)) + 1]
    deal(drawn[np.argsort(order[drawn], kind="stable")].tolist(), groups, {TEST: wanted[TEST]}, parts)
    rest = heads[np.frombuffer(parts, np.uint8)[heads] == TRAIN]
    deal(rest[np.argsort(order[rest], kind="stable")].tolist(), groups, {VALIDATION: wanted[VALIDATION]}, parts)
    refuse_empty(parts, wanted, name, groups=groups)
    return np.frombuffer(parts, np.uint8)


def class_counts(classes: Sequence[str | None], copies: NDArray[np.int64], parts: NDArray[np.uint8], part: int) -> dict[str, int]:
    """Rows of each class in one part, the commonest first."""
    counts: Counter[str] = Counter()
    for row in np.flatnonzero((parts == part) & (copies > 0)).tolist():
        name = classes[row]
        if name is not None:
            counts[name] += int(copies[row])
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def spread(count: int, more: int) -> NDArray[np.int64]:
    """Before which of ``count`` rows each of ``more`` further rows goes so that they are evenly mixed in."""
    return (np.arange(more, dtype=np.int64) * max(count, 1)) // max(more, 1)
