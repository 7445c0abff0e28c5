"""The training loop: TRL's SFTTrainer on rows that are tokens already, in an order fixed beforehand.

What differs from a plain SFTTrainer: the batches and the learning rate come from ``schedule``; the validation loss is the
mean over tokens; the best adapter so far is kept on its own; a checkpoint counts only once it is whole; metrics are events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from trl import SFTConfig, SFTTrainer

from tuneport.local_backend.best import BestAdapter
from tuneport.local_backend.chat import IGNORED
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.estimate import LOGITS_PIECE
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.models import pad_token
from tuneport.local_backend.packed_trainer import FastPass, PackedTrainer, packed_validation_loss
from tuneport.local_backend.planned import Planned, arguments
from tuneport.local_backend.prefix import share_prefix
from tuneport.local_backend.schedule import total_steps
from tuneport.local_backend.story import Story

BEHIND_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings of models (Gemma 2, Granite, Cohere) that change the logits behind the vocabulary's matrix: these are not taken in pieces."""
VALIDATION_FACTOR = 4
"""Rows of a validation batch for each row of a training batch: without gradients there is room for more."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one run needs, loaded."""

    config: TrainConfig
    job: JobDir
    model: Any  # with its adapter in sft, cpt and where an earlier one learns further; the other methods' trainers make theirs
    folder: str  # where the base model lies, or its hub id
    tokenizer: Any
    stops: frozenset[int]  # tokens that end an answer
    device: str
    train: Sequence[Any]  # sequences of the method's kind (``sequences``)
    validation: Sequence[Any]
    checkpointing: bool  # recompute activations to save memory
    mixed: bool  # weights in fp32, computation in bf16
    stopping: Callable[[], bool]  # must the run end early?
    progress: Callable[[int, int, float | None], None]  # step, of how many, seconds left
    fast: FastPass | None = None  # the packed pass, where the model and the device allow it

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return total_steps(len(self.train), self.config.batch_size, self.config.epochs, self.config.steps)


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest of them; padding has no attention and no loss."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
    return {"input_ids": padded("input_ids", pad), "labels": padded("labels", IGNORED), "attention_mask": mask}


def label_loss(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """(sum of the loss over the labelled tokens in nats, how many they are).

    The vocabulary's matrix is applied at positions that predict a label only: with loss on completions, most predict none. Where
    many do, it is applied to pieces of them, each computed again for its gradient, so that logits never fill the memory.
    Virtual tokens of prompt tuning stand before the others, which are counted from the end.
    """
    labels = inputs["labels"][:, 1:]
    wanted = labels != IGNORED
    targets = labels[wanted]
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    size = max(1, LOGITS_PIECE // (4 * config.vocab_size))
    whole = len(targets) <= size or any(getattr(config, name, None) not in (None, 1, 1.0) for name in BEHIND_THE_HEAD)
    states: list[torch.Tensor] = []

    def select(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        chosen = given[0][:, -labels.shape[1] - 1 : -1][wanted]
        states.append(chosen)
        return ((chosen if whole else chosen[:1])[None], *given[1:])

    selecting = head.register_forward_pre_hook(select)
    try:
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits
    finally:
        selecting.remove()
    if whole:
        return cross_entropy(logits[0].float(), targets, reduction="sum"), len(targets)

    def piece(state: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(state[None])[0].float(), target, reduction="sum")

    parts = zip(states[0].split(size), targets.split(size), strict=True)
    losses = [checkpoint(piece, *part, use_reentrant=False) if torch.is_grad_enabled() else piece(*part) for part in parts]
    return torch.stack(losses).sum(), len(targets)


class LocalTrainer(Planned, SFTTrainer):
    """SFTTrainer in the planned order, with a shared prompt computed once per batch."""

    def __init__(self, run: Run, **settings: Any) -> None:
        self.run = run
        super().__init__(**settings)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if self.aux_loss_enabled or return_outputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        self.tokens += int(inputs["attention_mask"].sum())
        if not self.run.checkpointing:  # recomputation and a cache exclude each other
            inputs = share_prefix(model, inputs)
        total, count = label_loss(model, inputs)
        return total / (count if num_items_in_batch is None else num_items_in_batch)


def validation_loss(run: Run) -> float:
    """Mean loss over all labelled tokens of the validation rows, in nats."""
    if run.fast is not None:
        return packed_validation_loss(run, run.fast)
    pad = pad_token(run.tokenizer)
    rows = sorted(run.validation, key=lambda row: len(row.input_ids))
    batch = run.config.micro_batch_size * VALIDATION_FACTOR
    total, count = 0.0, 0
    training = run.model.training
    run.model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            part = [{"input_ids": r.input_ids, "labels": r.labels} for r in rows[start : start + batch]]
            inputs = {name: tensor.to(run.device) for name, tensor in collate(part, pad).items()}
            with torch.autocast(run.device, torch.bfloat16, enabled=run.mixed):
                loss, labelled = label_loss(run.model, share_prefix(run.model, inputs))
            total, count = total + float(loss), count + labelled
    run.model.train(training)
    return total / count


def train(run: Run, best: BestAdapter, checkpoint: Path | None) -> str:
    """Train from the start, or from a checkpoint, handing adapters to ``best``. Returns why the run ended early, or ""."""
    from datasets import Dataset  # noqa: PLC0415

    story = Story(run, best, lambda: validation_loss(run))
    pad = pad_token(run.tokenizer)
    settings = SFTConfig(**arguments(run), max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    make: Callable[..., Any] = partial(LocalTrainer, run)
    if run.fast is not None:
        settings.gradient_accumulation_steps = 1  # a step is one item of the loader, whatever its parts
        make = partial(PackedTrainer, run, run.fast)
    trainer = make(
        model=run.model,
        args=settings,
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in run.train]),
        processing_class=run.tokenizer,
        data_collator=lambda rows: collate(rows, pad),
        callbacks=[story],
    )
    story.attach(trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return story.stopped_early
