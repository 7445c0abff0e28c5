"""What happens around the steps of a run, the same for every training method: validation, checkpoints, events, early end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from tuneport.core.errors import JobFailedError
from tuneport.local_backend.best import BestAdapter
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.jobdir import COMPLETE
from tuneport.local_backend.schedule import spread, stalled

if TYPE_CHECKING:
    from tuneport.local_backend.trainer import Run

RISES = 2
"""Evaluations in a row, each worse than the one before, that make overfitting: one alone is often noise."""
TOLD = frozenset({"grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "reward", "reward_std", "kl"})
"""What TRL logs beside the loss and is worth an event; ``reward`` and the like are those of the drawn answers."""


class Story(TrainerCallback):
    """Evaluates, keeps the best, saves and reports at the planned steps; ends the run on cancel or early stop.

    ``validate`` gives the validation loss of the model as it stands; in rft it is the mean reward with its sign turned.
    """

    def __init__(self, run: Run, best: BestAdapter, validate: Callable[[], float]) -> None:
        self.run = run
        self._validate = validate
        self.best = best
        self.stopped_early = ""  # why, in words
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
            first = "nothing had been learnt by then: look to the base model's weights and the adapter that the job goes on from"
            raise JobFailedError(what, fix=first if state.global_step == 1 else "lower training.learning_rate and submit anew")
        if state.global_step == 1 and self.run.config.method in ("sft", "cpt"):
            self._compare_with_chance(logs["loss"])
        now = time.monotonic()
        metrics = {"step": float(state.global_step), "loss": logs["loss"], "learning_rate": logs["learning_rate"]}
        metrics["epoch"] = state.global_step * self.run.config.batch_size / len(self.run.train)
        metrics |= {name: float(value) for name, value in logs.items() if name in TOLD and value is not None}
        tokens = self._trainer.tokens
        if self._tokens and now > self._last:
            metrics["tokens_per_second"] = (tokens - self._tokens) / (now - self._last)
        self._tokens, self._last = tokens, now
        if self.run.device == "cuda":
            metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.run.job.add_event(f"step {state.global_step} of {self.run.steps}", metrics=metrics)

    def _compare_with_chance(self, loss: float) -> None:
        """A model that knows less than nothing of the rows is damaged, or another's tokenizer wrote them."""
        chance = math.log(self.run.model.config.get_text_config().vocab_size)
        if loss > chance:
            message = f"the model predicts the rows worse than by chance ({loss:.3g} nats a token, chance is {chance:.3g})"
            self.run.job.add_event(f"{message}: is the tokenizer its own, and are its weights whole?", level="warning")

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step in self._evaluate_at:
            began = time.monotonic()
            self._evaluate(state)
            self._last += time.monotonic() - began  # the speed shown is that of training
            self.stopped_early = ended_by(self.run.config, state.log_history)
            if self.stopped_early:
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
        loss = self._validate()
        state.log_history.append({"eval_loss": loss, "step": state.global_step})
        kept = self.best.offer(self.run.model, state.global_step, loss)
        self.run.job.add_event(
            f"{validation_words(self.run.config, loss)} at step {state.global_step}{', the best so far' if kept else ''}",
            metrics={"step": float(state.global_step), "eval_loss": loss, "eval_seconds": time.monotonic() - began},
        )

def ended_by(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> str:
    """Why a run with this history (the trainer's log, validation among it) ends early after its last validation, or ""."""
    held = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    rule = config.early_stopping
    if rule is not None and stalled([loss for _, loss in held], rule.patience, rule.min_delta):
        return f"the {'reward no longer rises' if config.method == 'rft' else 'validation loss no longer falls'}"
    if config.overfitting_guard and config.method != "rft":  # a policy's loss says nothing of how well it does
        seen = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        if overfitting(held, seen):
            return "overfitting: the validation loss rises while the training loss falls"
    return ""


def overfitting(held: Sequence[tuple[int, float]], seen: Sequence[tuple[int, float]]) -> bool:
    """Has the validation loss risen ``RISES`` times in a row while the training loss fell over the same steps?

    ``held`` and ``seen`` are (step, loss) of validation and of training. Source: field guide 4 (S1, S2).
    """
    last = held[-RISES - 1 :]
    if len(last) <= RISES or any(later[1] <= earlier[1] for earlier, later in pairwise(last)):
        return False
    middle = (last[0][0] + last[-1][0]) / 2
    early = [loss for step, loss in seen if last[0][0] < step <= middle]
    late = [loss for step, loss in seen if middle < step <= last[-1][0]]
    return bool(early and late) and fmean(late) < fmean(early)


def validation_words(config: TrainConfig, loss: float) -> str:
    """The validation loss, or the mean reward that it stands for, in words."""
    return f"mean validation reward {-loss:.4f}" if config.method == "rft" else f"validation loss {loss:.4f}"
