"""Cuts validation and test rows from the training file. The same rows, settings and seed always give the same cut.

Rows are ranked by a hash of the seed with their position (random, label) or their group, so that membership needs no
random state and is the same on every machine and Python version. Part sizes are exact, but for whole groups.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from math import isfinite
from typing import Any, Literal

from tuneport.core.errors import DataError
from tuneport.core.spec import Split

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = 0, 1, 2

Key = str | float | None
"""What a row is split by: its label or group, its time in seconds, or None for a random split."""


def is_cut(split: Split) -> bool:
    """Whether the split takes any rows from the training file."""
    return split.validation > 0 or split.test > 0


def split_key(split: Split, value: Mapping[str, Any], label: str | None) -> Key:
    """The key of one record; ``label`` is its class, which a split by label without a column uses.

    Raises ValueError with the reason when the record has no usable one.
    """
    if split.by == "random":
        return None
    if split.by == "label" and split.column is None:
        if label is None:
            raise ValueError("no label")
        return label
    found = value.get(split.column or "")
    if found is None or found == "":
        raise ValueError(f"nothing in column {split.column!r}")
    if split.by == "time":
        return _seconds(found)
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True, default=str)


def _seconds(value: Any) -> float:
    """Seconds since 1970. Reads ISO 8601 (no zone: UTC), dates and numbers; numbers keep their own unit."""
    if isinstance(value, str) and not re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", value):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError("a time that is neither ISO 8601 nor a number") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()  # timestamp() fails before 1970 on some systems
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        seconds = None
    if seconds is None or not isfinite(seconds):
        raise ValueError("a time that is neither ISO 8601 nor a number")
    return seconds


def assign(split: Split, keys: Sequence[Key], source: str) -> bytearray:
    """The part of every row: TRAIN, VALIDATION or TEST by row index. ``keys`` come from ``split_key``, one per row.

    A share above zero takes at least one row. By group, sizes are as near to the shares as whole groups in hash order
    come. By label, every label keeps a training row. Raises DataError, naming ``source``, when a part would be empty.
    """
    wanted = {
        TEST: max(1, round(len(keys) * split.test)) if split.test else 0,
        VALIDATION: max(1, round(len(keys) * split.validation)) if split.validation else 0,
    }
    cut = {"random": _random, "label": _by_label, "group": _by_group, "time": _by_time}[split.by]
    parts = cut(split, keys, wanted)
    for part in (TRAIN, *(part for part, rows in wanted.items() if rows)):
        if part not in parts:
            by = f" by {split.by} of {split.column!r}" if split.column else f" by {split.by}"
            raise DataError(
                f"{source} has {len(keys)} rows in {len(set(keys))} {split.by}s, too few to split{by}: no {PARTS[part]} row is left"
                if split.by in ("label", "group")
                else f"{source} has {len(keys)} rows, too few to split{by}: no {PARTS[part]} row is left",
                fix="add rows, or change data.split",
            )
    return parts


def _rank(seed: int, name: object) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()


def _deal(order: Sequence[int], parts: bytearray, test: int, validation: int) -> None:
    for row in order[:test]:
        parts[row] = TEST
    for row in order[test : test + validation]:
        parts[row] = VALIDATION


def _random(split: Split, keys: Sequence[Key], wanted: Mapping[int, int]) -> bytearray:
    parts = bytearray(len(keys))
    order = sorted(range(len(keys)), key=lambda row: (_rank(split.seed, row), row))
    _deal(order, parts, wanted[TEST], wanted[VALIDATION])
    return parts


def _by_time(split: Split, keys: Sequence[Key], wanted: Mapping[int, int]) -> bytearray:
    del split  # time needs no seed
    parts = bytearray(len(keys))
    order = sorted(range(len(keys)), key=lambda row: (keys[row], row), reverse=True)
    _deal(order, parts, wanted[TEST], wanted[VALIDATION])
    return parts


def _by_label(split: Split, keys: Sequence[Key], wanted: Mapping[int, int]) -> bytearray:
    parts = bytearray(len(keys))
    members: dict[Key, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        members[key].append(row)
    room = {key: len(rows) - 1 for key, rows in members.items()}
    quotas = {part: _shares(split.seed, members, room, rows) for part, rows in wanted.items()}
    for key, rows in members.items():
        order = sorted(rows, key=lambda row: (_rank(split.seed, row), row))
        _deal(order, parts, quotas[TEST][key], quotas[VALIDATION][key])
    return parts


def _shares(seed: int, members: Mapping[Key, list[int]], room: dict[Key, int], rows: int) -> dict[Key, int]:
    """How many of ``rows`` each label gives, in proportion (largest remainder); takes them out of ``room``."""
    total = sum(map(len, members.values()))
    exact = {key: len(of_key) * rows / total for key, of_key in members.items()}
    shares = {key: min(int(exact[key]), room[key]) for key in members}
    by_remainder = sorted(members, key=lambda key: (shares[key] - exact[key], _rank(seed, f"label {key}")))
    missing = rows - sum(shares.values())
    while missing > 0:
        open_labels = [key for key in by_remainder if shares[key] < room[key]]
        if not open_labels:
            break
        for key in open_labels[:missing]:
            shares[key] += 1
        missing -= min(missing, len(open_labels))
    for key, share in shares.items():
        room[key] -= share
    return shares


def _by_group(split: Split, keys: Sequence[Key], wanted: Mapping[int, int]) -> bytearray:
    sizes: dict[Key, int] = defaultdict(int)
    for key in keys:
        sizes[key] += 1
    filled = dict.fromkeys(wanted, 0)
    part_of: dict[Key, int] = {}
    for key in sorted(sizes, key=lambda key: (_rank(split.seed, key), str(key))):
        part_of[key] = TRAIN
        for part, target in wanted.items():
            # Take the group when that brings the part nearer to its size.
            if abs(filled[part] + sizes[key] - target) < abs(filled[part] - target):
                filled[part] += sizes[key]
                part_of[key] = part
                break
    return bytearray(part_of[key] for key in keys)
