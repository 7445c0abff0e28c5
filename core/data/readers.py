"""Reads records from JSONL, JSON, CSV and Parquet files, one at a time, each with the place it came from.

A fault of the file (missing, a folder, empty, UTF-16, an unknown kind) raises DataError. A fault of one row comes out
as a ``BadRow`` in the row's place, so that no row is skipped in silence and the caller decides what to do.
Blank lines are no rows. Memory is bounded by ``MAX_ROW_BYTES``, whatever the file holds.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tuneport.core.data.csv_rows import CsvFault, split_records
from tuneport.core.data.json_rows import MAX_ROW_BYTES, JsonFault, decode_utf8, parse_object
from tuneport.core.data.json_stream import looks_like_lines, stream_objects
from tuneport.core.data.parquet_rows import parquet_rows
from tuneport.core.errors import DataError, Fault

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""File name endings that are read, and the kind of file each means."""

_BOM = b"\xef\xbb\xbf"
_FOREIGN = (
    (b"\xff\xfe", "UTF-16 or UTF-32 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "save it as UTF-8"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or export it as CSV"),
    (b"PAR1", "a Parquet file", "give it the ending .parquet"),
)


class Record(NamedTuple):
    """One object as it stands in the file. ``line``: 1-based line, or row number in JSON arrays and Parquet."""

    line: int
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. ``code`` is stable (see core.data.check); ``fault.path`` is ``file:line``."""

    line: int
    code: str
    fault: Fault


def bad_row(path: str, line: int, code: str, *, met: str, expected: str, hint: str = "") -> BadRow:
    """A BadRow at ``path:line``."""
    return BadRow(line, code, Fault(f"{path}:{line}", met, expected, hint))


def _malformed(path: str, line: int, fault: JsonFault | CsvFault) -> BadRow:
    return bad_row(path, line, "malformed_row", met=fault.met, expected=fault.expected, hint=fault.hint)


def sha256_of(path: str) -> str:
    """The SHA-256 of the file's bytes, in hex. Raises DataError when the file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_records(path: str) -> Iterator[Record | BadRow]:
    """The file's rows in order. Faults of the file raise DataError at once, before the first row is asked for.

    Raises MissingExtraError for Parquet without pyarrow.
    """
    head = _head(path)
    kind = SUFFIXES.get(Path(path).suffix.lower())
    if kind is None:
        raise DataError(f"{path!r} is of no known kind", fix=f"give it one of the endings {', '.join(SUFFIXES)}")
    read = _READERS[kind]
    if kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise DataError(f"{path} is not a Parquet file (its first bytes are not PAR1)", fix="give it the ending of its real kind")
    else:
        _refuse_foreign(path, head)
    return _guarded(path, read(path))


def _guarded(path: str, rows: Iterator[Record | BadRow]) -> Iterator[Record | BadRow]:
    try:
        yield from rows
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist", fix="check the path; paths in a spec are relative to the spec file")
    if isinstance(error, PermissionError):
        return DataError(f"{path} may not be read by this user", fix="grant read permission")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(f"{path!r} cannot be read ({reason})", fix="check the path and the disk")


def _head(path: str) -> bytes:
    """The first bytes of a regular, non-empty file."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{path} is a directory, not a file", fix="name the file in it")
        if not stat.S_ISREG(mode):
            raise DataError(f"{path} is not a regular file", fix="write the rows to a file first: they are read more than once")
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not head:
        raise DataError(f"{path} is empty", fix="put at least one row into it")
    return head


def _refuse_foreign(path: str, head: bytes) -> None:
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{path} is {what}, not UTF-8 text", fix=fix)
    if head.count(0) * 4 > len(head):  # UTF-16 without a mark has a NUL in every second byte of Latin text
        raise DataError(f"{path} is binary or UTF-16 text, not UTF-8", fix="save it as UTF-8")


class _Line(NamedTuple):
    number: int
    raw: bytes | None  # None: longer than MAX_ROW_BYTES


def _lines(file: BinaryIO) -> Iterator[_Line]:
    """Physical lines with their end of line, without a UTF-8 byte order mark; an overlong line is read past, not kept."""
    number = 0
    while raw := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1 and raw.startswith(_BOM):
            raw = raw[len(_BOM) :]
        if len(raw) <= MAX_ROW_BYTES:
            yield _Line(number, raw)
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(1 << 20)
        yield _Line(number, None)


def _too_long(path: str, line: int) -> BadRow:
    return _malformed(path, line, JsonFault("a longer one", f"a row of at most {MAX_ROW_BYTES >> 20} MiB", "is a line break missing?"))


def _json_lines(path: str) -> Iterator[Record | BadRow]:
    with Path(path).open("rb") as file:
        for number, raw in _lines(file):
            if raw is None:
                yield _too_long(path, number)
            elif raw.strip():
                try:
                    yield Record(number, parse_object(decode_utf8(raw.rstrip(b"\r\n"))))
                except JsonFault as fault:
                    yield _malformed(path, number, fault)


def _json(path: str) -> Iterator[Record | BadRow]:
    """A JSON file: an array of objects, {"data": [...]}, or (as is common) JSONL under the wrong ending."""
    with Path(path).open("rb") as file:
        first = next(_lines(file))
    if first.raw is not None and looks_like_lines(first.raw):
        yield from _json_lines(path)
        return
    with Path(path).open("rb") as file:
        for row, found in stream_objects(file):
            if isinstance(found, JsonFault):
                yield _malformed(path, row, found)
            else:
                yield Record(row, found)


def _csv(path: str) -> Iterator[Record | BadRow]:
    """A CSV file with a header row (RFC 4180 quoting). Every cell is text."""
    with Path(path).open("rb") as file:
        records = split_records((number, raw) for number, raw in _lines(file))
        head = next(records, None)
        if head is None:
            raise DataError(f"{path} holds no header row", fix="put the column names into the first line")
        line, names = head
        if isinstance(names, CsvFault):
            raise DataError(f"{path}:{line} is no header row: expected {names.expected}, met {names.met}", fix="mend the first line")
        header = [name.strip() or f"column_{place}" for place, name in enumerate(names, start=1)]
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{path} has two columns named {twice[0]!r}", fix="give every column its own name")
        for line, cells in records:
            if isinstance(cells, CsvFault):
                yield _malformed(path, line, cells)
            elif len(cells) != len(header):
                hint = "a comma or line break in a text needs quotes around the text"
                yield _malformed(path, line, CsvFault(f"{len(cells)} cells", f"{len(header)} cells, as in the header", hint))
            else:
                yield Record(line, dict(zip(header, cells, strict=True)))


def _parquet(path: str) -> Iterator[Record | BadRow]:
    for row, found in parquet_rows(path):
        if isinstance(found, JsonFault):
            yield _malformed(path, row, found)
        else:
            yield Record(row, found)


_READERS: dict[str, Callable[[str], Iterator[Record | BadRow]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
}


def peek(rows: Iterator[Record | BadRow], count: int) -> tuple[list[Record], Iterator[Record | BadRow]]:
    """The good records among the first rows, until ``count`` are found, and an iterator that still has every row."""
    seen: list[Record | BadRow] = []
    good: list[Record] = []
    for row in rows:
        seen.append(row)
        if isinstance(row, Record):
            good.append(row)
        if len(good) >= count or len(seen) >= 10 * count:
            break
    return good, chain(seen, rows)
