"""Finds near duplicates: candidates share a MinHash band, and each pair is verified by the Jaccard similarity of its shingles.

Signatures are small, so a million rows take 64 MB; the shingles lie in temporary files and only candidates' are read back.
Verification is exact but for two shingles of one pair having the same 32-bit hash (about once in 100,000 pairs of 100 words).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tuneport.core.data.shingles import BANDS, jaccard
from tuneport.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_THRESHOLD = 0.8
"""Jaccard similarity from which two rows are near duplicates (Lee et al. 2021, "Deduplicating training data", use 0.8)."""

_COMPARED = 4
"""Pairs tried for each row of a bucket: with its nearest predecessors and the first; a cluster is joined through them.
Between two parts, where nothing is joined, each row is tried with as many of the other part's."""

_CACHE_ROWS = 50_000
_OPEN_FILES = 200


class ShingleStore:
    """The shingles of all rows, in files of 32-bit hashes, read back row by row."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._first_rows: list[int] = []
        self._offsets: list[NDArray[np.uint32]] = []
        self._handles: dict[int, int] = {}
        self._cache: dict[int, NDArray[np.uint32]] = {}
        self.rows = 0

    def add(self, path: Path, counts: NDArray[np.uint32]) -> None:
        """Append the rows of one file; ``counts`` says how many shingles each has."""
        self._files.append(path)
        self._first_rows.append(self.rows)
        self._offsets.append(np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.uint32))
        self.rows += len(counts)

    def row(self, row: int) -> NDArray[np.uint32]:
        """The row's shingles, sorted, without repeats. Raises DataError when the temporary file cannot be read."""
        found = self._cache.get(row)
        if found is None:
            if len(self._cache) >= _CACHE_ROWS:
                self._cache.clear()
            found = self._cache[row] = np.unique(self._read(row))
        return found

    def _read(self, row: int) -> NDArray[np.uint32]:
        at = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        offsets = self._offsets[at]
        start, end = int(offsets[row - self._first_rows[at]]), int(offsets[row - self._first_rows[at] + 1])
        try:
            if at not in self._handles:
                if len(self._handles) >= _OPEN_FILES:
                    self.close()
                self._handles[at] = os.open(self._files[at], os.O_RDONLY)
            os.lseek(self._handles[at], 4 * start, os.SEEK_SET)
            return np.frombuffer(os.read(self._handles[at], 4 * (end - start)), np.uint32)
        except OSError as error:
            raise DataError(f"a temporary file cannot be read ({error.strerror})", fix="check the disk that TMPDIR names") from error

    def close(self) -> None:
        """Close the files in hand."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two rows that are near duplicates, by index; ``earlier`` comes first."""

    earlier: int
    later: int
    similarity: float


def candidate_pairs(bands: Sequence[NDArray[np.uint32]], skip: NDArray[np.bool_] | None = None) -> NDArray[np.uint64]:
    """Pairs of rows that share a band, as ``earlier << 32 | later``, sorted, each once. ``bands`` are the keys, by batch.

    ``skip`` marks rows to leave out (exact duplicates).
    """
    found = []
    for band in range(BANDS):
        keys = np.concatenate([batch[:, band] for batch in bands]) if bands else np.empty(0, np.uint32)
        rows = np.flatnonzero((keys != 0) if skip is None else (keys != 0) & ~skip)
        keys = keys[rows]
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        same = np.append(keys[1:] == keys[:-1], [False])
        if not same.any():
            continue
        begins = np.append([True], ~same[:-1])
        first_at = np.maximum.accumulate(np.where(begins, np.arange(keys.size), 0))
        place = np.arange(keys.size) - first_at
        for back in range(1, _COMPARED):
            later = np.flatnonzero(place >= back)
            found.append(_coded(rows[later - back], rows[later]))
        later = np.flatnonzero(place >= _COMPARED)
        found.append(_coded(rows[first_at[later]], rows[later]))
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


def pairs_across(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Pairs of a row on each side that share a band, coded as above; rows of ``other`` are numbered after those of ``one``.

    Each row of ``other`` meets the last rows of ``one`` in its bucket, and the first.
    """
    found = []
    for band in range(BANDS):
        rows = np.flatnonzero(one[:, band])
        rows = rows[np.argsort(one[rows, band], kind="stable")]
        keys = one[rows, band]
        later = np.flatnonzero(other[:, band])
        first = np.searchsorted(keys, other[later, band], side="left")
        end = np.searchsorted(keys, other[later, band], side="right")
        for place in (first, *(end - back for back in range(1, _COMPARED))):
            met = (place >= first) & (place < end)
            found.append(_coded(rows[place[met]], later[met] + len(one)))
    return np.unique(np.concatenate(found))


def _coded(earlier: Any, later: Any) -> NDArray[np.uint64]:
    coded: NDArray[np.uint64] = earlier.astype(np.uint64) << np.uint64(32) | later.astype(np.uint64)
    return coded


class Shingles(Protocol):
    """Where the shingles of rows can be had, as from a ShingleStore."""

    def row(self, row: int) -> NDArray[np.uint32]:
        """The row's shingles, sorted, without repeats."""
        ...

    def close(self) -> None:
        """Close the files in hand."""
        ...


def verified_pairs(pairs: NDArray[np.uint64], store: Shingles, threshold: float) -> Iterator[NearPair]:
    """The candidates whose Jaccard similarity is at least ``threshold``, in order."""
    for pair in pairs.tolist():
        earlier, later = pair >> 32, pair & 0xFFFFFFFF
        similarity = jaccard(store.row(earlier), store.row(later))
        if similarity >= threshold:
            yield NearPair(earlier, later, similarity)
    store.close()


def cluster_heads(pairs: Sequence[NearPair], rows: int) -> NDArray[np.int64]:
    """For every row the first row of its cluster of near duplicates (itself, when it has none)."""
    heads = np.arange(rows)

    def head(row: int) -> int:
        while heads[row] != row:
            heads[row] = heads[heads[row]]
            row = int(heads[row])
        return row

    for pair in pairs:
        one, other = sorted((head(pair.earlier), head(pair.later)))
        heads[other] = one
    for row in {pair.later for pair in pairs} | {pair.earlier for pair in pairs}:
        heads[row] = head(row)
    return heads


__all__ = ["DEFAULT_THRESHOLD", "NearPair", "ShingleStore", "candidate_pairs", "cluster_heads", "pairs_across", "verified_pairs"]
