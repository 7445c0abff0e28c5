"""Chat through bedrock-runtime's Converse, the one call that all of Bedrock's text models share."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tuneport.core.asking import CONCURRENCY, ask_all
from tuneport.core.errors import DataError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.providers.bedrock.errors import translated

_CONTEXT_SUFFIX = re.compile(r"^([a-z0-9-]+\.[a-z0-9.-]+:\d+):\d+k$")
"""Base models are tuned under ids such as amazon.nova-micro-v1:0:128k; on demand the same model answers without the length."""


def replies(
    client: Any, model: str, requests: Iterable[ChatRequest], sleep: Callable[[float], None], concurrency: int = CONCURRENCY
) -> Iterator[ChatReply]:
    """A reply for each request, in any order. Raises CredentialsError; other failures are that request's ``error``."""
    target = _CONTEXT_SUFFIX.sub(r"\1", model)
    return ask_all(requests, lambda request: _reply(client, target, request), concurrency=concurrency, sleep=sleep)


def conversation(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``system`` and ``messages`` of Converse. Raises DataError for a message that is not plain text of a known role."""
    system: list[dict[str, str]] = []
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages, start=1):
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or any(not isinstance(part, Mapping) or part.get("type") != "text" for part in parts):
            raise DataError(f"message {number} of the conversation is not plain text", fix="send text only to Bedrock")
        texts = [{"text": str(part["text"])} for part in parts]
        match message.get("role"):
            case "system" | "developer":
                system += texts
            case "user" | "assistant" as role:
                turns.append({"role": role, "content": texts})
            case role:
                raise DataError(f"message {number} of the conversation has the role {role!r}", fix="use system, user and assistant")
    return {"messages": turns} | ({"system": system} if system else {})


def _reply(client: Any, model: str, request: ChatRequest) -> ChatReply:
    began = time.monotonic()
    settings = {"maxTokens": request.max_tokens, "temperature": 0.0}
    told = conversation(request.messages)
    with translated():
        if request.stream:
            return _streamed(request, client.converse_stream(modelId=model, inferenceConfig=settings, **told)["stream"], began)
        answer: dict[str, Any] = client.converse(modelId=model, inferenceConfig=settings, **told)
    content = ((answer.get("output") or {}).get("message") or {}).get("content") or ()
    texts = [str(part["text"]) for part in content if "text" in part]
    if not texts:
        why = answer.get("stopReason") or "no stated reason"
        return ChatReply(request.id, "", error=f"Bedrock's answer holds no text (it stopped for {why})")
    usage = answer.get("usage") or {}
    return ChatReply(request.id, "".join(texts), usage.get("inputTokens"), usage.get("outputTokens"), time.monotonic() - began)


def _streamed(request: ChatRequest, events: Iterable[Mapping[str, Any]], began: float) -> ChatReply:
    """The whole answer, with the time to its first piece of text (events of ConverseStream)."""
    text, stopped, first = "", "", None
    usage: Mapping[str, Any] = {}
    for event in events:
        piece = ((event.get("contentBlockDelta") or {}).get("delta") or {}).get("text") or ""
        if piece and first is None:
            first = time.monotonic() - began
        text += piece
        stopped = str((event.get("messageStop") or {}).get("stopReason") or stopped)
        usage = (event.get("metadata") or {}).get("usage") or usage
    return ChatReply(
        request.id,
        text,
        usage.get("inputTokens"),
        usage.get("outputTokens"),
        time.monotonic() - began,
        error="" if text else f"Bedrock's answer holds no text (it stopped for {stopped or 'no stated reason'})",
        first_token_seconds=first,
    )
