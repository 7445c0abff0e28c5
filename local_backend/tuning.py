"""Which weights learn: the model with its adapter, or with every weight free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from tuneport.core.errors import ProviderError
from tuneport.local_backend.config import Adapter
from tuneport.local_backend.models import load_adapter


def peft_config(adapter: Adapter) -> PeftConfig | None:
    """PEFT's configuration of this kind of tuning; None for full tuning."""
    if adapter.low_rank:
        targets = adapter.target_modules if isinstance(adapter.target_modules, str) else list(adapter.target_modules)
        return LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules=targets,
            use_dora=adapter.kind == "dora",
            use_rslora=adapter.kind == "rslora",
            task_type="CAUSAL_LM",
        )
    virtual = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}.get(adapter.kind)
    return virtual(num_virtual_tokens=adapter.virtual_tokens, task_type="CAUSAL_LM") if virtual else None


def adapt(model: Any, adapter: Adapter, seed: int, parent: Path | None = None) -> Any:
    """The model ready to learn: with a fresh adapter, seeded, with the earlier one in the folder ``parent``, or all of it.

    Raises ProviderError when a target module does not exist, or the earlier adapter does not fit the model.
    """
    config = peft_config(adapter)
    if config is None:
        return model.requires_grad_(True)
    torch.manual_seed(seed)
    if parent is not None:
        return load_adapter(model, parent, train_as=config)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        fix = "correct tuning.target_modules, or leave it unset"
        raise ProviderError(f"the adapter does not fit this model ({error})", fix=fix) from error
