"""A whole model with its linear layers rounded, in the format of compressed-tensors, which vLLM and transformers read.

int8  one scale for each output channel, rounded to nearest: needs no rows.
awq   4 bits, one scale for each group of weights. Channels that the activations of given rows show to matter are scaled up before
      rounding (AWQ, Lin et al. 2023), by auto-round.
The vocabulary's matrices stay as they are.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from tuneport.core.errors import MissingExtraError, ProviderError

Rounding = Literal["int8", "awq"]
NEEDS: dict[Rounding, tuple[str, ...]] = {"int8": ("compressed_tensors",), "awq": ("compressed_tensors", "auto_round")}
"""Rounding -> the modules that do it, of the extra ``quantize``."""
GROUPS = (128, 64, 32)
"""Weights that may share a scale in awq, the usual number first."""
BLOCK, BLOCKS = 512, 128
"""Calibration as AWQ's authors do it: at most so many blocks of so many tokens, rows one behind the other."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """What was done to how many layers, and how much of the file is left."""

    layers: int
    how: str
    bytes: int
    bytes_before: int

    @property
    def words(self) -> str:
        """The same for people."""
        return f"{self.layers} linear layers in {self.how}, {self.bytes / 1e6:,.1f} MB in place of {self.bytes_before / 1e6:,.1f}"


def require_rounding(wanted: Rounding) -> None:
    """Raise MissingExtraError without the libraries. Imports nothing of them."""
    missing = [name.replace("_", "-") for name in NEEDS[wanted] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{wanted} needs {' and '.join(missing)}, which this environment lacks", "quantize")


def write_int8(model: Any, source: Path, target: Path) -> Rounded:
    """Round the linear layers of ``model``, which was loaded from ``source``, and save it in ``target``. The model is changed."""
    from compressed_tensors.compressors import ModelCompressor  # noqa: PLC0415
    from compressed_tensors.quantization import (  # noqa: PLC0415
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams  # noqa: PLC0415

    arguments = QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True, dynamic=False)
    head = model.get_output_embeddings()
    config = QuantizationConfig(
        config_groups={"linear": QuantizationScheme(targets=["Linear"], weights=arguments)},
        ignore=[name for name, module in model.named_modules() if module is head],
        quantization_status=QuantizationStatus.FROZEN,
    )
    apply_quantization_config(model, config)
    layers = [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]
    for layer in layers:
        weight = layer.weight.data
        scale, _ = calculate_qparams(weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True), arguments)
        layer.weight_scale.data.copy_(scale)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(str(target))
    return Rounded(len(layers), "int8", _weights(target), _weights(source))


def write_awq(model: Any, tokenizer: Any, rows: Iterable[list[int]], source: Path, target: Path) -> Rounded:
    """The same in 4 bits by AWQ; ``rows`` are the tokens to calibrate on. The model is changed.

    Raises ProviderError when no group fits the model's widths, or there are no rows.
    """
    import torch  # noqa: PLC0415

    tokens = list(islice(chain.from_iterable(rows), BLOCK * BLOCKS))
    if not tokens:
        raise ProviderError("awq is calibrated on training rows, and there are none", fix="int8 needs none: --quantize int8")
    head = model.get_output_embeddings()
    widths = [module.in_features for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    group = next((size for size in GROUPS if all(width % size == 0 for width in widths)), None)
    if group is None:
        raise ProviderError(f"awq rounds weights in groups of {GROUPS[-1]} or more, which do not fit this model", fix="--quantize int8")
    block = min(BLOCK, len(tokens))
    blocks = torch.tensor(tokens[: len(tokens) // block * block]).split(block)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".awq.") as scratch:
        os.environ["AR_WORK_SPACE"] = str(Path(scratch) / "work")  # it would be the folder that one stands in
        from auto_round import AutoRound  # noqa: PLC0415

        rounding = AutoRound(
            model,
            tokenizer,
            scheme={"bits": 4, "group_size": group, "sym": True, "data_type": "int", "act_bits": 16},
            alg_configs="awq",
            iters=0,  # rounded to nearest after scaling
            dataset=[{"input_ids": one[None], "attention_mask": torch.ones_like(one)[None]} for one in blocks],
            nsamples=len(blocks),
            seqlen=block,
            batch_size=min(8, len(blocks)),
            device_map=str(model.device),
            enable_torch_compile=False,
            low_cpu_mem_usage=False,
        )
        gc.freeze()  # auto-round collects garbage many times a layer, 0.4 s each with all that the libraries hold
        try:
            rounding.quantize_and_save(output_dir=str(Path(scratch) / "out"), format="llm_compressor")
        finally:
            gc.unfreeze()
        (config,) = (Path(scratch) / "out").rglob("config.json")
        shutil.move(config.parent, target)
    from safetensors import safe_open  # noqa: PLC0415

    packed = 0
    for file in target.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            packed += sum(name.endswith("weight_packed") for name in opened.keys())  # noqa: SIM118 -- it is no dictionary
    how = f"4 bits by AWQ (groups of {group}, calibrated on {len(blocks) * block:,} tokens of the training rows)"
    return Rounded(packed, how, _weights(target), _weights(source))


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
