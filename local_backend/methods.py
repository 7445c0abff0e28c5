"""Training by every method. sft and cpt run in ``trainer``; here TRL's other trainers are given rows that are tokens already,
the planned order and learning rate, and the same story of validation, checkpoints and events.

Stable in trl 1.16: DPOTrainer, KTOTrainer, GRPOTrainer. Experimental there: ORPOTrainer, CPOTrainer (simpo).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tuneport.core.spec import Method
from tuneport.local_backend import trainer as supervised
from tuneport.local_backend.best import BestAdapter
from tuneport.local_backend.decode import Prompt, decode
from tuneport.local_backend.grader import make_grade
from tuneport.local_backend.models import pad_token
from tuneport.local_backend.planned import Planned, Scheduled, arguments
from tuneport.local_backend.schedule import batches
from tuneport.local_backend.story import Story
from tuneport.local_backend.trainer import Run
from tuneport.local_backend.tuning import peft_config

SUPERVISED = frozenset({"sft", "cpt"})
"""Methods whose rows are plain sequences with labels."""


def train(run: Run, best: BestAdapter, checkpoint: Path | None) -> str:
    """Train from the start, or from a checkpoint, handing adapters to ``best``. Returns why the run ended early, or ""."""
    if run.config.method in SUPERVISED:
        return supervised.train(run, best, checkpoint)
    trainer = _TRAINERS[run.config.method](run)
    run = trainer.run = replace(run, model=trainer.model)
    reward = run.config.method == "rft"
    story = Story(run, best, lambda: -_mean_reward(run) if reward else _mean_loss(trainer))
    trainer.add_callback(story)
    story.attach(trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return story.stopped_early


# -- preferences -------------------------------------------------------------------------------------------------------


class _Tokenised(Planned):
    """A preference trainer that takes rows as they are, without templates and tokenizers of its own."""

    model: Any

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:  # of DPOTrainer and KTOTrainer
        return dataset

    @staticmethod
    def tokenize_row(row: dict[str, Any]) -> dict[str, Any]:  # of ORPOTrainer and CPOTrainer
        """A pair in the columns of TRL's experimental trainers; labels stand on the answers.

        Bound to no trainer: datasets pickles what it maps with, for a fingerprint, and a trainer would bring the whole model.
        """
        columns: dict[str, Any] = {"prompt_input_ids": row["prompt_ids"], "prompt_attention_mask": [1] * len(row["prompt_ids"])}
        for answer in ("chosen", "rejected"):
            ids = row["prompt_ids"] + row[f"{answer}_ids"]
            labels = [-100] * len(row["prompt_ids"]) + row[f"{answer}_ids"]
            columns |= {f"{answer}_input_ids": ids, f"{answer}_attention_mask": [1] * len(ids), f"{answer}_labels": labels}
        return columns

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        masks = (value for name, value in inputs.items() if name.endswith("attention_mask") and not name.startswith("prompt"))
        self.tokens += int(sum(mask.sum() for mask in masks))
        return super().training_step(model, inputs, *rest, **more)  # type: ignore[misc]


def _dataset(rows: Any) -> Any:
    from datasets import Dataset  # noqa: PLC0415

    return Dataset.from_list([asdict(row) for row in rows])


def _make(base: type, config: Any, run: Run, **settings: Any) -> Any:
    """A trainer of this class, planned, on the bare model with its PEFT configuration."""
    made = type(f"Local{base.__name__}", (_Tokenised, base), {"run": run})
    return made(
        model=run.model,
        args=config,
        train_dataset=_dataset(run.train),
        eval_dataset=_dataset(run.validation) if run.validation else None,
        processing_class=run.tokenizer,
        peft_config=_fresh(run),
        **settings,
    )


def _fresh(run: Run) -> Any:
    """PEFT's configuration of a fresh adapter; None where an earlier one learns further: TRL takes its state now as the reference."""
    return None if run.config.parent else peft_config(run.config.adapter)


def _reference(run: Run) -> dict[str, Any]:
    """Full tuning keeps a copy of the base to compare with; an adapter is switched off instead."""
    return {"ref_model": copy.deepcopy(run.model).requires_grad_(False)} if run.config.adapter.kind == "full" else {}


def _dpo(run: Run) -> Any:
    from trl import DPOConfig, DPOTrainer  # noqa: PLC0415

    wanted = _preference(run)
    losses = ["sigmoid_norm" if wanted.length_normalised else "sigmoid"]
    weights = [1.0]
    if wanted.sft_weight:
        losses, weights = [*losses, "sft"], [1.0, wanted.sft_weight]
    config = DPOConfig(**arguments(run), beta=wanted.beta, loss_type=losses, loss_weights=weights, max_length=None)
    return _make(DPOTrainer, config, run, **_reference(run))


def _kto(run: Run) -> Any:
    from trl import KTOConfig, KTOTrainer  # noqa: PLC0415
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference  # noqa: PLC0415

    wanted = _preference(run)
    pad = DataCollatorForUnpairedPreference(pad_token_id=pad_token(run.tokenizer), max_length=None)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        # KTO measures the distance from the reference on answers that belong to other prompts of the same batch.
        others = [rows[-1], *rows[:-1]]
        paired = zip(rows, others, strict=True)
        return dict(pad([{**row, "label": row["desirable"], "KL_completion_ids": other["completion_ids"]} for row, other in paired]))

    config = KTOConfig(
        **arguments(run),
        beta=wanted.beta,
        desirable_weight=wanted.desirable_weight,
        undesirable_weight=wanted.undesirable_weight,
        max_length=None,
    )
    return _make(KTOTrainer, config, run, data_collator=collate, **_reference(run))


def _orpo(run: Run) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: PLC0415

    return _make(ORPOTrainer, ORPOConfig(**arguments(run), beta=_preference(run).beta, max_length=_longest(run)), run)


def _simpo(run: Run) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: PLC0415

    wanted = _preference(run)
    config = CPOConfig(
        **arguments(run),
        loss_type="simpo",
        beta=wanted.beta,
        simpo_gamma=wanted.simpo_gamma,
        cpo_alpha=wanted.sft_weight or 0.0,
        max_length=_longest(run),
    )
    return _make(CPOTrainer, config, run)


def _longest(run: Run) -> int:
    longest: int = max(row.tokens for row in (*run.train, *run.validation))
    return longest


def _preference(run: Run) -> Any:
    wanted = run.config.preference
    if wanted is None:
        raise AssertionError(f"the plan of a {run.config.method} job holds its preference settings")
    return wanted


def _mean_loss(trainer: Any) -> float:
    """The trainer's own loss over the validation rows, each row counting alike."""
    rows, model, size = trainer.eval_dataset, trainer.model, trainer.args.per_device_eval_batch_size
    loss_of = getattr(trainer, "get_batch_loss_metrics", None)  # the experimental trainers' way that logs nothing
    total = 0.0
    training = model.training
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for start in range(0, len(rows), size):
            part = [rows[i] for i in range(start, min(start + size, len(rows)))]
            inputs = trainer._prepare_inputs(trainer.data_collator(part))
            loss = loss_of(model, inputs, "eval")[0] if loss_of else trainer.compute_loss(model, inputs)
            total += float(loss) * len(part)
    model.train(training)
    getattr(trainer, "_metrics", {}).get("eval", {}).clear()
    return total / len(rows)


# -- rewards -----------------------------------------------------------------------------------------------------------


def _rft(run: Run) -> Any:
    from datasets import Dataset  # noqa: PLC0415
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    wanted = run.config.rewards
    if wanted is None:
        raise AssertionError("the plan of an rft job holds its rewards")
    grade, answers = make_grade(wanted.grader), wanted.samples_per_prompt

    def reward(completions: list[str], row: list[int], **_: Any) -> list[float]:
        return [grade(text, run.train[i].item) for text, i in zip(completions, row, strict=True)]

    class LocalGRPOTrainer(Scheduled, GRPOTrainer):
        """GRPOTrainer on prompts that are tokens already, in the planned order."""

        def _get_train_sampler(self, *_: Any, **__: Any) -> list[int]:
            # Each prompt comes once for every answer, and the whole step once for every part of it: TRL draws the answers
            # at the first part and keeps them for the others. One pass over this list is the whole run.
            lengths = [task.tokens for task in run.train]
            parts = run.config.gradient_accumulation
            steps = batches(lengths, run.config.batch_size, run.steps, run.config.seed)
            return [row for step in steps for _ in range(parts) for row in step for _ in range(answers)]

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(run.train[int(prompt)].prompt_ids) for prompt in prompts], None, {}

    LocalGRPOTrainer.run = run
    config = GRPOConfig(
        **arguments(run)
        | {
            "per_device_train_batch_size": run.config.micro_batch_size * answers,
            "per_device_eval_batch_size": answers,
        },
        num_generations=answers,
        max_completion_length=wanted.max_output_tokens,
    )
    run.model.generation_config.eos_token_id = sorted(run.stops)
    return LocalGRPOTrainer(
        model=run.model,
        reward_funcs=reward,
        args=config,
        # A prompt is known by its number: the tokens stay with the run, so that no tokenizer sees them twice.
        train_dataset=Dataset.from_list([{"prompt": str(i), "row": i} for i in range(len(run.train))]),
        processing_class=run.tokenizer,
        peft_config=_fresh(run),
    )


def _mean_reward(run: Run) -> float:
    """The mean reward of greedy answers to the validation prompts."""
    wanted = run.config.rewards
    if wanted is None:
        raise AssertionError("the plan of an rft job holds its rewards")
    grade = make_grade(wanted.grader)
    prompts = [Prompt(str(i), task.prompt_ids, wanted.max_output_tokens) for i, task in enumerate(run.validation)]
    training = run.model.training
    run.model.eval()
    with torch.autocast(run.device, torch.bfloat16, enabled=run.mixed):
        answers = list(decode(run.model, prompts, stops=run.stops, pad=pad_token(run.tokenizer)))
    run.model.train(training)
    texts = {answer.id: run.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers}
    return sum(grade(texts[str(i)], task.item) for i, task in enumerate(run.validation)) / len(run.validation)


_TRAINERS: Mapping[Method, Callable[[Run], Any]] = {"dpo": _dpo, "kto": _kto, "orpo": _orpo, "simpo": _simpo, "rft": _rft}
