"""Which features a row uses that not every vendor can carry."""

from __future__ import annotations

from typing import get_args

from tuneport.core.data.facts import Feature
from tuneport.core.data.rows import Row

FEATURES: tuple[Feature, ...] = get_args(Feature)
_BIT: dict[Feature, int] = {name: 1 << at for at, name in enumerate(FEATURES)}
_REASONING_KEYS = ("reasoning_content", "reasoning")


def feature_bits(row: Row) -> int:
    """The row's features as a bit mask; masks of several rows are joined with ``|``."""
    bits = (_BIT["tools"] if row.tools else 0) | (_BIT["row_weights"] if row.weight is not None else 0)
    users = 0
    for message in (*row.messages, row.chosen, row.rejected) if row.chosen else row.messages:
        if message is None:
            continue
        role = message["role"]
        if role == "assistant":
            if "tool_calls" in message:
                bits |= _BIT["tool_calls"]
            if "weight" in message:
                bits |= _BIT["message_weights"]
            if any(key in message for key in _REASONING_KEYS):
                bits |= _BIT["reasoning"]
        elif role == "user":
            users += 1
        else:
            bits |= _BIT["system"] if role == "system" else _BIT["tool_calls"]
        content = message["content"]
        if isinstance(content, list) and any(part["type"] in ("image_url", "image") for part in content):
            bits |= _BIT["images"]
    if users > 1:
        bits |= _BIT["multi_turn"]
    if row.kind == "chat" and users and row.messages[-1]["role"] == "user":
        bits |= _BIT["prompt_only"]
    return bits


def feature_set(bits: int) -> frozenset[Feature]:
    """The features that a bit mask names."""
    return frozenset(name for name, bit in _BIT.items() if bits & bit)
