"""The first pass of ``prepare``: reads every row once and decides which stay, how often, and in which part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tuneport.core.data.deep import DeepOptions, DeepSurvey
from tuneport.core.data.gather import Gathered, OnProgress, gather
from tuneport.core.data.load import changed, open_file
from tuneport.core.data.mended import MendedRows
from tuneport.core.data.near import NearPair, candidate_pairs, cluster_heads, verified_pairs
from tuneport.core.data.normalise import Normaliser
from tuneport.core.data.overlap import COMMON_GRAM_ROWS, Overlap, find_overlap, repeats
from tuneport.core.data.redact import Redactor, reserve_row
from tuneport.core.data.rows import Row
from tuneport.core.data.select import WordRarity, cap_classes, copies_to_balance, difficulty, first_of, ranks, split_parts
from tuneport.core.data.shingles import words_of
from tuneport.core.data.split import TRAIN, Key, split_key
from tuneport.core.data.survey import SurveyJob
from tuneport.core.data.tally import LONGEST_LABEL, row_contents
from tuneport.core.errors import DataError
from tuneport.core.spec import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tuneport.core.data.mend import Mend
    from tuneport.core.data.prepare import PrepareOptions

_BATCH = 2_000
_MOST_CLASSES = 1_000


@dataclass(slots=True)
class Decision:
    """What happens to each good row, in order, and what was counted on the way."""

    copies: NDArray[np.int64]  # how often it is written; 0: it is removed
    parts: NDArray[np.uint8]
    classes: list[str | None]
    low: NDArray[np.float32]  # tokens
    high: NDArray[np.float32]
    read: int  # rows of the source, good and bad
    mended: Counter[Mend]
    rejected: Counter[str]
    removed: dict[str, int]
    difficulty: NDArray[np.float64] | None = None
    notes: list[str] = field(default_factory=list)
    general: General | None = None


@dataclass(frozen=True, slots=True)
class General:
    """The file of rows to mix into training, and which of its good rows were chosen, by number and in order."""

    rows: MendedRows
    chosen: list[int]


@dataclass(slots=True)
class _Seen:
    """What the first pass keeps of the rows."""

    found: Gathered
    classes: list[str | None] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    read: int = 0


def decide(rows: MendedRows, options: PrepareOptions, redactor: Redactor | None, scratch: str, on_progress: OnProgress | None) -> Decision:
    """Read the rows and decide. ``redactor`` learns which placeholders are taken. Raises DataError when no good row is there."""
    others = _general(rows, options)
    excluded = [_excluded(path, options, scratch) for path in options.exclude]
    watch = np.unique(np.concatenate([other.array("grams") for other in excluded])) if excluded else None
    held_out = options.validation + options.test > 0
    near = options.dedupe == "near" or bool(excluded) or (held_out and (options.by != "time" or options.mix is not None))
    deep = DeepOptions(near=near, personal=False, folder=scratch, watch=watch)
    rarity = WordRarity() if options.by == "hard" else None
    seen = _read(rows, options, deep, rarity, redactor, on_progress)
    count = len(seen.classes)
    if not count:
        raise DataError(f"{rows.name} holds no good row, even after mending", fix="see tuneport check")
    mended = Counter(rows.mender.counts)
    hard = _difficulty(rows, rarity, seen) if rarity else None
    keep = np.ones(count, np.bool_)
    removed: dict[str, int] = {}
    pairs = _remove_copies(seen.found, excluded, options, keep, removed)
    notes: list[str] = []
    classes = _real_classes(seen.classes, options, notes)
    if options.cap:
        removed["over the cap of their class"] = cap_classes(classes, keep, options.cap, options.seed)
    if options.balance == "down":
        sizes = Counter(name for name, kept in zip(classes, keep.tolist(), strict=True) if kept and name is not None)
        if sizes:
            removed["to balance the classes"] = cap_classes(classes, keep, min(sizes.values()), options.seed)
    parts = _split(rows.name, options, seen, keep, hard, pairs)
    copies = keep.astype(np.int64)
    if options.balance == "up":
        train = keep & (parts == TRAIN)
        copies = np.where(train, copies_to_balance(classes, train, options.seed), copies)
    found = seen.found
    general = None
    if others is not None:
        met = _read(others, options.model_copy(update={"validation": 0.0, "test": 0.0}), deep, None, redactor, on_progress).found
        wanted = round(int(copies[parts == TRAIN].sum()) * options.mix_share / (1 - options.mix_share))
        usable = _usable(met, excluded, found if held_out else None, options, removed)
        general = General(others, _drawn(others.name, usable, wanted, options, notes))
    return Decision(
        copies, parts, classes, found.array("low"), found.array("high"), seen.read, mended, seen.rejected, removed, hard, notes, general
    )


def _general(rows: MendedRows, options: PrepareOptions) -> MendedRows | None:
    """The file of general rows, opened."""
    if options.mix is None:
        return None
    general = MendedRows(options.mix, options.model_copy(update={"format": "auto"}))
    if general.kind != rows.kind:
        what = f"{general.name} holds {general.kind} rows, but {rows.name} {rows.kind} rows"
        raise DataError(what, fix="mix rows of one kind")
    return general


def _usable(
    met: Gathered, excluded: Sequence[Gathered], source: Gathered | None, options: PrepareOptions, removed: dict[str, int]
) -> NDArray[np.bool_]:
    """Which general rows stand neither in an excluded file nor in the source, which is given where parts of it are held out."""
    usable = np.ones(len(met), np.bool_)
    found = [(f"general rows in {_base(other)}, which is excluded", _met_in(met, other, options.near)) for other in excluded]
    if source is not None:
        found.append((f"general rows that {_base(source)} has too", _alike(len(met), find_overlap(met, source, options.near))))
    for what, marks in found:
        removed[what] = removed.get(what, 0) + int((usable & marks).sum())
        usable &= ~marks
    return usable


def _drawn(name: str, usable: NDArray[np.bool_], wanted: int, options: PrepareOptions, notes: list[str]) -> list[int]:
    """Up to ``wanted`` of the usable general rows, by number."""
    order = np.argsort(ranks(usable.size, options.seed, "mix"), kind="stable")
    chosen: list[int] = sorted(order[usable[order]][:wanted].tolist())
    if len(chosen) < wanted:
        many = f"{len(chosen):,} good rows that can be mixed in"
        notes.append(f"{Path(name).name} has {many}, fewer than the {wanted:,} that the share asks for; all were taken")
    return chosen


def _read(
    rows: MendedRows,
    options: PrepareOptions,
    deep: DeepOptions,
    rarity: WordRarity | None,
    redactor: Redactor | None,
    on_progress: OnProgress | None,
) -> _Seen:
    seen = _Seen(Gathered(rows.name))
    split = _keyed(options)
    batch = DeepSurvey(deep)
    texts: list[str] = []

    def close(batch: DeepSurvey) -> None:
        batch.finish()
        if batch.arrays is not None:
            seen.found.add(batch.arrays, 0)
        if rarity is not None:
            rarity.count(words_of(texts))

    for row in rows:
        seen.read += 1
        if isinstance(row, list):
            seen.rejected.update({problem.code for problem in row})
            continue
        if split is not None:
            try:
                seen.keys.append(split_key(split, _columns(row), row.label))
            except ValueError as error:
                what = f"{row.file}:{row.line} cannot be split by {options.by}: {error}"
                raise DataError(what, fix="fill the column, or split otherwise") from None
        name = class_of(row, options.class_column)
        label = row.label is not None or options.class_column is not None or (name is not None and len(name) <= LONGEST_LABEL)
        seen.classes.append(name if label else None)  # a long answer is no class
        batch.row(row)
        if rarity is not None:
            texts.append("\n".join(row_contents(row)))
        if redactor is not None:
            reserve_row(redactor, row)
        if len(seen.classes) % _BATCH == 0:
            close(batch)
            batch, texts = DeepSurvey(deep), []
            if on_progress:
                on_progress(f"reading {rows.name}", seen.read, None)
    close(batch)
    return seen


def _columns(row: Row) -> dict[str, object]:
    return {**row.columns, **({"label": row.label} if row.label is not None else {})}


def _keyed(options: PrepareOptions) -> Split | None:
    """The split whose keys are read from the rows; None for random and hard ones."""
    if options.by in ("random", "hard") or not options.validation + options.test:
        return None
    if options.by == "label" and options.column is None:
        return None  # by the class, which is read anyway
    return Split(validation=options.validation, test=options.test, by=options.by, column=options.column, seed=options.seed)


def class_of(row: Row, column: str | None) -> str | None:
    """The row's class: what stands in the column, else its label, else its last answer."""
    if column is not None:
        value = _columns(row).get(column)
        return None if value is None else str(value)
    if row.label is not None:
        return row.label
    answer = row.messages[-1] if row.kind == "chat" else {}
    return answer["content"] if answer.get("role") == "assistant" and isinstance(answer["content"], str) else None


def _real_classes(classes: list[str | None], options: PrepareOptions, notes: list[str]) -> list[str | None]:
    """The classes, or none at all where answers are too many to be classes."""
    different = {name for name in classes if name is not None}
    if options.class_column is None and (len(different) > _MOST_CLASSES or len(different) * 2 > len(classes)):
        if options.cap or options.balance != "none" or options.by == "label":
            notes.append("the answers are too many to be classes; set class_column to cap, balance or stratify by one")
        return [None] * len(classes)
    return classes


def _excluded(path: str, options: PrepareOptions, scratch: str) -> Gathered:
    found, _, _ = open_file(path, "auto", options.method)
    normaliser = Normaliser(path, found, options.method) if found else None
    if normaliser is None:
        raise DataError(f"the row format of {path} is unknown, so that its rows cannot be excluded", fix="convert it first")
    return gather(path, SurveyJob(path, normaliser, deep=DeepOptions(personal=False, tokens=False, folder=scratch, keep_grams=True)))


def _remove_copies(
    found: Gathered, excluded: Sequence[Gathered], options: PrepareOptions, keep: NDArray[np.bool_], removed: dict[str, int]
) -> list[NearPair]:
    """Take out excluded rows and duplicates; returns the pairs of near duplicates, whether they were taken out or not."""

    def remove(marks: NDArray[np.bool_], what: str) -> None:
        removed[what] = removed.get(what, 0) + int((keep & marks).sum())  # two files may have one name
        keep[marks] = False

    for other in excluded:
        remove(_met_in(found, other, options.near), f"in {_base(other)}, which is excluded")
    again = repeats(found.array("whole"))
    if options.dedupe != "none":
        remove(again, "exact duplicates")
    pairs = list(verified_pairs(candidate_pairs(found.bands, again), found.store, options.near)) if found.bands else []
    if options.dedupe == "near":
        heads = cluster_heads([pair for pair in pairs if keep[pair.earlier] and keep[pair.later]], keep.size)
        remove(heads != np.arange(keep.size), "near duplicates")
    return pairs


def _base(found: Gathered) -> str:
    return found.name.rpartition("/")[2]


def _alike(count: int, overlap: Overlap) -> NDArray[np.bool_]:
    """Which rows have an input of the other side, or nearly repeat one of its rows."""
    marks = np.zeros(count, np.bool_)
    for rows in (overlap.exact, overlap.normalised, overlap.near):
        marks[rows] = True
    return marks


def _met_in(found: Gathered, excluded: Gathered, near: float) -> NDArray[np.bool_]:
    """Which rows stand in an excluded file, whole or by a passage that is no common phrase of theirs."""
    marks = _alike(len(found), find_overlap(found, excluded, near))
    common = {gram for gram, rows in found.watched.items() if rows > COMMON_GRAM_ROWS}
    own = np.isin(found.array("grams"), excluded.array("grams")) & ~np.isin(found.array("grams"), np.array(sorted(common), np.uint64))
    marks[found.array("gram_rows")[own].astype(np.int64)] = True
    return marks


def _difficulty(rows: MendedRows, rarity: WordRarity, seen: _Seen) -> NDArray[np.float64]:
    """Difficulty of every good row; reads the source again, because rarity is known only after all words are counted."""
    scores: list[NDArray[np.float64]] = []
    texts: list[str] = []
    for row in rows:
        if isinstance(row, Row):
            texts.append("\n".join(row_contents(row)))
            if len(texts) >= _BATCH:
                scores.append(rarity.score(words_of(texts)))
                texts = []
    scores.append(rarity.score(words_of(texts)))
    if sum(map(len, scores)) != len(seen.classes):
        raise changed(rows.name)
    return difficulty(np.concatenate(scores), seen.found.array("high"), seen.classes)


def _split(
    name: str, options: PrepareOptions, seen: _Seen, keep: NDArray[np.bool_], hard: NDArray[np.float64] | None, pairs: list[NearPair]
) -> NDArray[np.uint8]:
    parts = np.full(keep.size, TRAIN, np.uint8)
    if not options.validation + options.test:
        return parts
    kept = np.flatnonzero(keep)
    by = "random" if options.by == "hard" else options.by
    keys: list[Key] = [None] * kept.size
    if seen.keys:
        keys = [seen.keys[row] for row in kept.tolist()]
    elif by == "label":
        keys = [seen.classes[row] for row in kept.tolist()]
        if None in keys:
            raise DataError(f"{name} has rows without a label to split by", fix="name the column that holds it, or split at random")
    # Rows of one input, and near duplicates, go to one part together.
    same = first_of(seen.found.array("asked"))
    linked = [NearPair(int(first), row, 1.0) for row, first in enumerate(same.tolist()) if first != row]
    heads = cluster_heads([*pairs, *linked], keep.size)
    twins = first_of(heads[kept].astype(np.uint64))
    split = Split(validation=options.validation, test=options.test, by=by, column=options.column or "", seed=options.seed)
    parts[kept] = split_parts(split, keys, hard[kept] if hard is not None else None, twins, name)
    return parts
