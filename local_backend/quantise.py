"""A whole model with its linear layers in int8: half the size of bf16, in the format of compressed-tensors.

Weights only, one scale for each output channel, rounded to nearest: no rows are needed. vLLM reads the format, and so does
transformers. The vocabulary's matrices stay as they are.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneport.core.errors import MissingExtraError

BITS = 8


@dataclass(frozen=True, slots=True)
class Quantised:
    """What rounding did: how many layers are int8, and how much of the file is left."""

    layers: int
    bytes: int
    bytes_before: int

    @property
    def words(self) -> str:
        """The same for people."""
        return f"{self.layers} linear layers in int8, {self.bytes / 1e6:,.1f} MB in place of {self.bytes_before / 1e6:,.1f}"


def require_compressed_tensors() -> None:
    """Raise MissingExtraError without the library. Imports nothing of it."""
    if importlib.util.find_spec("compressed_tensors") is None:
        raise MissingExtraError("int8 needs compressed-tensors, which is not installed", "quantize")


def write_int8(model: Any, source: Path, target: Path) -> Quantised:
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

    arguments = QuantizationArgs(num_bits=BITS, type="int", strategy="channel", symmetric=True, dynamic=False)
    head = model.get_output_embeddings()
    ignored = [name for name, module in model.named_modules() if module is head]
    config = QuantizationConfig(
        config_groups={"linear": QuantizationScheme(targets=["Linear"], weights=arguments)},
        ignore=ignored,
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
    # The card and settings of the whole model hold for this one too.
    for note in ("README.md", "resolved_config.json"):
        if (source / note).exists():
            (target / note).write_bytes((source / note).read_bytes())
    return Quantised(len(layers), _weights(target), _weights(source))


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
