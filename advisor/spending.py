"""What answers cost, and a limit that is kept: money is set aside for a question before it is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import inf, isinf

from tuneport.core.catalogue import base_of
from tuneport.core.errors import BudgetError, UsageError
from tuneport.core.money import Range
from tuneport.core.prices import load_prices
from tuneport.core.provider import ChatReply, ChatRequest

TOKENS_PER_MESSAGE = 16
"""Room for what a chat template puts around a message."""


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per 1M tokens, with the source."""

    prompt: Range
    completion: Range
    source: str

    def usd(self, prompt_tokens: float, completion_tokens: float) -> Range:
        """What so many tokens cost."""
        return self.prompt * (prompt_tokens / 1e6) + self.completion * (completion_tokens / 1e6)


def rates_of(provider: str, model: str, *, tuned: bool = False) -> Rates | None:
    """The price book's rates of a base model (or a model tuned from it) today; None when one of them is not in the book.

    The id of a model that OpenAI tuned (``ft:BASE:...``) has the rates of one tuned from its base.
    """
    book, base = load_prices(), base_of(model)
    asked, answered = (book.find(provider, kind, model=base, tuned=tuned or base != model) for kind in ("infer_in", "infer_out"))
    if asked is None or answered is None:
        return None
    return Rates(asked.amount, answered.amount, "; ".join(dict.fromkeys((str(asked.source), str(answered.source)))))


def stated_rates(text: str) -> Rates:
    """Rates from ``IN/OUT``, e.g. ``0.15/0.60``. Raises UsageError for anything else."""
    try:
        one, other = (float(part) for part in text.split("/"))
        if not (0 <= one < 1e6 and 0 <= other < 1e6):
            raise ValueError(text)
    except ValueError:
        raise UsageError(f"--price {text!r} names no two prices", fix="write USD per 1M tokens in and out: --price 0.15/0.60") from None
    return Rates(Range(low=one, high=one), Range(low=other, high=other), "stated with --price")


@dataclass
class Purse:
    """What a run has spent on new answers, over all its arms and judges, and may spend at most (None: no limit)."""

    max_usd: float | None = None
    spent: Range = field(default_factory=lambda: Range(low=0, high=0))
    unpriced: int = 0  # answers whose price is unknown: neither in the book nor stated
    _held: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_usd is not None and not self.max_usd >= 0:
            raise UsageError(f"{self.max_usd} is no limit of money", fix="give 0 or more US dollars, or None")

    def check(self, rates: Rates | None, what: str) -> None:
        """Raises BudgetError when a limit is to be kept and the price of what is to be asked is unknown."""
        if self.max_usd is not None and rates is None:
            fix = "state it with --price IN/OUT (USD per 1M tokens) or in a file of TUNEPORT_PRICES, or leave --max-usd out"
            raise BudgetError(f"no price is known for {what}, so --max-usd cannot be kept", fix=fix)

    def take(self, request: ChatRequest, rates: Rates | None) -> bool:
        """Set aside the most that a question can cost; False, and nothing is set aside, when that exceeds what is left."""
        bound = most(request, rates)
        if self.max_usd is not None and isinf(bound):
            fix = "leave --max-usd out, or measure rows without images"
            raise BudgetError("what a row with an image may cost is not known beforehand, so --max-usd cannot be kept", fix=fix)
        if self.max_usd is not None and self.spent.high + sum(self._held.values()) + bound > self.max_usd:
            return False
        self._held[request.id] = bound
        return True

    def settle(self, reply: ChatReply, rates: Rates | None) -> None:
        """Replace what was set aside by what the answer cost. A reply without counts, or with an error, counts in full."""
        held = self._held.pop(reply.id, 0.0)
        if rates is not None and not reply.error and reply.prompt_tokens is not None and reply.completion_tokens is not None:
            self.spent += rates.usd(reply.prompt_tokens, reply.completion_tokens)
        elif rates is None or isinf(held):
            self.unpriced += 1
        else:
            self.spent += Range(low=0, high=held)

    def exhausted(self, what: str) -> BudgetError:
        """The error for a run that the limit stops."""
        return BudgetError(
            f"{what} stopped at --max-usd {self.max_usd:g}, with up to ${self.spent.high:.4f} spent",
            fix="answers so far are kept; run again with a higher limit, and only what is missing is asked",
        )


def most(request: ChatRequest, rates: Rates | None) -> float:
    """USD that one question can cost at most; 0 where the price is unknown. A token is at least one byte, so bytes bound tokens.

    Infinite for a question with anything but text in it: each vendor counts the tokens of an image in a way of its own.
    """
    if rates is None:
        return 0.0
    parts = [part for m in request.messages if isinstance(m.get("content"), list) for part in m["content"]]
    if any(isinstance(part, dict) and part.get("type") not in ("text", "refusal") for part in parts):
        return inf
    text = sum(len(json.dumps(m.get("content"), ensure_ascii=False).encode("utf-8", "replace")) for m in request.messages)
    return rates.usd(text + TOKENS_PER_MESSAGE * (len(request.messages) + 1), request.max_tokens).high
