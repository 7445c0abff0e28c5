"""The resolved configuration of one local training run: what the plan shows is exactly what the worker reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Adapter(_Part):
    """A LoRA adapter (Hu et al. 2021): the update is scaled by alpha / rank."""

    kind: Literal["lora"] = "lora"
    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"]


class EarlyStop(_Part):
    """Stop after ``patience`` evaluations in which the validation loss did not fall by more than ``min_delta``."""

    patience: Positive
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class TrainConfig(_Part):
    """One run. Every value is final: the worker adds no default of its own."""

    version: Literal[1] = 1
    name: str | None = None
    tags: dict[str, str] = {}
    model: Annotated[str, Field(min_length=1)]  # what ``local_backend.models.locate`` understands
    method: Literal["sft"] = "sft"
    adapter: Adapter
    epochs: Annotated[float | None, Field(gt=0)] = None  # exactly one of epochs and steps is set
    steps: Positive | None = None
    batch_size: Positive  # rows per optimiser step
    micro_batch_size: Positive  # rows per forward pass; batch_size / gradient_accumulation
    gradient_accumulation: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    scheduler: Literal["constant", "linear", "cosine"]
    scheduler_cycles: Annotated[float, Field(gt=0)]
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)]
    warmup_ratio: Annotated[float | None, Field(ge=0, le=1)] = None  # exactly one of the two warm-ups is set
    warmup_steps: Annotated[int | None, Field(ge=0)] = None
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(ge=0)]  # 0: no clipping
    max_seq_length: Positive | None = None  # None: the model's own limit
    loss_on: Literal["completions", "all"]
    evaluations: Annotated[int, Field(ge=0)]
    checkpoints: Positive
    early_stopping: EarlyStop | None = None
    seed: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]
    chat_template: str | None = None  # path of a Jinja template; None: the model's own
    train_file: str = "${upload:train}"
    validation_file: str | None = None
