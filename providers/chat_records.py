"""Checks that record formats modelled on OpenAI's chat records share. Pure; each vendor's own rules stand in its records.py."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from tuneport.core.data.rows import Message, Row
from tuneport.core.errors import DataError

MESSAGE_KEYS = frozenset({"role", "content", "name", "weight", "tool_calls", "tool_call_id", "reasoning_content"})
"""Keys of a message in the chat-completions format, as ``core.data.rows.Message`` names them."""


def row_fault(row: Row, why: str, fix: str) -> DataError:
    """The error for a row that a record format cannot express; names the file and the line."""
    return DataError(f"{row.file}:{row.line} {why}", fix=fix)


def chat_messages(
    row: Row, messages: Iterable[Message], *, vendor: str, roles: Collection[str], keys: Collection[str] = MESSAGE_KEYS
) -> list[Message]:
    """Copies of the messages, ready for the wire. Keys that hold None are left out, but for an empty ``content``.

    Raises DataError for a role or a key that the vendor's format lacks, and for a weight other than 0 or 1.
    """
    checked: list[Message] = []
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        role = message.get("role")
        if role not in roles:
            known = ", ".join(sorted(roles))
            raise row_fault(row, f"has role {role!r} in {where}, which {vendor} does not accept", f"use one of {known}")
        sent = {key: value for key, value in message.items() if value is not None or key == "content"}
        for key in sent.keys() - set(keys):
            raise row_fault(row, f"has {key!r} in {where}, which {vendor}'s format cannot carry", f"remove {key!r}")
        weight = sent.get("weight")
        if weight is not None and (weight not in (0, 1) or role != "assistant"):
            raise row_fault(
                row, f"has weight {weight!r} on the {role} message {number}", f"{vendor} takes weight 0 or 1, on assistant messages only"
            )
        checked.append(sent)
    if not checked:
        raise row_fault(row, "has no messages", "give it at least one message, or remove the row")
    return checked


def answered_chat(row: Row, **rules: Any) -> list[Message]:
    """``chat_messages`` of a chat row that ends with the assistant's answer. Raises DataError when it does not."""
    if row.kind != "chat":
        raise row_fault(row, f"is a {row.kind} row", "chat records need rows with messages")
    messages = chat_messages(row, row.messages, **rules)
    if messages[-1]["role"] != "assistant":
        raise row_fault(row, f"ends with a {messages[-1]['role']} message", "end it with the assistant's answer, which is what is learnt")
    return messages


def preference_pair(row: Row, *, vendor: str, roles: Collection[str]) -> dict[str, Any]:
    """The record ``input`` / ``preferred_output`` / ``non_preferred_output`` of a preference row.

    Both answers are one assistant message each. Raises DataError for any other row, and for weights, which the format lacks.
    """
    if row.kind != "preference" or row.chosen is None or row.rejected is None:
        raise row_fault(row, "has no pair of a chosen and a rejected answer", "preference records need both")
    if row.weight is not None:
        raise row_fault(row, f"has a weight of {row.weight:g}", f"{vendor}'s preference format has no weights; remove it")
    keys = MESSAGE_KEYS - {"weight"}
    prompt: dict[str, Any] = {"messages": chat_messages(row, row.messages, vendor=vendor, roles=roles, keys=keys)}
    if prompt["messages"][-1]["role"] == "assistant":
        raise row_fault(row, "has a prompt that ends with an assistant message", "end the prompt with the user's message")
    if row.tools:
        prompt["tools"] = list(row.tools)
    answers = [chat_messages(row, [answer], vendor=vendor, roles={"assistant"}, keys=keys) for answer in (row.chosen, row.rejected)]
    return {"input": prompt, "preferred_output": answers[0], "non_preferred_output": answers[1]}


def json_safe(row: Row, name: str, value: Any) -> Any:
    """The value itself when JSON can hold it. Raises DataError naming the column otherwise (dates and bytes from Parquet)."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise row_fault(row, f"has a value in column {name!r} that JSON cannot hold ({error})", "convert the column to text") from error
    return value
