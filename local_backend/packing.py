"""Rows as one row: which rows share a micro-batch, and the tensors of ``packed``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from tuneport.local_backend.chat import IGNORED, Encoded
from tuneport.local_backend.packed import Packed


def parts(lengths: Sequence[int], tokens: int, rows: int) -> list[list[int]]:
    """The rows, by index, in as few parts as hold at most ``tokens`` tokens and ``rows`` rows each, of similar size.

    A row that is longer by itself is a part of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    count = max(1, -(-sum(lengths) // tokens), -(-len(lengths) // rows))
    while True:
        made: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:  # longest first, each to the emptiest part
            place = min((p for p in range(count) if len(made[p]) < rows), key=sizes.__getitem__)
            made[place].append(i)
            sizes[place] += lengths[i]
        if all(size <= tokens or len(part) == 1 for size, part in zip(sizes, made, strict=True)):
            return made
        count += 1


def pack(rows: Sequence[Encoded]) -> Packed:
    """The rows behind one another. The first token of a row is predicted by nothing."""
    bounds = [0, *accumulate(len(row.input_ids) for row in rows)]
    predicting, targets = [], []
    for start, row in zip(bounds, rows, strict=False):
        labelled = [i for i, label in enumerate(row.labels) if i and label != IGNORED]
        predicting += [start + i - 1 for i in labelled]
        targets += [row.labels[i] for i in labelled]
    return Packed(
        input_ids=torch.tensor([token for row in rows for token in row.input_ids]),
        position_ids=torch.cat([torch.arange(len(row.input_ids)) for row in rows]),
        bounds=torch.tensor(bounds, dtype=torch.int32),
        longest=max(len(row.input_ids) for row in rows),
        predicting=torch.tensor(predicting, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
    )
