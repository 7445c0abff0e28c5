"""Turns texts into hashed words, shingles (runs of three words), n-grams and MinHash bands, a batch at a time with numpy.

Words are runs of letters and digits of the lower-cased text; in scripts that write no spaces (Chinese, Japanese, Korean,
Thai, Lao) every character is a word. So case, punctuation and white space make no difference.
MinHash: Broder 1997; bands (locality-sensitive hashing): Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3.
The signatures are made here and not by rensa, which was measured: rensa 0.5 needs 2.6 us a row for them but hands them out only
as Python lists (18 us a row in all), numpy needs 11 us.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Keys = NDArray[np.uint32]

WORDS = 3
"""Words in a shingle. Short, because the rows are: one changed word in fifty leaves a Jaccard similarity of 0.89."""

BANDS = 16
BAND_ROWS = 5
"""Signature of 16 bands of 5 hashes. A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^5)^16:
0.998 at 0.8, 0.95 at 0.7, 0.4 at 0.5."""

_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_BASE = 0x9E3779B97F4A7C15
_BATCH_CHARACTERS = 400_000  # text hashed at a time; keeps the power tables within the processor's cache
_BANDED_TEXTS = 500  # texts whose bands are made at a time, for the same reason
_SPACELESS = (0xE3, 0xED)  # first UTF-8 bytes of U+3000 to U+D7FF: kana, Han, Hangul


class Shingled(NamedTuple):
    """Hashed shingles of some texts: text ``i`` has ``hashes[offsets[i]:offsets[i + 1]]``; repeats are kept."""

    hashes: Hashes
    offsets: NDArray[np.int64]


class Words(NamedTuple):
    """Hashed words of some texts, laid out as ``Shingled`` is."""

    hashes: Hashes
    offsets: NDArray[np.int64]


def _powers(size: int) -> tuple[Hashes, Hashes]:
    """Powers of the base, and of its inverse modulo 2^64."""
    return _usual_powers() if size <= 2 * _BATCH_CHARACTERS else _power_tables(size)


@cache
def _usual_powers() -> tuple[Hashes, Hashes]:
    return _power_tables(2 * _BATCH_CHARACTERS)


def _power_tables(size: int) -> tuple[Hashes, Hashes]:
    return _power_table(_BASE, size), _power_table(pow(_BASE, -1, 1 << 64), size)


def _power_table(base: int, size: int) -> Hashes:
    table = np.full(size, base, np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)


@cache
def _word_bytes() -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[[byte for byte in range(128) if chr(byte).isalnum()]] = True
    table[128:] = True
    return table


def _mixed(value: Hashes) -> Hashes:
    value = (value ^ (value >> _HALF)) * _MIX
    value = (value ^ (value >> _HALF)) * _MIX
    return value ^ (value >> _HALF)


def words_of(texts: Sequence[str]) -> Words:
    """The hashed words of every text."""
    batches = [_words(batch) for batch in _batches(texts)]
    if not batches:
        return Words(np.empty(0, np.uint64), np.zeros(1, np.int64))
    sizes = np.concatenate([np.diff(batch.offsets) for batch in batches])
    return Words(np.concatenate([batch.hashes for batch in batches]), np.concatenate(([0], np.cumsum(sizes))).astype(np.int64))


def _batches(texts: Sequence[str]) -> Any:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _words(texts: Sequence[str]) -> Words:
    lowered = "\n".join(texts).lower()
    blob = np.frombuffer(lowered.encode("utf-8", "replace"), np.uint8)
    if not blob.size:
        return Words(np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64))
    inside = _word_bytes()[blob]
    edge = np.empty(blob.size + 1, np.bool_)  # where a word begins or ends
    edge[0], edge[-1] = inside[0], inside[-1]
    np.not_equal(inside[1:], inside[:-1], out=edge[1:-1])
    if lowered.isascii():
        at = np.flatnonzero(edge)
        starts, ends = at[::2], at[1::2]
    else:
        starts, ends = _with_spaceless(blob, inside, edge)
    powers, inverse = _powers(blob.size)
    prefix = np.empty(blob.size + 1, np.uint64)
    prefix[0] = 0
    np.cumsum((blob.astype(np.uint64) + np.uint64(1)) * powers[: blob.size], out=prefix[1:])
    hashes = _mixed((prefix[ends] - prefix[starts]) * inverse[starts])
    # The texts are told apart by the line breaks between them; those inside a text are skipped by their count.
    breaks = np.flatnonzero(blob == 10)
    inner = np.fromiter((text.count("\n") for text in texts), np.int64, len(texts))
    last = np.cumsum(inner + 1) - 1
    borders = np.append(breaks, blob.size)[last]
    return Words(hashes, np.concatenate(([0], np.searchsorted(starts, borders))).astype(np.int64))


def _with_spaceless(blob: Any, inside: Any, edge: Any) -> tuple[Any, Any]:
    """Starts and ends of words when every character of a script without spaces is a word of its own."""
    first = (blob >= _SPACELESS[0]) & (blob <= _SPACELESS[1])
    second = np.append(blob[1:], 0)
    first |= (blob == 0xE0) & (second >= 0xB8) & (second <= 0xBB)  # Thai, Lao
    at = np.flatnonzero(first)
    cut = np.zeros(blob.size + 1, np.bool_)
    cut[at] = True
    cut[at + 3] = True  # all these characters have three bytes
    begins = (edge[:-1] | cut[:-1]) & inside
    starts = np.flatnonzero(begins)
    # A word ends where the next one begins or where the run of word bytes ends, whichever is first.
    run_ends = np.flatnonzero(edge[1:] & inside) + 1
    ends = run_ends[np.searchsorted(run_ends, starts, side="right")]
    return starts, np.minimum(ends, np.append(starts[1:], blob.size))


def shingles_of(words: Words, size: int = WORDS) -> Shingled:
    """Hashes of every run of ``size`` words; a text of fewer words has one shingle of all its words, an empty one none."""
    hashes, offsets = words
    counts = np.diff(offsets)
    runs = np.where(counts >= size, counts - size + 1, (counts > 0).astype(np.int64))
    out = np.concatenate(([0], np.cumsum(runs))).astype(np.int64)
    total = int(out[-1])
    if not total:
        return Shingled(np.empty(0, np.uint64), out)
    # Position of each shingle's first word: the shingles of a text lie as its words do, less the last ones.
    first = np.arange(total) + np.repeat(offsets[:-1] - out[:-1], runs)
    joined = np.zeros(total, np.uint64)
    short = np.repeat(counts < size, runs)
    padded = np.append(hashes, np.zeros(size, np.uint64))
    factor = 1
    for step in range(size):
        part = padded[first + step]
        if step:
            part = np.where(short & (step >= np.repeat(counts, runs)), np.uint64(0), part)
        joined += part * np.uint64(factor)
        factor = factor * _BASE % (1 << 64)
    return Shingled(_mixed(joined), out)


@cache
def _multipliers() -> Hashes:
    draw = np.random.Generator(np.random.PCG64(20261122))
    return draw.integers(1, 1 << 63, BANDS * BAND_ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def bands_of(shingled: Shingled) -> Keys:
    """One row of ``BANDS`` keys for each text; texts that share a key in the same place may be near duplicates.

    Texts without words get keys of zero.
    """
    hashes, offsets = shingled
    count = len(offsets) - 1
    if count > _BANDED_TEXTS:
        cuts = [*range(0, count, _BANDED_TEXTS), count]
        pieces = [Shingled(hashes[offsets[a] : offsets[b]], offsets[a : b + 1] - offsets[a]) for a, b in itertools.pairwise(cuts)]
        return np.concatenate([bands_of(piece) for piece in pieces])
    keys = np.zeros((count, BANDS), np.uint32)
    filled = np.flatnonzero(np.diff(offsets))
    if not filled.size:
        return keys
    starts = offsets[filled]
    for band in range(BANDS):
        joined = np.zeros(filled.size, np.uint64)
        for multiplier in _multipliers()[band * BAND_ROWS : (band + 1) * BAND_ROWS]:
            joined = (joined ^ np.minimum.reduceat(hashes * multiplier, starts)) * _MIX
        keys[filled, band] = np.maximum(_mixed(joined) >> _HALF, 1)  # 0 is kept for texts without words
    return keys


def jaccard(one: Keys | Hashes, other: Keys | Hashes) -> float:
    """Jaccard similarity of two sets of shingles, given without repeats; 0.0 when both are empty."""
    if not (one.size and other.size):
        return 0.0
    shared = np.intersect1d(one, other, assume_unique=True).size
    return float(shared / (one.size + other.size - shared))
