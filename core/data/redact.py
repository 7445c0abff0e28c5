"""Replaces personal data by placeholders such as [EMAIL_1]: one for each value, the same throughout a data set.

The map from placeholder to value is the key to undo it. It is kept in memory, and written only where the caller says,
readable by this user alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneport.core.data.atomic import write_text
from tuneport.core.data.patterns import KINDS, Match, find_personal
from tuneport.core.data.rows import Message, Row
from tuneport.core.errors import DataError

_PLACEHOLDER = re.compile(r"\[([A-Z][A-Z_]*)_(\d{1,9})\]")


class Redactor:
    """Redacts texts, numbering values of each kind as they come. ``finder`` adds matches (Presidio's, say) to the patterns'."""

    def __init__(self, kinds: Collection[str] = KINDS, finder: Callable[[str], list[Match]] | None = None) -> None:
        self._kinds = tuple(kinds)
        self._finder = finder
        self._names: dict[tuple[str, str], str] = {}
        self._last: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def reserve(self, text: str) -> None:
        """Note placeholders that stand in the text already: their numbers are not given again, so that undoing is exact."""
        if "[" in text:
            for kind, number in _PLACEHOLDER.findall(text):
                self._last[kind] = max(self._last[kind], int(number))

    def redact(self, text: str) -> str:
        """The text with placeholders."""
        matches = find_personal(text, self._kinds)
        if self._finder is not None:
            more = [m for m in self._finder(text) if all(m.end <= old.start or m.start >= old.end for old in matches)]
            matches = sorted([*matches, *more], key=lambda match: match.start)
        if not matches:
            return text
        pieces, at = [], 0
        for match in matches:
            if match.start < at:
                continue
            pieces += [text[at : match.start], self._placeholder(match.kind, text[match.start : match.end])]
            self.counts[match.kind] += 1
            at = match.end
        return "".join([*pieces, text[at:]])

    def _placeholder(self, kind: str, value: str) -> str:
        name = self._names.get((kind, value))
        if name is None:
            upper = re.sub(r"[^A-Z]", "_", kind.upper())
            self._last[upper] += 1
            name = self._names[kind, value] = f"[{upper}_{self._last[upper]}]"
        return name

    def row(self, row: Row) -> Row:
        """The row with every text redacted: messages, answers, tool calls, reasoning and columns. Its label stays."""
        return replace(
            row,
            messages=tuple(self._message(message) for message in row.messages) if row.label is None else self._labelled(row),
            chosen=self._message(row.chosen) if row.chosen else None,
            rejected=self._message(row.rejected) if row.rejected else None,
            text=self.redact(row.text),
            columns={name: self._value(value) for name, value in row.columns.items()},
        )

    def _labelled(self, row: Row) -> tuple[Message, ...]:
        """A class is not personal data, and is compared by its spelling: only what stands before it is redacted."""
        last = row.messages[-1]
        return (*map(self._message, row.messages[:-1]), last if last["role"] == "assistant" else self._message(last))

    def _message(self, message: Message) -> Message:
        return {key: value if key in ("role", "tool_call_id", "weight") else self._value(value) for key, value in message.items()}

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return value if value.startswith("data:image/") else self.redact(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if isinstance(value, dict):
            return {key: held if key in ("type", "id") else self._value(held) for key, held in value.items()}
        return value

    @property
    def map(self) -> dict[str, str]:
        """Value by placeholder."""
        return {name: value for (_, value), name in self._names.items()}

    def write_map(self, path: Path) -> None:
        """Write the map as JSON, readable by this user only. Raises TuneportError when the place cannot be written."""
        write_text(path, json.dumps(self.map, ensure_ascii=False, indent=1) + "\n", private=True)


def reserve_row(redactor: Redactor, row: Row) -> None:
    """Note the placeholders that stand anywhere in a row already."""
    for value in (row.messages, row.chosen, row.rejected, row.text, row.columns):
        _reserve(redactor, value)


def _reserve(redactor: Redactor, value: Any) -> None:
    if isinstance(value, str):
        redactor.reserve(value)
    elif isinstance(value, Mapping):
        for held in value.values():
            _reserve(redactor, held)
    elif isinstance(value, (list, tuple)):
        for held in value:
            _reserve(redactor, held)


def restore(text: str, mapping: Mapping[str, str]) -> str:
    """The text with placeholders of the map turned back into values."""
    return _PLACEHOLDER.sub(lambda match: mapping.get(match[0], match[0]), text)


def read_map(path: str | Path) -> dict[str, str]:
    """A map that ``write_map`` wrote. Raises DataError when it cannot be read."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no redaction map ({error})", fix="give the file that prepare wrote") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DataError(f"{path} is no redaction map", fix="give the file that prepare wrote")
    return found
