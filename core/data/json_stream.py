"""Streams the objects of a JSON array, or of the array under "data" in a JSON object, in bounded memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from tuneport.core.data.json_rows import (
    MAX_ROW_BYTES,
    STRICT,
    JsonFault,
    decode_utf8,
    invalid_json,
    kind_of,
    parse_object,
    shown,
    too_deep,
    too_many_digits,
    verified,
)

_CHUNK = 1 << 16
_LENIENT = json.JSONDecoder()  # finds where a value ends when the strict decoder refuses its content
_SHAPE = 'an array of objects, or {"data": [...]}'
_REST = "the rest of the file was not read"


def looks_like_lines(first: bytes) -> bool:
    """Whether a .json file is JSONL: its first line is a whole object that is not {"data": [...]}."""
    try:
        value = parse_object(decode_utf8(first))
    except JsonFault:
        return False
    return not isinstance(value.get("data"), list)


def stream_objects(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | JsonFault]]:
    """(row number, object or fault) for every element. After a fault that hides where the row ends, reading stops."""
    text = _Text(file)
    row = 0
    try:
        opening = text.peek()
        if opening not in ("{", "["):
            raise JsonFault(shown(opening) if opening else "an empty file", _SHAPE)
        for row, found in _in_object(text) if opening == "{" else _array(text):
            yield row, found
        if rest := text.peek():
            raise JsonFault(f"{shown(rest)} after the end", "one JSON value in the file")
    except JsonFault as fault:
        yield row + 1, JsonFault(fault.met, fault.expected, "; ".join(filter(None, [fault.hint, _REST])))


def _in_object(text: _Text) -> Iterator[tuple[int, dict[str, Any] | JsonFault]]:
    """Walk {"key": value, ...}; the array under "data" holds the rows, other keys are the file's own description."""
    text.take("{")
    found_data = False
    more = text.peek() != "}"
    while more:
        key = text.value()
        if not isinstance(key, str):
            raise JsonFault(kind_of(key), "a key in quotes")
        text.take(":")
        if key == "data" and text.peek() == "[":
            if found_data:
                raise JsonFault('"data" twice', "each key once")
            found_data = True
            yield from _array(text)
        else:
            text.value()
        more = text.peek() == ","
        if more:
            text.take(",")
    text.take("}")
    if not found_data:
        raise JsonFault("an object without it", _SHAPE)


def _array(text: _Text) -> Iterator[tuple[int, dict[str, Any] | JsonFault]]:
    text.take("[")
    row = 0
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        row += 1
        try:
            value = text.value()
        except JsonFault as fault:
            if not text.skipped:
                raise
            yield row, fault
        else:
            yield row, value if isinstance(value, dict) else JsonFault(kind_of(value), "an object {...}")
        if text.peek() == ",":
            text.take(",")
        else:
            text.take("]")
            return


class _Text:
    """A window on the decoded file that grows until the value in hand is whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer = ""
        self._at = 0
        self._ended = False
        self.skipped = False  # whether the value that was last refused has been read past

    def _more(self, size: int) -> None:
        raw = self._file.read(size)
        self._ended = not raw
        try:
            fresh = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            met = f"byte 0x{error.object[error.start]:02x}"
            raise JsonFault(met, "UTF-8 text", "probably Latin-1 or Windows-1252: save the file as UTF-8") from None
        self._buffer = self._buffer[self._at :] + fresh
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more(_CHUNK)

    def take(self, mark: str) -> None:
        """Step over ``mark``. Raises JsonFault when something else stands there."""
        met = self.peek()
        if met != mark:
            raise JsonFault(shown(met) if met else "the end of the file", f"{mark!r}")
        self._at += 1

    def value(self) -> Any:
        """The next JSON value. Raises JsonFault; ``skipped`` then says whether reading can go on after it."""
        self.skipped = False
        if not self.peek():
            raise JsonFault("the end of the file", "a JSON value")
        size = _CHUNK
        while True:
            try:
                return self._decoded(STRICT)
            except JsonFault:
                fault_of_content = self._past()
                if fault_of_content:
                    raise
            except json.JSONDecodeError as error:
                if self._ended:
                    raise invalid_json(error) from None
            except RecursionError:
                raise too_deep() from None
            except ValueError:
                raise too_many_digits() from None
            if len(self._buffer) - self._at > MAX_ROW_BYTES:
                raise JsonFault("a longer or broken one", f"a row of valid JSON, at most {MAX_ROW_BYTES >> 20} MiB")
            self._more(size)
            size *= 2  # doubling keeps the repeated attempts linear in the row's length

    def _decoded(self, decoder: json.JSONDecoder) -> Any:
        value, end = decoder.raw_decode(self._buffer, self._at)
        if end == len(self._buffer) and not self._ended and not isinstance(value, (dict, list, str)):
            raise json.JSONDecodeError("a number may go on", self._buffer, end)
        start, self._at = self._at, end
        self.skipped = True
        return verified(value, self._buffer[start:end])

    def _past(self) -> bool:
        """Step over a value whose content was refused; False when its end is not in the window yet."""
        if self.skipped:
            return True
        try:
            _, self._at = _LENIENT.raw_decode(self._buffer, self._at)
        except json.JSONDecodeError:
            return self._ended
        except (RecursionError, ValueError):
            return True
        self.skipped = True
        return True
