"""The resolved configuration of one local training run: what the plan shows is exactly what the worker reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from tuneport.core.errors import ProviderError
from tuneport.core.options import Tracker
from tuneport.core.spec import Method, TuningKind

Positive = Annotated[int, Field(ge=1)]
LOW_RANK = frozenset({"lora", "qlora", "dora", "rslora"})
"""Kinds of tuning that learn low-rank matrices beside frozen ones."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Adapter(_Part):
    """Which weights learn.

    lora, qlora, dora and rslora have rank, alpha, dropout and target_modules (Hu et al. 2021: the update is scaled by
    alpha / rank, in rslora by alpha / sqrt(rank)); prefix and prompt have virtual_tokens; full has none of them.
    """

    kind: TuningKind = "lora"
    rank: Positive | None = None
    alpha: Annotated[float | None, Field(gt=0)] = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    virtual_tokens: Positive | None = None

    @property
    def low_rank(self) -> bool:
        """Is it LoRA or one of its kin?"""
        return self.kind in LOW_RANK


class ParentAdapter(_Part):
    """The earlier adapter that the run begins with, in place of a fresh one."""

    path: str  # of its folder when the job was planned; the job keeps a copy
    digest: str  # of its weights: another adapter makes another job


class EarlyStop(_Part):
    """Stop after ``patience`` evaluations in which the validation loss did not fall by more than ``min_delta``."""

    patience: Positive
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class PreferenceLoss(_Part):
    """Settings of dpo, kto, orpo and simpo; those of another method are None."""

    beta: Annotated[float, Field(gt=0)]
    sft_weight: Annotated[float | None, Field(ge=0)] = None  # dpo, simpo: of the SFT loss on the chosen answer
    length_normalised: bool | None = None  # dpo
    simpo_gamma: Annotated[float | None, Field(ge=0)] = None
    desirable_weight: Annotated[float | None, Field(gt=0)] = None  # kto
    undesirable_weight: Annotated[float | None, Field(gt=0)] = None  # kto


class Rewards(_Part):
    """Settings of rft: answers are drawn, graded, and compared with those to the same prompt (GRPO, Shao et al. 2024)."""

    grader: dict[str, JsonValue]  # OpenAI's grader format; ``local_backend.grader`` says which
    samples_per_prompt: Annotated[int, Field(ge=2)]
    max_prompt_length: Positive | None = None  # None: the model's own limit
    max_output_tokens: Positive


class Tracking(_Part):
    """Which trackers follow the run, and what the run is called there; the names are W&B's."""

    trackers: tuple[Tracker, ...] = ()
    project: str | None = None
    entity: str | None = None
    run_name: str | None = None
    run_tags: tuple[str, ...] | None = None
    wandb_online: bool = False
    mlflow_uri: str | None = None  # None: a file in the job's folder


class TrainConfig(_Part):
    """One run. Every value is final: the worker adds no default of its own."""

    version: Literal[1] = 1
    name: str | None = None
    tags: dict[str, str] = {}
    model: Annotated[str, Field(min_length=1)]  # what ``local_backend.models.locate`` understands
    method: Method = "sft"
    adapter: Adapter
    parent: ParentAdapter | None = None  # None: a fresh adapter on the base
    preference: PreferenceLoss | None = None  # of dpo, kto, orpo and simpo
    rewards: Rewards | None = None  # of rft
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
    overfitting_guard: bool = True  # stop when the validation loss rises while the training loss falls
    seed: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]
    train_share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the training rows; a smaller share is part of a larger one
    gpu_memory_gib: Annotated[float | None, Field(gt=0)] = None  # at most; None: all that is free
    trust_remote_code: bool = False  # may code that comes with the base run?
    chat_template: str | None = None  # path of a Jinja template; None: the model's own
    tracking: Tracking = Tracking()
    train_file: str = "${upload:train}"
    validation_file: str | None = None

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """The configuration in a job's folder. Raises ProviderError when it is damaged, or another version of tuneport wrote it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            what = str(error) if isinstance(error, OSError) else ", ".join(sorted({".".join(map(str, e["loc"])) for e in error.errors()}))
            fix = "restore it, use the version of tuneport that wrote it, or submit the job anew"
            raise ProviderError(f"the settings in {path} cannot be read ({what})", fix=fix, retry="no") from error
