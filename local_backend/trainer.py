"""The training loop: TRL's SFTTrainer on rows that are tokens already, in an order fixed beforehand.

What differs from a plain SFTTrainer: the batches and the learning rate come from ``schedule``; the validation loss is the
mean over tokens; the best adapter so far is kept on its own; a checkpoint counts only once it is whole; metrics are events.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tuneport.core.errors import JobFailedError
from tuneport.local_backend.best import BestAdapter
from tuneport.local_backend.chat import IGNORED, Encoded
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.jobdir import COMPLETE, JobDir
from tuneport.local_backend.prefix import share_prefix
from tuneport.local_backend.schedule import batches, rate_factor, spread, stalled, total_steps, warmup_steps

VALIDATION_FACTOR = 4
"""Rows of a validation batch for each row of a training batch: without gradients there is room for more."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one run needs, loaded."""

    config: TrainConfig
    job: JobDir
    model: Any  # with its adapter
    tokenizer: Any
    device: str
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    checkpointing: bool  # recompute activations to save memory
    stopping: Callable[[], bool]  # must the run end early?
    progress: Callable[[int, int, float | None], None]  # step, of how many, seconds left

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

    The vocabulary's matrix is applied at positions that predict a label only: with loss on completions, most predict none.
    """
    labels = inputs["labels"][:, 1:]
    wanted = labels != IGNORED
    head = model.get_output_embeddings()
    selecting = head.register_forward_pre_hook(lambda _, given: (given[0][:, :-1][wanted][None], *given[1:]))
    try:
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits
    finally:
        selecting.remove()
    targets = labels[wanted]
    return cross_entropy(logits[0].float(), targets, reduction="sum"), targets.numel()


class _Order:
    """A batch sampler that plays a fixed list of micro-batches."""

    def __init__(self, micro_batches: list[list[int]]) -> None:
        self._micro_batches = micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._micro_batches)

    def __len__(self) -> int:
        return len(self._micro_batches)


class LocalTrainer(SFTTrainer):
    """SFTTrainer with our order of rows, our learning-rate schedule, and a shared prompt computed once per batch."""

    def __init__(self, run: Run, **settings: Any) -> None:
        self.run = run
        self.tokens = 0  # seen by this process, without padding
        super().__init__(**settings)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if self.aux_loss_enabled or return_outputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        self.tokens += int(inputs["attention_mask"].sum())
        if not self.run.checkpointing:  # recomputation and a cache exclude each other
            inputs = share_prefix(model, inputs)
        total, count = label_loss(model, inputs)
        return total / (count if num_items_in_batch is None else num_items_in_batch)

    def get_train_dataloader(self) -> Any:
        config = self.run.config
        lengths = [len(row.input_ids) for row in self.run.train]
        micro = config.micro_batch_size
        planned = batches(lengths, config.batch_size, self.run.steps, config.seed)
        order = [batch[i : i + micro] for batch in planned for i in range(0, config.batch_size, micro)]
        return DataLoader(self.train_dataset, batch_sampler=_Order(order), collate_fn=self.data_collator)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler: Any
        if self.lr_scheduler is None:
            config = self.run.config
            warmup = warmup_steps(num_training_steps, config.warmup_ratio, config.warmup_steps)

            def factor(step: int) -> float:
                return rate_factor(
                    step,
                    total=num_training_steps,
                    warmup=warmup,
                    shape=config.scheduler,
                    cycles=config.scheduler_cycles,
                    floor=config.min_learning_rate_ratio,
                )

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written with the finished adapter."""


class _Story(TrainerCallback):
    """Evaluates, keeps the best, saves and reports at the planned steps; ends the run on cancel or early stop."""

    def __init__(self, run: Run, best: BestAdapter) -> None:
        self.run = run
        self.best = best
        self.stopped_early = False
        self._trainer: Any = None
        self._evaluate_at = spread(run.steps, run.config.evaluations) if run.validation else frozenset()
        self._save_at = spread(run.steps, run.config.checkpoints)
        self._began = self._last = time.monotonic()
        self._first_step = 0
        self._tokens = 0

    def attach(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self._first_step = state.global_step
        self._began = self._last = time.monotonic()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            what = f"the loss became {logs['loss']} at step {state.global_step}"
            raise JobFailedError(what, fix="lower training.learning_rate and submit anew")
        now = time.monotonic()
        metrics = {"step": float(state.global_step), "loss": logs["loss"], "learning_rate": logs["learning_rate"]}
        metrics["epoch"] = state.global_step * self.run.config.batch_size / len(self.run.train)
        if "grad_norm" in logs:
            metrics["grad_norm"] = float(logs["grad_norm"])
        tokens = self._trainer.tokens
        if self._tokens and now > self._last:
            metrics["tokens_per_second"] = (tokens - self._tokens) / (now - self._last)
        self._tokens, self._last = tokens, now
        self.run.job.add_event(f"step {state.global_step} of {self.run.steps}", metrics=metrics)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step in self._evaluate_at:
            began = time.monotonic()
            self._evaluate(state)
            self._last += time.monotonic() - began  # the speed shown is that of training
            if self._worn_out(state):
                self.stopped_early = True
                control.should_training_stop = True
        if step in self._save_at:
            control.should_save = True
        if self.run.stopping() and step < self.run.steps:
            control.should_save = control.should_training_stop = True
        done = step - self._first_step
        left = (time.monotonic() - self._began) / done * (self.run.steps - step) if done else None
        self.run.progress(step, self.run.steps, left)

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        folder = self.run.job.checkpoints / f"checkpoint-{state.global_step}"
        (folder / COMPLETE).touch()
        self.run.job.add_event(f"checkpoint saved at step {state.global_step}", metrics={"step": float(state.global_step)})

    def _evaluate(self, state: Any) -> None:
        began = time.monotonic()
        loss = validation_loss(self.run)
        state.log_history.append({"eval_loss": loss, "step": state.global_step})
        kept = self.best.offer(self.run.model, state.global_step, loss)
        self.run.job.add_event(
            f"validation loss {loss:.4f} at step {state.global_step}{', the best so far' if kept else ''}",
            metrics={"step": float(state.global_step), "eval_loss": loss, "eval_seconds": time.monotonic() - began},
        )

    def _worn_out(self, state: Any) -> bool:
        rule = self.run.config.early_stopping
        return rule is not None and stalled([e["eval_loss"] for e in state.log_history if "eval_loss" in e], rule.patience, rule.min_delta)


def validation_loss(run: Run) -> float:
    """Mean loss over all labelled tokens of the validation rows, in nats."""
    pad = _pad_token(run.tokenizer)
    rows = sorted(run.validation, key=lambda row: len(row.input_ids))
    batch = run.config.micro_batch_size * VALIDATION_FACTOR
    total, count = 0.0, 0
    training = run.model.training
    run.model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            part = [{"input_ids": r.input_ids, "labels": r.labels} for r in rows[start : start + batch]]
            inputs = {name: tensor.to(run.device) for name, tensor in collate(part, pad).items()}
            loss, labelled = label_loss(run.model, share_prefix(run.model, inputs))
            total, count = total + float(loss), count + labelled
    run.model.train(training)
    return total / count


def train(run: Run, best: BestAdapter, checkpoint: Path | None) -> bool:
    """Train from the start, or from a checkpoint, handing adapters to ``best``. True when early stopping ended the run."""
    from datasets import Dataset  # noqa: PLC0415

    config = run.config
    story = _Story(run, best)
    pad = _pad_token(run.tokenizer)
    settings = SFTConfig(
        output_dir=str(run.job.checkpoints),
        max_steps=run.steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=run.device == "cpu",
        bf16=False,  # the weights are bf16 already; autocast would only add casts
        gradient_checkpointing=run.checkpointing,
        logging_steps=max(1, run.steps // 1000),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=run.device == "cuda",
    )
    trainer = LocalTrainer(
        run,
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


def _pad_token(tokenizer: Any) -> int:
    """Any id does: padding has neither attention nor loss."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
