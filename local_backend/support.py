"""What the local backend offers, as data: ``methods.yaml``. Imports no torch."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@lru_cache(maxsize=1)
def local_facts() -> dict[str, Any]:
    """The file's content: methods, tunings, lacks, refused, unfit."""
    facts: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text(encoding="utf-8"))
    return facts


def refused_combination(method: str, kind: str) -> str:
    """Why the libraries cannot train this kind of tuning by this method, or ""."""
    return next((entry["reason"] for entry in local_facts()["refused"] if method in entry["methods"] and kind in entry["tunings"]), "")


def unfit_model(model: str, kind: str) -> str:
    """Why this base model, where it is a folder with a config.json, cannot take this kind of tuning, or ""."""
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # on the hub, or damaged: the worker says so when it loads the model
        return ""
    if not isinstance(config, dict):  # damaged too
        return ""
    text = config.get("text_config") or config
    fitting = (entry for entry in local_facts()["unfit"] if kind in entry["tunings"])
    return next((entry["reason"] for entry in fitting if any(text.get(name) for name in entry["settings"])), "")
