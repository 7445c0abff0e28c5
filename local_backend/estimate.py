"""How long local training takes and how much memory it needs, told before torch is imported. Ranges, with their sources.

Time: LoRA costs about 4 FLOPs per parameter and token, a validation pass 2; divided by what the machine reaches (hardware.yaml).
Memory: the component model of the economics notes 3.2: weights, adapter with its optimiser state, activations, logits, overhead.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tuneport.core.money import Duration, Range
from tuneport.local_backend.models import Shape

GIB = 2**30
TRAIN_FLOPS = 4  # per parameter and token; LoRA needs no weight gradients of the base
FORWARD_FLOPS = 2


@dataclass(frozen=True, slots=True)
class Hardware:
    """This machine, as far as it can be seen without a driver call. ``gpu`` is None on a machine without one."""

    cores: int
    memory: int | None  # bytes of main memory
    gpu: str | None = None  # the driver's product name
    gpu_flops: float | None = None  # bf16 peak; None for a GPU that is not in hardware.yaml
    gpu_memory: float | None = None  # bytes


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("hardware.yaml").read_text(encoding="utf-8"))
    return facts


def detect_hardware(device: str = "auto", proc: Path = Path("/proc")) -> Hardware:
    """The cores, memory and first NVIDIA GPU of this machine. ``device`` "cpu" ignores the GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _main_memory()
    if device != "cpu":
        for information in sorted((proc / "driver/nvidia/gpus").glob("*/information")):
            name = next((line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if line.startswith("Model:")), "")
            return hardware_of(name, cores, memory)
    return Hardware(cores, memory)


def hardware_of(gpu: str, cores: int, memory: int | None) -> Hardware:
    """A machine with this GPU, by the driver's product name."""
    known = next((entry for entry in _facts()["gpus"] if entry["match"] in gpu), None)
    if known is None:
        return Hardware(cores, memory, gpu)
    return Hardware(cores, memory, gpu, known["tflops"] * 1e12, known["memory_gb"] * 1e9)


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def training_time(shape: Shape | None, trained: Range, evaluated: Range, hardware: Hardware) -> Duration:
    """Seconds from start to the finished adapter. ``trained`` and ``evaluated`` are tokens over all passes."""
    if shape is None:
        return Duration(seconds=None, basis="the model's size is unknown before it is loaded")
    facts = _facts()
    work = (trained * TRAIN_FLOPS + evaluated * FORWARD_FLOPS) * shape.parameters
    if hardware.gpu is not None:
        if hardware.gpu_flops is None:
            return Duration(seconds=None, basis=f"the speed of {hardware.gpu} is not in hardware.yaml")
        use = facts["gpu_utilisation"]
        rate = Range(low=hardware.gpu_flops * use["low"], high=hardware.gpu_flops * use["high"])
        start, where = facts["gpu_start_seconds"], f"{hardware.gpu} at {use['low']:.0%} to {use['high']:.0%} of its peak ({use['source']})"
    else:
        core = facts["cpu_gflops_per_core"]
        rate = Range(low=core["low"] * 1e9 * hardware.cores, high=core["high"] * 1e9 * hardware.cores)
        plural = "s" if hardware.cores > 1 else ""
        start, where = facts["cpu_start_seconds"], f"{hardware.cores} CPU core{plural} of {platform.machine()} ({core['source']})"
    seconds = Range(low=start[0] + work.low / rate.high, high=start[1] + work.high / rate.low)
    return Duration(seconds=seconds, basis=f"4 FLOPs per parameter and token, {shape.parameters / 1e9:.3g}B parameters, {where}")


def adapter_parameters(shape: Shape, rank: int) -> float | None:
    """Parameters of a LoRA adapter on all linear layers; None when the shape is not known."""
    if shape.hidden is None or shape.layers is None or shape.intermediate is None or shape.key_value is None:
        return None
    hidden, inner, key_value = shape.hidden, shape.intermediate, shape.key_value
    ends = 2 * (hidden + hidden) + 2 * (hidden + key_value) + 3 * (hidden + inner)
    return float(shape.layers * rank * ends)


def memory_bytes(shape: Shape, *, rank: int, micro_batch: int, tokens: int, dtype: str, checkpointing: bool = False) -> Range | None:
    """Peak memory of LoRA training in bytes; None when the shape is not known.

    Activations: 34 bytes per token, hidden unit and layer in bf16, or 2 with recomputation plus one whole layer. Logits: 12
    bytes per position and vocabulary entry at most (every position trained). The high end adds 2 GiB and 10 % for context and
    fragmentation, the low end nothing, and logits for a tenth of the positions only.
    """
    trainable = adapter_parameters(shape, rank)
    if trainable is None or shape.hidden is None or shape.layers is None or shape.vocabulary is None:
        return None
    width = 1.0 if dtype == "bf16" else 2.0
    unit = micro_batch * tokens * shape.hidden * width
    activations = 2 * unit * shape.layers + 34 * unit if checkpointing else 34 * unit * shape.layers
    logits = 12.0 * micro_batch * tokens * shape.vocabulary
    fixed = 2 * width * shape.parameters + 16 * trainable
    return Range(low=0.85 * (fixed + activations + 0.1 * logits), high=1.1 * (fixed + activations + logits) + 2 * GIB)
