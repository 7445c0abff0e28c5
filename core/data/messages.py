"""Checks and cleans conversations in the chat-completions format.

The order that is asked for (system first, then user and assistant in turn, tool results after tool calls) is the
strictest among the places a job may run: Bedrock and most open models' chat templates refuse anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from tuneport.core.data.json_rows import JsonFault, kind_of, parse_value, shown
from tuneport.core.data.rows import Message

ROLES = frozenset({"system", "user", "assistant", "tool"})
_SAME_AS = {"developer": "system"}  # OpenAI's newer word for the same role; other vendors and templates know only system
_OTHER_WORDS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}

Ending = Literal["assistant", "user", "either"]


class Problem(NamedTuple):
    """One thing wrong with a row; ``code`` as in BadRow."""

    code: str
    met: str
    expected: str
    hint: str = ""


def as_list(value: Any) -> Any:
    """The value itself, or what it holds when it is the JSON text of a list (a cell of a CSV file)."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_value(value)
        except JsonFault:
            return value
    return value


def objects(value: Any, name: str, problems: list[Problem]) -> tuple[dict[str, Any], ...]:
    """The non-empty list of objects that ``value`` should be; () after noting a problem."""
    value = as_list(value)
    if not isinstance(value, list) or not value:
        problems.append(Problem("wrong_shape", "an empty list" if value == [] else kind_of(value), f"a list of objects in {name!r}"))
        return ()
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            problems.append(Problem("wrong_shape", f"{kind_of(item)} as item {number} of {name!r}", "an object {...}"))
            return ()
    return tuple(value)


def conversation(value: Any, name: str, problems: list[Problem]) -> tuple[Message, ...]:
    """Cleaned messages from the list in field ``name``; problems of single messages are noted. Order is not looked at."""
    found = objects(value, name, problems)
    return tuple(_plain(raw) or _message(raw, f"message {n} of {name!r}", problems) for n, raw in enumerate(found, start=1))


def _plain(raw: dict[str, Any]) -> Message | None:
    """A copy of a message of role and text only, the common case; None when there is more to look at."""
    role, content = raw.get("role"), raw.get("content")
    plain = len(raw) == 2 and isinstance(role, str) and role in ROLES and isinstance(content, str) and not _blank(content)
    return {"role": role, "content": content} if plain else None


def _message(raw: dict[str, Any], where: str, problems: list[Problem]) -> Message:
    message = {key: value for key, value in raw.items() if value is not None and key not in ("role", "content")}
    role = raw.get("role")
    role = _SAME_AS.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in ROLES:
        hint = f"write {_OTHER_WORDS[role]!r}" if isinstance(role, str) and role in _OTHER_WORDS else ""
        problems.append(Problem("unknown_role", f"role {shown(role)} in {where}", f"one of {', '.join(sorted(ROLES))}", hint))
    calls = message.get("tool_calls")
    if calls is not None:
        if calls == []:
            del message["tool_calls"]
        else:
            message["tool_calls"] = list(objects(calls, "tool_calls", problems))
    if "weight" in message:
        weight = message["weight"]
        if isinstance(weight, bool) or weight not in (0, 1) or role != "assistant":
            problems.append(Problem("bad_weight", f"weight {shown(weight)} on the {role} in {where}", "0 or 1, on assistant messages"))
        else:
            message["weight"] = int(weight)
    content = _content(raw.get("content"), where, problems)
    if _blank(content) and role != "tool" and "tool_calls" not in message:
        problems.append(Problem("empty_turn", f"no content in {where}", "some text"))
    return {"role": role, "content": content, **message}


def _content(content: Any, where: str, problems: list[Problem]) -> Any:
    """Text, None, or a list of parts of which at least one is no text. Text parts alone are joined by line breaks."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
        problems.append(Problem("wrong_shape", f"{kind_of(content)} as content of {where}", 'text, or a list of parts with a "type"'))
        return None
    parts = [{key: value for key, value in part.items() if value is not None} for part in content]
    texts = [part.get("text") for part in parts if part["type"] == "text"]
    if not all(isinstance(text, str) for text in texts):
        problems.append(Problem("wrong_shape", f"a text part without text in {where}", '{"type": "text", "text": "..."}'))
        return None
    return "\n".join(map(str, texts)) if len(texts) == len(parts) else parts


def _blank(content: Any) -> bool:
    return content is None or (isinstance(content, str) and not content.strip())


def order_problem(messages: Sequence[Message], ending: Ending) -> Problem | None:
    """The first place where the roles are out of order, or a wrong last turn; None when all is well."""
    before = "system"
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        allowed = _NEXT[before]
        if role not in allowed:
            hint = "join the two turns" if role == before else ""
            return Problem("role_order", f"{role} as message {number}", " or ".join(allowed), hint)
        before = "assistant with tool calls" if role == "assistant" and message.get("tool_calls") else role
    last = messages[-1]["role"] if messages else "nothing"
    if ending == "either" and last in ("user", "assistant"):
        return None
    if last != ending:
        expected = {"assistant": "the assistant's answer", "user": "the user's message", "either": "the user or the assistant"}[ending]
        return Problem("last_turn", f"the last message from {last}", f"{expected} as the last message")
    return None


_NEXT: dict[str, tuple[str, ...]] = {
    "system": ("system", "user"),  # also the state before the first message
    "user": ("assistant",),
    "assistant": ("user",),
    "assistant with tool calls": ("tool",),
    "tool": ("assistant", "tool"),
}


def has_role(messages: Iterable[Message], role: str) -> bool:
    """Whether any message has this role."""
    return any(message["role"] == role for message in messages)
