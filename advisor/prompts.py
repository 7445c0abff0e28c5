"""How a row is asked, beyond its own turns: few-shot examples, another instruction, a template, a retrieved context.

Without a template the messages are: system prompt (or the instruction in its place), the examples as turns, the row's turns. A context
stands in the last user turn, before the question, as ``Context: ... Question: ...``; examples that have a context carry it likewise.

A template (Jinja, sandboxed) makes one user message of everything but the system prompt. It sees

    question   text of the last user turn            system     the system prompt, or the instruction in its place
    turns      all turns, [{role, content}]          context    text of the context column; empty where the row has none
    row        the row's further columns             examples   the few-shot examples, [{question, answer, context}]

and never the expected answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneport.core.data.rows import Message
from tuneport.core.errors import UsageError

if TYPE_CHECKING:
    from tuneport.advisor.suite import Item

NAMES = ("question", "system", "turns", "context", "row", "examples")


def messages(item: Item, examples: Sequence[Item], instruction: str | None, template: str | None, *, context: bool) -> tuple[Message, ...]:
    """What to send for one row. Raises UsageError when the template cannot be filled."""
    system = ({"role": "system", "content": instruction},) if instruction else tuple(m for m in item.messages if is_system(m))
    if template is not None:
        return (*system, {"role": "user", "content": _filled(template, item, examples, system)})
    shown = (turn for shot in examples for turn in (*_turns(shot, context=context), {"role": "assistant", "content": shot.expected}))
    return (*system, *shown, *_turns(item, context=context))


def check_template(template: str, shots: int) -> None:
    """Raises UsageError for a template that is no Jinja, uses unknown names, lacks the question, or leaves the examples out."""
    from jinja2 import TemplateSyntaxError, meta  # noqa: PLC0415

    try:
        used = meta.find_undeclared_variables(_environment().parse(template))
    except TemplateSyntaxError as error:
        raise UsageError(f"the template is no Jinja template (line {error.lineno}: {error.message})", fix="correct the file") from None
    if unknown := sorted(used - set(NAMES)):
        raise UsageError(f"the template uses {', '.join(unknown)}, which no row has", fix=f"use {', '.join(NAMES)} (row.NAME for a column)")
    if not used & {"question", "turns", "row"}:
        raise UsageError("the template holds nothing of the row", fix="put {{ question }} where the question belongs")
    if shots and "examples" not in used:
        fix = "loop over them: {% for e in examples %}{{ e.question }} {{ e.answer }}{% endfor %}; or ask for --shots 0"
        raise UsageError(f"the template leaves the {shots} few-shot examples out", fix=fix)


def used_columns(template: str | None, *, context: bool) -> frozenset[str]:
    """Which of a row's columns stand in its prompt beside its turns: "context", and "row" for the further ones."""
    if template is None:
        return frozenset({"context"} if context else ())
    from jinja2 import meta  # noqa: PLC0415

    return frozenset(meta.find_undeclared_variables(_environment().parse(template)) & {"context", "row"})


def is_system(message: Message) -> bool:
    """Whether a message is the system prompt, by either name."""
    return message.get("role") in ("system", "developer")


def question_of(item: Item) -> str:
    """Text of the last user turn."""
    asked = [m for m in item.messages if m.get("role") == "user"]
    return _text(asked[-1]) if asked else ""


def _turns(item: Item, *, context: bool) -> tuple[Message, ...]:
    turns = tuple(message for message in item.messages if not is_system(message))
    if not context or item.context is None:
        return turns
    last = max((i for i, turn in enumerate(turns) if turn.get("role") == "user"), default=None)
    if last is None:
        return turns
    asked = {**turns[last], "content": f"Context:\n{item.context}\n\nQuestion:\n{_text(turns[last])}"}
    return (*turns[:last], asked, *turns[last + 1 :])


def _filled(template: str, item: Item, examples: Sequence[Item], system: Sequence[Message]) -> str:
    from jinja2 import TemplateError  # noqa: PLC0415

    shown = [{"question": question_of(e), "answer": e.expected, "context": e.context or ""} for e in examples]
    values: Mapping[str, Any] = {
        "question": question_of(item),
        "system": "\n".join(map(_text, system)),
        "turns": [{"role": m.get("role"), "content": _text(m)} for m in item.messages if not is_system(m)],
        "context": item.context or "",
        "row": item.columns,
        "examples": shown,
    }
    try:
        return str(_environment().from_string(template).render(values))
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        what = f"{item.file}:{item.line}: the template cannot be filled ({error})"
        raise UsageError(what, fix="correct the template or the row") from None


def _environment() -> Any:
    from jinja2 import StrictUndefined  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
