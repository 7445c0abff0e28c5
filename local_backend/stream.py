"""One answer token by token, and its text as far as it is certain: for a server that streams.

Batched answers for measuring come from ``decode``; with temperature 0 both choose the same tokens, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tuneport.local_backend.decode import virtual_tokens

REPLACEMENT = "\ufffd"
"""What a tokenizer writes for bytes that are not yet a whole character."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


def tokens(model: Any, ids: Sequence[int], *, most: int, stops: frozenset[int], sampling: Sampling) -> Iterator[int]:
    """The answer's tokens, without the stop token, one as soon as it is chosen; ``most`` at most."""
    generator = torch.Generator(device=model.device)
    if sampling.seed is not None:
        generator.manual_seed(sampling.seed)
    else:
        generator.seed()
    with torch.inference_mode():
        model, cache, _ = virtual_tokens(model)
    cache = copy.deepcopy(cache)  # it grows with the answer
    step = torch.tensor([list(ids)], device=model.device)
    for _ in range(most):
        with torch.inference_mode():
            out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = _choose(out.logits[0, -1].float(), sampling, generator)
        if token in stops:
            return
        yield token
        step = torch.tensor([[token]], device=model.device)


def _choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    shares, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    # The smallest set of likeliest tokens whose shares reach top_p; the likeliest always belongs to it.
    kept = shares.cumsum(-1) - shares < sampling.top_p
    drawn = torch.multinomial(shares * kept, 1, generator=generator)
    return int(order[drawn])


class Text:
    """Turns tokens into text piece by piece: never half a character, and never what may turn out to be a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._from = self._to = 0  # the tokens between are decoded again for context
        self._held = ""
        self.stopped = False  # a stop string was met; nothing follows

    def add(self, token: int) -> str:
        """The text that this token makes certain."""
        self._ids.append(token)
        before = self._decoded(self._ids[self._from : self._to])
        after = self._decoded(self._ids[self._from :])
        if after.endswith(REPLACEMENT):
            return ""
        self._from, self._to = self._to, len(self._ids)
        return self._certain(after[len(before) :])

    def rest(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        before, after = self._decoded(self._ids[self._from : self._to]), self._decoded(self._ids[self._from :])
        text = self._certain(after[len(before) :])
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _certain(self, text: str) -> str:
        text = self._held + text
        met = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if met >= 0:
            self.stopped, self._held = True, ""
            return text[:met]
        longest = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]
