"""Splitting: a partition, the same every time, with whole groups, proportional labels and the latest rows held out."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.data.split import TEST, TRAIN, VALIDATION, assign, split_key
from tuneport.core.errors import DataError
from tuneport.core.spec import Split

_shares = st.floats(0, 0.45)
_keys = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=120)


@given(_keys, st.sampled_from(["random", "label", "group"]), _shares, _shares, st.integers(0, 5))
def test_a_split_is_a_deterministic_partition(keys: list[str], by: str, validation: float, test: float, seed: int) -> None:
    split = Split(validation=validation, test=test, by=by, column="c", seed=seed)
    try:
        parts = assign(split, keys, "f")
    except DataError:
        return
    assert len(parts) == len(keys)
    assert parts == assign(split, keys, "f")
    assert set(parts) == {TRAIN} | ({VALIDATION} if validation else set()) | ({TEST} if test else set())
    if by == "random":
        assert parts.count(TEST) == (max(1, round(len(keys) * test)) if test else 0)
        assert parts.count(VALIDATION) == (max(1, round(len(keys) * validation)) if validation else 0)
    if by == "group":
        assert all(len({part for part, key in zip(parts, keys, strict=True) if key == group}) == 1 for group in set(keys))
    if by == "label":
        assert {key for part, key in zip(parts, keys, strict=True) if part == TRAIN} == set(keys)


def test_labels_keep_their_proportions() -> None:
    keys = ["a"] * 600 + ["b"] * 300 + ["c"] * 100
    parts = assign(Split(validation=0.1, test=0.2, by="label"), keys, "f")
    held = [Counter(key for part, key in zip(parts, keys, strict=True) if part == wanted) for wanted in (VALIDATION, TEST)]
    assert held == [{"a": 60, "b": 30, "c": 10}, {"a": 120, "b": 60, "c": 20}]


def test_groups_come_near_the_shares() -> None:
    keys = [f"g{row % 100}" for row in range(1000)]
    parts = assign(Split(validation=0.1, test=0.1, by="group", column="c"), keys, "f")
    assert (parts.count(TEST), parts.count(VALIDATION)) == (100, 100)


def test_the_latest_rows_are_held_out() -> None:
    keys = [float(second) for second in (5, 3, 9, 1, 7, 2, 8, 4, 6, 0)]
    parts = assign(Split(validation=0.2, test=0.2, by="time", column="c"), keys, "f")
    assert [key for part, key in zip(parts, keys, strict=True) if part == TEST] == [9, 8]
    assert sorted(key for part, key in zip(parts, keys, strict=True) if part == VALIDATION) == [6, 7]


def test_another_seed_is_another_split_and_this_one_never_changes() -> None:
    keys = [None] * 20
    one, other = (assign(Split(test=0.25, seed=seed), keys, "f") for seed in (0, 1))
    assert one != other
    # Recorded once: a change here would move rows between the parts of everybody's jobs.
    assert [row for row, part in enumerate(one) if part == TEST] == [3, 7, 9, 11, 18]


@pytest.mark.parametrize(
    ("by", "keys"),
    [("random", [None]), ("label", ["a", "b", "c"]), ("group", ["a"] * 50), ("time", [1.0])],
    ids=["random", "label", "group", "time"],
)
def test_too_few_rows_are_an_error_not_an_empty_part(by: str, keys: list[str | float | None]) -> None:
    with pytest.raises(DataError, match="too few to split"):
        assign(Split(test=0.1, by=by, column="c"), keys, "rows.jsonl")


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-01",
        "2026-03-01T00:00:00",
        "2026-03-01T00:00:00Z",
        "2026-03-01T01:00:00+01:00",
        1772323200,
        "1772323200",
        " 1772323200.0 ",
        date(2026, 3, 1),
        datetime(2026, 3, 1),
        datetime(2026, 3, 1, tzinfo=UTC),
    ],
)
def test_times_are_read_alike(value: object) -> None:
    assert split_key(Split(test=0.1, by="time", column="at"), {"at": value}, None) == 1772323200


@pytest.mark.parametrize("value", [None, "", "yesterday", True, [1], 10**400, "1" * 400])
def test_unusable_times_are_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"nothing in column 'at'|a time that is neither"):
        split_key(Split(test=0.1, by="time", column="at"), {"at": value}, None)


def test_keys_of_labels_and_groups() -> None:
    assert split_key(Split(by="label"), {}, "spam") == "spam"
    assert split_key(Split(by="group", column="user"), {"user": {"b": 1, "a": 2}}, None) == '{"a": 2, "b": 1}'
    for split, value in ((Split(by="label"), {}), (Split(by="group", column="user"), {"user": ""})):
        with pytest.raises(ValueError, match=r"^no"):
            split_key(split, value, None)
