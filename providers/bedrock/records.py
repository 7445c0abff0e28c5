"""Rows in Bedrock's record formats. Pure; every converter raises DataError, with file and line, for what its record lacks.

Sources: Bedrock user guide, "Prepare data for fine-tuning your models" (copy of 2026); Nova user guide, data preparation
pages (roles, reserved strings); Nova 2 supervised fine-tuning page (reasoning content). No Bedrock record has weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneport.core.data.rows import Message, Row
from tuneport.providers.chat_records import chat_messages, row_fault
from tuneport.providers.common import grader_record

Record = dict[str, Any]

RESERVED = ("System:", "SYSTEM:", "User:", "USER:", "Bot:", "BOT:", "Assistant:", "ASSISTANT:", "Thought:", "<image>", "<video>", "[EOS]")
"""Strings that make a Nova job fail when they stand in its rows."""

_KEYS = frozenset({"role", "content"})
_ROLES = frozenset({"system", "user", "assistant"})


def prompt_completion(row: Row) -> Record:
    """``{"prompt": ..., "completion": ...}`` of one question and one answer (Llama 3.1, Titan Text, Cohere)."""
    system, turns = _conversation(row)
    if system:
        raise row_fault(row, "has a system message, which prompt/completion records lack", "put the instructions into the user's message")
    if len(turns) != 2:
        raise row_fault(row, f"has {len(turns)} messages", "prompt/completion records hold one of the user and one of the assistant")
    _ends_with_answer(row, turns)
    return {"prompt": _text(row, turns[0]), "completion": _text(row, turns[1])}


def converse(row: Row) -> Record:
    """``bedrock-conversation-2024`` (Llama 3.2 and 3.3): system texts, then turns of user and assistant."""
    system, turns = _conversation(row)
    _ends_with_answer(row, turns)
    return _converse(row, system, turns)


def nova(row: Row) -> Record:
    """``converse`` without the strings that Nova reserves."""
    record = converse(row)
    _no_reserved(row, record)
    return record


def nova_2(row: Row) -> Record:
    """As ``nova``, with the assistant's reasoning_content as a part before its answer."""
    system, turns = _conversation(row, reasoning=True)
    _ends_with_answer(row, turns)
    record = _converse(row, system, turns)
    _no_reserved(row, record)
    return record


def distillation(row: Row) -> Record:
    """``converse`` whose answer may be missing: the teacher writes it."""
    system, turns = _conversation(row)
    return _converse(row, system, turns)


def claude(row: Row) -> Record:
    """``{"system": "...", "messages": [{"role", "content": "..."}]}`` (Claude 3 Haiku)."""
    system, turns = _conversation(row)
    _ends_with_answer(row, turns)
    if len(system) > 1:
        raise row_fault(row, f"has {len(system)} system messages", "this record has room for one; join them")
    record: Record = {"system": _text(row, system[0])} if system else {}
    return record | {"messages": [{"role": turn["role"], "content": _text(row, turn)} for turn in turns]}


def text(row: Row) -> Record:
    """``{"input": "..."}`` for continued pre-training."""
    _no_weight(row)
    if row.kind != "text" or not row.text:
        raise row_fault(row, "holds no text", "continued pre-training needs rows with text only")
    return {"input": row.text}


def reinforcement(row: Row) -> Record:
    """A chat-completions prompt that ends with the user, and the row's columns for the grader's Lambda."""
    _no_weight(row)
    _no_tools(row)
    return grader_record(row, chat_messages(row, row.messages, vendor="Bedrock", roles=_ROLES, keys=_KEYS))


RECORDS: Mapping[str, Callable[[Row], Record]] = {
    "bedrock-prompt-completion": prompt_completion,
    "bedrock-converse": converse,
    "bedrock-nova": nova,
    "bedrock-nova-2": nova_2,
    "bedrock-claude": claude,
    "bedrock-distillation": distillation,
    "bedrock-text": text,
    "bedrock-reinforcement": reinforcement,
}
"""Record shapes by the name that a plan's upload carries."""


def _conversation(row: Row, *, reasoning: bool = False) -> tuple[list[Message], list[Message]]:
    """(system messages, turns that alternate and begin with the user)."""
    _no_weight(row)
    _no_tools(row)
    if row.kind != "chat":
        raise row_fault(row, f"is a {row.kind} row", "this record needs rows with messages")
    keys = _KEYS | {"reasoning_content"} if reasoning else _KEYS
    messages = chat_messages(row, row.messages, vendor="Bedrock", roles=_ROLES, keys=keys)
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, turns = messages[:first], messages[first:]
    if not turns:
        raise row_fault(row, "has only system messages", "add the user's message and the answer")
    for number, turn in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if turn["role"] != expected:
            met, place = turn["role"], number + 1
            raise row_fault(row, f"has a {met} message as turn {place}", "begin with the user and alternate; system stands before all")
    return system, turns


def _converse(row: Row, system: list[Message], turns: list[Message]) -> Record:
    record: Record = {"schemaVersion": "bedrock-conversation-2024"}
    if system:
        record["system"] = [part for message in system for part in _parts(row, message)]
    record["messages"] = [{"role": turn["role"], "content": [*_reasoning(row, turn), *_parts(row, turn)]} for turn in turns]
    return record


def _reasoning(row: Row, turn: Message) -> list[Record]:
    thought = turn.get("reasoning_content")
    if thought is None:
        return []
    if turn["role"] != "assistant":
        raise row_fault(row, "has reasoning_content on a message that is not the assistant's", "remove it")
    return [{"reasoningContent": {"reasoningText": {"text": thought}}}]


def _parts(row: Row, message: Message) -> list[Record]:
    """The message's content as text parts."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts or any(part.get("type") != "text" or not part.get("text") for part in parts):
        raise row_fault(row, f"has a {message['role']} message that is not plain text", "give it text, and not an empty one")
    return [{"text": part["text"]} for part in parts]


def _text(row: Row, message: Message) -> str:
    parts = _parts(row, message)
    if len(parts) > 1:
        raise row_fault(row, f"has {len(parts)} text parts in a {message['role']} message", "this record holds one string; join them")
    result: str = parts[0]["text"]
    return result


def _ends_with_answer(row: Row, turns: list[Message]) -> None:
    if turns[-1]["role"] != "assistant":
        raise row_fault(row, "ends with the user's message", "end it with the assistant's answer, which is what is learnt")


def _no_weight(row: Row) -> None:
    if row.weight is not None:
        raise row_fault(row, f"has a weight of {row.weight:g}", "Bedrock's records have no weights; remove it")


def _no_tools(row: Row) -> None:
    if row.tools:
        raise row_fault(row, "has tools, which no Bedrock record known to tuneport can carry", "remove them")


def _no_reserved(row: Row, record: Record) -> None:
    texts = [part["text"] for part in record.get("system", [])]
    for part in (part for message in record["messages"] for part in message["content"]):
        texts.append(part["text"] if "text" in part else part["reasoningContent"]["reasoningText"]["text"])
    found = next((word for word in RESERVED for content in texts if word in content), None)
    if found:
        raise row_fault(row, f"holds {found!r}, which Nova reserves and which makes the job fail", "reword it, e.g. without the colon")
