"""How much of a micro-batch's intermediate results fit in memory, for the pass of ``packed``. Pure arithmetic.

Per token and layer the pass always keeps the inputs of its two halves; beyond that it keeps queries, keys, values and the
attention's output (attention), and gate and up (MLP), or computes them again. The counts follow the code, tensor by tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneport.local_backend.models import Shape

LOGITS_BYTES = 2**28
"""Largest piece of the logits at any time."""
WORKSPACE = 2**26
"""Scratch memory of the matrix library, and small change."""
FAMILIES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Pre-norm decoders with RMS norms, rotary positions and a SiLU-gated MLP, built of modules of the same names."""
MARGIN = 0.94
"""Share of the memory that the plan fills; the rest is lost between blocks."""
CANDIDATES = tuple(1024 * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))
"""Tokens of a micro-batch to choose among."""
START_COST = {False: 500.0, True: 820.0}
"""What a micro-batch costs before its first token, in tokens; True: with weights in 4 bits, which are unpacked for each.
Measured on an H100 with an 8B model, November 2026: 245, 463 and 902 ms for 3,750, 7,493 and 15,254 tokens; 258 and 469 ms."""
AGAIN = (0.07, 0.17)
"""What it costs to compute the attention, or the MLP, of every layer again: a share of the whole pass (same machine)."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Of how many layers the attention and the MLP keep their intermediate results."""

    attention: int
    mlp: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that one pass takes beside the weights and the adapter's state; ``tokens`` of them in the micro-batch."""

    layers: int
    stream: float  # per token and layer, always
    attention: float  # per token and layer whose attention is kept
    mlp: float  # per token and layer whose MLP is kept
    passing: float  # per token, while one layer is at work
    ending: float  # per token, while the vocabulary's matrix is at work
    fixed: float  # whatever the number of tokens
    four_bit: bool = False

    def bytes(self, tokens: float, keep: Keep) -> float:
        """Peak of a pass, forward and backward."""
        kept = self.layers * self.stream + keep.attention * self.attention + keep.mlp * self.mlp
        return tokens * kept + max(tokens * self.passing, tokens * self.ending + LOGITS_BYTES) + self.fixed

    def least(self, tokens: float) -> float:
        """Peak when everything is computed again."""
        return self.bytes(tokens, Keep(0, 0))

    def most(self, tokens: float) -> float:
        """Peak when nothing is."""
        return self.bytes(tokens, Keep(self.layers, self.layers))


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that a pass may take, and how it is used."""

    footprint: Footprint
    budget: float  # bytes
    tokens: int  # of a micro-batch at most; a single longer row still makes one

    def keep(self, tokens: int) -> Keep:
        """What a micro-batch of so many tokens keeps: the attention first, which saves more time per byte."""
        print_ = self.footprint
        spare = self.budget - print_.least(tokens)
        attention = _layers(spare, tokens * print_.attention, print_.layers)
        spare -= attention * tokens * print_.attention
        return Keep(attention, _layers(spare, tokens * print_.mlp, print_.layers))

    def words(self) -> str:
        """What the largest micro-batch computes again, for people."""
        keep, layers = self.keep(self.tokens), self.footprint.layers
        halves = ((layers - keep.attention, "attention"), (layers - keep.mlp, "MLP"))
        again = " and ".join(f"the {name} of {count} layers" for count, name in halves if count)
        return f"to save memory the largest computes {again} again" if again else "nothing is computed twice"

    def cost(self, tokens: int) -> float:
        """Time per token of such a micro-batch, relative to the marginal token that computes nothing again."""
        keep, layers = self.keep(tokens), self.footprint.layers
        again = AGAIN[0] * (1 - keep.attention / layers) + AGAIN[1] * (1 - keep.mlp / layers)
        return 1 + again + START_COST[self.footprint.four_bit] / tokens


def _layers(spare: float, each: float, layers: int) -> int:
    return max(0, min(layers, int(spare // each)))


def footprint(shape: Shape, *, rank: int, four_bit: bool, width: int = 2) -> Footprint | None:
    """Of a LoRA pass over a model of this shape in numbers of ``width`` bytes; None when the shape is not known."""
    if shape.hidden is None or shape.layers is None or shape.intermediate is None or shape.key_value is None:
        return None
    hidden, inner, key_value = shape.hidden, shape.intermediate, shape.key_value
    query = shape.query or hidden
    unpacked = width * max(3 * hidden * inner, 2 * hidden * (query + key_value)) if four_bit else 0
    return Footprint(
        layers=shape.layers,
        stream=width * (2 * hidden + 2 * rank),
        attention=width * (2 * query + 2 * key_value + 3 * rank) + query / 32 + 4,
        mlp=width * (2 * inner + 2 * rank) + 4,
        passing=width * (3 * inner + 4 * hidden),
        ending=width * 4 * hidden,
        fixed=unpacked + WORKSPACE,
        four_bit=four_bit,
    )


def choose_room(print_: Footprint, budget: float, longest: int, largest: int) -> Room | None:
    """The quickest micro-batch that fits, for rows of at most ``longest`` tokens and steps of at most ``largest``.

    None when not even the longest row fits with everything computed again.
    """
    if print_.least(longest) > budget:
        return None
    sizes = {longest, max(largest, longest), *CANDIDATES}
    fitting = [Room(print_, budget, size) for size in sorted(sizes) if longest <= size <= largest or size == longest]
    return min((room for room in fitting if print_.least(room.tokens) <= budget), key=lambda room: room.cost(room.tokens))
