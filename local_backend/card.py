"""What a finished job leaves: the adapter, its model card, and the exact configuration with versions. Appears whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tuneport.local_backend.best import BestAdapter
from tuneport.local_backend.jobdir import ADAPTER_FILES, write_atomically, write_json
from tuneport.local_backend.models import TRAINING_STACK, packaged_models, packaged_name, remove_tree
from tuneport.local_backend.trainer import Run

CONFIG_FILE = "resolved_config.json"


def save_adapter(run: Run, best: BestAdapter, checkpoint: Path | None) -> str:
    """Write ``adapter/`` and return one line about it.

    It is the best adapter, or that of the last step when nothing was validated: ``checkpoint`` when the model was not trained
    further from there, otherwise the model itself.
    """
    job = run.job
    target = job.adapter
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    remove_tree(folder)
    if best.path is not None:
        shutil.copytree(best.path, folder)
        chosen = f"the adapter of step {best.step}, which has the lowest validation loss, {best.loss:.4f}"
    else:
        if checkpoint is None:
            run.model.save_pretrained(folder)
        else:
            folder.mkdir()
            for name in ADAPTER_FILES:
                shutil.copy(checkpoint / name, folder / name)
        chosen = "the adapter of the last step (there were no validation rows to choose by)"
    if job.chat_template.exists():
        shutil.copy(job.chat_template, folder / job.chat_template.name)
    _name_base(folder / "adapter_config.json", run.config.model)
    write_json(folder / CONFIG_FILE, resolved(run, best))
    write_atomically(folder / "README.md", model_card(run, best))
    remove_tree(target)
    folder.rename(target)
    return f"saved {chosen}"


def resolved(run: Run, best: BestAdapter) -> dict[str, Any]:
    """The configuration, what was seen, and every version that may change the result."""
    return {
        "config": run.config.model_dump(mode="json"),
        "device": run.device,
        "total_steps": run.steps,
        "kept_step": best.step,
        "validation_loss": best.loss if best.step is not None else None,
        "train_sequences": len(run.train),
        "train_tokens": sum(len(row.input_ids) for row in run.train),
        "validation_sequences": len(run.validation),
        "gradient_checkpointing": run.checkpointing,
        "seeds": {"adapter": run.config.seed, "order": run.config.seed, "training": run.config.seed},
        "versions": versions(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Python, the platform and the training stack."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in (*TRAINING_STACK, "tokenizers", "safetensors", "tuneport"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def model_card(run: Run, best: BestAdapter) -> str:
    """The README of the adapter, in the hub's form: metadata block, then prose."""
    config = run.config
    carried = packaged_name(config.model)
    facts = packaged_models()[carried] if carried else {}
    targets = config.adapter.target_modules
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {json.dumps(config.model)}",
        *([f"license: {facts['license'].lower()}"] if "license" in facts else []),
        "tags: [lora, sft, tuneport]",
        "---",
        f"# {config.name or run.job.path.name}",
        "",
        f"LoRA adapter for `{config.model}`, trained by tuneport on this machine ({run.device}). It is not a whole model.",
        "",
        "## Training",
        f"- method: {config.method}, loss on {config.loss_on}",
        f"- adapter: rank {config.adapter.rank}, alpha {config.adapter.alpha:g}, dropout {config.adapter.dropout:g}, "
        f"targets {targets if isinstance(targets, str) else ', '.join(targets)}",
        f"- {run.steps} steps of {config.batch_size} rows, learning rate {config.learning_rate:g} ({config.scheduler}), seed {config.seed}",
        f"- {len(run.train)} training sequences, {len(run.validation)} validation sequences",
    ]
    if best.step is not None:
        lines.append(f"- kept: step {best.step}, validation loss {best.loss:.4f} nats per token")
    if facts.get("note"):
        lines.append(f"- base: {facts['note']}")
    lines += [
        "",
        "## Limits",
        "Measured only as far as a report beside this card says. It knows nothing that its base and its training rows do not hold.",
        f"Every setting, seed and version stands in `{CONFIG_FILE}`.",
        "",
    ]
    return "\n".join(lines)


def _name_base(path: Path, model: str) -> None:
    """The adapter names its base as the user did, not by a path in this machine's cache."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = model
    write_json(path, content)
