"""Writes records to JSONL, JSON, CSV and Parquet files, packed or not, byte for byte the same each time, in one step each.

CSV and Parquet need to know all columns before the first row, so records are kept in a temporary file until the end. What a kind of
file cannot hold is refused with the reason; what it holds in another form (a number as text) is noted.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tuneport.core.data.atomic import EVERYBODY, replacing
from tuneport.core.data.compressed import content_suffix, packing_of, zstd
from tuneport.core.data.convert import InexpressibleError, Record
from tuneport.core.data.json_rows import MAX_ROW_BYTES
from tuneport.core.data.readers import SUFFIXES
from tuneport.core.errors import MissingExtraError, UsageError

TURN_COLUMNS = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
"""Columns that hold a text or a list of messages, with the role that a text alone stands for."""

_JSON_COLUMNS = ("messages", "tools")  # lists that the readers also take as JSON text
_INT64 = range(-(1 << 63), 1 << 63)


class Writer:
    """A file in the making. ``sha256`` and ``rows`` are final once the file is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.sha256 = ""
        self.notes: Counter[str] = Counter()
        self._sink: _JsonLines | _Spooled | None = None

    def write(self, record: Record) -> None:
        """Add a record. Raises InexpressibleError, and adds nothing, when this kind of file cannot hold it."""
        if self._sink is None:
            raise UsageError(f"{self.path} is not open", fix="write inside the with block")
        self._sink.write(record)
        self.rows += 1


@contextmanager
def open_writer(path: Path, mode: int = EVERYBODY) -> Iterator[Writer]:
    """A new file of the kind that its name says, which takes its place when the block ends well.

    ``mode``: its permissions, less the umask.
    Raises UsageError for a name of no known kind, MissingExtraError when writing needs an extra, TuneportError when the disk refuses.
    """
    kind = SUFFIXES.get(content_suffix(str(path)))
    packing = packing_of(str(path))
    if kind is None or (kind == "parquet" and packing):
        raise UsageError(f"{path} is of no kind that can be written", fix=f"end its name with one of {', '.join(SUFFIXES)}")
    writer = Writer(path)
    with ExitStack() as stack:
        raw = stack.enter_context(replacing(path, mode))
        hashed = _Hashed(raw)
        out: Any = hashed
        if packing == "gzip":  # neither a time nor a name in the header, so that the bytes are the same every time
            out = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=hashed, mtime=0))
        elif packing == "zstd":
            out = stack.enter_context(zstd(str(path)).ZstdFile(hashed, "wb"))
        sinks: dict[str, type[_JsonLines | _Spooled]] = {"jsonl": _JsonLines, "json": _JsonArray, "csv": _Csv, "parquet": _Parquet}
        sink = sinks[kind](out, writer.notes)
        stack.callback(sink.close)
        writer._sink = sink
        try:
            yield writer
        finally:
            writer._sink = None
        sink.end()
        if packing:
            out.close()
        writer.sha256 = hashed.digest.hexdigest()


class _Hashed(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def json_text(value: Any) -> str:
    """The value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _line(record: Record) -> bytes:
    line = json_text(record).encode()
    if len(line) > MAX_ROW_BYTES:
        raise InexpressibleError(f"is longer than {MAX_ROW_BYTES >> 20} MiB")
    return line


class _JsonLines:
    def __init__(self, out: BinaryIO, notes: Counter[str]) -> None:
        self._out = out
        del notes  # JSON holds everything as it is

    def close(self) -> None:
        """Nothing is held."""

    def write(self, record: Record) -> None:
        self._out.write(_line(record) + b"\n")

    def end(self) -> None:
        """Nothing follows the last row."""


class _JsonArray(_JsonLines):
    def __init__(self, out: BinaryIO, notes: Counter[str]) -> None:
        super().__init__(out, notes)
        self._before = b"[\n"

    def write(self, record: Record) -> None:
        line = _line(record)
        self._out.write(self._before + line)
        self._before = b",\n"

    def end(self) -> None:
        self._out.write(b"[]\n" if self._before == b"[\n" else b"\n]\n")


class _Spooled(ABC):
    """Keeps records in a temporary file, in order, with the columns met so far."""

    def __init__(self, out: BinaryIO, notes: Counter[str]) -> None:
        self._out = out
        self._notes = notes
        self._columns: dict[str, set[str]] = {}  # kinds of value met in each
        self._spool: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving

    def close(self) -> None:
        """Let go of the temporary file."""
        self._spool.close()

    def write(self, record: Record) -> None:
        self.check(record)
        self._spool.write(_line(record) + b"\n")
        for name, value in record.items():
            self._columns.setdefault(name, set()).add(_kind(value))

    @abstractmethod
    def check(self, record: Record) -> None:
        """Refuse what this kind of file cannot hold."""

    @abstractmethod
    def end(self) -> None:
        """Write the file."""

    def records(self) -> Iterator[Record]:
        """The records again."""
        self._spool.seek(0)
        for line in self._spool:
            yield json.loads(line)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in _INT64 else "json"
    if isinstance(value, list) and value and all(isinstance(item, dict) and _all_text(item) for item in value):
        return "messages"
    return {str: "text", float: "float", type(None): "none"}.get(type(value), "json")


def _all_text(item: dict[str, Any]) -> bool:
    return all(isinstance(held, str) for held in item.values())


class _Csv(_Spooled):
    def check(self, record: Record) -> None:
        for name, value in record.items():
            if name in TURN_COLUMNS and not isinstance(value, str):
                raise InexpressibleError(f"has more than text in {name!r}, and a CSV cell is text")
            if isinstance(value, str) and "\0" in value:
                raise InexpressibleError("holds a NUL character, which CSV cannot carry")
            if not name.strip() or name != name.strip() or "\0" in name:
                raise InexpressibleError("has a column whose name CSV cannot carry")

    def end(self) -> None:
        names = list(self._columns)
        text = io.TextIOWrapper(io.BufferedWriter(_Kept(self._out)), encoding="utf-8", newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(names)
        for record in self.records():
            rows.writerow([self._cell(name, record.get(name)) for name in names])
        text.flush()

    def _cell(self, name: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        if value is None:
            self._notes[f"missing values of {name!r} became empty text"] += 1
            return ""
        if name not in _JSON_COLUMNS and name != "weight" and not (name == "label" and isinstance(value, bool)):
            self._notes[f"values of {name!r} became text"] += 1
        return json_text(value)


class _Kept(io.RawIOBase):
    """A file that a wrapper must not close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


class _Parquet(_Spooled):
    _ROWS = 2_000

    def __init__(self, out: BinaryIO, notes: Counter[str]) -> None:
        try:
            import pyarrow.parquet  # noqa: F401, PLC0415
        except ImportError as error:
            raise MissingExtraError("writing Parquet needs pyarrow", "parquet") from error
        super().__init__(out, notes)
        self._message_keys: dict[str, dict[str, None]] = {}

    def check(self, record: Record) -> None:
        for name, value in record.items():
            kind = _kind(value)
            if name in TURN_COLUMNS and kind == "json":
                raise InexpressibleError(f"has messages with more than text in {name!r}, which this Parquet layout cannot hold")
            if kind == "messages":
                keys = self._message_keys.setdefault(name, {})
                keys.update(dict.fromkeys(key for message in value for key in message))

    def end(self) -> None:
        import pyarrow  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415

        types = {name: self._type(name, kinds - {"none"}) for name, kinds in self._columns.items()}
        schema = pyarrow.schema([(name, self._arrow(name, kind)) for name, kind in types.items()])
        with pyarrow.parquet.ParquetWriter(pyarrow.PythonFile(_Kept(self._out), mode="w"), schema, compression="zstd") as file:
            batch: list[Record] = []
            for record in self.records():
                batch.append({name: self._cell(name, types[name], record.get(name)) for name in types})
                if len(batch) >= self._ROWS:
                    file.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
                    batch = []
            if batch:
                file.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))

    def _type(self, name: str, kinds: set[str]) -> str:
        if name in TURN_COLUMNS and "messages" in kinds:
            return "messages"
        if len(kinds) == 1:
            return next(iter(kinds))
        if kinds == {"int", "float"}:
            return "float"
        return "json" if kinds else "text"

    def _arrow(self, name: str, kind: str) -> Any:
        import pyarrow  # noqa: PLC0415

        if kind == "messages":
            keys: Sequence[str] = tuple(self._message_keys[name] | dict.fromkeys(("role", "content") if name in TURN_COLUMNS else ()))
            return pyarrow.list_(pyarrow.struct([(key, pyarrow.string()) for key in keys]))
        types = {"bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64()}
        return types.get(kind, pyarrow.string())

    def _cell(self, name: str, kind: str, value: Any) -> Any:
        if value is None:
            return None
        if kind == "messages" and isinstance(value, str):
            return [{"role": TURN_COLUMNS[name], "content": value}]
        if kind == "float" and isinstance(value, int):
            if int(float(value)) != value:
                self._notes[f"whole numbers of {name!r} were rounded to doubles"] += 1
            return float(value)
        if kind == "json":
            if name not in _JSON_COLUMNS:
                self._notes[f"values of {name!r} became JSON text"] += 1
            return json_text(value)
        return value
