"""How long local training takes and how much memory it needs, told before torch is imported. Ranges, with their sources.

Time: LoRA costs about 4 FLOPs per parameter and token, a validation pass 2; divided by what the machine reaches (hardware.yaml).
Memory: the component model of the economics notes 3.2: weights, adapter with its optimiser state, activations, logits, overhead.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from math import inf
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
    gpu_bf16: bool = True  # computes in bf16
    gpu_bandwidth: float | None = None  # of its memory, bytes/s


@lru_cache(maxsize=1)
def facts() -> dict[str, Any]:
    """What hardware.yaml says."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("hardware.yaml").read_text(encoding="utf-8"))
    return found


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
    """A machine with this GPU, by the driver's product name; its speed and memory are unknown when hardware.yaml lacks it."""
    other = any(_names(word, gpu) for word in facts()["other_cards"])
    known = next((entry for entry in facts()["gpus"] if not other and _names(entry["match"], gpu)), None)
    if known is None:
        return Hardware(cores, memory, gpu)
    bf16, bandwidth = known.get("bf16", True), known["gbps"] * 1e9
    return Hardware(cores, memory, gpu, known["tflops"] * 1e12, known["memory_gb"] * 1e9, bf16, bandwidth)


def _names(words: str, gpu: str) -> bool:
    """Do these words stand in the product name, whole? "L4" does not stand in "NVIDIA L40"."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(words)}(?![A-Za-z0-9])", gpu) is not None


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def training_time(
    shape: Shape | None, trained: Range, evaluated: Range, hardware: Hardware, *, packed: bool = False, slowdown: float = 1.0
) -> Duration:
    """Seconds from start to the finished adapter. ``trained`` and ``evaluated`` are tokens over all passes.

    ``packed``: by the packed pass. ``slowdown``: time per token, relative to a GPU with memory to spare.
    """
    if shape is None:
        return Duration(seconds=None, basis="the model's size is unknown before it is loaded")
    known = facts()
    work = (trained * (TRAIN_FLOPS * slowdown) + evaluated * FORWARD_FLOPS) * shape.parameters
    if hardware.gpu is not None:
        if hardware.gpu_flops is None:
            return Duration(seconds=None, basis=f"the speed of {hardware.gpu} is not in hardware.yaml")
        use = known["packed_utilisation" if packed else "gpu_utilisation"]
        rate = Range(low=hardware.gpu_flops * use["low"], high=hardware.gpu_flops * use["high"])
        start, where = known["gpu_start_seconds"], f"{hardware.gpu} at {use['low']:.0%} to {use['high']:.0%} of its peak ({use['source']})"
    else:
        core = known["cpu_gflops_per_core"]
        rate = Range(low=core["low"] * 1e9 * hardware.cores, high=core["high"] * 1e9 * hardware.cores)
        plural = "s" if hardware.cores > 1 else ""
        start, where = known["cpu_start_seconds"], f"{hardware.cores} CPU core{plural} of {platform.machine()} ({core['source']})"
    seconds = Range(low=start[0] + work.low / rate.high, high=start[1] + work.high / rate.low)
    return Duration(seconds=seconds, basis=f"4 FLOPs per parameter and token, {shape.parameters / 1e9:.3g}B parameters, {where}")


def adapter_parameters(shape: Shape, rank: int) -> float | None:
    """Parameters of a LoRA adapter on all linear layers; None when the shape is not known."""
    if shape.hidden is None or shape.layers is None or shape.intermediate is None or shape.key_value is None:
        return None
    hidden, inner, key_value = shape.hidden, shape.intermediate, shape.key_value
    ends = 2 * (hidden + hidden) + 2 * (hidden + key_value) + 3 * (hidden + inner)
    return float(shape.layers * rank * ends)


QUANTISED = 0.516
"""Bytes of a weight in NF4 with doubly quantised scales: half a byte, and 0.127 bits of scales (Dettmers et al. 2023)."""
UNPACKED = 0.45
"""Bytes per quantised weight that bitsandbytes' own layers hold beside it while activations are kept: fitted to LitGPT's rows."""
ACTIVATIONS = 34.0
"""Bytes per token, hidden unit and layer in bf16 (Korthikanti et al. 2022, with an attention that keeps no scores)."""
PASSING = 0.4
"""What the backward pass of one layer takes beside what the layer kept, as a share of that: 0.34 to 0.45 on one H100, November 2026."""
LOGITS_PIECE = 2**27
"""Bytes of fp32 logits for which the padded pass takes its loss at a time."""
BAND = 0.22
"""Half width of the range, as a share: the largest error of the component model against published unquantised runs."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What decides the memory of a usual training script (transformers, PEFT, TRL and the like)."""

    shape: Shape
    trained: float  # parameters that learn
    rows: int  # of a micro-batch
    tokens: int  # of the longest row, padding included
    state: float = 16  # bytes per trained parameter: fp32 weight, gradient, two moments; 4 beyond the weight each in pure bf16
    four_bit: bool = False
    checkpointing: bool = False
    width: int = 2  # bytes per number of the base
    activation_factor: float = ACTIVATIONS  # bytes per token, hidden unit and layer in bf16; 24 when compiled
    input_factor: float = 2.0  # the same of the inputs of layers, kept for recomputation
    gradients: float = 0.0  # bytes per trained parameter that come only as activations go, and are not in ``state``
    logits: float = 1.0  # share of the logits that exists at a time
    logits_bytes: float = inf  # and the most of them, where the loss is taken in pieces


def memory_bytes(setup: Setup) -> Range | None:
    """Peak memory in bytes by the component model of the economics notes, 3.2; None when the shape is not known.

    Weights; what learns; activations, or the layers' inputs and one layer; and the larger of two things that pass: logits and their
    gradient in two precisions, or what one layer's backward pass takes.
    """
    shape = setup.shape
    if shape.hidden is None or shape.layers is None or shape.vocabulary is None:
        return None
    ends = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    inside = max(0.0, shape.parameters - ends)
    weights = setup.width * shape.parameters
    if setup.four_bit:
        weights = QUANTISED * inside + setup.width * ends + (0 if setup.checkpointing else UNPACKED * inside)
    unit = setup.rows * setup.tokens * shape.hidden * setup.width / 2
    layer = setup.activation_factor * unit
    logits = min(12.0 * setup.rows * setup.tokens * shape.vocabulary * setup.logits, setup.logits_bytes)
    if setup.checkpointing:
        activations = setup.input_factor * unit * shape.layers + max(logits, (1 + PASSING) * layer)
    else:
        activations = layer * shape.layers + max(logits, PASSING * layer)
    total = weights + setup.state * setup.trained + max(activations, setup.gradients * setup.trained)
    return Range(low=(1 - BAND) * total, high=(1 + BAND) * total)
