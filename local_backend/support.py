"""What the local backend offers, as data: ``methods.yaml``. Imports no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@lru_cache(maxsize=1)
def local_facts() -> dict[str, Any]:
    """The file's content: methods, tunings, lacks, refused."""
    facts: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text(encoding="utf-8"))
    return facts


def refused_combination(method: str, kind: str) -> str:
    """Why the libraries cannot train this kind of tuning by this method, or ""."""
    return next((entry["reason"] for entry in local_facts()["refused"] if method in entry["methods"] and kind in entry["tunings"]), "")
