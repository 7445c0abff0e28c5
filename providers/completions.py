"""Streams of chat-completion chunks, as OpenAI, Together and Fireworks send them, read into one reply."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from tuneport.core.provider import ChatReply, ChatRequest


def streamed(request: ChatRequest, chunks: Iterable[Any], began: float) -> ChatReply:
    """The whole answer, with the seconds from ``began`` (of ``time.monotonic``) to its first piece of text."""
    text, refusal, usage, first = "", "", None, None
    for chunk in chunks:
        usage = getattr(chunk, "usage", None) or usage
        for choice in (getattr(chunk, "choices", None) or ())[:1]:
            piece, declined = (getattr(choice.delta, name, None) or "" for name in ("content", "refusal"))
            if first is None and (piece or declined):
                first = time.monotonic() - began
            text, refusal = text + piece, refusal + declined
    return ChatReply(
        request.id,
        text or refusal,
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
        seconds=time.monotonic() - began,
        first_token_seconds=first,
        declined=bool(refusal) and not text,
    )
