"""Turns records of the known formats into Rows, or into the list of everything that is wrong with them.

Formats: chat (OpenAI's messages), prompt_completion, preference and unpaired_preference (TRL's dataset formats;
for pairs also OpenAI's input / preferred_output / non_preferred_output), instruction (Alpaca), classification, text.
Fields that a format does not know are kept in ``Row.columns``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from tuneport.core.data.json_rows import kind_of, shown
from tuneport.core.data.messages import Ending, Problem, conversation, has_role, objects, order_problem
from tuneport.core.data.readers import BadRow, Record, bad_row
from tuneport.core.data.rows import Kind, Message, Row

if TYPE_CHECKING:
    from tuneport.core.spec import Method  # importing it takes as long as everything else here

RowFormat = Literal["chat", "prompt_completion", "instruction", "classification", "preference", "unpaired_preference", "text"]

KIND_OF: dict[RowFormat, Kind] = {
    "chat": "chat",
    "prompt_completion": "chat",
    "instruction": "chat",
    "classification": "chat",
    "preference": "preference",
    "unpaired_preference": "unpaired_preference",
    "text": "text",
}

KINDS_FOR: dict[Method, frozenset[Kind]] = {
    "sft": frozenset({"chat"}),
    "distill": frozenset({"chat"}),
    "rft": frozenset({"chat"}),
    "dpo": frozenset({"preference"}),
    "orpo": frozenset({"preference"}),
    "simpo": frozenset({"preference"}),
    "kto": frozenset({"unpaired_preference", "preference"}),
    "cpt": frozenset({"text"}),
}
"""Kinds of rows that each method learns from. KTO takes pairs too: each is one good and one bad answer."""

_SHAPES: dict[RowFormat, str] = {
    "chat": '{"messages": [...]}',
    "prompt_completion": '{"prompt", "completion"}',
    "instruction": '{"instruction", "input" (optional), "output"}',
    "classification": '{"text", "label"}',
    "preference": '{"prompt", "chosen", "rejected"} or {"input", "preferred_output", "non_preferred_output"}',
    "unpaired_preference": '{"prompt", "completion", "label": true or false}',
    "text": '{"text"}',
}
KNOWN_SHAPES = "; ".join(f"{name} {shape}" for name, shape in _SHAPES.items())

_TRUTH = {True: True, False: False, "true": True, "false": False}  # 1 and 0 equal True and False


def format_of(value: dict[str, Any], method: Method) -> RowFormat | None:
    """The format that one record has, or None. With method cpt a record that has a text is text, whatever else it has."""
    if "messages" in value:
        return "chat"
    if ("chosen" in value and "rejected" in value) or ("input" in value and _pair_names(value)):
        return "preference"
    if "prompt" in value and "completion" in value:
        return "unpaired_preference" if _truth(value.get("label")) is not None else "prompt_completion"
    if "prompt" in value and method in ("rft", "distill"):
        return "prompt_completion"
    if "instruction" in value and ("output" in value or method in ("rft", "distill")):
        return "instruction"
    if "text" in value:
        if method == "cpt" or len(value) == 1:
            return "text"
        return "classification" if "label" in value else None  # a text with other fields may be a class under another name
    return None


def detect_format(records: Iterable[Record], method: Method) -> RowFormat | None:
    """The commonest format among the records (the earliest of equals); None when no record has a known one."""
    votes: dict[RowFormat, int] = {}
    for record in records:
        found = format_of(record.value, method)
        if found is not None:
            votes[found] = votes.get(found, 0) + 1
    return max(votes.items(), key=lambda vote: vote[1])[0] if votes else None


def _pair_names(value: dict[str, Any]) -> tuple[str, str] | None:
    """Names of the two answers in OpenAI's pair format; its public examples and one branch of its API spec differ."""
    for names in (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion")):
        if all(name in value for name in names):
            return names
    return None


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        value = value.strip().lower()
    return _TRUTH.get(value) if isinstance(value, (bool, int, str)) else None


@dataclass(frozen=True, slots=True)
class Normaliser:
    """How the records of one file become rows.

    ``method`` decides the last turn: with rft it is the user's, and a completion, output or label is kept as a column
    for the grader; with distill it may be either's; otherwise it is the assistant's.
    """

    path: str
    format: RowFormat
    method: Method = "sft"
    system_prompt: str | None = None

    def row(self, record: Record) -> Row | list[BadRow]:
        """The record as a Row, or every problem with it."""
        draft = _Draft(dict(record.value), self.method)
        _BUILDERS[self.format](draft)
        if draft.problems:
            return [
                bad_row(self.path, record.line, p.code, met=p.met, expected=p.expected, hint=p.hint) for p in dict.fromkeys(draft.problems)
            ]
        messages = draft.messages
        if self.system_prompt and messages and not has_role(messages, "system"):
            messages = ({"role": "system", "content": self.system_prompt}, *messages)
        return Row(
            kind=KIND_OF[self.format],
            file=self.path,
            line=record.line,
            messages=messages,
            chosen=draft.chosen,
            rejected=draft.rejected,
            desirable=draft.desirable,
            text=draft.text,
            label=draft.label,
            tools=draft.tools,
            weight=draft.weight,
            columns=draft.left,
        )


class _Draft:
    """A row in the making: ``left`` are the fields not used yet."""

    def __init__(self, left: dict[str, Any], method: Method) -> None:
        self.left = left
        self.method = method
        self.problems: list[Problem] = []
        self.messages: tuple[Message, ...] = ()
        self.chosen: Message | None = None
        self.rejected: Message | None = None
        self.desirable: bool | None = None
        self.text = ""
        self.label: str | None = None
        self.tools: tuple[dict[str, Any], ...] = ()
        self.weight: float | None = None

    @property
    def ending(self) -> Ending:
        return "user" if self.method == "rft" else "either" if self.method == "distill" else "assistant"

    def lacks(self, shape: RowFormat, *names: str) -> bool:
        """Note the fields that are missing; True when any is."""
        missing = [name for name in names if self.left.get(name) is None]
        if missing:
            met = f"no {' and no '.join(repr(name) for name in missing)}"
            self.problems.append(Problem("wrong_shape", met, f"{shape} rows: {_SHAPES[shape]}", _columns_hint(self.left)))
        return bool(missing)

    def words(self, name: str) -> str:
        """The text in field ``name``; "" after noting a problem."""
        value = self.left.pop(name)
        if not isinstance(value, str):
            self.problems.append(Problem("wrong_shape", f"{kind_of(value)} in {name!r}", "text"))
            return ""
        if not value.strip():
            self.problems.append(Problem("empty_turn", f"nothing in {name!r}", "some text"))
        return value

    def turns(self, name: str, role: str) -> tuple[Message, ...]:
        """Messages from a field that holds a message list, or the text of one message from ``role``."""
        if isinstance(self.left[name], list):
            return conversation(self.left.pop(name), name, self.problems)
        return ({"role": role, "content": self.words(name)},)

    def take_tools(self) -> None:
        tools = self.left.pop("tools", None)
        if tools is not None and tools not in ("", []):
            self.tools = objects(tools, "tools", self.problems)

    def check_order(self, messages: Sequence[Message], ending: Ending) -> None:
        problem = None if self.problems else order_problem(messages, ending)
        if problem:
            self.problems.append(problem)


def _columns_hint(left: dict[str, Any]) -> str:
    if "conversations" in left:
        return 'ShareGPT rows: rename "conversations" to "messages", "from" to "role" and "value" to "content"'
    return f"it has {', '.join(sorted(map(str, left))[:8]) or 'no fields'}"


def _chat(draft: _Draft) -> None:
    if draft.lacks("chat", "messages"):
        return
    draft.messages = conversation(draft.left.pop("messages"), "messages", draft.problems)
    draft.take_tools()
    weight = draft.left.pop("weight", None)
    if weight is not None and weight != "":
        draft.weight = _number(weight)
        if draft.weight is None:
            draft.problems.append(Problem("bad_weight", f"row weight {shown(weight)}", "a number"))
    draft.check_order(draft.messages, draft.ending)
    answers = [message for message in draft.messages if message["role"] == "assistant"]
    if answers and all(message.get("weight") == 0 for message in answers):
        draft.problems.append(Problem("bad_weight", "weight 0 on every answer", "at least one answer to learn from"))


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _answered(draft: _Draft, prompt: tuple[Message, ...], answer: str) -> None:
    """Fill a chat row from a prompt and the field that holds its answer, as the method wants it."""
    if draft.method == "rft" or (draft.method == "distill" and draft.left.get(answer) is None):
        draft.messages = prompt
        draft.check_order(prompt, "user")
        return
    # Only the completion is learnt from in this format; earlier answers in the prompt must not carry loss.
    unlearnt = tuple({**message, "weight": 0} if message["role"] == "assistant" else message for message in prompt)
    draft.messages = unlearnt + draft.turns(answer, "assistant")
    draft.check_order(draft.messages, "assistant")


def _prompt_completion(draft: _Draft) -> None:
    needed = ("prompt",) if draft.method in ("rft", "distill") else ("prompt", "completion")
    if not draft.lacks("prompt_completion", *needed):
        draft.take_tools()
        _answered(draft, draft.turns("prompt", "user"), "completion")


def _instruction(draft: _Draft) -> None:
    needed = ("instruction",) if draft.method in ("rft", "distill") else ("instruction", "output")
    if draft.lacks("instruction", *needed):
        return
    extra = draft.left.pop("input", None)
    if extra is not None and not isinstance(extra, str):
        draft.problems.append(Problem("wrong_shape", f"{kind_of(extra)} in 'input'", "text"))
        return
    task = draft.words("instruction")
    content = f"{task}\n\n{extra}" if extra and extra.strip() else task
    _answered(draft, ({"role": "user", "content": content},), "output")


def _classification(draft: _Draft) -> None:
    if draft.lacks("classification", "text", "label"):
        return
    label = draft.left.pop("label")
    draft.label = label if isinstance(label, str) else _label(label)
    if draft.label is None or not draft.label.strip():
        met = "nothing" if label == "" else kind_of(label) if draft.label is None else "blank text"
        draft.problems.append(Problem("wrong_shape", f"{met} in 'label'", "text, a whole number, or true or false"))
        return
    draft.left["label"] = draft.label  # a column of the row only where it is not the answer (rft)
    _answered(draft, ({"role": "user", "content": draft.words("text")},), "label")


def _label(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) else None


def _preference(draft: _Draft) -> None:
    names = _pair_names(draft.left)
    if names and "input" in draft.left:
        _openai_pair(draft, names)
        return
    if draft.lacks("preference", "chosen", "rejected"):
        return
    prompt = draft.turns("prompt", "user") if draft.left.get("prompt") is not None else ()
    draft.left.pop("prompt", None)
    chosen, rejected = draft.turns("chosen", "assistant"), draft.turns("rejected", "assistant")
    draft.take_tools()
    if draft.problems:
        return
    # Whole conversations on both sides: what stands before the last message is the prompt (TRL's implicit prompt).
    if chosen[:-1] != rejected[:-1] or (prompt and chosen[:-1] and chosen[:-1] != prompt):
        expected = "one prompt for both answers"
        draft.problems.append(Problem("wrong_shape", "chosen and rejected that answer different prompts", expected))
        return
    _fill_pair(draft, prompt or chosen[:-1], chosen[-1], rejected[-1])


def _openai_pair(draft: _Draft, names: tuple[str, str]) -> None:
    given = draft.left.pop("input")
    if not isinstance(given, dict) or given.get("messages") is None:
        draft.problems.append(Problem("wrong_shape", f"{kind_of(given)} in 'input'", '{"messages": [...]}'))
        return
    given = dict(given)  # the record belongs to the caller
    prompt = conversation(given.pop("messages"), "input.messages", draft.problems)
    if given.get("tools"):
        draft.tools = objects(given.pop("tools"), "input.tools", draft.problems)
    sides = [conversation(draft.left.pop(name), name, draft.problems) for name in names]
    draft.left.update({key: value for key, value in given.items() if value is not None})
    if not draft.problems:
        for name, side in zip(names, sides, strict=True):
            if len(side) != 1:
                draft.problems.append(Problem("wrong_shape", f"{len(side)} messages in {name!r}", "one assistant message"))
                return
        _fill_pair(draft, prompt, sides[0][0], sides[1][0])


def _fill_pair(draft: _Draft, prompt: tuple[Message, ...], chosen: Message, rejected: Message) -> None:
    if not prompt:
        draft.problems.append(Problem("wrong_shape", "no prompt", f"preference rows: {_SHAPES['preference']}"))
        return
    for answer in (chosen, rejected):
        draft.check_order((*prompt, answer), "assistant")
    draft.messages, draft.chosen, draft.rejected = prompt, chosen, rejected


def _unpaired(draft: _Draft) -> None:
    if draft.lacks("unpaired_preference", "prompt", "completion", "label"):
        return
    label = draft.left.pop("label")
    draft.desirable = _truth(label)
    if draft.desirable is None:
        draft.problems.append(Problem("wrong_shape", f"label {shown(label)}", "true (good) or false (bad)"))
    draft.messages = draft.turns("prompt", "user") + draft.turns("completion", "assistant")
    draft.take_tools()
    draft.check_order(draft.messages, "assistant")


def _text(draft: _Draft) -> None:
    if not draft.lacks("text", "text"):
        draft.text = draft.words("text")


_BUILDERS = cast(
    "dict[RowFormat, Callable[[_Draft], None]]",
    {
        "chat": _chat,
        "prompt_completion": _prompt_completion,
        "instruction": _instruction,
        "classification": _classification,
        "preference": _preference,
        "unpaired_preference": _unpaired,
        "text": _text,
    },
)
