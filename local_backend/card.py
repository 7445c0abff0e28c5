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

from tuneport.core.errors import ProviderError
from tuneport.local_backend.best import BestAdapter
from tuneport.local_backend.config import Adapter
from tuneport.local_backend.jobdir import write_atomically, write_json
from tuneport.local_backend.models import TRAINING_STACK, base_fingerprint, packaged_models, packaged_name, remove_tree
from tuneport.local_backend.story import validation_words
from tuneport.local_backend.trainer import Run

CONFIG_FILE = "resolved_config.json"
WEIGHT_FILES = frozenset({"adapter_config.json", "config.json", "generation_config.json", "model.safetensors.index.json"})
"""What belongs to the weights beside the safetensors themselves."""


def save_result(run: Run, best: BestAdapter) -> str:
    """Write ``adapter/`` and return one line about it.

    It is the best so far by validation loss, or that of the last step when nothing was validated. Full tuning leaves a whole
    model there, in the precision that the configuration names. Raises ProviderError when there is neither.
    """
    job = run.job
    target = job.adapter
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    last = job.last_checkpoint()
    full = run.config.adapter.kind == "full"
    thing = "the model" if full else "the adapter"
    if best.path is not None:
        source, chosen = best.path, f"{thing} of step {best.step}, which has the best {validation_words(run.config, best.loss)}"
    elif last is not None:
        source, chosen = last[1], f"{thing} of the last step (there were no validation rows to choose by)"
    else:
        raise ProviderError(f"job {job.path.name} has no checkpoint to take its result from", fix="resume it")
    folder.mkdir()
    for file in source.iterdir():
        code = full and run.config.trust_remote_code and file.suffix == ".py"  # without it a whole model could not be loaded
        if file.suffix == ".safetensors" or file.name in WEIGHT_FILES or code:
            shutil.copy(file, folder / file.name)
    if full:
        _to_precision(folder, run.config.dtype)
        run.tokenizer.save_pretrained(folder)
    else:
        _name_base(folder / "adapter_config.json", run.config.model)
    if job.chat_template.exists():
        shutil.copy(job.chat_template, folder / job.chat_template.name)
    write_json(folder / CONFIG_FILE, resolved(run, best))
    write_atomically(folder / "README.md", model_card(run, best))
    remove_tree(target)
    folder.rename(target)
    return f"saved {chosen}"


def _to_precision(folder: Path, dtype: str) -> None:
    """Fully tuned weights, learnt in fp32, as they are to be kept."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"dtype": "bfloat16" if dtype == "bf16" else "float32"})
    if dtype == "bf16":
        for file in folder.glob("*.safetensors"):
            save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def resolved(run: Run, best: BestAdapter) -> dict[str, Any]:
    """The configuration, what was seen, and every version that may change the result."""
    return {
        "config": run.config.model_dump(mode="json"),
        "base_fingerprint": base_fingerprint(run.folder),
        "device": run.device,
        "total_steps": run.steps,
        "kept_step": best.step,
        "validation_loss": best.loss if best.step is not None else None,
        "train_sequences": len(run.train),
        "train_tokens": sum(row.tokens for row in run.train),
        "validation_sequences": len(run.validation),
        "gradient_checkpointing": run.checkpointing,
        "seeds": {"adapter": run.config.seed, "order": run.config.seed, "training": run.config.seed},
        "versions": versions(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Python, the platform and the training stack."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in (*TRAINING_STACK, "bitsandbytes", "tokenizers", "safetensors", "tuneport"):
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
    full = config.adapter.kind == "full"
    what = "Every weight" if full else f"{KIND_NAMES[config.adapter.kind]} adapter"
    lines = [
        "---",
        f"library_name: {'transformers' if full else 'peft'}",
        f"base_model: {json.dumps(config.model)}",
        *([f"license: {facts['license'].lower()}"] if "license" in facts else []),
        f"tags: [{config.adapter.kind}, {config.method}, tuneport]",
        "---",
        f"# {config.name or run.job.path.name}",
        "",
        f"{what} of `{config.model}`, trained by tuneport on this machine ({run.device})."
        + ("" if full else " It is not a whole model."),
        "",
        "## Training",
        f"- method: {config.method}" + (f", loss on {config.loss_on}" if config.method == "sft" else ""),
        f"- tuning: {_tuning_words(config.adapter)}",
        *([f"- trained further from the adapter in `{config.parent.path}` (weights {config.parent.digest})"] if config.parent else []),
        f"- {run.steps} steps of {config.batch_size} rows, learning rate {config.learning_rate:g} ({config.scheduler}), seed {config.seed}",
        f"- {len(run.train)} training sequences, {len(run.validation)} validation sequences",
    ]
    if best.step is not None:
        unit = " nats per token" if config.method in ("sft", "cpt") else ""
        lines.append(f"- kept: step {best.step}, {validation_words(config, best.loss)}{unit}")
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


KIND_NAMES = {"lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "rslora": "rsLoRA", "prefix": "Prefix", "prompt": "Prompt"}


def _tuning_words(adapter: Adapter) -> str:
    if adapter.kind == "full":
        return "every weight"
    if not adapter.low_rank:
        return f"{adapter.kind}, {adapter.virtual_tokens} virtual tokens"
    targets = adapter.target_modules if isinstance(adapter.target_modules, str) else ", ".join(adapter.target_modules)
    return f"{adapter.kind}, rank {adapter.rank}, alpha {adapter.alpha:g}, dropout {adapter.dropout:g}, targets {targets}"


def _name_base(path: Path, model: str) -> None:
    """The adapter names its base as the user did, not by a path in this machine's cache."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = model
    write_json(path, content)
