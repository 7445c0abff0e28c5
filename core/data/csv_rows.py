"""Splits CSV text into records so that one stray quote costs one row, not the rest of the file."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tuneport.core.data.json_rows import MAX_ROW_BYTES, JsonFault, decode_utf8

_QUOTE_HINT = "write a quote inside a quoted text twice"


class CsvFault(NamedTuple):
    """Why a record cannot be split into cells."""

    met: str
    expected: str
    hint: str = ""


def split_records(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[tuple[int, list[str] | CsvFault]]:
    """(line the record begins at, its cells or a fault). A line of None is one that is too long to keep."""
    csv.field_size_limit(MAX_ROW_BYTES)  # process-wide in the csv module; its default of 128 KiB refuses long documents
    feed = _Feed(lines)
    reader = csv.reader(feed, strict=True)
    while True:
        feed.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _LineFault as stop:
            if stop.line == feed.first:
                yield stop.line, stop.fault
            else:  # an open quote ran into a line that is bad by itself
                yield feed.first, CsvFault("an opening quote without its end", "quotes in pairs", _QUOTE_HINT)
                feed.give_back()
            reader = csv.reader(feed, strict=True)
        except csv.Error as error:
            yield feed.first, CsvFault(str(error), "quotes in pairs", _QUOTE_HINT)
            feed.give_back()
            reader = csv.reader(feed, strict=True)
        else:
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield feed.first, cells


class _LineFault(Exception):
    def __init__(self, line: int, fault: CsvFault) -> None:
        super().__init__(line)
        self.line = line
        self.fault = fault


class _Feed:
    """The lines for csv.reader, remembered since the record began so that a broken record's later lines are read again."""

    def __init__(self, lines: Iterable[tuple[int, bytes | None]]) -> None:
        self._lines = iter(lines)
        self._again: deque[tuple[int, bytes | None]] = deque()
        self._given: list[tuple[int, bytes | None]] = []
        self._size = 0

    @property
    def first(self) -> int:
        """Line number where the record in hand begins."""
        return self._given[0][0]

    def begin(self) -> None:
        """A new record begins with the next line."""
        self._given.clear()
        self._size = 0

    def give_back(self) -> None:
        """Put back every line after the first one of the record in hand."""
        self._again.extendleft(reversed(self._given[1:]))

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._given.append(line)
        number, raw = line
        limit = f"a row of at most {MAX_ROW_BYTES >> 20} MiB"
        if raw is None:
            raise _LineFault(number, CsvFault("a longer one", limit, "is a line break missing?"))
        self._size += len(raw)
        if self._size > MAX_ROW_BYTES:
            raise csv.Error(f"a quote that is still open after {MAX_ROW_BYTES >> 20} MiB")
        try:
            return decode_utf8(raw)
        except JsonFault as fault:
            raise _LineFault(number, CsvFault(fault.met, fault.expected, fault.hint)) from None
