"""Mends records before they are read as rows: only what has one right answer, and every mend is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, get_args

from tuneport.core.data.characters import clean_characters
from tuneport.core.data.json_rows import JsonFault, parse_value

Mend = Literal["sharegpt", "roles", "characters", "line-endings", "trim", "empty-turns", "joined-turns", "unanswered"]
MENDS: tuple[Mend, ...] = get_args(Mend)

WHAT: dict[Mend, str] = {
    "sharegpt": "conversations / from / value (ShareGPT) became messages / role / content",
    "roles": "roles under other names (human, gpt, bot, model) got their usual ones",
    "characters": "control and invisible characters were removed, and mojibake undone",
    "line-endings": "carriage returns became line feeds",
    "trim": "white space around texts was removed (of answers and raw texts, only after them)",
    "empty-turns": "turns without content were removed",
    "joined-turns": "turns of one role in a row were joined",
    "unanswered": "questions after the last answer were removed",
}
"""What each mend does, as the data card says it."""

_ROLES = {"human": "user", "prompter": "user"} | dict.fromkeys(("gpt", "bot", "model", "chatgpt", "ai"), "assistant")
_TEXTS = ("prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "text", "label")
_LEARNT = frozenset({"completion", "chosen", "rejected", "output", "text"})
_LISTS = ("messages", "prompt", "completion", "chosen", "rejected", "preferred_output", "non_preferred_output")


class Mender:
    """Mends records and counts the rows that each mend changed. ``answered``: the method learns from answers.

    ``forget`` takes the mends of the last record back, for a row that is rejected all the same: a row has one fate.
    """

    def __init__(self, mends: tuple[Mend, ...] = MENDS, *, answered: bool = True) -> None:
        self._mends = frozenset(mends)
        self._answered = answered
        self.counts: Counter[Mend] = Counter()
        self._last: set[Mend] = set()

    def forget(self) -> None:
        """Count nothing for the last record."""
        self.counts.subtract(self._last)
        self.counts += Counter()  # drops what is zero
        self._last = set()

    def mend(self, value: dict[str, Any]) -> dict[str, Any]:
        """The record mended; the given one is not changed."""
        done: set[Mend] = set()
        record = dict(value)
        if "sharegpt" in self._mends and "messages" not in record and "conversations" in record:
            turns = _listed(record["conversations"])
            if turns and all("from" in turn and "value" in turn for turn in turns):
                del record["conversations"]
                record = {"messages": [{"role": turn["from"], "content": turn["value"]} for turn in turns], **record}
                done.add("sharegpt")
        for name in _TEXTS:
            if isinstance(record.get(name), str):
                record[name] = self._text(record[name], done, learnt=name in _LEARNT)
        for name in _LISTS:
            turns = _listed(record.get(name)) if name in record and (name == "messages" or isinstance(record[name], list)) else None
            if turns is not None:
                record[name] = self._turns(turns, done, whole=name == "messages")
        if isinstance(record.get("input"), dict):
            turns = _listed(record["input"].get("messages"))
            if turns is not None:
                record["input"] = {**record["input"], "messages": self._turns(turns, done, whole=False)}
        self.counts.update(done)
        self._last = done
        return record

    def _text(self, text: str, done: set[Mend], *, learnt: bool) -> str:
        """The text mended. ``learnt``: it may begin with white space on purpose, as an indented line of code does."""
        steps: tuple[tuple[Mend, Callable[[str], str]], ...] = (
            ("characters", clean_characters),
            ("line-endings", lambda old: old.replace("\r\n", "\n").replace("\r", "\n")),
            ("trim", str.rstrip if learnt else str.strip),
        )
        for name, step in steps:
            if name in self._mends:
                mended = step(text)
                if mended != text:
                    done.add(name)
                    text = mended
        return text

    def _turns(self, turns: list[dict[str, Any]], done: set[Mend], *, whole: bool) -> list[dict[str, Any]]:
        mended: list[dict[str, Any]] = []
        # Without its only answer a row teaches nothing: the empty turn stays, and is the row's fault.
        silent = whole and self._answered and all(_empty(turn) for turn in turns if self._role(turn) == "assistant")
        for old in turns:
            turn = dict(old)
            if (role := self._role(turn)) != turn.get("role"):
                turn["role"] = role
                done.add("roles")
            if isinstance(turn.get("content"), str):
                turn["content"] = self._text(turn["content"], done, learnt=turn.get("role") == "assistant")
            if "empty-turns" in self._mends and _empty(turn) and len(turns) > 1 and not (silent and turn.get("role") == "assistant"):
                done.add("empty-turns")
                continue
            if "joined-turns" in self._mends and mended and _joinable(mended[-1], turn):
                mended[-1] = {**mended[-1], "content": f"{mended[-1]['content']}\n\n{turn['content']}"}
                done.add("joined-turns")
                continue
            mended.append(turn)
        if whole and self._answered and "unanswered" in self._mends and any(turn.get("role") == "assistant" for turn in mended):
            while mended and mended[-1].get("role") in ("user", "system"):
                mended.pop()
                done.add("unanswered")
        return mended

    def _role(self, turn: dict[str, Any]) -> Any:
        """The turn's role, under its usual name."""
        role = turn.get("role")
        if "roles" not in self._mends or not isinstance(role, str):
            return role
        plain = role.strip().lower()
        return _ROLES.get(plain, plain)


def _listed(value: Any) -> list[dict[str, Any]] | None:
    """The list of objects that the value is, or is the JSON text of; else None."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = parse_value(value)
        except JsonFault:
            return None
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def _empty(turn: dict[str, Any]) -> bool:
    content = turn.get("content")
    blank = content is None or content == [] or (isinstance(content, str) and not content.strip())
    return blank and not turn.get("tool_calls") and turn.get("role") != "tool"


def _joinable(before: dict[str, Any], turn: dict[str, Any]) -> bool:
    plain = all(set(side) == {"role", "content"} and isinstance(side["content"], str) for side in (before, turn))
    return plain and before["role"] == turn["role"] and turn["role"] in ("user", "assistant")
