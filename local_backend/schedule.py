"""The order of a run: which rows form which batch, where it evaluates and saves, and the learning rate at each step.

Pure arithmetic on the configuration and the row lengths, so that an interrupted run is continued exactly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

BUCKET_BATCHES = 8
"""Batches whose rows are sorted by length together: little padding, and still a random order."""


def total_steps(rows: int, batch_size: int, epochs: float | None, steps: int | None) -> int:
    """Optimiser steps of the run. ``steps`` wins; otherwise enough full batches for ``epochs`` passes."""
    if steps is not None:
        return steps
    if epochs is None:
        raise ValueError("either epochs or steps must be set")
    return max(1, math.ceil(round(epochs * rows / batch_size, 6)))


def warmup_steps(total: int, ratio: float | None, steps: int | None) -> int:
    """Warm-up steps: as given, or the ratio of all steps, rounded up as transformers does."""
    return steps if steps is not None else math.ceil(round((ratio or 0.0) * total, 6))


def batches(lengths: Sequence[int], batch_size: int, total: int, seed: int, *, alike: bool = True) -> list[list[int]]:
    """Row indices of each of ``total`` batches, all full.

    The rows come as shuffled passes one after another, so no row is seen twice more often than another. Within a pass
    batches hold rows of similar length if ``alike``; their order is random. What is left of a pass begins the next.
    """
    order = random.Random(seed)  # noqa: S311 - reproducible shuffling, not secrecy
    result: list[list[int]] = []
    carried: list[int] = []
    while len(result) < total:
        fresh = list(range(len(lengths)))
        order.shuffle(fresh)
        pool = carried + fresh
        whole = min(len(pool) // batch_size, total - len(result)) * batch_size
        taken, carried = pool[:whole], pool[whole:]
        found: list[list[int]] = []
        bucket = (BUCKET_BATCHES if alike else 1) * batch_size
        for start in range(0, whole, bucket):
            ordered = sorted(taken[start : start + bucket], key=lambda i: lengths[i])
            found += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
        order.shuffle(found)
        result += found
    return result


def spread(total: int, count: int) -> frozenset[int]:
    """``count`` steps spread evenly over the run, the last of them at its end; fewer when the run is shorter."""
    return frozenset(max(1, round(total * i / count)) for i in range(1, count + 1)) if count else frozenset()


def rate_factor(step: int, *, total: int, warmup: int, shape: str, cycles: float = 0.5, floor: float = 0.0) -> float:
    """The learning rate at a step as a share of its peak. ``cycles``: cosine waves, 0.5 is one fall; ``floor``: the lowest share."""
    if step < warmup:
        return (step + 1) / warmup  # never 0, which would waste the first step
    if shape == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    height = 1.0 - done if shape == "linear" else 0.5 * (1.0 + math.cos(2.0 * math.pi * cycles * done))
    return floor + (1.0 - floor) * height


def stalled(losses: Sequence[float], patience: int, min_delta: float) -> bool:
    """True when the last ``patience`` validation losses all failed to fall by more than ``min_delta`` below the best before."""
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - min_delta:
            best, waited = loss, 0
        else:
            waited += 1
    return waited >= patience
