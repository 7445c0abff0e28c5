"""An earlier adapter that a job trains further (``continue_from``): where it lies, what it is, and the job's own copy of it.

Imports no torch: plans look at the adapter too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneport.core.errors import ProviderError
from tuneport.local_backend.config import Adapter, ParentAdapter
from tuneport.local_backend.jobdir import ADAPTER_FILES, holds_adapter, holds_model
from tuneport.local_backend.models import base_fingerprint, packaged_name, remove_tree

KEPT = (*ADAPTER_FILES, "resolved_config.json")
"""What a job keeps of the adapter that it starts from."""
BEYOND = ("modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "layers_to_transform")
"""Settings of PEFT's LoRA that make an adapter hold more, or other, than this backend trains."""


@dataclass(frozen=True, slots=True)
class Parent:
    """An adapter that can be trained further."""

    folder: Path
    adapter: Adapter
    model: str  # the base, as its files name it
    base: str | None  # fingerprint of the base's weights
    digest: str  # of the adapter's weights

    @property
    def setting(self) -> ParentAdapter:
        """What the configuration of the job says of it."""
        return ParentAdapter(path=str(self.folder), digest=self.digest)

    def base_fault(self, model: str) -> str:
        """Why the adapter does not belong to this base model, or "". Weights decide where both are known, else names."""
        here = base_fingerprint(model) if Path(model).is_dir() else None
        if here is not None and self.base is not None:
            return "" if here == self.base else f"the adapter was trained on {self.model}, and the weights in {model} are others"
        carried = packaged_name(self.model)
        same = self.model == model or (carried is not None and carried == packaged_name(model))
        same = same or Path(self.model).expanduser().absolute() == Path(model).expanduser().absolute()
        return "" if same else f"the adapter was trained on {self.model}, not on {model}"


def find_parent(earlier: str, jobs: Path | None = None) -> Parent:
    """The adapter that ``continue_from`` names: ``local:`` and a job's folder or key, a job's id (j-...), or any adapter's folder.

    ``jobs``: where the folders of jobs lie. Raises ProviderError when there is none, or none that can be trained further.
    """
    name = earlier.removeprefix("local:")
    folder = Path(name).expanduser()
    if jobs is not None and not folder.is_dir():
        found = sorted(jobs.glob(f"tp-{name[2:]}-*")) if name.startswith("j-") else [jobs / name]
        folder = found[0] if len(found) == 1 else folder
    if not folder.is_dir():
        raise ProviderError(f"no job and no folder {name} is here", fix="name a finished local job, local:FOLDER, or an adapter's folder")
    folder = folder.absolute()
    adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
    if not holds_adapter(adapter):
        if holds_model(adapter):
            fix = "name that folder as the model, and leave out continue_from"
            raise ProviderError(f"{adapter} holds a whole model, no adapter", fix=fix)
        raise ProviderError(f"{folder} holds no finished adapter", fix="wait for the job, or name the folder of one of its checkpoints")
    return _read(adapter)


def keep(parent: ParentAdapter, folder: Path) -> None:
    """Copy the adapter into the job's ``folder``, so that it is there whatever becomes of the earlier job.

    Raises ProviderError when it is gone, or no longer the one that was planned with.
    """
    source = Path(parent.path)
    if not holds_adapter(source) or _digest(source) != parent.digest:
        raise ProviderError(f"the adapter in {source} has changed since the job was planned", fix="plan and submit anew")
    partial = folder.with_name(f".{folder.name}.part")
    remove_tree(partial)
    partial.mkdir(parents=True)
    for name in KEPT:
        if (source / name).exists():
            shutil.copyfile(source / name, partial / name)
    if _digest(partial) != parent.digest:
        raise ProviderError(f"the copy of {source} in {partial} differs from it", fix="look to that disk, then submit anew")
    remove_tree(folder)
    partial.rename(folder)


def _read(adapter: Path) -> Parent:
    try:
        peft = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        known: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            known = json.loads((adapter / "resolved_config.json").read_text(encoding="utf-8"))
        own = Adapter.model_validate(known["config"]["adapter"]) if known else _from_peft(peft)
        base = str(known["config"]["model"] if known else peft["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProviderError(f"the settings of the adapter in {adapter} cannot be read ({error})", fix="name another adapter") from error
    if not own.low_rank:
        what = f"the adapter in {adapter} is one of {own.kind} tuning, which PEFT does not train further"
        raise ProviderError(what, fix="continue from an adapter of lora, qlora, dora or rslora")
    beyond = [name for name in BEYOND if peft.get(name)] + (["bias"] if peft.get("bias", "none") != "none" else [])
    if beyond:
        what = f"the adapter in {adapter} uses {', '.join(beyond)}, which this backend does not train"
        raise ProviderError(what, fix="name another adapter")
    return Parent(adapter, own, base, known.get("base_fingerprint"), _digest(adapter))


def _from_peft(peft: dict[str, Any]) -> Adapter:
    """Of an adapter from elsewhere, or a checkpoint, by PEFT's own file."""
    if peft["peft_type"] != "LORA":
        raise ValueError(f"its peft_type is {peft['peft_type']}, and only LORA is trained further")
    modules = peft["target_modules"]
    return Adapter(
        kind="dora" if peft.get("use_dora") else "rslora" if peft.get("use_rslora") else "lora",
        rank=peft["r"],
        alpha=peft["lora_alpha"],
        dropout=peft.get("lora_dropout", 0.0),
        target_modules=modules if isinstance(modules, str) else tuple(sorted(modules)),
    )


def _digest(adapter: Path) -> str:
    with (adapter / "adapter_model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
