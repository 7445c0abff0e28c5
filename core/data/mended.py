"""The rows of a source after mending, as often as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tuneport.core.data.hub_rows import Source, source_name
from tuneport.core.data.load import DETECTION_ROWS, unknown_format, wrong_kind
from tuneport.core.data.mend import Mender
from tuneport.core.data.normalise import KIND_OF, Normaliser, detect_format
from tuneport.core.data.readers import BadRow, Record, read_records
from tuneport.core.data.rows import Kind, Row
from tuneport.core.errors import DataError

if TYPE_CHECKING:
    from tuneport.core.data.prepare import PrepareOptions


class MendedRows:
    """Iterating gives each row as a Row, or as the list of its faults. ``mender`` counts during the last iteration.

    Raises DataError when the source cannot be read, holds no row of a known format, or rows that the method cannot learn from.
    """

    def __init__(self, source: Source, options: PrepareOptions) -> None:
        self.source = source
        self.name = source_name(source)
        self._options = options
        self.mender = self._mender()
        first = []
        for record in read_records(source):
            if isinstance(record, Record):
                first.append(Record(record.line, self.mender.mend(record.value)))
            if len(first) >= DETECTION_ROWS:
                break
        if not first:
            raise DataError(f"{self.name} holds no rows that can be read", fix="see tuneport check")
        found = detect_format(first, options.method) if options.format == "auto" else options.format
        if found is None:
            raise unknown_format(self.name, first[0])
        if error := wrong_kind(self.name, found, options.method):
            raise error
        self.kind: Kind = KIND_OF[found]
        self._normaliser = Normaliser(self.name, found, options.method, options.system_prompt)

    def _mender(self) -> Mender:
        return Mender(self._options.mends, answered=self._options.method not in ("rft", "distill"))

    def __iter__(self) -> Iterator[Row | list[BadRow]]:
        self.mender = self._mender()
        for record in read_records(self.source):
            if not isinstance(record, Record):
                yield [record]
                continue
            row = self._normaliser.row(Record(record.line, self.mender.mend(record.value)))
            if isinstance(row, Row):
                yield self._with_prompt(row)
            else:
                self.mender.forget()
                yield row

    def _with_prompt(self, row: Row) -> Row:
        if not self._options.replace_system_prompt or not row.messages:
            return row
        turns = tuple(message for message in row.messages if message["role"] != "system")
        return replace(row, messages=({"role": "system", "content": self._options.system_prompt}, *turns))

    @staticmethod
    def records(source: Source) -> Iterator[Record | BadRow]:
        """The rows as they stand in the source."""
        return read_records(source)
