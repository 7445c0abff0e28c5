"""Looks at each row of a batch once and keeps what the checks need: counts, first lines and hashes, never the rows.

Most files hold plain chat rows: nothing but messages with role and content. ``msgspec`` (kept, no dependencies; 1.7 us for a row of
660 bytes, where orjson takes 2.4 and json 8.4) decodes and checks their shape at once, and they are tallied without building
a Row. Every other row, and every row on which msgspec and the strict reader might differ, takes the long way through
``core.data.normalise``. Both ways give the same tally; a test holds them against each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tuneport.core.data.batches import Batch, BlockBatch, RangeBatch, RecordBatch, read_range
from tuneport.core.data.compressed import DamagedArchiveError
from tuneport.core.data.features import feature_bits
from tuneport.core.data.json_rows import JsonFault, decode_utf8, parse_object
from tuneport.core.data.messages import order_problem
from tuneport.core.data.normalise import Normaliser
from tuneport.core.data.readers import BadRow, Record, bad_row, damaged_rest, too_long
from tuneport.core.data.rows import Row
from tuneport.core.data.tally import KEPT, Tally

if TYPE_CHECKING:
    from tuneport.core.data.deep import DeepOptions, DeepSurvey

_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_ODD_ESCAPES = (b"\\u", b"\\b", b"\\f")


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


class _PlainRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_Message]


@dataclass(frozen=True, slots=True)
class SurveyJob:
    """What to look for; goes to every worker once. ``normaliser`` is None when the format is unknown."""

    name: str  # of the source, for messages
    normaliser: Normaliser | None
    schema: Mapping[str, Any] | None = None
    deep: DeepOptions | None = None

    def __call__(self, batch: Batch) -> BatchSurvey:
        """The survey of one batch."""
        return _Surveyor(self).survey(batch)


@dataclass(slots=True)
class BatchSurvey:
    """What stands in one batch. ``lines``: how many lines to add to the numbers of the next batch (0: its own are absolute)."""

    lines: int
    tally: Tally
    deep: DeepSurvey | None


def _each_key_once(line: bytes, messages: int) -> bool:
    """Whether no key stands twice in a plain row; False also where that cannot be told quickly."""
    if b"\\" not in line:
        return line.count(b'"') == 8 * messages + 2
    if line.count(b'"role"') != messages or line.count(b'"content"') != messages or line.count(b'"messages"') != 1:
        return False
    return b"\\u00" not in line or not _ESCAPED_ASCII.search(line)  # a key written with escapes


def _may_be_suspicious(line: bytes) -> bool:
    """Whether a line can hold characters that are worth a look."""
    return not line.isascii() or b"\x7f" in line or (b"\\" in line and any(escape in line for escape in _ODD_ESCAPES))


class _Surveyor:
    def __init__(self, job: SurveyJob) -> None:
        self.job = job
        self.tally = Tally(job.schema)
        self.deep: DeepSurvey | None = None
        if job.deep:
            from tuneport.core.data.deep import DeepSurvey  # noqa: PLC0415 - numpy takes time to load in every worker

            self.deep = DeepSurvey(job.deep)
        self.orders: dict[tuple[str, ...], tuple[bool, int, int]] = {}

    def survey(self, batch: Batch) -> BatchSurvey:
        """Survey the batch."""
        lines = 0
        if isinstance(batch, RecordBatch):
            step = max(1, len(batch.records) // Tally.LANGUAGE_SAMPLE)
            for number, record in enumerate(batch.records):
                self._record(record, sample=number % step == 0)
        else:
            block, overlong = read_range(batch) if isinstance(batch, RangeBatch) else (batch.block, batch.overlong)
            lines = self._block(block)
            if overlong:
                lines += 1
                self._bad([too_long(self.job.name, lines)])
            if isinstance(batch, BlockBatch) and batch.damage:
                self._bad([damaged_rest(self.job.name, lines + 1, DamagedArchiveError(batch.damage))])
        if self.deep:
            self.deep.finish()
        return BatchSurvey(lines, self.tally, self.deep)

    def _block(self, block: bytes) -> int:  # noqa: PLR0915 - one loop, without calls for the commonest rows
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        step = max(1, len(lines) // Tally.LANGUAGE_SAMPLE)
        plain = self._plain(block, lines) if self._may_be_plain() else [None] * len(lines)
        tally, deep, orders = self.tally, self.deep, self.orders
        endings, others = tally.endings, tally.other_answers
        structured = "{[ \n\t\r" if self.job.schema is None else None
        prompt = self.job.normaliser.system_prompt if self.job.normaliser else None
        system_bit = feature_bits(Row("chat", "", 0, ({"role": "system", "content": "x"},)))
        odd = not block.isascii() or b"\\" in block or b"\x7f" in block  # whether any line may hold suspicious characters
        good_rows = all_bits = 0
        last_system, last_hits = "", None
        for number, row in enumerate(plain, start=1):
            if row is None:
                self._line(number, lines[number - 1], sample=number % step == 0)
                continue
            messages = row.messages
            roles = tuple([message.role for message in messages])
            good, systems, bits = orders.get(roles) or self._order(roles)
            if good:
                for message in messages:
                    content = message.content
                    if not content or content.isspace():
                        good = False
                        break
            if not good:
                self._line(number, lines[number - 1], sample=number % step == 0)
                continue
            if prompt and not systems:
                messages.insert(0, _Message("system", prompt))
                systems, bits = 1, bits | system_bit
            good_rows += 1
            all_bits |= bits
            if systems == 1:
                system = messages[0].content
                if last_hits is not None and system == last_system:  # written out for the commonest case, as below
                    last_hits.count += 1
                else:
                    tally.system(system, number)
                    last_hits = tally.systems.get(system)
                    if last_hits is not None and last_hits.count < KEPT:
                        last_hits = None
                    last_system = system
            elif systems:
                tally.system("\n".join([message.content for message in messages[:systems]]), number)
            else:
                tally.without_system.add(number)
            # ``tally.answer`` written out for the commonest case: text, after the first few of its kind, among many answers.
            answer = messages[-1].content
            hits = endings.get(answer[-1])
            if hits is None or hits.count < KEPT or not tally.many_answers or structured is None or answer[0] in structured:
                tally.answer(answer, number)
            else:
                hits.count += 1
                others.count += 1
            if odd and _may_be_suspicious(lines[number - 1]):
                tally.characters("\n".join([message.content for message in messages]), number)
            if number % step == 0:
                tally.language("\n".join([message.content for message in messages[systems:]]), number)
            if deep:
                deep.plain(number, messages, systems)
        tally.good += good_rows
        tally.bits |= all_bits
        return len(lines)

    def _may_be_plain(self) -> bool:
        normaliser = self.job.normaliser
        return normaliser is not None and normaliser.format == "chat" and normaliser.method not in ("rft", "distill")

    def _plain(self, block: bytes, lines: list[bytes]) -> list[_PlainRow | None]:
        """The plain rows among the lines; None where a line is anything else, or where a key may stand twice."""
        decode = msgspec.json.Decoder(_PlainRow).decode
        rows: list[_PlainRow | None] = []
        quotes = 0
        aside: list[bytes] = []
        for line in lines:
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                rows.append(None)
                aside.append(line)
            else:
                rows.append(row)
                quotes += 8 * len(row.messages) + 2
        # Without a backslash every quote begins or ends a string, so their number shows whether a key stands twice.
        if b"\\" in block or block.count(b'"') - sum([line.count(b'"') for line in aside]) != quotes:
            for at, (line, found) in enumerate(zip(lines, rows, strict=True)):
                if found is not None and not _each_key_once(line, len(found.messages)):
                    rows[at] = None
        return rows

    def _order(self, roles: tuple[str, ...]) -> tuple[bool, int, int]:
        """(whether the order of roles is good, how many system messages stand first, the row's features)."""
        messages = tuple({"role": role, "content": "x"} for role in roles)
        good = bool(roles) and order_problem(messages, "assistant") is None
        known = (good, roles.count("system"), feature_bits(Row("chat", "", 0, messages)) if good else 0)
        if len(self.orders) < 10_000:  # a file of long conversations has as many orders as lengths
            self.orders[roles] = known
        return known

    def _line(self, number: int, line: bytes, *, sample: bool) -> None:
        if not line.strip():
            return
        try:
            record: Record | BadRow = Record(number, parse_object(decode_utf8(line.rstrip(b"\r\n"))))
        except JsonFault as fault:
            record = bad_row(self.job.name, number, "malformed_row", met=fault.met, expected=fault.expected, hint=fault.hint)
        self._record(record, sample=sample)

    def _record(self, record: Record | BadRow, *, sample: bool) -> None:
        if not isinstance(record, Record):
            self._bad([record])
            return
        normaliser = self.job.normaliser
        row = normaliser.row(record) if normaliser else None
        if isinstance(row, Row):
            self.tally.row(row, sample=sample)
            if self.deep:
                self.deep.row(row)
        else:
            self._bad(row or [])

    def _bad(self, problems: list[BadRow]) -> None:
        self.tally.bad += 1
        for problem in problems:
            self.tally.fault(problem)
