"""Replaces personal data by placeholders such as [EMAIL_1]: one for each value, the same throughout a data set.

The map from placeholder to value is the key to undo it: a search for each placeholder. It is kept in memory, and written only where
the caller says, readable by this user alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneport.core.data.atomic import OWNER, write_text
from tuneport.core.data.patterns import KINDS, Match, find_personal
from tuneport.core.data.rows import Message, Row

_IMAGE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/]*=*")
_FORMAT_KEYS = ("id", "type", "name")
_TOOL_LEVELS = 2  # {"id", "type", "function": {"name", ...}}
_LEVELS = {"content": 1, "tool_calls": _TOOL_LEVELS}
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
        """The row with every text redacted: messages, answers, tool calls, reasoning, tools and columns. Its label stays."""
        return replace(
            row,
            messages=tuple(self._message(message) for message in row.messages) if row.label is None else self._labelled(row),
            chosen=self._message(row.chosen) if row.chosen else None,
            rejected=self._message(row.rejected) if row.rejected else None,
            text=self.redact(row.text),
            tools=tuple(self._value(tool, _TOOL_LEVELS) for tool in row.tools),
            columns={name: self._value(value) for name, value in row.columns.items()},
        )

    def _labelled(self, row: Row) -> tuple[Message, ...]:
        """A class is not personal data, and is compared by its spelling: only what stands before it is redacted."""
        last = row.messages[-1]
        return (*map(self._message, row.messages[:-1]), last if last["role"] == "assistant" else self._message(last))

    def _message(self, message: Message) -> Message:
        kept = ("role", "tool_call_id", "weight")
        return {key: value if key in kept else self._value(value, _LEVELS.get(key, 0)) for key, value in message.items()}

    def _value(self, value: Any, levels: int = 0) -> Any:
        """The value redacted. ``levels``: how deep objects belong to the format, so that their id, type and name are nobody's."""
        if isinstance(value, str):
            return value if value.startswith("data:image/") and _IMAGE.fullmatch(value) else self.redact(value)
        if isinstance(value, list):
            return [self._value(item, levels) for item in value]
        if isinstance(value, dict):
            kept = _FORMAT_KEYS if levels else ()
            return {key: held if key in kept else self._value(held, max(levels - 1, 0)) for key, held in value.items()}
        return value

    @property
    def map(self) -> dict[str, str]:
        """Value by placeholder."""
        return {name: value for (_, value), name in self._names.items()}

    def write_map(self, path: Path) -> None:
        """Write the map as JSON, readable by this user only. Raises TuneportError when the place cannot be written."""
        write_text(path, json.dumps(self.map, ensure_ascii=False, indent=1) + "\n", OWNER)


def reserve_row(redactor: Redactor, row: Row) -> None:
    """Note the placeholders that stand anywhere in a row already."""
    for value in (row.messages, row.chosen, row.rejected, row.text, row.tools, row.columns):
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
