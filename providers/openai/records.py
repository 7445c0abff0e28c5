"""Rows in OpenAI's record formats. Pure.

Sources: supervised, FineTuneChatCompletionRequest* schemas of openai/openai-openapi 2.3.0 (2026-08-21); dpo, the
``input`` / ``preferred_output`` / ``non_preferred_output`` names that public code sends (an older schema branch said
``*_completion``; it is gone); reinforcement, chat records plus the columns that a grader reads as ``item.*``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneport.core.data.rows import Message, Row
from tuneport.providers.chat_records import MESSAGE_KEYS, answered_chat, chat_messages, preference_pair, row_fault
from tuneport.providers.common import grader_record

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
KEYS = MESSAGE_KEYS - {"reasoning_content"}


def chat(row: Row) -> dict[str, Any]:
    """One supervised example: ``{"messages": [...], "tools": [...]}``. Raises DataError for what it cannot express."""
    _no_row_weight(row)
    messages = answered_chat(row, vendor="OpenAI", roles=ROLES, keys=KEYS)
    return {"messages": _text_only(row, messages)} | _tools(row)


def preference(row: Row) -> dict[str, Any]:
    """A pair of answers to one prompt. Raises DataError for what it cannot express."""
    record = preference_pair(row, vendor="OpenAI", roles=ROLES)
    for part in (record["input"]["messages"], record["preferred_output"], record["non_preferred_output"]):
        if any("reasoning_content" in message for message in part):
            raise row_fault(row, "has reasoning_content, which OpenAI's format cannot carry", "remove it")
        _text_only(row, part)
    return record


def reinforcement(row: Row) -> dict[str, Any]:
    """One prompt that ends with the user, and the row's columns for the grader. Raises DataError for any other row."""
    _no_row_weight(row)
    return grader_record(row, _text_only(row, chat_messages(row, row.messages, vendor="OpenAI", roles=ROLES, keys=KEYS - {"weight"})))


RECORDS: Mapping[str, Callable[[Row], dict[str, Any]]] = {
    "openai-chat": chat,
    "openai-dpo": preference,
    "openai-reinforcement": reinforcement,
}
"""Record shapes by the name that a plan's upload carries."""


def _no_row_weight(row: Row) -> None:
    if row.weight is not None:
        raise row_fault(row, f"has a weight of {row.weight:g}", "OpenAI's records have no weight for a whole row; remove it")


def _text_only(row: Row, messages: list[Message]) -> list[Message]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            raise row_fault(row, f"has content that is not text in a message of the {message['role']}", "keep text parts only")
    return messages


def _tools(row: Row) -> dict[str, Any]:
    return {"tools": list(row.tools)} if row.tools else {}
