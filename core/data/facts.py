"""What a compiler needs to know of the data: counts, never contents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tuneport.core.data.rows import Kind

Feature = Literal[
    "system", "tools", "tool_calls", "images", "reasoning", "message_weights", "row_weights", "multi_turn", "prompt_only"
]
"""Things a row may contain that not every vendor can carry. prompt_only: chat rows that end with the user (rft)."""


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Token counts of a file. ``low`` and ``high`` bound the total; they are equal when ``exact``."""

    low: int
    high: int
    longest_row: int  # upper estimate for the longest row
    tokenizer: str  # e.g. "o200k_base", "estimate: characters / 4 +- 25 %"
    exact: bool


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """One file, or one part of a file after splitting."""

    path: str
    sha256: str  # of the file's bytes
    kind: Kind
    rows: int
    tokens: TokenFacts
    features: frozenset[Feature] = frozenset()


@dataclass(frozen=True, slots=True)
class JobData:
    """The parts of a job's data, after splitting."""

    train: DatasetFacts
    validation: DatasetFacts | None = None
    test: DatasetFacts | None = None
