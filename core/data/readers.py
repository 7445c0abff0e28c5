"""Reads records from JSONL, JSON, CSV and Parquet files, and Hugging Face datasets, one at a time, each with its place.

JSONL, JSON and CSV may be packed with gzip or Zstandard (rows.jsonl.gz, rows.csv.zst).

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

from tuneport.core.data.compressed import PACKINGS, DamagedArchiveError, content_suffix, open_content, packing_of
from tuneport.core.data.csv_rows import CsvFault, split_records
from tuneport.core.data.hub_rows import HubDataset, Source, hub_rows, source_name
from tuneport.core.data.json_rows import MAX_ROW_BYTES, JsonFault, decode_utf8, parse_object
from tuneport.core.data.json_stream import looks_like_lines, stream_objects
from tuneport.core.data.parquet_rows import parquet_rows
from tuneport.core.errors import DataError, Fault, UsageError

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""File name endings that are read, and the kind of file each means. All but Parquet may be followed by .gz or .zst."""

_BOM = b"\xef\xbb\xbf"
_FOREIGN = (
    (b"\xff\xfe", "UTF-16 or UTF-32 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "save it as UTF-8"),
    (b"\x1f\x8b", "a gzip archive", "add .gz to its name"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "add .zst to its name"),
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
        raise unreadable(path, error) from error


def file_kind(path: str) -> str:
    """ "jsonl", "json", "csv" or "parquet": what the file's content is. Looks at its name and its first bytes.

    A .json file whose first line is a whole object is JSONL. Raises DataError when the file is missing, a folder, empty, of
    no known kind, or not what its name says, and MissingExtraError for Zstandard without its extra.
    """
    head = _head(path)
    kind = SUFFIXES.get(content_suffix(path))
    if kind is None:
        endings = ", ".join(SUFFIXES)
        raise DataError(f"{path!r} is of no known kind", fix=f"give it one of the endings {endings}, and {' or '.join(PACKINGS)} if packed")
    if packing_of(path):
        if kind == "parquet":
            raise DataError(f"{path} is a packed Parquet file", fix="unpack it: Parquet is compressed by itself")
        head = _unpacked_head(path)
    if kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise DataError(f"{path} is not a Parquet file (its first bytes are not PAR1)", fix="give it the ending of its real kind")
        return kind
    _refuse_foreign(path, head)
    if kind == "json":
        try:
            with open_content(path) as file:
                first = next(lines_of(file), None)
        except OSError as error:
            raise unreadable(path, error) from error
        except DamagedArchiveError:  # within the first line: reading it as an array gives what came before
            first = None
        if first is not None and first.raw is not None and looks_like_lines(first.raw):
            return "jsonl"
    return kind


def read_records(source: Source) -> Iterator[Record | BadRow]:
    """The rows in order. Faults of the file raise DataError at once, before the first row is asked for.

    Raises MissingExtraError for Parquet without pyarrow and for Zstandard without its extra.
    """
    if not isinstance(source, str):
        return _hub(source)
    return _guarded(source, _READERS[file_kind(source)](source))


def _guarded(path: str, rows: Iterator[Record | BadRow]) -> Iterator[Record | BadRow]:
    line = 0
    try:
        for row in rows:
            line = row.line
            yield row
    except OSError as error:
        raise unreadable(path, error) from error
    except DamagedArchiveError as error:
        yield damaged_rest(path, line + 1, error)


def damaged_rest(path: str, line: int, error: DamagedArchiveError) -> BadRow:
    """The BadRow that stands for all rows after the place where an archive is damaged."""
    return _malformed(path, line, JsonFault(str(error), "a whole archive", "the rest of the file was not read"))


def unreadable(path: str, error: Exception) -> DataError:
    """The DataError for a file that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist", fix="check the path; paths in a spec are relative to the spec file")
    if isinstance(error, PermissionError):
        return DataError(f"{path} may not be read by this user", fix="grant read permission")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(f"{path!r} cannot be read ({reason})", fix="check the path and the disk")


def _head(path: str) -> bytes:
    """The first bytes of a regular, non-empty file."""
    if path == "-":
        raise UsageError("standard input is not read: rows are read more than once", fix="write them to a file first and name it")
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{path} is a directory, not a file", fix="name the file in it")
        if not stat.S_ISREG(mode):
            raise DataError(f"{path} is not a regular file", fix="write the rows to a file first: they are read more than once")
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not head:
        raise DataError(f"{path} is empty", fix="put at least one row into it")
    return head


def _unpacked_head(path: str) -> bytes:
    try:
        with open_content(path) as file:
            head = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from error
    except DamagedArchiveError as error:
        raise DataError(f"{path} cannot be unpacked: {error}", fix="write it again") from error
    if not head:
        raise DataError(f"{path} holds nothing when unpacked", fix="put at least one row into it")
    return head


def _refuse_foreign(path: str, head: bytes) -> None:
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{path} is {what}, not UTF-8 text", fix=fix)
    if head.count(0) * 4 > len(head):  # UTF-16 without a mark has a NUL in every second byte of Latin text
        raise DataError(f"{path} is binary or UTF-16 text, not UTF-8", fix="save it as UTF-8")
    text = head.decode("utf-8", "replace")
    controls = sum(character < " " and character not in "\t\n\r\f\b\0" for character in text)
    # Text in an older encoding has bytes that are no UTF-8 too, but hardly ever control characters; bytes at random have one in ten.
    if controls * 50 > len(text) and (controls + text.count("\ufffd")) * 3 > len(text):
        raise DataError(f"{path} is no text file: most of its first bytes are no text", fix="check that it is the file you meant")


class Line(NamedTuple):
    """A physical line of a file."""

    number: int
    raw: bytes | None  # None: longer than MAX_ROW_BYTES


def lines_of(file: BinaryIO) -> Iterator[Line]:
    """Physical lines with their end of line, without a UTF-8 byte order mark; an overlong line is read past, not kept."""
    number = 0
    while raw := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1 and raw.startswith(_BOM):
            raw = raw[len(_BOM) :]
        if len(raw) <= MAX_ROW_BYTES:
            yield Line(number, raw)
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(1 << 20)
        yield Line(number, None)


def too_long(path: str, line: int) -> BadRow:
    """The BadRow of a line that is longer than MAX_ROW_BYTES."""
    return _malformed(path, line, JsonFault("a longer one", f"a row of at most {MAX_ROW_BYTES >> 20} MiB", "is a line break missing?"))


def _json_lines(path: str) -> Iterator[Record | BadRow]:
    with open_content(path) as file:
        for number, raw in lines_of(file):
            if raw is None:
                yield too_long(path, number)
            elif raw.strip():
                try:
                    yield Record(number, parse_object(decode_utf8(raw.rstrip(b"\r\n"))))
                except JsonFault as fault:
                    yield _malformed(path, number, fault)


def _json(path: str) -> Iterator[Record | BadRow]:
    """A JSON file: an array of objects, or {"data": [...]}."""
    with open_content(path) as file:
        for row, found in stream_objects(file):
            if isinstance(found, JsonFault):
                yield _malformed(path, row, found)
            else:
                yield Record(row, found)


def _csv(path: str) -> Iterator[Record | BadRow]:
    """A CSV file with a header row (RFC 4180 quoting). Every cell is text."""
    with open_content(path) as file:
        records = split_records((number, raw) for number, raw in lines_of(file))
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


def _hub(source: HubDataset) -> Iterator[Record | BadRow]:
    for row, found in hub_rows(source):
        if isinstance(found, JsonFault):
            yield _malformed(source_name(source), row, found)
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
