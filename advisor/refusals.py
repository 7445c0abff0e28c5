"""Whether an answer declines, by its wording (``refusals.yaml``) or because the vendor marks it so."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import yaml

HEAD = 200
"""Characters of an answer in which a refusal shows: models say so first."""


def declines(text: str, phrases: Sequence[str] | None = None) -> bool:
    """True when the answer's head holds one of the phrases."""
    head = " ".join(text[: 4 * HEAD].casefold().replace("’", "'").split())[:HEAD]
    return any(phrase in head for phrase in (_phrases() if phrases is None else phrases))


@lru_cache(maxsize=1)
def _phrases() -> tuple[str, ...]:
    text = files("tuneport.advisor").joinpath("refusals.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text)["phrases"])
