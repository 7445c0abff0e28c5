"""Chat rows as tokens: what the model reads, and which tokens carry loss.

A trained answer is exactly what the model must produce after the prompt that inference will give it: the prompt is the
template's own text with its generation prompt, the answer runs up to and with the end-of-turn token, nothing behind it.
"""

from __future__ import annotations

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
    """The template's text; ``prompt`` adds the opening of the assistant's turn. Raises DataError when the template refuses."""
    from jinja2 import TemplateError  # noqa: PLC0415 - only the worker renders

    shown = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(shown, tools=list(tools) or None, add_generation_prompt=prompt, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        what = f"the chat template refuses a conversation ({error})"
        raise DataError(what, fix="change the row, or set options.local.chat_template") from error
    return text


def prompt_ids(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> list[int]:
    """What the model reads before it answers."""
    return _ids(tokenizer, render(tokenizer, messages, tools, prompt=True))


def encode(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[Any], *, loss_on: str, stops: frozenset[int]
) -> list[Encoded]:
    """The training sequences of one conversation.

    ``loss_on`` "all" trains every token. "completions" trains every assistant message whose ``weight`` is not 0, in one
    sequence when the template renders earlier turns as it rendered them when they were last (most do), otherwise in one
    sequence per answer (templates that drop earlier reasoning). Raises DataError when nothing in the row can be trained.
    """
    if loss_on == "all":
        ids = _ids(tokenizer, render(tokenizer, messages, tools, prompt=False))
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
