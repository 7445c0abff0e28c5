"""The JobSpec: what the user wants, in no vendor's words.

One frozen pydantic model, read from YAML, JSON or Python (``tuneport.core.spec_file``). A field left out stays
unset (``None``): the provider's own default then holds, and the plan shows it as *defaulted*.
Field names follow the field's standard terms; the mapping to each vendor is the compilers' work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from tuneport.core.options import ProviderOptions

Method = Literal["sft", "dpo", "kto", "orpo", "simpo", "cpt", "rft", "distill"]
TuningKind = Literal["lora", "qlora", "dora", "rslora", "full", "prefix", "prompt"]
DataFormat = Literal[
    "auto", "chat", "prompt_completion", "instruction", "classification", "preference", "unpaired_preference", "text"
]

LearningRate = NewType("LearningRate", float)
"""An absolute learning rate, e.g. 2e-4. Never interchangeable with a multiplier (a type checker refuses it)."""
LearningRateMultiplier = NewType("LearningRateMultiplier", float)
"""A factor on the vendor's own rate, e.g. 1.8. Never sent as a rate."""

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

PREFERENCE_METHODS: frozenset[str] = frozenset({"dpo", "kto", "orpo", "simpo"})

EXCLUSIVE: tuple[tuple[str, str, str], ...] = (
    ("training.epochs", "training.steps", "they both set the length of the run"),
    ("training.learning_rate", "training.learning_rate_multiplier", "one is a rate, the other a factor on the vendor's rate"),
    ("training.warmup_ratio", "training.warmup_steps", "they both set the warm-up"),
)
"""Pairs of fields of which at most one may be set, with the reason."""

NEVER_OVERRIDDEN = ("version", "data", "options", "overrides", "model", "budget")
"""What is the same for every provider; a model for each stands under ``model``, a provider's own settings under ``options``."""


class Section(BaseModel):
    """Base of every part of a spec: unknown fields are faults, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Split(Section):
    """How to cut validation and test rows from the training file when they have no file of their own."""

    validation: Annotated[float, Field(ge=0, lt=0.5, description="Share of rows for validation, e.g. 0.1.")] = 0.0
    test: Annotated[float, Field(ge=0, lt=0.5, description="Share of rows held out for the test, e.g. 0.1.")] = 0.0
    by: Annotated[
        Literal["random", "label", "group", "time"],
        Field(
            description="random; label: stratified by `column`; group: no value of `column` on two sides; time: the latest rows "
            "are held out."
        ),
    ] = "random"
    column: Annotated[str | None, Field(description="Column that holds the label, group or time.")] = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _column_named(self) -> Split:
        if self.by in ("group", "time") and self.column is None:
            raise ValueError(f"split by {self.by} needs `column`")
        return self


class Data(Section):
    """Where the rows are. Paths are relative to the spec file."""

    train: Annotated[str, Field(min_length=1, description="Training rows: .jsonl, .json, .csv or .parquet.")]
    validation: Annotated[str | None, Field(description="Validation rows; used during training.")] = None
    test: Annotated[str | None, Field(description="Held-out rows; never sent to training, only measured on.")] = None
    format: Annotated[DataFormat, Field(description="Row format; auto detects it from the first rows.")] = "auto"
    system_prompt: Annotated[
        str | None, Field(description="System prompt put before rows that have none (use the production prompt).")
    ] = None
    split: Split = Split()


class Tuning(Section):
    """Which weights learn. LoRA terms as in Hu et al. 2021."""

    kind: Annotated[TuningKind | None, Field(description="lora, qlora (4-bit base), dora, rslora, full, prefix or prompt tuning.")] = None
    rank: Annotated[Positive | None, Field(description="LoRA rank r.")] = None
    alpha: Annotated[float | None, Field(gt=0, description="LoRA alpha; the update is scaled by alpha / rank.")] = None
    dropout: Annotated[float | None, Field(ge=0, lt=1, description="Dropout on the adapter's input.")] = None
    target_modules: Annotated[
        tuple[str, ...] | Literal["all-linear"] | None, Field(description="Layers that get an adapter, or all-linear.")
    ] = None


class Training(Section):
    """The optimisation run."""

    epochs: Annotated[float | None, Field(gt=0, description="Passes over the training rows.")] = None
    steps: Annotated[Positive | None, Field(description="Optimiser steps, instead of epochs.")] = None
    batch_size: Annotated[Positive | None, Field(description="Rows per optimiser step (the effective batch).")] = None
    gradient_accumulation: Annotated[
        Positive | None, Field(description="Micro-batches that make up one batch; must divide batch_size.")
    ] = None
    learning_rate: Annotated[LearningRate | None, Field(gt=0, lt=1, description="Absolute peak learning rate.")] = None
    learning_rate_multiplier: Annotated[
        LearningRateMultiplier | None, Field(gt=0, le=100, description="Factor on the vendor's own learning rate.")
    ] = None
    warmup_ratio: Annotated[Fraction | None, Field(description="Warm-up as a share of all steps.")] = None
    warmup_steps: Annotated[int | None, Field(ge=0, description="Warm-up in steps.")] = None
    scheduler: Annotated[
        Literal["constant", "linear", "cosine"] | None, Field(description="Shape of the learning rate after warm-up.")
    ] = None
    min_learning_rate_ratio: Annotated[Fraction | None, Field(description="Final learning rate as a share of the peak.")] = None
    scheduler_cycles: Annotated[float | None, Field(gt=0, description="Number of cosine cycles; 0.5 is one half wave.")] = None
    weight_decay: Annotated[float | None, Field(ge=0)] = None
    max_grad_norm: Annotated[float | None, Field(ge=0, description="Gradient clipping; 0 switches it off.")] = None
    max_seq_length: Annotated[Positive | None, Field(description="Longest training row in tokens.")] = None
    packing: Annotated[bool | None, Field(description="Put several rows into one sequence.")] = None
    loss_on: Annotated[Literal["completions", "all"] | None, Field(description="Tokens that carry loss: the answers, or all.")] = None
    seed: Annotated[int | None, Field(ge=0, le=2**31 - 1)] = None

    @model_validator(mode="after")
    def _accumulation_divides(self) -> Training:
        if self.batch_size and self.gradient_accumulation and self.batch_size % self.gradient_accumulation:
            raise ValueError(f"gradient_accumulation {self.gradient_accumulation} does not divide batch_size {self.batch_size}")
        return self


class EarlyStopping(Section):
    """Stop when the validation loss no longer falls; setting `patience` switches it on."""

    patience: Annotated[Positive | None, Field(description="Evaluations without improvement before stopping.")] = None
    min_delta: Annotated[float | None, Field(ge=0, description="Smallest fall of the loss that counts.")] = None


class Evaluation(Section):
    """What happens at intervals during training."""

    evaluations: Annotated[int | None, Field(ge=0, description="Validation passes, spread evenly over the run.")] = None
    checkpoints: Annotated[Positive | None, Field(description="Checkpoints saved, spread evenly over the run.")] = None
    early_stopping: EarlyStopping = EarlyStopping()


class Preference(Section):
    """Settings of dpo, kto, orpo and simpo."""

    beta: Annotated[
        float | None, Field(gt=0, description="Strength of the pull towards the reference model (orpo: weight of the odds ratio).")
    ] = None
    sft_weight: Annotated[float | None, Field(ge=0, description="Weight of an added SFT loss on the chosen answers (RPO alpha).")] = None
    simpo_gamma: Annotated[float | None, Field(ge=0, description="SimPO's target reward margin.")] = None
    length_normalised: Annotated[bool | None, Field(description="Divide log-ratios by answer length.")] = None
    desirable_weight: Annotated[float | None, Field(gt=0, description="KTO: weight of good rows.")] = None
    undesirable_weight: Annotated[float | None, Field(gt=0, description="KTO: weight of bad rows.")] = None


class Reinforcement(Section):
    """Settings of rft: a verifiable reward instead of answers."""

    grader: Annotated[
        dict[str, JsonValue] | None, Field(description="Grader in OpenAI's grader format (type string_check, python, ...).")
    ] = None
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    samples_per_prompt: Annotated[int | None, Field(ge=2, description="Answers drawn per prompt.")] = None
    max_prompt_length: Annotated[Positive | None, Field(description="Tokens.")] = None
    max_output_tokens: Annotated[Positive | None, Field(description="Tokens per drawn answer.")] = None


class Distillation(Section):
    """Settings of distill: a larger model's answers teach the base model."""

    teacher: Annotated[str | None, Field(description="Vendor id of the teacher model.")] = None


class Wandb(Section):
    """Weights & Biases; the key comes from WANDB_API_KEY, never from here."""

    project: str | None = None
    entity: str | None = None
    name: str | None = None
    tags: tuple[str, ...] | None = None


class Tracking(Section):
    """Experiment trackers, off by default."""

    wandb: Wandb = Wandb()


class Export(Section):
    """Where the finished weights go besides the vendor's own store."""

    hub_repo: Annotated[str | None, Field(description="Hugging Face repository; the token comes from HF_TOKEN.")] = None


class Budget(Section):
    """Spending limit of this job."""

    max_usd: Annotated[float | None, Field(ge=0, description="Submission is blocked when the upper estimate exceeds it.")] = None


class JobSpec(Section):
    """One portable fine-tuning job."""

    version: Annotated[Literal[1], Field(description="Version of this format.")] = 1
    name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=40,
            pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$",
            description="Suffix or name of the tuned model.",
        ),
    ] = None
    model: Annotated[
        str | dict[str, str], Field(description="Catalogue name, a vendor's id, a local folder or .gguf file; or one per provider.")
    ]
    continue_from: Annotated[str | None, Field(description="Earlier tuned model, job or checkpoint to train further.")] = None
    method: Method = "sft"
    data: Data
    tuning: Tuning = Tuning()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    preference: Preference = Preference()
    reinforcement: Reinforcement = Reinforcement()
    distillation: Distillation = Distillation()
    tracking: Tracking = Tracking()
    export: Export = Export()
    budget: Budget = Budget()
    tags: Annotated[dict[str, str] | None, Field(max_length=16, description="Labels carried to the vendor.")] = None
    options: Annotated[ProviderOptions, Field(description="What only one provider offers.")] = ProviderOptions()
    overrides: Annotated[
        dict[str, dict[str, JsonValue]] | None,
        Field(
            description="By provider: dotted fields that differ there, e.g. training.learning_rate: 1e-5; null leaves it to it."
        ),
    ] = None

    @model_validator(mode="after")
    def _exclusive(self) -> JobSpec:
        values = dict(self.fields())
        for one, other, why in EXCLUSIVE:
            if values[one] is not None and values[other] is not None:
                raise ValueError(f"{one} and {other} are both set, but {why}")
        return self

    def fields(self) -> Iterator[tuple[str, Any]]:
        """Every leaf field as (dotted path, value); an unset field has the value None."""
        return _leaves(self, "")

    def get(self, path: str) -> Any:
        """The value at a dotted path, e.g. ``training.epochs``. Raises AttributeError on an unknown path."""
        value: Any = self
        for part in path.split("."):
            value = getattr(value, part)
        return value

    def for_provider(self, provider: str) -> JobSpec:
        """The spec as it holds at one provider: its overrides carried out. Raises ValidationError when they do not fit."""
        own = (self.overrides or {}).get(provider)
        if not own:
            return self.model_copy(update={"overrides": None}) if self.overrides else self
        document = self.model_dump(mode="json", exclude={"overrides"})
        for path, value in own.items():
            *sections, name = path.split(".")
            place = document
            for section in sections:
                place = place[section]
            place[name] = value
        return JobSpec.model_validate(document)

    def model_for(self, provider: str) -> str | None:
        """The base model named for this provider; None when the spec names models, but none for it."""
        return self.model if isinstance(self.model, str) else self.model.get(provider)


def _leaves(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    extra = section.__pydantic_extra__ or {}
    for name, value in [*((n, getattr(section, n)) for n in type(section).model_fields), *extra.items()]:
        path = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _leaves(value, path + ".")
        else:
            yield path, value
