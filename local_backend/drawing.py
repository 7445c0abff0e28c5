"""How long rft takes: drawing the answers token by token, then training on them. Ranges, told before torch is imported.

All answers of a step are drawn at once, and a pass through the model gives one token of each. A pass reads the weights and the
keys and values so far, multiplies for each answer, and starts the kernels of every layer, which is what small models wait for.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneport.core.money import Duration, Range
from tuneport.local_backend.estimate import FORWARD_FLOPS, Hardware, facts, training_time
from tuneport.local_backend.models import Shape

MAX_ROWS = 32
"""Prompts that ``decode`` answers at once, at most. On two cores 32 rows decode at about twice the rate of 16; more gains little."""


@dataclass(frozen=True, slots=True)
class Draws:
    """What an rft job draws. Answers are of a share (hardware.yaml) to all of ``longest`` tokens: how long is not known beforehand."""

    steps: int
    prompts: float  # of a step
    samples: int  # answers to each prompt
    prompt_tokens: float  # of a prompt, at most
    longest: int  # tokens of an answer at most
    validations: float = 0  # batches of greedy answers, over the whole run
    validated: float = 0  # prompts of such a batch

    @property
    def tokens(self) -> Range:
        """Of an answer; and the passes that draw it."""
        return Range(low=max(1.0, facts()["drawing"]["shortest"] * self.longest), high=self.longest)


def rft_time(draws: Draws, shape: Shape | None, machine: Hardware, *, width: Range, effort: float) -> Duration:
    """Seconds of the whole run. ``width``: bytes moved for a parameter of the base; ``effort``: a training pass relative to LoRA's."""
    answers = draws.steps * draws.prompts * draws.samples
    none = Range(low=0, high=0)
    each = draws.tokens + Range(low=draws.prompt_tokens, high=draws.prompt_tokens)
    trained = training_time(shape, each * (answers * effort), none, machine)
    if shape is None or trained.seconds is None:
        return trained
    steps = pass_seconds(shape, machine, draws.prompts * draws.samples, draws, width)
    held = pass_seconds(shape, machine, draws.validated, draws, width)
    if steps is None or held is None:
        why = "answers are drawn token by token through every layer, and how many layers the model has is unknown before it is loaded"
        return Duration(seconds=None, basis=why)
    passes = draws.tokens
    drawn = Range(
        low=passes.low * (draws.steps * steps.low + draws.validations * held.low),
        high=passes.high * (draws.steps * steps.high + draws.validations * held.high),
    )
    basis = (
        f"{draws.steps} times {draws.prompts * draws.samples:g} answers of {passes.low:.0f} to {passes.high:.0f} tokens, drawn in"
        f" {_span(drawn)} s ({facts()['drawing']['source']}) and trained on in {_span(trained.seconds)} s ({trained.basis});"
        " the grader's own time is not in it; --calibrate measures"
    )
    return Duration(seconds=drawn + trained.seconds, basis=basis)


def pass_seconds(shape: Shape, machine: Hardware, rows: float, draws: Draws, width: Range) -> Range | None:
    """One pass for one more token of each of so many answers; None when it cannot be told."""
    known = facts()["drawing"]
    if shape.layers is None or shape.key_value is None:
        return None
    if machine.gpu is None:
        memory = Range(low=known["cpu_gbps"]["low"] * 1e9, high=known["cpu_gbps"]["high"] * 1e9)
        core = facts()["cpu_gflops_per_core"]
        rate = Range(low=core["low"] * 1e9 * machine.cores, high=core["high"] * 1e9 * machine.cores)
    else:
        if machine.gpu_bandwidth is None or machine.gpu_flops is None:
            return None
        memory = _share(machine.gpu_bandwidth, known["bandwidth_use"])
        rate = _share(machine.gpu_flops, facts()["gpu_utilisation"])
    cached = rows * (draws.prompt_tokens + draws.longest) * 2 * shape.key_value * shape.layers * 2  # keys and values in bf16, at most
    sums = rows * FORWARD_FLOPS * shape.parameters
    start = known["layer_seconds"]
    return Range(
        low=shape.layers * start["low"] + width.low * shape.parameters / memory.high + sums / rate.high,
        high=shape.layers * start["high"] + (width.high * shape.parameters + cached) / memory.low + sums / rate.low,
    )


def _share(peak: float, use: dict[str, float]) -> Range:
    return Range(low=peak * use["low"], high=peak * use["high"])


def _span(seconds: Range) -> str:
    return f"{seconds.low:,.0f} to {seconds.high:,.0f}"
