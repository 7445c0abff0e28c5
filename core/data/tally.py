"""Counts what stands in the rows, in bounded memory: every list has a length, every table a size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from tuneport.core.data.characters import suspicious
from tuneport.core.data.features import feature_bits
from tuneport.core.data.json_rows import JsonFault, parse_value
from tuneport.core.data.language import UNCLEAR, language_of
from tuneport.core.data.patterns import hide
from tuneport.core.data.readers import BadRow
from tuneport.core.data.rows import Row
from tuneport.core.data.schemas import SchemaCheck
from tuneport.core.errors import Fault

KEPT = 5
"""Lines and examples kept of each kind of finding."""

MOST_SYSTEMS = 1_000
MOST_LABELS = 10_000
MOST_ANSWERS = 1_000
LONGEST_LABEL = 60

_SHOWN = 60
_LONGEST_REASON = 200
_SEARCHED = 500  # characters on each side of a place that is shown, where personal data is looked for


class Hits:
    """How often something was met, and where first."""

    __slots__ = ("count", "examples", "lines")

    def __init__(self) -> None:
        self.count = 0
        self.lines: list[int] = []
        self.examples: list[str] = []

    def add(self, line: int, example: str = "") -> None:
        """One more."""
        self.count += 1
        if self.count <= KEPT:
            self.lines.append(line)
            if example:
                self.examples.append(example)

    def merge(self, other: Hits, offset: int) -> None:
        """Add what a later batch found; ``offset`` is added to its line numbers."""
        room = KEPT - len(self.lines)
        self.count += other.count
        self.lines += [line + offset for line in other.lines[:room]]
        self.examples += other.examples[: KEPT - len(self.examples)]


def merge_hits(into: dict[Any, Hits], more: Mapping[Any, Hits], offset: int, most: int | None = None) -> None:
    """Add tables of hits; a table that holds ``most`` entries takes no new ones."""
    for key, hits in more.items():
        if key not in into:
            if most is not None and len(into) >= most:
                continue
            into[key] = Hits()
        into[key].merge(hits, offset)


class Tally:
    """What was seen in some rows. Tallies of consecutive batches are merged in order."""

    LANGUAGE_SAMPLE: ClassVar[int] = 32
    """Rows of a batch whose language is looked at, evenly spread; all, in a batch of fewer than twice as many."""

    def __init__(self, schema: Mapping[str, Any] | None = None) -> None:
        self._schema = SchemaCheck(schema) if schema is not None else None
        self.good = 0
        self.bad = 0
        self.bits = 0
        self.faults: dict[str, Hits] = {}
        self.first_faults: dict[str, tuple[int, Fault]] = {}
        self.systems: dict[str, Hits] = {}
        self.systems_left_out = 0  # rows whose system prompt is not among the first MOST_SYSTEMS
        self.without_system = Hits()
        self.json_answers = Hits()
        self.other_answers = Hits()
        self.json_shapes: dict[tuple[str, ...], Hits] = {}
        self.schema_faults = Hits()
        self.endings: dict[str, Hits] = {}  # by last character of answers that are not JSON
        self.answers: dict[str, Hits] = {}  # short answers, the likely labels
        self.many_answers = False  # whether there were more short answers than are kept, or long ones
        self.labels: Counter[str] = Counter()
        self.suspicious: dict[str, Hits] = {}
        self.languages: dict[str, Hits] = {}
        self.identical_pairs = Hits()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_schema": None}  # a compiled schema stays where it is

    @property
    def rows(self) -> int:
        """Rows met, good and bad."""
        return self.good + self.bad

    def merge(self, other: Tally, offset: int) -> None:
        """Add the tally of the rows that follow; ``offset`` is added to its line numbers."""
        self.good += other.good
        self.bad += other.bad
        self.bits |= other.bits
        merge_hits(self.faults, other.faults, offset)
        for code, (line, fault) in other.first_faults.items():
            self.first_faults.setdefault(code, (line + offset, fault))
        known = len(self.systems)
        self.systems_left_out += other.systems_left_out
        if known + len(other.systems) > MOST_SYSTEMS:
            self.systems_left_out += sum(hits.count for text, hits in other.systems.items() if text not in self.systems)
            merge_hits(self.systems, {text: hits for text, hits in other.systems.items() if text in self.systems}, offset)
        else:
            merge_hits(self.systems, other.systems, offset)
        for name in ("without_system", "json_answers", "other_answers", "schema_faults", "identical_pairs"):
            getattr(self, name).merge(getattr(other, name), offset)
        merge_hits(self.json_shapes, other.json_shapes, offset, MOST_LABELS)
        merge_hits(self.endings, other.endings, offset, MOST_LABELS)
        self.many_answers |= other.many_answers
        if self.many_answers or len(self.answers.keys() | other.answers.keys()) > MOST_ANSWERS:
            self.many_answers, self.answers = True, {}
        else:
            merge_hits(self.answers, other.answers, offset)
        for label, count in other.labels.items():
            if label in self.labels or len(self.labels) < MOST_LABELS:
                self.labels[label] += count
        merge_hits(self.suspicious, other.suspicious, offset)
        merge_hits(self.languages, other.languages, offset)

    def fault(self, problem: BadRow) -> None:
        """One fault of a bad row; a row with two faults of one code counts once."""
        hits = self.faults.setdefault(problem.code, Hits())
        if hits.lines and hits.lines[-1] == problem.line:
            return
        hits.add(problem.line)
        self.first_faults.setdefault(problem.code, (problem.line, problem.fault))

    def system(self, prompt: str, line: int) -> None:
        """A row's system prompt."""
        hits = self.systems.get(prompt)
        if hits is not None and hits.count >= KEPT:
            hits.count += 1
            return
        if hits is None:
            if len(self.systems) >= MOST_SYSTEMS:
                self.systems_left_out += 1
                return
            hits = self.systems[prompt] = Hits()
        hits.add(line)

    def answer(self, text: str, line: int) -> None:
        """The text that a row teaches: its form is looked at."""
        if text[0] in "{[ \n\t\r" or self._schema:
            self._structured(text, line)
        else:
            self.other_answers.add(line)
            hits = self.endings.get(text[-1])
            if hits is None:
                hits = self.endings[text[-1]] = Hits()
            hits.add(line)
        if not self.many_answers:
            if len(text) > LONGEST_LABEL:
                self.many_answers, self.answers = True, {}
                return
            hits = self.answers.get(text)
            if hits is None:
                if len(self.answers) >= MOST_ANSWERS:
                    self.many_answers, self.answers = True, {}
                    return
                hits = self.answers[text] = Hits()
            hits.add(line)

    def _structured(self, text: str, line: int) -> None:
        stripped = text.strip()
        value: Any = None
        try:
            value = parse_value(text) if stripped[:1] in ("{", "[") or self._schema else None
        except JsonFault as fault:
            if self._schema:
                self.schema_faults.add(line, f"no JSON ({fault.met})")
        else:
            if self._schema and (reason := self._schema.reason(value)):
                self.schema_faults.add(line, hide(reason)[:_LONGEST_REASON] if self.schema_faults.count < KEPT else "")
        if isinstance(value, (dict, list)):
            self.json_answers.add(line)
            if isinstance(value, dict):
                shape = tuple(sorted(value))
                if shape in self.json_shapes or len(self.json_shapes) < MOST_LABELS:
                    self.json_shapes.setdefault(shape, Hits()).add(line)
            return
        self.other_answers.add(line)
        if stripped:
            self.endings.setdefault(stripped[-1], Hits()).add(line)

    def characters(self, text: str, line: int) -> None:
        """Suspicious characters of a row."""
        for kind, at in suspicious(text):
            hits = self.suspicious.setdefault(kind, Hits())
            hits.add(line, _around(text, at) if hits.count < KEPT else "")

    def language(self, text: str, line: int) -> None:
        """The language of a row of the sample."""
        self.languages.setdefault(language_of(text), Hits()).add(line)

    def row(self, row: Row, *, sample: bool) -> None:
        """A good row of any kind."""
        self.good += 1
        self.bits |= feature_bits(row)
        if row.label is not None and (row.label in self.labels or len(self.labels) < MOST_LABELS):
            self.labels[row.label] += 1
        systems = [str(message["content"]) for message in row.messages if message["role"] == "system"]
        learnt = "\n".join(row_contents(row))
        everything = "\n".join([*systems, learnt])
        if not (everything.isascii() and everything.isprintable()):
            self.characters(everything, row.line)
        if sample:
            self.language(learnt, row.line)
        if row.kind == "text":
            return
        if systems:
            self.system("\n".join(systems), row.line)
        else:
            self.without_system.add(row.line)
        if row.kind == "preference" and row.chosen == row.rejected:
            self.identical_pairs.add(row.line)
        last = row.chosen or row.messages[-1]
        # A bad answer (KTO) need not have the right form, and an answer that is a tool call has a form of its own.
        if last["role"] == "assistant" and isinstance(last["content"], str) and "tool_calls" not in last and row.desirable is not False:
            self.answer(last["content"], row.line)

    @property
    def answered(self) -> int:
        """Answers whose form was looked at."""
        return self.json_answers.count + self.other_answers.count


def _around(text: str, at: int) -> str:
    """What stands around a place, in ASCII and with personal data masked, also where invisible characters part it."""
    start = max(0, at - _SEARCHED)
    near = list(hide(text[start : at + _SEARCHED]))
    seen = [place for place, character in enumerate(near) if character.isprintable()]
    for place, character in zip(seen, hide("".join(near[place] for place in seen)), strict=True):
        near[place] = character
    return ascii("".join(near)[max(0, at - start - 20) : at - start + 20])[1:-1][:_SHOWN]


def row_contents(row: Row) -> Iterator[str]:
    """The texts that stand in a row but for its system prompt, tool calls and tools."""
    for message in (*row.messages, row.chosen, row.rejected):
        if message is None or message["role"] == "system":
            continue
        content = message["content"]
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (part["text"] for part in content if part["type"] == "text")
    if row.text:
        yield row.text


def minority(languages: Mapping[str, Hits]) -> tuple[str, dict[str, Hits]]:
    """The commonest language of the sample and the others; texts too short to tell are left out."""
    told = {name: hits for name, hits in languages.items() if name != UNCLEAR}
    most = max(told, key=lambda name: told[name].count, default=UNCLEAR)
    return most, {name: hits for name, hits in told.items() if name != most}
