"""Which GPU a job needs: its peak memory and time on each kind of ``hardware.yaml``, before anything is loaded.

SFT of Llama-family models by low-rank adapters adapts itself to the memory there is (``room``); every other job is taken for a
usual training script (``estimate``), with gradient checkpointing where it would not fit without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log, sqrt

from tuneport.core.money import Range
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.estimate import (
    ACTIVATIONS,
    GIB,
    LOGITS_PIECE,
    QUANTISED,
    Hardware,
    Setup,
    adapter_parameters,
    facts,
    hardware_of,
    memory_bytes,
)
from tuneport.local_backend.models import Shape
from tuneport.local_backend.room import FAMILIES, MARGIN, START_COST, choose_room, footprint

CONTEXT = 0.6e9
"""Bytes that the driver takes for itself on a GPU."""
STATE = 18
"""Bytes per parameter of an adapter: fp32 weight, gradient and two moments, and a bf16 copy."""
PACKED_BAND = 0.12
"""Half width of the range for the packed pass, as a share: the tokens of the largest step are known roughly only."""
ROOMY = 8192
"""Tokens of a micro-batch with memory to spare, the one that the measured speed belongs to."""
WHOLE_LOGITS = 5 / 12
"""Share of the logits' usual bytes that TRL's orpo and simpo trainers take, which make them whole: measured, docs/performance.md."""
NEAREST = log(1.5)
"""How far the parameters of a typical shape may be from the model's."""


@dataclass(frozen=True, slots=True)
class Load:
    """The rows of a job, in tokens."""

    mean: float
    longest: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A job on one kind of GPU. ``fits`` is None when that cannot be told."""

    gpu: str
    memory: float  # bytes
    peak: Range | None  # bytes; what it would need when it does not fit
    fits: bool | None
    slowdown: float  # time per token, relative to a GPU with memory to spare
    note: str


def packs(config: TrainConfig, shape: Shape) -> bool:
    """Will the packed pass train it? A model whose class is not known yet is taken for one of the family."""
    return (
        config.method in ("sft", "cpt")
        and config.adapter.kind in ("lora", "qlora", "rslora")
        and config.adapter.dropout == 0
        and config.dtype == "bf16"
        and (shape.family is None or shape.family in FAMILIES)
    )


def completed(shape: Shape) -> Shape | None:
    """The shape, or when only the parameters are known, a typical one with as many; None when there is none like it."""
    if shape.hidden is not None:
        return shape
    typical = [Shape(**entry) for entry in facts()["shapes"]]
    nearest = min(typical, key=lambda one: abs(log(one.parameters / shape.parameters)))
    if abs(log(nearest.parameters / shape.parameters)) > NEAREST:
        return None
    return replace(nearest, parameters=shape.parameters)


def fit(config: TrainConfig, shape: Shape | None, load: Load, machine: Hardware) -> Fit:
    """The job on this GPU."""
    if config.gpu_memory_gib and machine.gpu_memory:  # the driver's share comes on top
        machine = replace(machine, gpu_memory=min(machine.gpu_memory, config.gpu_memory_gib * GIB + CONTEXT))
    name, memory = machine.gpu or "", machine.gpu_memory or 0.0
    if not machine.gpu_bf16 and config.dtype == "bf16":
        return Fit(name, memory, None, False, 1.0, "it does not compute in bf16")
    whole = completed(shape) if shape is not None else None
    if whole is None or not memory:
        return Fit(name, memory, None, None, 1.0, "the model's sizes are unknown" if whole is None else "this GPU's memory is unknown")
    trained = whole.parameters if config.adapter.kind == "full" else adapter_parameters(whole, config.adapter.rank or 1) or 0.0
    note = "" if shape is not None and shape.hidden is not None else "sizes of a typical model with as many parameters"
    if packs(config, whole):
        return _packed(config, whole, load, machine, trained, note)
    need = memory_bytes(padded(config, whole, trained, load.longest))
    if need is not None and need.high > memory - CONTEXT and recomputes(config):
        need = memory_bytes(padded(config, whole, trained, load.longest, checkpointing=True))
    if need is None:
        return Fit(name, memory, None, None, 1.0, "the model's sizes are unknown")
    need = need + Range(low=CONTEXT, high=CONTEXT)
    fits = None if need.low < memory <= need.high else need.high < memory
    return Fit(name, memory, need, fits, 1.0, note)


def recomputes(config: TrainConfig) -> bool:
    """Can activations be computed again to save memory? A learnt prefix is a cache, and recomputation knows no cache."""
    return config.adapter.kind != "prefix"


def padded(config: TrainConfig, shape: Shape, trained: float, longest: int, *, checkpointing: bool = False, loaded: bool = False) -> Setup:
    """What every pass but the packed one takes: rows padded to the longest of their micro-batch, of ``longest`` tokens at most.

    ``loaded``: the weights lie in memory already, and only what comes on top is asked for.
    """
    sequences = config.micro_batch_size
    if config.rewards:  # the rows are the prompts of several answers each
        sequences, longest = sequences * config.rewards.samples_per_prompt, longest + config.rewards.max_output_tokens
    elif config.method in ("dpo", "orpo", "simpo"):
        sequences *= 2
    full = config.adapter.kind == "full"  # all that learns are the weights themselves, in fp32, with two moments
    state = (8 if loaded else 12) + (4 if config.method in ("dpo", "kto") else 0) if full else 16  # the reference beside them
    if full and config.dtype == "bf16" and not checkpointing:
        state += 2  # autocast keeps a copy of each weight in bf16
    at_once = full and config.gradient_accumulation == 1
    return Setup(
        replace(shape, parameters=0.0) if full or loaded else shape,
        trained,
        sequences,
        longest,
        state=state + (4 if full and not at_once else 0),
        four_bit=config.adapter.kind == "qlora" and not loaded,
        checkpointing=checkpointing,
        width=4 if config.dtype == "fp32" else 2,
        activation_factor=kept(config, shape, longest),
        input_factor=4 if full and config.dtype == "bf16" else 2,
        gradients=4 if at_once else 0,
        logits=WHOLE_LOGITS if config.method in ("orpo", "simpo") else 1,
        logits_bytes=4 * LOGITS_PIECE if config.method in ("sft", "cpt", "dpo", "kto") else inf,
    )


def kept(config: TrainConfig, shape: Shape, longest: int) -> float:
    """Bytes per token, hidden unit and layer that the padded pass in bf16 keeps until it goes back: docs/performance.md.

    Each layer keeps its normalised inputs, queries, keys, values and what attention gives, three of the MLP's activations, and
    its own copy of the padding mask; and what the layers that learn need.
    """
    if shape.hidden is None or shape.intermediate is None or shape.key_value is None:
        return ACTIVATIONS
    inner, key_value, query = (size / shape.hidden for size in (shape.intermediate, shape.key_value, shape.query or shape.hidden))
    kind, dropout, supervised = config.adapter.kind, config.adapter.dropout > 0, config.method in ("sft", "cpt")
    shorter = supervised and kind != "full"  # ``norm``: the input in bf16, not in fp32
    base = (4 if shorter else 8) + 8 * query + 6 * inner + 2 * longest / shape.hidden
    if kind == "full":  # the residual stream and what is normalised are in fp32
        return base + 18 + 2 * inner
    if not config.adapter.low_rank:
        return base
    if supervised and kind in ("lora", "rslora") and not dropout:  # ``lora``: the input of each layer, in bf16
        return base + 4 + 2 * inner
    # PEFT's own layers, in fp32: each one's input, and with dropout its mask; with dora what base and adapter give.
    base += (5 if dropout else 4) * (3 + query + 2 + inner)
    return base + (6 * (query + 2 * key_value + 1 + 2 * inner + 1) if kind == "dora" else 0)


def _packed(config: TrainConfig, shape: Shape, load: Load, machine: Hardware, trained: float, note: str) -> Fit:
    name, memory = machine.gpu or "", machine.gpu_memory or 0.0
    four_bit = config.adapter.kind == "qlora"
    print_ = footprint(shape, rank=config.adapter.rank or 1, four_bit=four_bit)
    if print_ is None:
        return Fit(name, memory, None, None, 1.0, "the model's sizes are unknown")
    ends = (shape.vocabulary or 0) * (shape.hidden or 0) * (1 if shape.tied else 2)
    weights = QUANTISED * (shape.parameters - ends) + 2 * ends if four_bit else 2 * shape.parameters
    standing = weights + STATE * trained
    rows = config.batch_size
    # The largest of many random steps: about one distance from the mean to the longest row per root of the rows above the mean.
    largest = int(min(rows * load.longest, rows * load.mean + sqrt(rows) * max(0.0, load.longest - load.mean)))
    room = choose_room(print_, (memory - CONTEXT) * MARGIN - standing, load.longest, max(largest, load.longest))
    if room is None:
        need = standing + print_.least(load.longest) + CONTEXT
        return Fit(name, memory, _band(need), False, 1.0, note)
    tokens = min(max(largest, load.longest), room.tokens)
    peak = _band(standing + print_.bytes(tokens, room.keep(tokens)) + CONTEXT)
    peak = Range(low=peak.low, high=min(peak.high, memory))
    return Fit(name, memory, peak, True, max(1.0, room.cost(room.tokens) / (1 + START_COST[four_bit] / ROOMY)), note or room.words())


def _band(need: float) -> Range:
    return Range(low=(1 - PACKED_BAND) * need, high=(1 + PACKED_BAND) * need)


def kinds() -> list[Hardware]:
    """Every kind of GPU that is known, the smallest memory first."""
    names = [str(entry["match"]) for entry in facts()["gpus"]]
    return sorted((hardware_of(name, 1, None) for name in names), key=lambda one: (one.gpu_memory or 0.0, one.gpu_flops or 0.0))
