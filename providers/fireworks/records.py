"""Rows in Fireworks' record formats. Pure.

Source: Fireworks documentation, supervised, preference and reinforcement fine-tuning: OpenAI's chat records (``messages``,
``tools``), message weight 0 or 1; a row weight may be any number, but then every row needs one; preference pairs of one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneport.core.data.rows import Message, Row
from tuneport.providers.chat_records import answered_chat, chat_messages, json_safe, preference_pair, row_fault

# The pages name system, user and assistant; records with tools hold the tools' answers as well, as OpenAI's do.
ROLES = frozenset({"system", "user", "assistant", "tool"})


def chat(row: Row) -> dict[str, Any]:
    """A conversation without a row weight: ``{"messages": [...], "tools": [...]}``. Raises DataError for what it cannot express."""
    if row.weight is not None:
        raise row_fault(row, "has a weight, though the file was counted as having none", "read the file again")
    return _chat(row)


def weighted_chat(row: Row) -> dict[str, Any]:
    """A conversation in a file where some row has a weight: a row without one gets 1, its meaning when it is left out."""
    return _chat(row) | {"weight": 1.0 if row.weight is None else row.weight}


def preference(row: Row) -> dict[str, Any]:
    """A pair of answers to a prompt of one turn. Raises DataError for a longer prompt, and for what it cannot express."""
    record = preference_pair(row, vendor="Fireworks", roles=ROLES)
    _refuse_images(row, record["input"]["messages"])
    if any(message["role"] == "assistant" for message in record["input"]["messages"]):
        raise row_fault(row, "has a prompt of several turns", "Fireworks' preference records hold one turn; shorten the conversation")
    return record


def prompt(row: Row) -> dict[str, Any]:
    """A prompt for rft: ``messages`` that end with the user's, and every other column beside them for the evaluator."""
    if row.kind != "chat":
        raise row_fault(row, f"is a {row.kind} row", "rft records need rows with messages")
    messages = chat_messages(row, row.messages, vendor="Fireworks", roles=ROLES)
    _refuse_images(row, messages)
    if messages[-1]["role"] == "assistant":
        raise row_fault(row, "ends with the assistant's answer", "rft draws the answers itself; end the row with the user's message")
    record: dict[str, Any] = {"messages": messages}
    if row.tools:
        record["tools"] = list(row.tools)
    if row.weight is not None:
        raise row_fault(row, "has a weight", "rft records have no weights; remove it")
    for name, value in (({"label": row.label} if row.label is not None else {}) | row.columns).items():
        if name in record:
            raise row_fault(row, f"has a column named {name!r}", "rename it; the record uses that name itself")
        record[name] = json_safe(row, name, value)
    return record


def _chat(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"messages": answered_chat(row, vendor="Fireworks", roles=ROLES)}
    _refuse_images(row, record["messages"])
    if row.tools:
        record["tools"] = list(row.tools)
    return record


def _refuse_images(row: Row, messages: list[Message]) -> None:
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    if any(part.get("type") != "text" for part in parts):
        raise row_fault(row, "holds an image or another part that is not text", "Fireworks' text records take text only")


RECORDS: Mapping[str, Callable[[Row], dict[str, Any]]] = {
    "fireworks-chat": chat,
    "fireworks-chat-weighted": weighted_chat,
    "fireworks-preference": preference,
    "fireworks-rft": prompt,
}
"""Converters by the name that a plan's upload carries."""
