"""The costly part of a survey: hashes for duplicates and overlap, shingles, token counts and personal data of a batch.

Everything is kept as numpy arrays of a few bytes a row; shingles go to a file, because only those of candidates are read again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tuneport.core.data.patterns import KINDS, find_personal, masked, presidio, rows_to_search
from tuneport.core.data.rows import Row
from tuneport.core.data.shingles import BANDS, Keys, Words, bands_of, shingles_of, words_of
from tuneport.core.data.tally import Hits, merge_hits, row_contents
from tuneport.core.data.tokens import MESSAGE_OVERHEAD, SPREAD, TokenMeter, message_texts
from tuneport.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIRST, _SECOND, _MASK = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, (1 << 64) - 1

GRAM_WORDS = 13
"""Words of a passage that counts as copied (Brown et al. 2020, GPT-3, appendix C: 13-gram overlap)."""


@dataclass(frozen=True, slots=True)
class DeepOptions:
    """Which costly parts to do. ``folder`` is where shingles are written; ``watch`` are 13-gram hashes to look for, sorted."""

    duplicates: bool = True
    near: bool = True
    personal: bool = True
    tokens: bool = True
    openai_tokens: bool = False
    kinds: tuple[str, ...] = KINDS
    names: bool = False  # whether to look for names with Presidio too
    folder: str = ""
    watch: NDArray[np.uint64] | None = None
    keep_grams: bool = False  # whether to keep the 13-grams themselves (of the small parts, before train is watched for them)


@dataclass(slots=True)
class DeepArrays:
    """What is kept of each good row, in order. Empty where the part was not asked for."""

    lines: NDArray[np.uint32]
    whole: NDArray[np.uint64]  # hash of all that is learnt from
    asked: NDArray[np.uint64]  # hash of the input, less the system prompt
    answered: NDArray[np.uint64]  # hash of the answer
    likeness: NDArray[np.uint64]  # hash of the words of the input: case, punctuation and white space aside
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    longest: NDArray[np.float32]
    bands: Keys
    counts: NDArray[np.uint32]  # shingles of each row
    grams: NDArray[np.uint64]  # 13-gram hashes: all with keep_grams, else those that are watched for
    gram_rows: NDArray[np.uint32]  # the row of each
    watched: dict[int, int] = field(default_factory=dict)  # watched 13-grams met: hash to number of rows
    shingles: str = ""  # file of 32-bit shingle hashes


class DeepSurvey:
    """Gathers the texts of a batch, then hashes and searches all at once."""

    def __init__(self, options: DeepOptions) -> None:
        self._options = options
        self._meter = TokenMeter(openai=options.openai_tokens)
        self._lines: list[int] = []
        self._whole: list[int] = []
        self._asked: list[int] = []
        self._answered: list[int] = []
        self._systems: dict[str, int] = {}  # hashes of system prompts, of which there are few
        self._texts: list[str] = []  # two for each row: its input, and what is answered
        self._extras: dict[int, str] = {}  # by row: texts where only personal data is looked for (names, tool calls)
        self._sizes: list[tuple[int, int, int, int]] = []  # row, characters in ASCII, others, messages
        self._tokens: list[tuple[int, float, float, float]] = []  # row, low, high, longest
        self.personal: dict[str, Hits] = {}
        self.arrays: DeepArrays | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"personal": self.personal, "arrays": self.arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.personal, self.arrays = state["personal"], state["arrays"]

    def plain(self, line: int, messages: Sequence[Any], systems: int) -> None:
        """A chat row of nothing but roles and texts, the first ``systems`` of which are system messages."""
        contents = [message.content for message in messages]
        self._lines.append(line)
        asked, answer = contents[systems:-1], contents[-1]
        if self._options.duplicates:
            self._plain_hashes(contents[:systems], [message.role for message in messages[systems:-1]], asked, answer)
        self._texts += ("\n".join(asked), answer)
        if self._options.tokens and self._meter.exact:
            low, high = self._meter.measure_texts(contents, len(contents))
            self._tokens.append((len(self._lines) - 1, low, high, high))
        elif self._options.tokens:
            joined = "".join(contents)
            plain = len(joined) if joined.isascii() else len(joined.encode("ascii", "ignore"))
            self._sizes.append((len(self._lines) - 1, plain, len(joined) - plain, len(contents)))

    def row(self, row: Row) -> None:
        """A good row of any kind."""
        self._lines.append(row.line)
        asked = list(row.messages)
        answer: Any = (row.chosen, row.rejected)
        if row.kind != "preference" and asked and asked[-1]["role"] == "assistant":
            answer = asked.pop()
        turns = [message for message in asked if message["role"] != "system"]
        if self._options.duplicates:
            self._row_hashes(row, turns, answer)
        texts = list(row_contents(row))
        inputs = list(row_contents(replace(row, messages=tuple(turns), chosen=None, rejected=None)))
        self._texts += ("\n".join(inputs), "\n".join(texts[len(inputs) :]))
        everything = [text for message in (*row.messages, row.chosen, row.rejected) if message for text in message_texts(message)]
        hidden = [text for text in everything if text not in texts]
        if extra := "\n".join(text for text in hidden if len(text) > 3):
            self._extras[len(self._lines) - 1] = extra
        if self._options.tokens:
            self._tokens.append((len(self._lines) - 1, *self._meter.measure(row)))

    def _plain_hashes(self, systems: list[str], roles: list[str], asked: list[str], answer: str) -> None:
        prompt = "\n\n".join(systems)
        system = self._systems.get(prompt)
        if system is None:
            system = self._systems[prompt] = _hash(systems)
        question, said = _hash((roles, asked)), _hash(answer)
        self._whole.append((system * 3 + question * _FIRST + said * _SECOND) & _MASK)
        self._asked.append(question)
        self._answered.append(said)

    def _row_hashes(self, row: Row, turns: list[Any], answer: Any) -> None:
        plain = row.kind == "chat" and not row.tools and row.label is None and isinstance(answer, dict)
        if plain and all(len(turn) == 2 and isinstance(turn["content"], str) for turn in row.messages):
            systems = [message["content"] for message in row.messages if message["role"] == "system"]
            self._plain_hashes(systems, [turn["role"] for turn in turns], [turn["content"] for turn in turns], answer["content"])
            return
        self._whole.append(_hash((row.messages, row.text, answer, row.desirable, row.label, row.tools)))
        # The system prompt is left out: the same question under another prompt is still the same question.
        words = ([message["role"] for message in turns], [message["content"] for message in turns])
        self._asked.append(_hash(row.text) if row.kind == "text" else _hash(words))
        said = answer.get("content") if isinstance(answer, dict) and len(answer) == 2 else None
        self._answered.append(_hash(said if isinstance(said, str) else (answer, row.desirable)))

    def finish(self) -> None:
        """Hash and search the gathered texts; they are let go."""
        options = self._options
        if options.personal:
            self._search()
        halves = words_of(self._texts) if options.duplicates or options.near or options.watch is not None or options.keep_grams else None
        words = Words(halves.hashes, halves.offsets[::2]) if halves is not None else None
        bands, counts, path = np.zeros((0, BANDS), np.uint32), np.zeros(0, np.uint32), ""
        if options.near and words is not None:
            bands, counts, path = self._shingled(words)
        grams, gram_rows, watched = self._grams(words)
        low, high, longest = self._token_arrays()
        self.arrays = DeepArrays(
            lines=np.array(self._lines, np.uint32),
            whole=np.array(self._whole, np.uint64),
            asked=np.array(self._asked, np.uint64),
            answered=np.array(self._answered, np.uint64),
            likeness=_likeness(halves) if options.duplicates and halves is not None else np.zeros(0, np.uint64),
            low=low, high=high, longest=longest, bands=bands, counts=counts,
            grams=grams, gram_rows=gram_rows, watched=watched, shingles=path,
        )  # fmt: skip
        self._texts, self._extras, self._sizes, self._tokens = [], {}, [], []

    def _shingled(self, words: Words) -> tuple[Keys, NDArray[np.uint32], str]:
        shingled = shingles_of(words)
        try:
            handle, path = tempfile.mkstemp(suffix=".shingles", dir=self._options.folder or None)
            with open(handle, "wb") as file:
                file.write((shingled.hashes >> np.uint64(32)).astype(np.uint32).tobytes())
        except OSError as error:
            fix = "free space there, set TMPDIR to another disk, or skip near-duplicates"
            raise DataError(f"a temporary file cannot be written ({error.strerror})", fix=fix) from error
        return bands_of(shingled), np.diff(shingled.offsets).astype(np.uint32), path

    def _grams(self, words: Words | None) -> tuple[NDArray[np.uint64], NDArray[np.uint32], dict[int, int]]:
        none = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
        watch = self._options.watch
        if words is None or (watch is None and not self._options.keep_grams):
            return *none, {}
        lengths = np.diff(words.offsets)
        kept = np.where(lengths >= GRAM_WORDS, lengths - GRAM_WORDS + 1, 0)
        shingled = shingles_of(words, GRAM_WORDS)
        rows = np.repeat(np.arange(len(lengths), dtype=np.uint32), np.diff(shingled.offsets))
        long = np.repeat(kept > 0, np.diff(shingled.offsets))
        grams, rows = shingled.hashes[long], rows[long]
        if watch is None:
            return grams, rows, {}
        at = np.minimum(np.searchsorted(watch, grams), max(watch.size - 1, 0))
        met = watch[at] == grams if watch.size else np.zeros(grams.size, np.bool_)
        pairs = np.unique(np.stack([grams[met], rows[met].astype(np.uint64)]), axis=1) if met.any() else np.zeros((2, 0), np.uint64)
        found, counts = np.unique(pairs[0], return_counts=True)
        kept_grams = (grams, rows) if self._options.keep_grams else (grams[met], rows[met])
        return *kept_grams, dict(zip(found.tolist(), counts.tolist(), strict=True))

    def _token_arrays(self) -> tuple[Any, Any, Any]:
        if not self._options.tokens:
            return (np.zeros(0, np.float32),) * 3
        tokens = np.zeros((len(self._lines), 3), np.float32)
        if self._sizes:  # measured here all at once, by the rule of TokenMeter
            sizes = np.array(self._sizes, np.int64)
            frame = sizes[:, 3] * MESSAGE_OVERHEAD
            tokens[sizes[:, 0], 0] = ((sizes[:, 1] + sizes[:, 2]) / 4 + frame) * (1 - SPREAD)
            tokens[sizes[:, 0], 1] = tokens[sizes[:, 0], 2] = (sizes[:, 1] / 4 + frame) * (1 + SPREAD) + sizes[:, 2]
        if self._tokens:
            measured = np.array(self._tokens, np.float64)
            tokens[measured[:, 0].astype(np.int64)] = measured[:, 1:]
        return tokens[:, 0].copy(), tokens[:, 1].copy(), tokens[:, 2].copy()

    def _search(self) -> None:
        halves = [row for row in range(len(self._lines)) for _ in range(2)]
        for texts, rows in ((self._texts, halves), (list(self._extras.values()), list(self._extras))):
            if not texts:
                continue
            for at, kinds in sorted(rows_to_search(texts).items()):
                for match in find_personal(texts[at], kinds & set(self._options.kinds)):
                    line = self._lines[rows[at]]
                    self.personal.setdefault(match.kind, Hits()).add(line, masked(match.kind, texts[at][match.start : match.end]))
        if self._options.names:
            finder = presidio()
            for row, text in zip(halves, self._texts, strict=True):
                for match in finder(text):
                    self.personal.setdefault(match.kind, Hits()).add(self._lines[row], masked(match.kind, text[match.start : match.end]))


def merge_personal(into: dict[str, Hits], more: DeepSurvey, offset: int) -> None:
    """Add what a later batch found."""
    merge_hits(into, more.personal, offset)


def _hash(value: Any) -> int:
    data = value.encode() if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str, order="deterministic")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _likeness(halves: Words) -> NDArray[np.uint64]:
    """One hash of all words of each input (every other text), in order; 0 for an input without words."""
    starts, ends = halves.offsets[:-1:2], halves.offsets[1::2]
    position = np.arange(len(halves.hashes)) - np.repeat(starts, np.diff(halves.offsets[::2]))
    turned = halves.hashes * (np.uint64(2) * position.astype(np.uint64) + np.uint64(1))
    total = np.concatenate((np.zeros(1, np.uint64), np.cumsum(turned, dtype=np.uint64)))
    return (total[ends] - total[starts]) ^ ((ends - starts).astype(np.uint64) << np.uint64(48))
