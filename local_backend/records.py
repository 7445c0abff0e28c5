"""Rows as the workers read them: one JSON object per line with ``messages`` and, where there are any, ``tools``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuneport.core.data.rows import Row
from tuneport.core.errors import DataError

RECORD = "local-chat"
"""Name of this record shape in a plan's uploads."""


def to_record(row: Row) -> dict[str, Any]:
    """One row as a record. Raises DataError for a row that cannot be trained on: not a chat, or without an answer."""
    where = f"{row.file}:{row.line}"
    if row.kind != "chat":
        raise DataError(f"{where} is a {row.kind} row, but sft needs chats that end with an answer", fix="check data.format and method")
    if not row.messages or row.messages[-1].get("role") != "assistant":
        raise DataError(f"{where} does not end with an assistant message", fix="add the answer that is to be learnt")
    if row.weight is not None and row.weight != 1:
        raise DataError(f"{where} has the row weight {row.weight}, which this version does not train with", fix="remove the weights")
    record: dict[str, Any] = {"messages": list(row.messages), "source": where}
    if row.tools:
        record["tools"] = list(row.tools)
    return record


def write_records(path: Path, rows: Iterable[Row]) -> int:
    """Write all rows, replacing the file in one step; returns their number. The text is the same for the same rows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(to_record(row), ensure_ascii=False) + "\n")
            count += 1
    temporary.replace(path)
    return count


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in the user's file, record) of every line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            record = json.loads(line)
            yield record.get("source", f"{path.name}:{number}"), record
