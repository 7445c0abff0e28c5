"""Cuts a source of rows into batches that can be surveyed apart, in any process, and added up in order.

A plain JSONL file is cut into byte ranges (the rows that begin in a range belong to it), which workers read by themselves; a
packed one into blocks of whole lines; everything else into lists of records. Cuts depend on the source only, never on the number of
workers, so a report is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tuneport.core.data.compressed import DamagedArchiveError, open_content, packing_of
from tuneport.core.data.hub_rows import Source
from tuneport.core.data.json_rows import MAX_ROW_BYTES
from tuneport.core.data.readers import BadRow, Record, file_kind, read_records, unreadable

RANGE_BYTES = 4 << 20
RECORDS = 4_000

_PIECE = 1 << 16
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RangeBatch:
    """The JSONL rows that begin in ``[start, end)`` of a file; lines are numbered from the range's first."""

    path: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BlockBatch:
    """Whole JSONL lines as bytes. ``done`` counts bytes of the file on disk that were read so far."""

    block: bytes
    overlong: bool  # whether the last line was longer than MAX_ROW_BYTES and is left out
    done: int
    damage: str = ""  # why nothing follows, when the archive is damaged after this block


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Rows as read, with line numbers of the whole source. ``done`` counts them."""

    records: list[Record | BadRow]
    done: int


Batch = RangeBatch | BlockBatch | RecordBatch


def batches_of(source: Source) -> Iterator[Batch]:
    """The source's rows in order. Raises DataError when it cannot be read."""
    if isinstance(source, str) and file_kind(source) == "jsonl":
        return _packed(source) if packing_of(source) else _ranges(source)
    return _records(source)


def size_of(source: Source) -> tuple[int | None, str]:
    """How much there is to do, None where nobody knows, and its unit, as ``done`` counts it ("bytes" or "rows")."""
    if not isinstance(source, str):
        return (len(source) if isinstance(source, Sized) else None), "rows"
    return (Path(source).stat().st_size, "bytes") if file_kind(source) == "jsonl" else (None, "rows")


def _ranges(path: str) -> Iterator[Batch]:
    size = Path(path).stat().st_size
    for start in range(0, size, RANGE_BYTES):
        yield RangeBatch(path, start, min(start + RANGE_BYTES, size))


def read_range(batch: RangeBatch) -> tuple[bytes, bool]:
    """The range's rows, and whether its last line is longer than MAX_ROW_BYTES and left out. Raises DataError."""
    try:
        with Path(batch.path).open("rb") as file:
            file.seek(max(batch.start - 1, 0))
            block = file.read(batch.end - file.tell())
            if batch.start:
                cut = block.find(b"\n")
                if cut < 0:
                    return b"", False  # the middle of a line that began in an earlier range
                block = block[cut + 1 :]
            elif block.startswith(_BOM):
                block = block[len(_BOM) :]
            return _completed(file, block)
    except OSError as error:
        raise unreadable(batch.path, error) from error


def _completed(file: BinaryIO, block: bytes) -> tuple[bytes, bool]:
    """The block with the rest of its last line; a line that is too long is left out, and read past."""
    if not block or block.endswith(b"\n"):
        return block, False
    whole = block.rfind(b"\n") + 1
    rest = file.readline(MAX_ROW_BYTES + 1 - (len(block) - whole))
    if len(block) - whole + len(rest) <= MAX_ROW_BYTES:
        return block + rest, False
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(1 << 20)
    return block[:whole], True


def _packed(path: str) -> Iterator[Batch]:
    packed = Path(path).stat().st_size
    read = 0
    try:
        with open_content(path) as file:
            damage = ""
            while not damage:
                block, damage = _read_block(file)
                if not read and block.startswith(_BOM):
                    block = block[len(_BOM) :]
                read += len(block)
                overlong = False
                try:
                    block, overlong = (block[: block.rfind(b"\n") + 1], False) if damage else _completed(file, block)
                except DamagedArchiveError as error:
                    block, damage = block[: block.rfind(b"\n") + 1], str(error)
                if not block and not overlong and not damage:
                    return
                yield BlockBatch(block, overlong, min(read // 4, packed), damage)  # text packs to about a quarter
    except OSError as error:
        raise unreadable(path, error) from error


def _read_block(file: BinaryIO) -> tuple[bytes, str]:
    """The next bytes, and why none follow when the archive is damaged there."""
    pieces: list[bytes] = []
    size = 0
    try:
        while size < RANGE_BYTES and (piece := file.read(_PIECE)):
            pieces.append(piece)
            size += len(piece)
    except DamagedArchiveError as error:
        return b"".join(pieces), str(error)
    return b"".join(pieces), ""


def _records(source: Source) -> Iterator[Batch]:
    batch: list[Record | BadRow] = []
    done = 0
    for record in read_records(source):
        batch.append(record)
        if len(batch) >= RECORDS:
            done += len(batch)
            yield RecordBatch(batch, done)
            batch = []
    if batch:
        yield RecordBatch(batch, done + len(batch))
