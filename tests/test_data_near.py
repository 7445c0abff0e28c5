"""Shingles and near duplicates: against plain Python, and against planted pairs."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneport.core.data.check import check_files
from tuneport.core.data.near import NearPair, ShingleStore, candidate_pairs, cluster_heads, pairs_across, verified_pairs
from tuneport.core.data.shingles import BANDS, bands_of, jaccard, shingles_of, words_of

ANSWER = {"role": "assistant", "content": "a"}
WORD = re.compile("[\u3000-\ud7ff\u0e00-\u0eff]|(?:[a-z0-9]|(?![\u3000-\ud7ff\u0e00-\u0eff])[^\x00-\x7f])+")
texts = st.lists(st.text(alphabet=st.sampled_from("aAbB1 \n\t.,é日本語ไทย_-\U0001f600"), max_size=30), max_size=8)


@settings(max_examples=200)
@given(texts)
def test_words_are_those_of_plain_python(batch: list[str]) -> None:
    words = words_of(batch)
    known: dict[str, int] = {}
    for at, text in enumerate(batch):
        expected = WORD.findall(text.lower())
        hashes = words.hashes[words.offsets[at] : words.offsets[at + 1]].tolist()
        assert len(hashes) == len(expected)
        for word, value in zip(expected, hashes, strict=True):
            assert known.setdefault(word, value) == value
    assert len(set(known.values())) == len(known)


@settings(max_examples=100)
@given(texts, st.integers(1, 5))
def test_shingles_are_runs_of_words_within_one_text(batch: list[str], size: int) -> None:
    words = words_of(batch)
    shingled = shingles_of(words, size)
    known: dict[tuple[int, ...], int] = {}
    for at in range(len(batch)):
        own = words.hashes[words.offsets[at] : words.offsets[at + 1]].tolist()
        runs = [tuple(own[i : i + size]) for i in range(len(own) - size + 1)] or ([tuple(own)] if own else [])
        found = shingled.hashes[shingled.offsets[at] : shingled.offsets[at + 1]].tolist()
        assert len(found) == len(runs)
        for run, value in zip(runs, found, strict=True):
            assert known.setdefault(run, value) == value
    assert len(set(known.values())) == len(known)


def test_no_text_and_long_text() -> None:
    assert words_of([]).offsets.tolist() == [0]
    assert bands_of(shingles_of(words_of(["", "?!"]))).tolist() == [[0] * BANDS] * 2
    assert len(words_of(["word " * 500_000, "one two"]).hashes) == 500_002


def stored(tmp_path: Path, batch: list[str]) -> tuple[ShingleStore, list[np.ndarray]]:
    store, bands = ShingleStore(), []
    for at in range(0, len(batch), 300):
        shingled = shingles_of(words_of(batch[at : at + 300]))
        path = tmp_path / f"{at}.shingles"
        path.write_bytes((shingled.hashes >> np.uint64(32)).astype(np.uint32).tobytes())
        store.add(path, np.diff(shingled.offsets).astype(np.uint32))
        bands.append(bands_of(shingled))
    return store, bands


def triples(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def similarity(one: str, other: str) -> float:
    return len(triples(one) & triples(other)) / len(triples(one) | triples(other))


def planted(count: int, seed: int) -> tuple[list[str], dict[tuple[int, int], float]]:
    """Random texts, and for each fifth a copy with some words changed, with the true similarity of each pair."""
    draw = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(5_000)]
    batch = [" ".join(draw.choices(vocabulary, k=draw.randint(40, 120))) for _ in range(count)]
    truth = {}
    for at in range(0, count, 5):
        words = batch[at].split()
        for _ in range(draw.randint(0, 5)):
            words[draw.randrange(len(words))] = draw.choice(vocabulary)
        batch.append(" ".join(words))
        truth[at, len(batch) - 1] = similarity(batch[at], batch[-1])
    return batch, truth


def test_planted_pairs_are_found_and_nothing_else(tmp_path: Path) -> None:
    batch, truth = planted(2_000, 1)
    store, bands = stored(tmp_path, batch)
    found = {(pair.earlier, pair.later): pair.similarity for pair in verified_pairs(candidate_pairs(bands), store, 0.8)}
    wanted = {pair for pair, value in truth.items() if value >= 0.8}
    assert len(wanted) > 100
    assert len(wanted & found.keys()) >= 0.95 * len(wanted)
    assert all(similarity(batch[one], batch[two]) >= 0.8 for one, two in found)
    assert all(value == pytest.approx(similarity(batch[one], batch[two])) for (one, two), value in found.items())


def test_candidates_at_the_threshold_itself_are_rarely_missed(tmp_path: Path) -> None:
    draw = random.Random(2)
    hits = total = 0
    for _ in range(20):
        pairs = []
        for _ in range(50):
            shared = [f"s{draw.random()}" for _ in range(80)]
            pairs += [shared + [f"a{draw.random()}" for _ in range(10)], shared + [f"b{draw.random()}" for _ in range(10)]]  # 80 of 100
        shingled = shingles_of(words_of([" ".join(word.replace(".", "") for word in words) for words in pairs]), 1)
        found = set(candidate_pairs([bands_of(shingled)]).tolist())
        total += 50
        hits += sum(((2 * at) << 32 | 2 * at + 1) in found for at in range(50))
    assert hits / total >= 0.98


def test_large_buckets_stay_one_cluster(tmp_path: Path) -> None:
    batch = [f"the same words in every row but the last which is number {number // 2}" for number in range(400)]
    store, bands = stored(tmp_path, batch)
    pairs = list(verified_pairs(candidate_pairs(bands), store, 0.6))
    assert len(pairs) < 8_000  # of 79,800
    assert set(cluster_heads(pairs, len(batch)).tolist()) == {0}


def test_near_copies_between_parts_are_found_in_templated_rows(tmp_path: Path) -> None:
    train: list[list[str]] = []
    test: list[list[str]] = []
    for number in range(40):
        template = [f"{number}t{n}" for n in range(87)]
        train += [[*template, *(f"{number}x{row}y{n}" for n in range(13))] for row in range(3)]  # similarity 0.77 among themselves
        test += [[*train[-1][:91], *(f"{number}z{row}y{n}" for n in range(9))] for row in range(6)]  # 0.83 to the last of them
    paths = []
    for part, rows in (("train", train), ("test", test)):
        paths.append(tmp_path / f"{part}.jsonl")
        paths[-1].write_text("".join(json.dumps({"messages": [{"role": "user", "content": " ".join(row)}, ANSWER]}) + "\n" for row in rows))
    found = {finding.code: finding for finding in check_files(str(paths[0]), test=str(paths[1]))["test"].findings}
    assert found["near_overlap_train"].count == len(test)


def test_rows_to_skip_and_clusters() -> None:
    bands = [np.ones((3, BANDS), np.uint32)]
    assert [(pair >> 32, pair & 0xFFFFFFFF) for pair in candidate_pairs(bands).tolist()] == [(0, 1), (0, 2), (1, 2)]
    assert candidate_pairs(bands, np.array([False, True, True])).size == 0
    assert candidate_pairs([]).size == 0
    across = [(pair >> 32, pair & 0xFFFFFFFF) for pair in pairs_across(np.ones((6, BANDS), np.uint32), bands[0][:2]).tolist()]
    assert across == [(row, other) for row in (0, 3, 4, 5) for other in (6, 7)]
    assert pairs_across(bands[0], np.zeros((3, BANDS), np.uint32)).size == pairs_across(bands[0][:0], bands[0]).size == 0
    heads = cluster_heads([NearPair(3, 5, 1), NearPair(1, 3, 1), NearPair(6, 7, 1)], 8)
    assert heads.tolist() == [0, 1, 2, 1, 4, 1, 6, 6]
    assert jaccard(np.array([1, 2, 3], np.uint32), np.array([2, 3, 4], np.uint32)) == 0.5
    assert jaccard(np.array([], np.uint32), np.array([], np.uint32)) == 0.0
