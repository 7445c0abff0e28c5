"""Keeps the adapter with the lowest validation loss of a run, so that a kill at any moment leaves a whole one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tuneport.local_backend.jobdir import write_json
from tuneport.local_backend.models import remove_tree


class BestAdapter:
    """The best adapter so far under ``folder``: step-N holds it, best.json points there and is replaced in one step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pointer = folder / "best.json"
        stored = json.loads(self._pointer.read_text(encoding="utf-8")) if self._pointer.exists() else None
        self.step: int | None = stored["step"] if stored else None
        self.loss: float = stored["eval_loss"] if stored else math.inf

    @property
    def path(self) -> Path | None:
        """The folder of the best adapter, or None before the first evaluation."""
        return self._folder / f"step-{self.step}" if self.step is not None else None

    def offer(self, model: Any, step: int, loss: float) -> bool:
        """Keep the model's adapter when its loss is lower than the best; True when kept.

        After a resume the same steps come again with the same losses: the stored adapter then stays.
        """
        if not loss < self.loss:
            return False
        before = self.path
        folder = self._folder / f"step-{step}"
        remove_tree(folder)
        model.save_pretrained(folder, safe_serialization=True)
        write_json(self._pointer, {"step": step, "eval_loss": loss})
        self.step, self.loss = step, loss
        if before is not None and before != folder:
            remove_tree(before)
        return True
