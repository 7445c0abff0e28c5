"""Counts the tokens of rows, or estimates them, and says which.

With the extra "tokens" (bpe-openai) rows for OpenAI are counted with o200k_base, the vocabulary of its current models. Rows for a base
model in a local folder are counted with its own tokenizer.json where the package tokenizers is installed (the extra "local" brings it);
its chat template is not run, so what frames a message, and a system prompt that the template adds, stay a range.
Otherwise, and for every other vendor, four characters count as a token (OpenAI's own rule of thumb for English), +-25 %;
characters outside ASCII raise the upper end to one token each, because other scripts take more tokens per character.
Each message adds 4 tokens for its frame (OpenAI cookbook, "How to count tokens with tiktoken": 3 per message and 1 for
the role). OpenAI does not publish the frame that it bills, so "exact" means exact up to that convention.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tuneport.core.data.facts import TokenFacts
from tuneport.core.data.rows import Message, Row

MESSAGE_OVERHEAD = 4
"""Tokens that frame one message (OpenAI cookbook convention)."""

TEMPLATE_OVERHEAD = (3, 8)
"""The same as a range, for chat templates of open models: Llama 3 and Qwen take 5, Mistral 3 or 4. Our reading of their templates."""
TEMPLATE_SYSTEM = 32
"""At most so many tokens of a system prompt that a template adds by itself (Llama 3 about 25, Qwen 2.5 and SmolLM2 about 20)."""

SPREAD = 0.25
"""Relative error granted to an estimate."""

_CHARACTERS_PER_TOKEN = 4
_PIECE = 50_000  # bpe-openai refuses texts above 200,000 tokens, one per byte at worst; a cut costs at most a few tokens
_CACHED = 4_000  # longest text whose count is remembered
_ESTIMATE = "estimate: characters / 4, +-25 %"
_O200K = "o200k_base"


class RowTokens(NamedTuple):
    """Tokens of one row as a range, and the upper estimate of its longest sequence (a pair is two sequences)."""

    low: float
    high: float
    longest: float


@cache
def _o200k() -> Callable[[str], int] | None:
    """A counter for o200k_base, or None without the extra "tokens"."""
    try:
        import bpe_openai  # noqa: PLC0415 - an extra, and its tables take time to load
    except ImportError:
        return None
    encoding = bpe_openai.get_encoding("o200k_base")

    @lru_cache(maxsize=256)  # system prompts and labels come again in every row
    def short(text: str) -> int:
        return len(encoding.encode_ordinary(text))

    def count(text: str) -> int:
        if len(text) <= _CACHED:
            return short(text)
        return sum(len(encoding.encode_ordinary(text[at : at + _PIECE])) for at in range(0, len(text), _PIECE))

    return count


@lru_cache(maxsize=4)
def _own(file: Path, changed_ns: int) -> Callable[[str], int] | None:  # noqa: ARG001 - a changed file is read anew
    """A counter by a tokenizer.json; None when it or the package cannot be read."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - comes with the extra "local"; needs no torch

        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - the package raises nothing narrower; the estimate stands in, and the worker names the fault
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    @lru_cache(maxsize=256)
    def short(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return lambda text: short(text) if len(text) <= _CACHED else len(tokenizer.encode(text, add_special_tokens=False))


def own_tokenizer(model: str | None) -> Path | None:
    """The tokenizer.json that counts for a base model in a local folder; None where there is none, or nothing to read it with."""
    file = Path(model).expanduser() / "tokenizer.json" if model else None
    if file is None or not file.is_file() or _own(file, file.stat().st_mtime_ns) is None:
        return None
    return file


def count_tokens(text: str) -> int:
    """Tokens of a text: by o200k_base with the extra "tokens", else characters / 4, rounded up (see ``tokenizer_name``)."""
    count = _o200k()
    return count(text) if count else math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def tokens_counted() -> bool:
    """Whether tokens can be counted with o200k_base: whether the extra "tokens" is there."""
    return _o200k() is not None


def tokenizer_name() -> str:
    """What ``count_tokens`` counts with: "o200k_base", or that it is an estimate."""
    return _O200K if _o200k() else _ESTIMATE


class TokenMeter:
    """Measures rows. ``openai``: the rows are for OpenAI, so they are counted when the extra "tokens" is there.

    ``own``: the tokenizer.json of the base model that the rows are for (``own_tokenizer``).
    """

    def __init__(self, *, openai: bool = False, own: Path | None = None) -> None:
        self._count = _own(own, own.stat().st_mtime_ns) if own else _o200k() if openai else None
        self.exact = self._count is not None and own is None
        self._frame = TEMPLATE_OVERHEAD if own else (MESSAGE_OVERHEAD, MESSAGE_OVERHEAD)
        self._system = TEMPLATE_SYSTEM if own else 0
        self.name = _O200K if self.exact else _ESTIMATE
        if own:
            self.name = f"counted with {own}, and {TEMPLATE_OVERHEAD[0]} to {TEMPLATE_OVERHEAD[1]} around each message"

    def measure(self, row: Row) -> RowTokens:
        """Tokens of one row: prompt, answers, tool calls and tool definitions. Images are not counted."""
        low, high = self.measure_texts(row_texts(row), len(row.messages))
        high += self._system if row.messages else 0
        if row.chosen is None or row.rejected is None:
            return RowTokens(low, high, high)
        sides = [self.measure_texts(message_texts(answer), 1) for answer in (row.chosen, row.rejected)]
        return RowTokens(low + sides[0][0] + sides[1][0], high + sides[0][1] + sides[1][1], high + max(side[1] for side in sides))

    def measure_texts(self, texts: Iterable[str], messages: int) -> tuple[float, float]:
        """Tokens of some texts that stand in so many messages, as a range."""
        if self._count is not None:
            tokens = sum(map(self._count, texts))
            return tokens + messages * self._frame[0], tokens + messages * self._frame[1]
        frame = messages * MESSAGE_OVERHEAD
        ascii_characters = other = 0
        for text in texts:
            size = len(text)
            if not text.isascii():
                plain = len(text.encode("ascii", "ignore"))
                other += size - plain
                size = plain
            ascii_characters += size
        low = (ascii_characters + other) / _CHARACTERS_PER_TOKEN + frame
        high = ascii_characters / _CHARACTERS_PER_TOKEN + frame
        return low * (1 - SPREAD), high * (1 + SPREAD) + other

    def facts(self, low: float, high: float, longest: float, *, images: bool = False) -> TokenFacts:
        """TokenFacts for summed measures, rounded outwards."""
        name = f"{self.name}; images not counted" if images else self.name
        return TokenFacts(math.floor(low), math.ceil(high), math.ceil(longest), name, exact=self.exact and not images)


def row_texts(row: Row) -> Iterator[str]:
    """Every text of a row's prompt, with its tool definitions; not of the two sides of a pair."""
    if row.text:
        yield row.text
    for message in row.messages:
        yield from message_texts(message)
    if row.tools:
        yield _compact(row.tools)


def message_texts(message: Message) -> Iterator[str]:
    """Every text of a message: content, reasoning, name and tool calls."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if part.get("type") == "text")
    for key in ("reasoning_content", "name"):
        if isinstance(message.get(key), str):
            yield message[key]
    if message.get("tool_calls"):
        yield _compact(message["tool_calls"])


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
