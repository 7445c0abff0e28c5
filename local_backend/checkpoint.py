"""Looking at a checkpoint before training goes on from it: is it whole, and does it hold nothing but numbers?"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

from tuneport.core.errors import ProviderError

STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
"""What the trainer keeps beside the weights, in PyTorch's own format: read as plain numbers only, never unpickled freely."""


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The trainer's log up to this checkpoint: losses, and validation losses as ``story`` notes them."""
    history: list[dict[str, Any]] = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return history


def check_checkpoint(folder: Path) -> None:
    """Raise ProviderError when a file of the checkpoint is damaged, or would run code when it is read."""
    file = folder / "trainer_state.json"
    try:
        history_of(folder)
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:
                list(weights.keys())
        with safe_globals():
            for file in (folder / name for name in STATES if (folder / name).exists()):
                torch.load(file, map_location="cpu", mmap=file.name == "optimizer.pt", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        why = "it holds more than numbers" if isinstance(error, pickle.UnpicklingError) else "it is damaged"
        raise ProviderError(
            f"{file} is not read, because {why}",
            fix=f"delete the folder {folder} and resume: training goes on from the checkpoint before it, or from the start",
            retry="no",
        ) from error
