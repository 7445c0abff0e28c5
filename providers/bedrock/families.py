"""How Bedrock's base-model families differ in what they read. Ranges and defaults stand in the catalogue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tuneport.core.data.facts import Feature

_PROMPT_COMPLETION: Mapping[Feature, str] = {
    "system": "prompt/completion records have no system role; put the instructions into the user's message",
    "multi_turn": "prompt/completion records hold one question and one answer",
    "reasoning": "prompt/completion records have no place for reasoning",
}
_NO_REASONING: Mapping[Feature, str] = {"reasoning": "this family's records have no place for reasoning"}


@dataclass(frozen=True, slots=True)
class Family:
    """What a family of base models reads."""

    prefixes: tuple[str, ...]  # of the vendor's model id
    record: str  # record shape of supervised rows (``providers.bedrock.records``)
    cannot_carry: Mapping[Feature, str] = field(default_factory=lambda: _NO_REASONING)
    rows_of_both: bool = False  # the limit on rows counts training and validation rows together
    uses_validation: bool = True


FAMILIES: tuple[Family, ...] = (
    Family(("amazon.nova-2",), "bedrock-nova-2", cannot_carry={}, uses_validation=False),
    Family(("amazon.nova",), "bedrock-nova"),
    Family(("meta.llama3-1",), "bedrock-prompt-completion", cannot_carry=_PROMPT_COMPLETION, rows_of_both=True),
    Family(("meta.llama3-2", "meta.llama3-3"), "bedrock-converse", rows_of_both=True),
    Family(("amazon.titan-text", "cohere.command"), "bedrock-prompt-completion", cannot_carry=_PROMPT_COMPLETION),
    Family(("anthropic.claude-3-haiku",), "bedrock-claude"),
)
"""Source: Bedrock user guide, "Prepare data for fine-tuning your models", and the Nova user guide (copies of 2026).

The first family whose prefix fits holds, so the more specific ones stand first.
"""

ASSUMED = Family((), "bedrock-converse")
"""For a model of no known family: the record format that Bedrock's newer families share."""


def family_of(vendor_id: str) -> Family | None:
    """The family of a model id or foundation-model ARN; None when it is of no known family."""
    model = re.sub(r"^arn:.*:foundation-model/", "", vendor_id)
    return next((family for family in FAMILIES if model.startswith(family.prefixes)), None)
