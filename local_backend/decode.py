"""Batched greedy decoding with a shared prompt prefix computed once.

Few-shot prompts share most of their tokens; their keys and values are computed a single time and copied into each batch.
Rows of a batch are padded on the left, finished rows leave it. The result is that of decoding each prompt alone, up to
rounding: in bf16 two nearly equal logits may change places with the batch's shape, as they do in any batched inference.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tuneport.core.errors import ProviderError
from tuneport.local_backend.drawing import MAX_ROWS

MAX_TOKENS = 65_536
"""Tokens (rows x longest row) in a batch at most, to bound the memory of the cache."""
NOT_PLAIN = "prefix and prompt tuning need a model without sliding windows or recurrent states"
SHORTEST_PREFIX = 16
"""Shared tokens from which a common prefix is worth its handling."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as tokens."""

    id: str
    ids: list[int]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated tokens without the stop token. ``seconds`` is how long the row was in its batch."""

    id: str
    ids: list[int]
    seconds: float


def common_prefix(prompts: Sequence[Prompt]) -> int:
    """Tokens that all prompts begin with; each keeps at least one of its own."""
    if len(prompts) < 2:
        return 0
    low, high = min(p.ids for p in prompts), max(p.ids for p in prompts)
    shortest = min(len(p.ids) for p in prompts) - 1
    shared = next((i for i in range(min(len(low), shortest)) if low[i] != high[i]), min(len(low), shortest))
    return shared if shared >= SHORTEST_PREFIX else 0


def decode(model: Any, prompts: Sequence[Prompt], *, stops: frozenset[int], pad: int) -> Iterator[Answer]:
    """Greedy answers to all prompts, batch by batch, longest first. Halves a batch that does not fit the GPU."""
    if not prompts:
        return
    with torch.inference_mode():
        model, prefix, virtual = virtual_tokens(model)
        shared = common_prefix(prompts)
        longer = _prefix_cache(model, prompts[0].ids[:shared], prefix) if shared else None
        if longer is None:
            shared = 0
        else:
            prefix = longer
        for batch in _batches(prompts):
            yield from _fitting(model, batch, shared, virtual, prefix, stops, pad)


def virtual_tokens(model: Any) -> tuple[Any, Any, int]:
    """(model to call, keys and values of its virtual tokens, how many they are).

    To the base model a learnt prefix or prompt is nothing but a cache that stands before every conversation. Raises
    ProviderError where the model's cache cannot be copied.
    """
    config: Any = getattr(model, "active_peft_config", None)
    if not getattr(config, "is_prompt_learning", False):
        return model, None, 0
    base, given = model.get_base_model(), model.get_prompt(1)
    if torch.is_tensor(given):  # embeddings, of prompt tuning
        given = base(inputs_embeds=given.to(base.get_input_embeddings().weight.dtype), use_cache=True, logits_to_keep=1).past_key_values
    if not _plain(given):
        raise ProviderError(NOT_PLAIN, fix="use lora")
    return base, given, config.num_virtual_tokens


def check_virtual(model: Any) -> None:
    """Raise ProviderError before training where the model's cache would not take virtual tokens."""
    from transformers import DynamicCache  # noqa: PLC0415

    if not _plain(DynamicCache(config=model.config.get_text_config())):
        raise ProviderError(NOT_PLAIN, fix="use lora", retry="no")


def _prefix_cache(model: Any, ids: list[int], before: Any) -> Any:
    """Keys and values of the shared prefix behind those ``before`` it; None for models with sliding windows or recurrent states."""
    inputs = torch.tensor([ids], device=model.device)
    cache = model(input_ids=inputs, past_key_values=copy.deepcopy(before), use_cache=True, logits_to_keep=1).past_key_values
    return cache if _plain(cache) else None


def _plain(cache: Any) -> bool:
    return all(type(layer).__name__ == "DynamicLayer" for layer in getattr(cache, "layers", [None]))


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Similar lengths together, the longest first so that a lack of memory shows at once."""
    batch: list[Prompt] = []
    longest = 0
    for prompt in sorted(prompts, key=lambda p: -(len(p.ids) + p.max_tokens)):
        longest = longest or len(prompt.ids) + prompt.max_tokens
        if batch and (len(batch) == MAX_ROWS or (len(batch) + 1) * longest > MAX_TOKENS):
            yield batch
            batch, longest = [], len(prompt.ids) + prompt.max_tokens
        batch.append(prompt)
    yield batch


def _fitting(
    model: Any, batch: list[Prompt], shared: int, virtual: int, prefix: Any, stops: frozenset[int], pad: int
) -> Iterator[Answer]:
    try:
        answers = _batch(model, batch, shared, virtual, prefix, stops, pad)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        answers = None
    if answers is not None:
        yield from answers
        return
    torch.cuda.empty_cache()
    half = len(batch) // 2
    yield from _fitting(model, batch[:half], shared, virtual, prefix, stops, pad)
    yield from _fitting(model, batch[half:], shared, virtual, prefix, stops, pad)


def _batch(
    model: Any, batch: list[Prompt], shared: int, virtual: int, prefix: Any, stops: frozenset[int], pad: int
) -> list[Answer]:
    began = time.monotonic()
    device = model.device
    cached = virtual + shared
    own = [p.ids[shared:] for p in batch]
    width = max(map(len, own))
    ids = torch.tensor([[pad] * (width - len(o)) + o for o in own], device=device)
    mask = torch.tensor([[1] * cached + [0] * (width - len(o)) + [1] * len(o) for o in own], device=device)
    cache = None
    if prefix is not None:
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(len(batch))
    found: list[list[int]] = [[] for _ in batch]
    answers: list[Answer] = []
    active = list(range(len(batch)))  # which prompt each row of the tensors answers
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, cached:]
    while active:
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache = out.past_key_values
        tokens = out.logits[:, -1].argmax(-1)
        stay: list[int] = []
        for row, (prompt, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            if token not in stops:
                found[prompt].append(token)
            if token in stops or len(found[prompt]) >= batch[prompt].max_tokens:
                answers.append(Answer(batch[prompt].id, found[prompt], time.monotonic() - began))
            else:
                stay.append(row)
        if len(stay) < len(active) and stay:
            kept = torch.tensor(stay, device=device)
            cache.batch_select_indices(kept)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
        active = [active[row] for row in stay]
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=1)
        positions = positions[:, -1:] + 1
    return answers
