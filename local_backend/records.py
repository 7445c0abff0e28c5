"""Rows as the workers read them: one JSON object per line, and ``source``, the place in the user's file.

sft               messages, tools
cpt               text
dpo, orpo, simpo  messages (the prompt), chosen, rejected, tools
kto               messages (with the answer), desirable, tools; a pair of answers makes two records
rft               messages (the prompt), tools, item: every column beside them, for the grader
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuneport.core.data.rows import Row
from tuneport.core.errors import DataError
from tuneport.core.spec import PREFERENCE_METHODS, Method

RECORD = "local"
"""Name of these record shapes in a plan's uploads."""
_NOT_ITS_KIND = "check data.format and method"


def to_records(row: Row, method: Method) -> list[dict[str, Any]]:
    """One row as the records that the method learns from. Raises DataError for a row that it cannot learn from."""
    where = f"{row.file}:{row.line}"
    if row.weight is not None and row.weight != 1:
        raise DataError(f"{where} has the row weight {row.weight}, which this version does not train with", fix="remove the weights")
    shared: dict[str, Any] = {"source": where} | ({"tools": list(row.tools)} if row.tools else {})
    if method == "cpt":
        if row.kind != "text":
            raise DataError(f"{where} is a {row.kind} row, but cpt learns from text", fix=_NOT_ITS_KIND)
        return [shared | {"text": row.text}]
    if method in PREFERENCE_METHODS:
        return [shared | record for record in _preferences(row, where, method)]
    if row.kind != "chat" or not row.messages:
        raise DataError(f"{where} is a {row.kind} row, but {method} needs chats", fix=_NOT_ITS_KIND)
    messages = list(row.messages)
    last = messages[-1].get("role")
    if method == "rft":
        if last == "assistant":
            fix = "move the answer into a column for the grader"
            raise DataError(f"{where} ends with an answer, but in rft the model writes it", fix=fix)
        label = {"label": row.label} if row.label is not None else {}
        return [shared | {"messages": messages, "item": label | row.columns}]
    if last != "assistant":
        raise DataError(f"{where} does not end with an assistant message", fix="add the answer that is to be learnt")
    return [shared | {"messages": messages}]


def _preferences(row: Row, where: str, method: Method) -> list[dict[str, Any]]:
    messages = list(row.messages)
    if row.kind == "preference" and row.chosen is not None and row.rejected is not None:
        if method != "kto":
            return [{"messages": messages, "chosen": row.chosen, "rejected": row.rejected}]
        return [{"messages": [*messages, answer], "desirable": good} for answer, good in ((row.chosen, True), (row.rejected, False))]
    if method == "kto" and row.kind == "unpaired_preference" and row.desirable is not None:
        return [{"messages": messages, "desirable": row.desirable}]
    raise DataError(f"{where} is a {row.kind} row, which {method} does not learn from", fix=_NOT_ITS_KIND)


def write_records(path: Path, rows: Iterable[Row], method: Method) -> int:
    """Write all rows, replacing the file in one step; returns how many records. The text is the same for the same rows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                for record in to_records(row, method):
                    file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
                    count += 1
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in the user's file, record) of every line. Raises DataError for a damaged one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is damaged ({error})", fix="restore it, or submit the job anew") from error
            yield record.get("source", f"{path.name}:{number}"), record
