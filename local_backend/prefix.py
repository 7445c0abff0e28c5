"""Training rows mostly begin with the same system prompt: its keys and values are computed once per batch, with gradients.

This changes no loss and no gradient beyond rounding: causal attention makes the prefix independent of what follows, and its
gradient is the sum over the rows that read it. On two cores, 8 rows of 98 tokens with 45 of them shared took 20 % less time;
4 such rows took no less, because a pass over few tokens costs nearly as much as one over many.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from tuneport.local_backend.chat import IGNORED

WORTHWHILE = 256
"""Tokens saved in a batch from which the second pass through the layers pays (135M model, two cores)."""


def shared_length(input_ids: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> int:
    """Tokens that every row begins with, ending at least one token before the first label of any row; 0 when too few."""
    if input_ids.shape[0] < 2:
        return 0
    same = ((input_ids == input_ids[:1]) & mask.bool()).all(0)
    shared = int(same.long().cumprod(0).sum())
    labelled = (labels != IGNORED).any(0).nonzero()
    first = int(labelled[0]) if labelled.numel() else input_ids.shape[1]
    length = min(shared, first - 1)
    return length if length > 0 and length * (input_ids.shape[0] - 1) >= WORTHWHILE else 0


def share_prefix(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The model's inputs with the shared prefix moved into a cache; unchanged when there is none, or the model cannot."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return inputs  # virtual tokens stand before the prefix
    ids, labels, mask = inputs["input_ids"], inputs["labels"], inputs["attention_mask"]
    length = shared_length(ids, labels, mask)
    if not length:
        return inputs
    cache = DynamicCache(config=model.config.get_text_config())
    if not all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers):
        return inputs  # sliding windows and recurrent states do not split this way
    cache = model(input_ids=ids[:1, :length], past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(ids.shape[0])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, length:]
    return {
        "input_ids": ids[:, length:],
        "labels": labels[:, length:],
        "attention_mask": mask,
        "position_ids": positions,
        "past_key_values": cache,
    }
