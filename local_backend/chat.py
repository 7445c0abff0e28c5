"""Chat rows as tokens: what the model reads, and which tokens carry loss.

A trained answer is exactly what the model must produce after the prompt that inference will give it: the prompt is the
template's own text with its generation prompt, the answer runs up to and with the end-of-turn token, nothing behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneport.core.errors import DataError

IGNORED = -100
"""Label of a token without loss (PyTorch's ignore_index)."""
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|end_of_turn|>")
"""End-of-turn tokens of the common families, for models whose generation config does not name theirs."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and labels of one training sequence; equal lengths."""

    input_ids: list[int]
    labels: list[int]
    added_end: bool = False  # the template ends answers without a stop token, so one was added

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def trained(self) -> int:
        """Number of tokens with loss."""
        return sum(label != IGNORED for label in self.labels)


def stop_tokens(tokenizer: Any, generation_config: Any = None) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's, the generation config's, and the known end-of-turn tokens of its vocabulary."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    vocabulary = tokenizer.get_added_vocab()
    ids |= {vocabulary.get(token) for token in END_OF_TURN}
    return frozenset(i for i in ids if i is not None)


def render(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = (), *, prompt: bool) -> str:
    """The template's text; ``prompt`` adds the opening of the assistant's turn.

    Raises DataError when the template refuses the conversation, or leaves out what somebody says in it.
    """
    given = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    # OpenAI's arguments of a call are JSON in a string. Templates take the object, but for a few, and quote a string once more.
    shown = [_with_objects(message) for message in given]
    try:
        text = _applied(tokenizer, shown, tools, prompt)
    except DataError:
        if shown == given:
            raise
        text = _applied(tokenizer, given, tools, prompt)
    for number, message in enumerate(messages):
        said = message.get("content")
        answer = message.get("role") == "assistant"
        if answer and (number < len(messages) - 1 or not isinstance(said, str)):
            continue  # templates may drop the reasoning of earlier answers
        if isinstance(said, str) and said.split("</think>")[-1 if answer else 0].strip() not in text:
            what = f"the chat template leaves out what the {message.get('role')} says"
            raise DataError(what, fix="set options.local.chat_template to one that shows plain text")
    return text


def _applied(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any], prompt: bool) -> str:
    from jinja2 import TemplateError  # noqa: PLC0415 - only the worker renders

    try:
        text: str = tokenizer.apply_chat_template(list(messages), tools=list(tools) or None, add_generation_prompt=prompt, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        what = f"the chat template refuses a conversation ({error})"
        raise DataError(what, fix="change the row, or set options.local.chat_template") from error
    return text


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls as objects. Raises DataError when they are no JSON object."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function") or {}
        if isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"] or "{}")
            except ValueError as error:
                what = f"the arguments of the tool call {function.get('name')} are not JSON ({error})"
                raise DataError(what, fix="correct the row") from error
            function = function | {"arguments": arguments}
        calls.append(call | {"function": function})
    return message | {"tool_calls": calls}


def _check_tools(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any], text: str, *, prompt: bool) -> None:
    """Raise DataError when the template's ``text`` would be the same without the tools, or without the calls of them."""
    without: list[tuple[str, Sequence[dict[str, Any]], Sequence[Any]]] = [("tools", messages, ())] if tools else []
    if any(message.get("tool_calls") for message in messages):
        silent = [{**message, "content": message.get("content") or ""} for message in messages]
        without.append(("tool calls", [{key: value for key, value in one.items() if key != "tool_calls"} for one in silent], tools))
    for what, changed, given in without:
        try:
            same = render(tokenizer, changed, given, prompt=prompt) == text
        except DataError:  # it looks at them at least
            same = False
        if same:
            fix = f"set options.local.chat_template to one that does, or remove the {what}"
            raise DataError(f"the chat template shows nothing of the row's {what}", fix=fix)


def prompt_ids(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> list[int]:
    """What the model reads before it answers."""
    text = render(tokenizer, messages, tools, prompt=True)
    _check_tools(tokenizer, messages, tools, text, prompt=True)
    return _ids(tokenizer, text)


def encode(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any], *, loss_on: str, stops: frozenset[int]
) -> list[Encoded]:
    """The training sequences of one conversation.

    ``loss_on`` "all" trains every token. "completions" trains every assistant message whose ``weight`` is not 0, in one
    sequence when the template renders earlier turns as it rendered them when they were last (most do), otherwise in one
    sequence per answer (templates that drop earlier reasoning). Raises DataError when nothing in the row can be trained.
    """
    if loss_on == "all":
        text = render(tokenizer, messages, tools, prompt=False)
        _check_tools(tokenizer, messages, tools, text, prompt=False)
        ids = _ids(tokenizer, text)
        return [_finished(tokenizer, ids, [(0, len(ids))], stops)]
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant" and message.get("weight") != 0]
    if not turns:
        raise DataError("a row has no assistant message that carries loss", fix="add an answer, give one weight 1, or remove the row")
    pairs = [_turn(tokenizer, messages[: i + 1], tools) for i in turns]
    whole = pairs[-1][1]
    if all(whole.startswith(through) for _, through in pairs):
        return [_masked(tokenizer, whole, pairs, stops)]
    return [_masked(tokenizer, through, [(prompt, through)], stops) for prompt, through in pairs]


def encode_answer(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any], stops: frozenset[int]) -> tuple[Encoded, int]:
    """One conversation in which the last message alone carries loss, and the number of tokens before it."""
    before, through = _turn(tokenizer, messages, tools)
    row = _masked(tokenizer, through, [(before, through)], stops)
    return row, next(i for i, label in enumerate(row.labels) if label != IGNORED)


def encode_text(tokenizer: Any, text: str, longest: int) -> list[Encoded]:
    """A document for continued pre-training: every token carries loss, the end token closes it.

    It is cut into pieces of at most ``longest`` tokens. Special tokens that the tokenizer puts before any text (a BOS) are kept.
    """
    ids: list[int] = tokenizer(text)["input_ids"]
    end = tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    pieces = [ids[i : i + longest] for i in range(0, len(ids), longest)]
    return [Encoded(piece, list(piece)) for piece in pieces if len(piece) > 1]  # a lone token predicts nothing


def _turn(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any]) -> tuple[str, str]:
    """(text before the last message's content, text through it)."""
    before = render(tokenizer, messages[:-1], tools, prompt=True)
    through = render(tokenizer, messages, tools, prompt=False)
    if not through.startswith(before) or through == before:
        raise DataError(
            "the chat template does not put an answer behind its own generation prompt, so the answer's tokens cannot be told",
            fix="set options.local.chat_template to a template that does, or loss_on: all",
        )
    _check_tools(tokenizer, messages, tools, through, prompt=False)
    return before, through


def _masked(tokenizer: Any, whole: str, pairs: Sequence[tuple[str, str]], stops: frozenset[int]) -> Encoded:
    ids = _ids(tokenizer, whole)
    spans = [(_common(ids, _ids(tokenizer, before)), _common(ids, _ids(tokenizer, through))) for before, through in pairs]
    return _finished(tokenizer, ids, spans, stops)


def _finished(tokenizer: Any, ids: list[int], spans: Sequence[tuple[int, int]], stops: frozenset[int]) -> Encoded:
    """Labels on the spans, each ending with its stop token; the sequence ends with its last label."""
    labels = [IGNORED] * len(ids)
    end = 0
    for start, stop in spans:
        end = max((i + 1 for i in range(start, stop) if ids[i] in stops), default=stop)
        if tokenizer.decode(ids[end:stop]).strip():
            end = stop  # text follows the last stop token, so the answer does not end there
        labels[start:end] = ids[start:end]
    ids, labels = ids[:end], labels[:end]
    lacking = not ids or ids[-1] not in stops
    if lacking and tokenizer.eos_token_id is not None:
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return Encoded(ids, labels, added_end=lacking)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix. A token that spans the border between prompt and answer belongs to the answer."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _ids(tokenizer: Any, text: str) -> list[int]:
    # The template's text holds the special tokens already.
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
