"""What only one provider offers, each its own strict model. A field here never has a portable meaning.

Options of third-party providers stand beside these under the plugin's name and are validated by the plugin.
Sources: ../docs/providers.md names the vendor documents for each field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Base of a provider's options: unknown fields are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class OpenAIOptions(Options):
    """OpenAI, and services that speak its fine-tuning protocol."""

    base_url: Annotated[
        str | None, Field(pattern=r"^https?://", description="Service address including /v1; OPENAI_BASE_URL otherwise.")
    ] = None
    key_variable: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Z][A-Z0-9_]*_(KEY|TOKEN|SECRET)$",
            description="Environment variable that holds the key, named ..._KEY, ..._TOKEN or ..._SECRET; OPENAI_API_KEY otherwise.",
        ),
    ] = None
    compute_multiplier: Annotated[float | None, Field(gt=1e-5, le=10, description="rft: exploration factor.")] = None
    eval_samples: Annotated[int | None, Field(ge=1, description="rft: samples per evaluation.")] = None
    eval_interval: Annotated[int | None, Field(ge=1, description="rft: steps between evaluations.")] = None


class BedrockOptions(Options):
    """Amazon Bedrock; credentials come from the AWS chain."""

    region: Annotated[str | None, Field(description="AWS region; AWS_REGION otherwise.")] = None
    role_arn: Annotated[str | None, Field(pattern=r"^arn:aws", description="IAM role that Bedrock assumes (required to submit).")] = None
    data_s3_uri: Annotated[str | None, Field(pattern=r"^s3://", description="Folder for the uploaded rows (required to submit).")] = None
    output_s3_uri: Annotated[str | None, Field(pattern=r"^s3://", description="Folder for metrics (required to submit).")] = None
    job_name: Annotated[str | None, Field(max_length=63, pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9+.])*$")] = None
    kms_key_id: Annotated[str | None, Field(description="customModelKmsKeyId.")] = None
    subnet_ids: Annotated[tuple[str, ...] | None, Field(min_length=1, max_length=16)] = None
    security_group_ids: Annotated[tuple[str, ...] | None, Field(min_length=1, max_length=5)] = None
    early_stopping_threshold: Annotated[float | None, Field(ge=0, le=0.1, description="Claude 3 and Cohere families.")] = None
    reward_lambda_arn: Annotated[str | None, Field(pattern=r"^arn:aws", description="rft: the grader Lambda.")] = None
    max_teacher_response_tokens: Annotated[int | None, Field(ge=1, description="distill: maxResponseLengthForInference.")] = None


class TogetherOptions(Options):
    """Together AI."""

    base_url: Annotated[str | None, Field(pattern=r"^https?://", description="Address without /v1; TOGETHER_BASE_URL otherwise.")] = None
    warmup_evals: Annotated[int | None, Field(ge=0, description="Evaluations before early stopping may act.")] = None
    from_hf_model: Annotated[str | None, Field(description="Start from this Hugging Face model.")] = None
    hf_model_revision: str | None = None
    train_vision: bool | None = None


class FireworksOptions(Options):
    """Fireworks AI."""

    base_url: Annotated[str | None, Field(pattern=r"^https?://")] = None
    account_id: Annotated[str | None, Field(description="Account; FIREWORKS_ACCOUNT_ID otherwise.")] = None
    evaluator: Annotated[str | None, Field(description="rft: evaluator resource name.")] = None
    region: str | None = None
    eval_auto_carveout: Annotated[bool | None, Field(description="Let the vendor cut validation rows from the training rows.")] = None
    output_model: Annotated[str | None, Field(description="Id of the tuned model.")] = None
    is_turbo: bool | None = None


Tracker = Literal["tensorboard", "wandb", "mlflow"]


class LocalOptions(Options):
    """This machine: transformers, PEFT and TRL."""

    device: Annotated[Literal["auto", "cpu", "cuda"] | None, Field(description="auto takes the GPU when there is one.")] = None
    dtype: Annotated[Literal["bf16", "fp32"] | None, Field(description="Precision of the base weights.")] = None
    chat_template: Annotated[str | None, Field(description="Path of a Jinja chat template, for a model that has none.")] = None
    trust_remote_code: Annotated[
        bool | None, Field(description="Run the Python code that comes with the model, which some need; never by default.")
    ] = None
    train_share: Annotated[float | None, Field(gt=0, le=1, description="Share of the training rows to use, for a learning curve.")] = None
    overfitting_guard: Annotated[
        bool | None, Field(description="Stop when the validation loss rises while the training loss falls; on by default.")
    ] = None
    virtual_tokens: Annotated[int | None, Field(ge=1, le=1024, description="Virtual tokens of prefix and prompt tuning.")] = None
    gpu_memory_gib: Annotated[float | None, Field(gt=0, description="The most GPU memory that training may take, for a shared GPU.")] = None
    tracking: Annotated[
        tuple[Tracker, ...] | None, Field(description="Trackers that follow the run, in the job's folder; tracking.wandb names W&B's run.")
    ] = None
    wandb_mode: Annotated[
        Literal["offline", "online"] | None, Field(description="online sends metrics and settings to W&B; offline by default.")
    ] = None
    mlflow_uri: Annotated[
        str | None, Field(min_length=1, description="MLflow's tracking URI, e.g. sqlite:////data/mlflow.db or a server's address.")
    ] = None
    gpu_usd_per_hour: Annotated[float | None, Field(ge=0, description="What an hour of this machine costs you, for estimates.")] = None


class ProviderOptions(BaseModel):
    """Options by provider. Names beside the five must be those of installed provider plugins."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    __pydantic_extra__: dict[str, dict[str, Any]]

    openai: OpenAIOptions = OpenAIOptions()
    bedrock: BedrockOptions = BedrockOptions()
    together: TogetherOptions = TogetherOptions()
    fireworks: FireworksOptions = FireworksOptions()
    local: LocalOptions = LocalOptions()

    def for_provider(self, name: str) -> Options | dict[str, Any] | None:
        """One provider's options; None for a plugin without any."""
        if name in type(self).model_fields:
            options: Options = getattr(self, name)
            return options
        return (self.__pydantic_extra__ or {}).get(name)
