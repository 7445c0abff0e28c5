"""Looks at each good row once and keeps what the checks need: hashes, counts and line numbers, never the rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tuneport.core.data.features import feature_bits
from tuneport.core.data.json_rows import JsonFault, parse_value
from tuneport.core.data.rows import Row
from tuneport.core.data.split import Part

_MAX_REASON = 200


class RowSurvey:
    """What stands in the good rows of one file. ``earlier`` holds the hashed inputs of files checked before."""

    def __init__(self, validator: Any, earlier: Mapping[Part, set[bytes]]) -> None:
        self._validator = validator
        self._earlier = earlier
        self._whole: set[bytes] = set()
        self.good = 0
        self.bits = 0
        self.inputs: set[bytes] = set()
        self.duplicates: list[int] = []
        self.overlaps: dict[Part, list[int]] = {part: [] for part in earlier}
        self.identical_pairs: list[int] = []
        self.systems: set[bytes] = set()
        self.without_system: list[int] = []
        self.answered = 0
        self.answers: set[bytes] = set()
        self.json_lines: list[int] = []
        self.other_lines: list[int] = []
        self.json_shapes: Counter[tuple[str, ...]] = Counter()
        self.schema_lines: list[int] = []
        self.schema_reason = ""
        self.labels: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Look at one row."""
        self.good += 1
        self.bits |= feature_bits(row)
        if row.label is not None:
            self.labels[row.label] += 1
        self._compare(row)
        if row.kind == "text":
            return
        system = [message["content"] for message in row.messages if message["role"] == "system"]
        if system:
            self.systems.add(_digest(system))
        else:
            self.without_system.append(row.line)
        if row.kind == "preference" and row.chosen == row.rejected:
            self.identical_pairs.append(row.line)
        last = row.chosen or row.messages[-1]
        # A bad answer (KTO) need not have the right form, and an answer that is a tool call has a form of its own.
        if last["role"] == "assistant" and isinstance(last["content"], str) and "tool_calls" not in last and row.desirable is not False:
            self._answer(last["content"], row.line)

    def _compare(self, row: Row) -> None:
        answer = [row.chosen, row.rejected, row.desirable]
        whole = _digest([row.messages, row.text, answer, row.label, row.tools])
        if whole in self._whole:
            self.duplicates.append(row.line)
        self._whole.add(whole)
        asked = row.messages if row.kind == "preference" or not row.messages else _without_answer(row)
        # The system prompt is left out: the same question under another prompt is still a leak.
        turns = [(message["role"], message["content"]) for message in asked if message["role"] != "system"]
        key = _digest([turns, row.text])
        self.inputs.add(key)
        for part, inputs in self._earlier.items():
            if key in inputs:
                self.overlaps[part].append(row.line)

    def _answer(self, text: str, line: int) -> None:
        self.answered += 1
        self.answers.add(_digest(text))
        try:
            value = parse_value(text) if text.lstrip()[:1] in ("{", "[") or self._validator else None
        except JsonFault as fault:
            value = None
            self._mismatch(line, f"no JSON ({fault.met})")
        else:
            if self._validator:
                error = next(iter(self._validator.iter_errors(value)), None)
                if error is not None:
                    self._mismatch(line, f"{error.message} at {error.json_path}")
        if isinstance(value, (dict, list)):
            self.json_lines.append(line)
            if isinstance(value, dict):
                self.json_shapes[tuple(sorted(value))] += 1
        else:
            self.other_lines.append(line)

    def _mismatch(self, line: int, reason: str) -> None:
        if self._validator:
            self.schema_lines.append(line)
            self.schema_reason = self.schema_reason or reason[:_MAX_REASON]

    def commonest_shape(self) -> str:
        """The commonest set of JSON fields, written out."""
        return ", ".join(self.json_shapes.most_common(1)[0][0]) or "none"


def _without_answer(row: Row) -> tuple[dict[str, Any], ...]:
    return row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages


def _digest(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
