"""Rows in Together's record formats. Pure.

Source: /fine-tuning data preparation pages and togethercomputer/skills, data-formats (2026-08): ``messages`` with ``tools``,
``text``, and ``input`` / ``preferred_output`` / ``non_preferred_output``; message weight 0 or 1; row weight at least 0;
images as base64, at most 10 in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneport.core.data.rows import Message, Row
from tuneport.providers.chat_records import answered_chat, preference_pair, row_fault

ROLES = frozenset({"system", "user", "assistant", "tool"})
MAX_IMAGES = 10


def chat(row: Row) -> dict[str, Any]:
    """A conversation: ``{"messages": [...], "tools": [...], "weight": ...}``. Raises DataError for what it cannot express."""
    record: dict[str, Any] = {"messages": answered_chat(row, vendor="Together", roles=ROLES)}
    _check_images(row, record["messages"])
    if row.tools:
        record["tools"] = list(row.tools)
    return record | _weight(row)


def text(row: Row) -> dict[str, Any]:
    """Raw text for continued pre-training: ``{"text": "...", "weight": ...}``. Raises DataError for any other row."""
    if row.kind != "text":
        raise row_fault(row, f"is a {row.kind} row", "text records need rows with text only")
    if not row.text:
        raise row_fault(row, "has an empty text", "remove the row")
    return {"text": row.text} | _weight(row)


def preference(row: Row) -> dict[str, Any]:
    """A pair of answers to one prompt. Raises DataError for what it cannot express."""
    record = preference_pair(row, vendor="Together", roles=ROLES)
    _check_images(row, record["input"]["messages"])
    return record


def _weight(row: Row) -> dict[str, Any]:
    if row.weight is None:
        return {}
    if row.weight < 0:
        raise row_fault(row, f"has a weight of {row.weight:g}", "Together takes row weights of 0 and above")
    return {"weight": row.weight}


def _check_images(row: Row, messages: list[Message]) -> None:
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    urls = [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
    if len(urls) > MAX_IMAGES:
        raise row_fault(row, f"has {len(urls)} images", f"Together takes at most {MAX_IMAGES} in a row")
    if any(not url.startswith("data:image/") for url in urls):
        raise row_fault(row, "has an image that is a link", "Together takes images as base64 only (data:image/...;base64,...)")


RECORDS: Mapping[str, Callable[[Row], dict[str, Any]]] = {
    "together-chat": chat,
    "together-text": text,
    "together-preference": preference,
}
"""Converters by the name that a plan's upload carries."""
