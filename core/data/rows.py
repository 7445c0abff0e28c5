"""The normal form of a row, whatever file format it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "preference", "unpaired_preference", "text"]
Message = dict[str, Any]
"""A message in the chat-completions format: role, content, and optionally weight, tool_calls, name, reasoning_content."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example.

    chat                 messages (the last one the assistant's, except for rft, where it is the user's)
    preference           messages = the prompt; chosen and rejected = one assistant message each
    unpaired_preference  messages = the conversation with its answer; desirable says whether it is good
    text                 text only
    """

    kind: Kind
    file: str
    line: int  # 1-based line (JSONL, CSV record) or row number (JSON array, Parquet)
    messages: tuple[Message, ...] = ()
    chosen: Message | None = None
    rejected: Message | None = None
    desirable: bool | None = None
    text: str = ""
    label: str | None = None  # for classification rows
    tools: tuple[dict[str, Any], ...] = ()
    weight: float | None = None  # of the whole row in the loss
    columns: dict[str, Any] = field(default_factory=dict)  # everything else: group, time, reference answers
