"""Parses one JSON object strictly: no duplicate keys, no NaN, no lone surrogates, bounded size and depth."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_ROW_BYTES = 8 << 20
"""Longest row that is read, in bytes. Far above any training context (a million tokens is about 4 MB of text)."""

MAX_DEPTH = 100
"""Deepest nesting that is read. Real rows have under ten levels; writers and templates recurse, so depth is bounded here."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonFault(Exception):
    """Why a row is no usable JSON object."""

    def __init__(self, met: str, expected: str, hint: str = "") -> None:
        super().__init__(met, expected, hint)
        self.met = met
        self.expected = expected
        self.hint = hint


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonFault(f"{shown(twice)} twice in one object", "each key once")
    return value


def _no_constant(name: str) -> NoReturn:
    raise JsonFault(name, "a JSON number", "write null where a value is missing")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonFault(f"the number {shown(digits)}", "a number within the range of a double")
    return value


STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def shown(value: object) -> str:
    """A short, safe picture of a value for an error message; personal data is masked."""
    from tuneport.core.data.patterns import hide  # noqa: PLC0415 - compiles patterns that only faults need

    text = hide(repr(value)[:4_000])
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: object) -> str:
    """What a value is, in JSON's words."""
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def decode_utf8(raw: bytes) -> str:
    """The text of one row. Raises JsonFault on bytes that are not UTF-8, and on NUL bytes."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        met = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        raise JsonFault(met, "UTF-8 text", "probably Latin-1 or Windows-1252: save the file as UTF-8") from None
    if "\0" in text:
        raise JsonFault(f"a NUL byte at position {text.index(chr(0)) + 1}", "text", "the file may be damaged")
    return text


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` holds. Raises JsonFault, and nothing else."""
    value = parse_value(text)
    if not isinstance(value, dict):
        raise JsonFault(kind_of(value), "an object {...}")
    return value


def parse_value(text: str) -> Any:
    """The JSON value that ``text`` holds. Raises JsonFault, and nothing else."""
    try:
        value = STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise invalid_json(error, f"at character {error.pos + 1}") from None
    except RecursionError:
        raise too_deep() from None
    except ValueError:  # an integer of more digits than Python converts
        raise too_many_digits() from None
    return verified(value, text)


_INVALID = {  # the messages of Python's json, in plain words; docs.python.org names none of them, so others are passed on
    "Expecting value": "no value",
    "Expecting ',' delimiter": "no ','",
    "Expecting ':' delimiter": "no ':'",
    "Expecting property name enclosed in double quotes": "no name in double quotes",
    "Unterminated string starting at": "a text without end",
    "Invalid control character at": "a bare line break or other control character",
    "Invalid \\escape": "an unknown escape",
    "Invalid \\uXXXX escape": "a broken \\u escape",
    "Extra data": "more after the end of the object",
    "Illegal trailing comma before end of object": "a comma before '}'",
    "Illegal trailing comma before end of array": "a comma before ']'",
}


def invalid_json(error: json.JSONDecodeError, place: str = "") -> JsonFault:
    """The fault that Python's parser met, without its wording. ``place`` says where in the row."""
    return JsonFault(f"{_INVALID.get(error.msg, error.msg)} {place}".rstrip(), "valid JSON")


def too_many_digits() -> JsonFault:
    """The fault of a whole number longer than Python converts (4,300 digits)."""
    return JsonFault("a number of thousands of digits", "a number of sane length")


def too_deep() -> JsonFault:
    """The fault of a value nested beyond MAX_DEPTH."""
    return JsonFault("deeper nesting", f"at most {MAX_DEPTH} levels of nesting")


def verified(value: Any, text: str) -> Any:
    """The parsed value, once its depth and its text are fit for use. ``text`` is what it was parsed from."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise too_deep()
    if _SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise JsonFault("half of a surrogate pair (\\ud800 to \\udfff)", "valid Unicode text", "an emoji was cut in two") from None
    return value


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
