"""Cuts validation and test rows from the training file. The same rows, settings and seed always give the same cut.

Rows are ranked by a hash of the seed with their position (random, label) or their group, so that membership needs no
random state and is the same on every machine and Python version. Part sizes are exact, but for whole groups.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
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

Groups = Mapping[int, Sequence[int]]
"""Rows that stay together: by the first of them, all of them. A row that is in none stands alone."""


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


def assign(split: Split, keys: Sequence[Key], source: str, groups: Groups | None = None) -> bytearray:
    """The part of every row: TRAIN, VALIDATION or TEST by row index. ``keys`` come from ``split_key``, one per row.

    ``groups`` are rows that must stay together in a split at random or by label; sizes are then as near to the shares as whole
    groups in hash order come, as they are in a split by group. Without, a share above zero takes at least one row. By label,
    every label keeps a training row. Raises DataError, naming ``source``, when a part would be empty.
    """
    wanted = rows_wanted(split, len(keys))
    groups = groups or {}
    match split.by:
        case "random":
            parts = bytearray(len(keys))
            deal(_in_hash_order(split.seed, _heads(len(keys), groups)), groups, wanted, parts)
        case "label":
            parts = _by_label(split, keys, wanted, groups)
        case "group":
            parts = _by_group(split, keys, wanted)
        case "time":
            parts = bytearray(len(keys))
            deal(sorted(range(len(keys)), key=lambda row: (keys[row], row), reverse=True), {}, wanted, parts)
    by = f" by {split.by} of {split.column!r}" if split.column else f" by {split.by}"
    within = f" in {len(set(keys))} {split.by}s" if split.by in ("label", "group") else ""
    refuse_empty(parts, wanted, source, by=by, within=within, groups=groups)
    return parts


def rows_wanted(split: Split, rows: int) -> dict[int, int]:
    """How many rows each held-out part is to have; a share above zero asks for one at least."""
    return {part: max(1, round(rows * share)) if share else 0 for part, share in ((TEST, split.test), (VALIDATION, split.validation))}


def refuse_empty(
    parts: Sequence[int] | bytes, wanted: Mapping[int, int], source: str, *, by: str = "", within: str = "", groups: Groups | None = None
) -> None:
    """Raise DataError when a part that is wanted has no row; ``by`` and ``within`` say how the rows were split."""
    for part in (TRAIN, *(part for part, rows in wanted.items() if rows)):
        if part in parts:
            continue
        fix = "add rows, or change the shares"
        if groups:
            alone = len(parts) - sum(map(len, groups.values()))
            within = f" in {len(groups) + alone} group{'s' if len(groups) + alone > 1 else ''} of one input or nearly the same text"
            fix = "add rows of other inputs, change the shares, or split by a column that names groups"
        raise DataError(f"{source} has {len(parts)} rows{within}, too few to split{by}: no {PARTS[part]} row is left", fix=fix)


def _rank(seed: int, name: object) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()


def _in_hash_order(seed: int, rows: Iterable[int]) -> list[int]:
    return sorted(rows, key=lambda row: (_rank(seed, row), row))


def _heads(rows: int, groups: Groups) -> list[int]:
    """Rows that stand alone, and the first of each group."""
    others = {row for head, members in groups.items() for row in members if row != head}
    return [row for row in range(rows) if row not in others]


def deal(order: Iterable[int], groups: Groups, wanted: Mapping[int, int], parts: MutableSequence[int]) -> None:
    """Give rows and whole groups (by their first row) to the held-out parts, in order, until these have the rows wanted.

    Each goes to the first part that it brings nearer to its size; what none takes stays where it is.
    """
    missing = {part: rows for part, rows in wanted.items() if rows > 0}
    for head in order:
        if not missing:
            return
        members = groups.get(head, (head,))
        for part, rows in missing.items():
            if len(members) < 2 * rows:
                for row in members:
                    parts[row] = part
                missing[part] -= len(members)
                if missing[part] <= 0:
                    del missing[part]
                break


def _by_label(split: Split, keys: Sequence[Key], wanted: Mapping[int, int], groups: Groups) -> bytearray:
    """A group counts for the label of its first row."""
    parts = bytearray(len(keys))
    heads: dict[Key, list[int]] = defaultdict(list)
    for head in _heads(len(keys), groups):
        heads[keys[head]].append(head)
    sizes = {key: sum(len(groups.get(head, (head,))) for head in of_key) for key, of_key in heads.items()}
    room = {key: size - 1 for key, size in sizes.items()}
    quotas = {part: _shares(split.seed, sizes, room, rows) for part, rows in wanted.items()}
    for key, of_key in heads.items():
        order = _in_hash_order(split.seed, of_key)[:-1]  # the last stays in train
        deal(order, groups, {part: shares[key] for part, shares in quotas.items()}, parts)
    return parts


def _shares(seed: int, sizes: Mapping[Key, int], room: dict[Key, int], rows: int) -> dict[Key, int]:
    """How many of ``rows`` each label gives, in proportion to its size (largest remainder); takes them out of ``room``."""
    total = sum(sizes.values())
    exact = {key: size * rows / total for key, size in sizes.items()}
    shares = {key: min(int(exact[key]), room[key]) for key in sizes}
    by_remainder = sorted(sizes, key=lambda key: (shares[key] - exact[key], _rank(seed, f"label {key}")))
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
    parts = bytearray(len(keys))
    members: dict[Key, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        members[key].append(row)
    order = sorted(members, key=lambda key: (_rank(split.seed, key), str(key)))
    deal([members[key][0] for key in order], {rows[0]: rows for rows in members.values()}, wanted, parts)
    return parts
