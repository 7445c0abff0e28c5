"""The plan carried out by a TRL trainer, whichever it is: the order of rows and the learning rate come from ``schedule``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tuneport.local_backend.schedule import batches, rate_factor, warmup_steps

if TYPE_CHECKING:
    from tuneport.local_backend.trainer import Run


def arguments(run: Run) -> dict[str, Any]:
    """Settings that every TRL trainer takes alike."""
    config = run.config
    return {
        "output_dir": str(run.job.checkpoints),
        "max_steps": run.steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "per_device_eval_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": run.device == "cpu",
        "bf16": run.mixed,  # where the weights are bf16 already, autocast would only add casts
        "gradient_checkpointing": run.checkpointing,
        "logging_steps": max(1, run.steps // 1000),
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "remove_unused_columns": False,
        "dataloader_pin_memory": run.device == "cuda",
    }


class _Order:
    """A batch sampler that plays a fixed list of micro-batches."""

    def __init__(self, micro_batches: list[list[int]]) -> None:
        self._micro_batches = micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._micro_batches)

    def __len__(self) -> int:
        return len(self._micro_batches)


class Scheduled:
    """Stands before a trainer class among its bases; the trainer has a ``run``."""

    run: Run
    optimizer: Any
    lr_scheduler: Any
    model: Any
    tokens = 0  # seen by this process, without padding

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        if self.run.config.adapter.kind == "qlora":
            # TRL turns adapters on a 4-bit base into bf16, in which the steps of a usual learning rate vanish in the rounding.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
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


class Planned(Scheduled):
    """Plays the batches of ``schedule``, in their order."""

    train_dataset: Any
    data_collator: Any

    def get_train_dataloader(self) -> Any:
        config = self.run.config
        lengths = [row.tokens for row in self.run.train]
        micro = config.micro_batch_size
        planned = batches(lengths, config.batch_size, self.run.steps, config.seed)
        order = [batch[i : i + micro] for batch in planned for i in range(0, config.batch_size, micro)]
        return DataLoader(self.train_dataset, batch_sampler=_Order(order), collate_fn=self.data_collator)
