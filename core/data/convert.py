"""Writes rows as records of the known formats: the way back from ``core.data.normalise``.

What a format cannot carry (loss weights, tools, a second answer, several turns) is refused with the reason, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from tuneport.core.data.normalise import RowFormat
from tuneport.core.data.rows import Kind, Message, Row

Record = dict[str, Any]

OWN_FORMAT: dict[Kind, RowFormat] = {
    "chat": "chat",
    "preference": "preference",
    "unpaired_preference": "unpaired_preference",
    "text": "text",
}
"""The format that carries everything a row of each kind holds."""


class InexpressibleError(Exception):
    """A record format cannot carry a row; ``reason`` says what it lacks, without the row's content."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def records_of(row: Row, format: RowFormat) -> list[Record]:
    """The row in this format: one record, or two where a pair becomes a good and a bad answer.

    Raises InexpressibleError when the format cannot carry all of it.
    """
    return _WRITERS[format](row)


def _chat(row: Row) -> list[Record]:
    _need(row, "chat")
    record: Record = {"messages": list(row.messages)}
    if row.tools:
        record["tools"] = list(row.tools)
    if row.weight is not None:
        record["weight"] = row.weight
    return [_with_columns(row, record, "prompt")]


def _prompt_completion(row: Row) -> list[Record]:
    _need(row, "chat")
    _no_weight(row)
    messages = list(row.messages)
    answer = messages.pop() if messages[-1]["role"] == "assistant" else None
    if answer is not None and any(turn["role"] == "assistant" and turn.get("weight") != 0 for turn in messages):
        raise InexpressibleError("learns from several answers, and a completion is only the last")
    record: Record = {"prompt": _turns(messages, "user")}
    if answer is not None:
        record["completion"] = _turns([answer], "assistant")
    if row.tools:
        record["tools"] = list(row.tools)
    if (row.label is not None or "label" in row.columns) and answer is not None and _reads_as_truth(row):
        raise InexpressibleError("has a label of true or false, which would turn it into a judged answer (unpaired_preference)")
    return [_with_columns(row, record, "messages", "input")]


def _reads_as_truth(row: Row) -> bool:
    value = row.label if row.label is not None else row.columns.get("label")
    return value in (0, 1) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _instruction(row: Row) -> list[Record]:
    question, answer = _single_turn(row, "instruction")
    record = {"instruction": question} | ({"output": answer} if answer is not None else {})
    return [_with_columns(row, record, "messages", "prompt", "completion", "input", "chosen", "rejected")]


def _classification(row: Row) -> list[Record]:
    question, answer = _single_turn(row, "classification")
    if answer is None:
        raise InexpressibleError("has no answer that could be a label")
    if row.label is not None and row.label != answer:
        raise InexpressibleError("has a label that is not its answer")
    if row.columns.get("label") not in (None, answer):
        raise InexpressibleError("has a column named label that is not its answer")
    record = _with_columns(row, {"text": question}, "messages", "prompt", "completion", "instruction", "input", "chosen", "rejected")
    return [{**record, "label": answer}]


def _preference(row: Row) -> list[Record]:
    _need(row, "preference")
    _no_weight(row)
    if row.chosen is None or row.rejected is None:
        raise InexpressibleError("lacks one of the two answers")
    record: Record = {"prompt": _turns(list(row.messages), "user")}
    record |= {"chosen": _turns([row.chosen], "assistant"), "rejected": _turns([row.rejected], "assistant")}
    if row.tools:
        record["tools"] = list(row.tools)
    return [_with_columns(row, record, "messages", "completion", "input")]


def _unpaired(row: Row) -> list[Record]:
    _no_weight(row)
    if row.kind == "preference" and row.chosen is not None and row.rejected is not None:
        judged = [(list(row.messages), row.chosen, True), (list(row.messages), row.rejected, False)]
    else:
        _need(row, "unpaired_preference")
        judged = [(list(row.messages[:-1]), row.messages[-1], bool(row.desirable))]
    records = []
    for prompt, answer, good in judged:
        record: Record = {"prompt": _turns(prompt, "user"), "completion": _turns([answer], "assistant"), "label": good}
        if row.tools:
            record["tools"] = list(row.tools)
        records.append(_with_columns(row, record, "messages", "input", "chosen", "rejected"))
    return records


def _text(row: Row) -> list[Record]:
    _need(row, "text")
    _no_weight(row)
    return [_with_columns(row, {"text": row.text}, "messages", "prompt", "completion", "instruction", "input", "chosen", "label")]


_WRITERS: dict[RowFormat, Callable[[Row], list[Record]]] = {
    "chat": _chat,
    "prompt_completion": _prompt_completion,
    "instruction": _instruction,
    "classification": _classification,
    "preference": _preference,
    "unpaired_preference": _unpaired,
    "text": _text,
}


def _need(row: Row, kind: Kind) -> None:
    if row.kind != kind:
        raise InexpressibleError(f"is a {row.kind} row, and the format holds {kind} rows")


def _no_weight(row: Row) -> None:
    if row.weight is not None:
        raise InexpressibleError("has a weight, and the format has none for a row")


def _turns(messages: list[Message], role: str) -> Any:
    """The text of one plain message from ``role``, else the list of messages."""
    first = messages[0] if len(messages) == 1 else {}
    if first.keys() == {"role", "content"} and first["role"] == role and isinstance(first["content"], str):
        return first["content"]
    # Weights of 0 on answers in a prompt are what reading the format gives them anyway.
    return [{key: value for key, value in message.items() if key != "weight" or value != 0} for message in messages]


def _single_turn(row: Row, format: str) -> tuple[str, str | None]:
    """The question and the answer of a row of two plain messages; the answer is None in a prompt."""
    _need(row, "chat")
    _no_weight(row)
    if row.tools:
        raise InexpressibleError(f"has tools, and {format} rows have none")
    roles = [message["role"] for message in row.messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise InexpressibleError(f"has the turns {', '.join(roles)}, and {format} rows have one question and one answer")
    for message in row.messages:
        if message.keys() != {"role", "content"} or not isinstance(message["content"], str):
            raise InexpressibleError(f"has a {message['role']} message that is more than text")
    return row.messages[0]["content"], row.messages[1]["content"] if len(row.messages) > 1 else None


def _with_columns(row: Row, record: Record, *forbidden: str) -> Record:
    """The record with the row's other columns beside it; a name that would change the record's meaning is refused."""
    columns = dict(row.columns)
    if row.label is not None:
        columns.setdefault("label", row.label)
    for name in columns:
        if name in record or name in forbidden or (name == "weight" and "messages" in record):
            raise InexpressibleError(f"has a column named {name!r}, which the format uses itself")
    return {**record, **columns}


def plain_value(value: Any, notes: Callable[[str], None]) -> Any:
    """The value as JSON can hold it: dates and times as ISO 8601 text, decimals as text, each noted.

    Raises InexpressibleError for bytes and anything else that has no such form.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (datetime, date, time)):
        notes("dates and times became ISO 8601 text")
        return value.isoformat()
    if isinstance(value, Decimal):
        notes("decimal numbers became text")
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_value(held, notes) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(held, notes) for held in value]
    raise InexpressibleError(f"has a value of type {type(value).__name__}, which JSON cannot hold")
