"""The catalogue: which base model each provider can tune, under which id and limits, and how long it will live.

Data, not code: ``facts/models.yaml``. A user's YAML file named by ``TUNEPORT_CATALOGUE`` (same schema) is laid over it:
its sources and profiles are added, and each offering in it replaces the built-in offering of that model and provider.
What the catalogue does not know stays None, and a model it has never heard of is an offering with ``known=False``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tuneport.core.errors import CatalogueError
from tuneport.core.plan import PlanWarning
from tuneport.core.sources import Entry, Source, SourceEntry, read_builtin, read_override, source_for, staleness
from tuneport.core.spec import JobSpec, Method, TuningKind

__all__ = [
    "Catalogue",
    "Lifetime",
    "Offering",
    "Source",
    "base_of",
    "catalogue_schema",
    "closed",
    "lifetime_warnings",
    "load_catalogue",
    "staleness",
]

OVERRIDE_VARIABLE = "TUNEPORT_CATALOGUE"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Shape of a Hugging Face hub id, org/name."""

Serving = Literal["serverless", "on-demand", "provisioned", "dedicated", "local"]
"""How a tuned model answers. serverless: per token, nothing to start; on-demand: per token after a deployment call;
provisioned: reserved units by the hour; dedicated: GPUs by the hour while replicas run; local: this machine."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Dates after which a model is of no use. ``training_closes`` is the last day on which a job can be created;
    on ``inference_ends`` the base and its tuned models stop answering. None: no end is known."""

    training_closes: date | None = None
    inference_ends: date | None = None
    eligibility: str = ""  # who may still create jobs; '' = no restriction known


@dataclass(frozen=True, slots=True)
class Offering:
    """One base model at one provider. None, or a missing key in ``limits``, means unknown, never unlimited."""

    model: str  # catalogue name, or the id as given
    provider: str
    vendor_id: str
    family: str = ""
    parameters_b: float | None = None  # total parameters in billions (all experts)
    active_parameters_b: float | None = None  # parameters that work on one token, in billions
    context: int | None = None  # tokens the base model can read
    methods: frozenset[str] | None = None
    tunings: frozenset[str] | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)  # keys of ``Limits``; a range is a tuple (low, high)
    serving: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    lifetime: Lifetime = Lifetime()
    source: Source | None = None
    note: str = ""
    known: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)  # documented values when a field is left out; keys of ``Defaults``
    limits_source: Source | None = None  # where limits and defaults of the profile come from


Bounds = Annotated[tuple[float, float], Field(description="[low, high], both allowed.")]
Count = Annotated[int, Field(ge=0)]


class Limits(Entry):
    """What a provider accepts for a model. Lengths are in tokens unless the name says otherwise."""

    max_rank: Count | None = None
    min_rank: Count | None = None
    rank_power_of_two: bool | None = None
    max_seq_length_sft: Count | None = None
    max_seq_length_dpo: Count | None = None
    seq_length_multiple: Annotated[Count | None, Field(description="The sequence length must be divisible by this.")] = None
    max_row_tokens: Count | None = None
    min_rows: Count | None = None
    max_rows: Count | None = None
    max_rows_times_epochs: Count | None = None
    advised_min_rows: Count | None = None
    max_train_mb: Annotated[float | None, Field(description="Training file, in MB.")] = None
    max_validation_mb: float | None = None
    max_rows_rft: Count | None = None
    max_validation_rows_rft: Count | None = None
    max_suffix_chars: Count | None = None
    max_images_per_row: Count | None = None
    max_image_mb: float | None = None
    epochs: Bounds | None = None
    batch_size: Bounds | None = None
    learning_rate: Bounds | None = None
    learning_rate_above_zero: Annotated[bool | None, Field(description="Any rate above zero is documented as accepted.")] = None
    learning_rate_multiplier: Bounds | None = None
    warmup_steps: Bounds | None = None
    warmup_ratio: Bounds | None = None
    lora_dropout: Annotated[Bounds | None, Field(description="The upper end itself is excluded.")] = None
    dpo_beta: Bounds | None = None
    advised_dpo_beta: Bounds | None = None
    early_stopping_threshold: Bounds | None = None
    early_stopping_patience: Bounds | None = None
    evaluation_percentage: Bounds | None = None
    rft_epochs: Bounds | None = None
    rft_batch_size: Bounds | None = None
    rft_learning_rate: Bounds | None = None
    rft_samples_per_prompt: Bounds | None = None
    rft_eval_interval: Bounds | None = None


class Defaults(Entry):
    """What a provider documents it does when a field is left out."""

    epochs: float | Literal["auto"] | None = None
    batch_size: int | Literal["auto", "max"] | None = None
    learning_rate: float | None = None
    learning_rate_multiplier: float | Literal["auto"] | None = None
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    rank: int | None = None
    alpha: Annotated[str | float | None, Field(description="A value, or the rule, e.g. '2 x rank'.")] = None
    dropout: float | None = None
    scheduler: str | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    packing: bool | None = None
    max_seq_length: int | None = None
    dpo_beta: float | Literal["auto"] | None = None
    seed: int | None = None
    early_stopping_threshold: float | None = None
    early_stopping_patience: int | None = None
    evaluation_percentage: float | None = None
    tuning: str | None = None


class LifetimeEntry(Entry):
    """See ``Lifetime``."""

    training_closes: Annotated[date | None, Field(description="Last day on which a job can be created.")] = None
    inference_ends: Annotated[date | None, Field(description="Day on which the model and its tuned versions stop answering.")] = None
    eligibility: Annotated[str | None, Field(description="Who may still create jobs.")] = None


class _Terms(Entry):
    """What a profile may state for all its offerings, and an offering for itself."""

    methods: frozenset[Method] | None = None
    tunings: frozenset[TuningKind] | None = None
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    serving: tuple[Serving, ...] | None = None
    regions: tuple[str, ...] | None = None
    lifetime: LifetimeEntry = LifetimeEntry()
    source: Annotated[str, Field(description="Key under `sources`.")]
    note: str = ""


class Profile(_Terms):
    """Terms that several offerings share; an offering's own values win over them."""


class OfferingEntry(_Terms):
    """One provider's offer of a model."""

    id: Annotated[str, Field(min_length=1, description="The vendor's id, sent as it stands.")]
    profile: Annotated[str | None, Field(description="Key under `profiles`.")] = None
    context: Annotated[int | None, Field(ge=1, description="Tokens, where this provider differs from the model.")] = None


class ModelEntry(Entry):
    """A base model, whoever offers it."""

    family: str = ""
    parameters_b: Annotated[float | None, Field(gt=0, description="Total parameters in billions.")] = None
    active_parameters_b: Annotated[float | None, Field(gt=0, description="Parameters active per token, in billions.")] = None
    context: Annotated[int | None, Field(ge=1, description="Tokens.")] = None
    note: str = ""
    offerings: Annotated[dict[str, OfferingEntry], Field(min_length=1, description="By provider.")]


class CatalogueFile(Entry):
    """A catalogue file, built-in or the user's."""

    version: Literal[1] = 1
    sources: dict[str, SourceEntry] = Field(default_factory=dict)
    profiles: dict[str, Profile] = Field(default_factory=dict)
    models: dict[str, ModelEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _active_within_total(self) -> CatalogueFile:
        for name, model in self.models.items():
            if model.active_parameters_b and model.parameters_b and model.active_parameters_b > model.parameters_b:
                raise ValueError(f"models.{name}: active_parameters_b exceeds parameters_b")
        return self


def catalogue_schema() -> dict[str, Any]:
    """JSON Schema of a catalogue file (built-in and override alike)."""
    return CatalogueFile.model_json_schema()


class Catalogue:
    """Every offering, looked up by the model of a spec."""

    def __init__(self, offerings: Mapping[str, Mapping[str, Offering]]) -> None:
        self._offerings = offerings
        self._names = {o.vendor_id: name for name, by_provider in offerings.items() for o in by_provider.values()}

    def models(self) -> tuple[Offering, ...]:
        """All offerings, by model name, then provider."""
        return tuple(offering for _, by_provider in sorted(self._offerings.items()) for _, offering in sorted(by_provider.items()))

    def names(self) -> tuple[str, ...]:
        """All catalogue names."""
        return tuple(sorted(self._offerings))

    def name_of(self, model: str) -> str | None:
        """The catalogue name behind a name or any provider's id; None when unknown."""
        return model if model in self._offerings else self._names.get(model)

    def offering(self, spec: JobSpec, provider: str) -> Offering:
        """The offering of the spec's model at a provider.

        A mapping's value is a catalogue name, or else a vendor id, taken verbatim. A plain string
        is a catalogue name or any id in the catalogue;
        for ``local`` also a folder, a .gguf file or a hub id; for ``openai`` with a base_url of another service, any id.
        Raises CatalogueError when the model is unknown or not offered by this provider.
        """
        if not isinstance(spec.model, str):
            if provider not in spec.model:
                given = ", ".join(sorted(spec.model)) or "none"
                what = f"`model` names no base model for {provider} (it names one for: {given})"
                raise CatalogueError(what, fix=f"add `{provider}: <id>` under `model`")
            return self._verbatim(spec.model[provider], provider)
        name = self.name_of(spec.model)
        if name is not None and provider in self._offerings[name]:
            return self._offerings[name][provider]
        if provider == "local" and _is_local(spec.model):
            return Offering(spec.model, provider, spec.model, serving=("local",), known=False)
        if provider == "openai" and name is None and spec.options.openai.base_url:
            return Offering(spec.model, provider, spec.model, known=False)
        if name is not None:
            elsewhere = ", ".join(sorted(self._offerings[name]))
            raise CatalogueError(
                f"{provider} does not offer {spec.model} for tuning as far as the catalogue knows (offered by: {elsewhere})",
                fix=f"choose one of these providers, or name the vendor's id yourself: model: {{{provider}: <id>}}",
            )
        raise CatalogueError(f"the catalogue has no model {spec.model!r}", fix=self._remedy(spec.model, provider))

    def _verbatim(self, model_id: str, provider: str) -> Offering:
        name = self.name_of(model_id)
        known = self._offerings[name].get(provider) if name else None
        if known is not None and model_id in (name, known.vendor_id):
            return known
        if provider == "local" and not _is_local(model_id):
            raise CatalogueError(f"no base model is called {model_id!r} on this machine", fix=self._remedy(model_id, provider))
        return Offering(model_id, provider, model_id, serving=("local",) if provider == "local" else (), known=False)

    def similar(self, model: str) -> tuple[str, ...]:
        """At most three names and vendor ids that may have been meant, likest first."""
        candidates = {c.lower(): c for c in [*self._names, *self._offerings]}
        return tuple(candidates[c] for c in difflib.get_close_matches(model.lower(), candidates, n=3, cutoff=0.6))

    def _remedy(self, model: str, provider: str) -> str:
        if base_of(model) != model:
            return f"a tuned model is trained further with: model: {base_of(model)}, continue_from: {model}"
        close = self.similar(model)
        meant = f"did you mean {' or '.join(close)}? Otherwise " if close else ""
        if provider == "local":
            return f"{meant}name a folder, a .gguf file or a hub id such as org/name; `tuneport models` lists what is known"
        return f"{meant}see `tuneport models`, or name the vendor's id yourself: model: {{{provider}: <id>}}"


def _is_local(model: str) -> bool:
    return model.lower().endswith(".gguf") or model.startswith((".", "/", "~")) or bool(HUB_ID.fullmatch(model)) or Path(model).is_dir()


def load_catalogue() -> Catalogue:
    """The catalogue, with the user's override file laid over it; read once per process and override path.

    Raises CatalogueError naming the file and path of every fault.
    """
    return _load(os.environ.get(OVERRIDE_VARIABLE, ""))


@lru_cache(maxsize=4)
def _load(_override: str) -> Catalogue:
    files = [(read_builtin("models.yaml", CatalogueFile), "models.yaml")]
    if (user := read_override(OVERRIDE_VARIABLE, CatalogueFile)) is not None:
        files.append(user)
    sources: dict[str, SourceEntry] = {}
    profiles: dict[str, Profile] = {}
    offerings: dict[str, dict[str, Offering]] = {}
    for content, file in files:
        sources |= content.sources
        profiles |= content.profiles
        for path, name, model, provider, entry in _entries(content):
            profile = profiles.get(entry.profile) if entry.profile else None
            if entry.profile and profile is None:
                raise CatalogueError(f"{file}: {path}: profile {entry.profile!r} is not defined", fix="add it under `profiles`")
            limits_source = source_for(profile.source, sources, file, f"profiles.{entry.profile}") if profile else None
            source = source_for(entry.source, sources, file, path)
            layers: list[_Terms] = [profile, entry] if profile else [entry]
            offerings.setdefault(name, {})[provider] = _offering((name, model), (provider, entry), layers, source, limits_source)
    return Catalogue(offerings)


def _entries(content: CatalogueFile) -> Iterator[tuple[str, str, ModelEntry, str, OfferingEntry]]:
    for name, model in content.models.items():
        for provider, entry in model.offerings.items():
            yield f"models.{name}.offerings.{provider}", name, model, provider, entry


def _offering(
    named: tuple[str, ModelEntry], offered: tuple[str, OfferingEntry], layers: list[_Terms], source: Source, limits_source: Source | None
) -> Offering:
    """The entry and its profile as one value; ``layers`` are ordered so that the later wins."""
    name, model = named
    provider, entry = offered

    def last(attribute: str) -> Any:
        return next((value for layer in reversed(layers) if (value := getattr(layer, attribute)) is not None), None)

    def merged(attribute: str) -> dict[str, Any]:
        parts = [getattr(layer, attribute) for layer in layers]
        return {key: value for part in parts for key in sorted(part.model_fields_set) if (value := getattr(part, key)) is not None}

    return Offering(
        model=name,
        provider=provider,
        vendor_id=entry.id,
        family=model.family,
        parameters_b=model.parameters_b,
        active_parameters_b=model.active_parameters_b,
        context=entry.context or model.context,
        methods=last("methods"),
        tunings=last("tunings"),
        limits=merged("limits"),
        serving=last("serving") or (),
        regions=last("regions") or (),
        lifetime=Lifetime(**merged("lifetime")),
        source=source,
        note=" ".join(part for part in (model.note, *(layer.note for layer in layers)) if part),
        defaults=merged("defaults"),
        limits_source=limits_source,
    )


def base_of(model: str) -> str:
    """The base inside the id of a model that OpenAI tuned, ``ft:BASE:organisation:suffix:id``; any other id as it stands."""
    parts = model.split(":")
    return parts[1] if parts[0] == "ft" and len(parts) > 2 else model


def closed(offering: Offering, today: date) -> str:
    """Why no job can be created on this day, or '' when one can as far as the catalogue knows."""
    life = offering.lifetime
    if life.inference_ends and today >= life.inference_ends:
        return f"{offering.provider} ended {offering.vendor_id} on {life.inference_ends}"
    if life.training_closes and today > life.training_closes:
        return f"{offering.provider} takes no new fine-tuning jobs for {offering.vendor_id} since {life.training_closes}"
    return ""


def lifetime_warnings(offering: Offering, today: date) -> tuple[PlanWarning, ...]:
    """What the user should know of the model's future. Codes: closed, lifetime, eligibility, stale, unknown_model."""
    if not offering.known:
        message = f"the catalogue knows nothing of {offering.vendor_id} at {offering.provider}: limits, lifetime and size are unchecked"
        if (base := base_of(offering.vendor_id)) != offering.vendor_id:
            message += f"; a tuned model is trained further with the base {base} under model and its own id under continue_from"
            return (PlanWarning(code="unknown_model", message=message),)
        known = (name for o in load_catalogue().models() if o.provider == offering.provider for name in (o.model, o.vendor_id))
        close = difflib.get_close_matches(offering.vendor_id, sorted(set(known)), n=1, cutoff=0.8)
        return (PlanWarning(code="unknown_model", message=f"{message}; did you mean {close[0]}?" if close else message),)
    life = offering.lifetime
    found: list[PlanWarning] = []
    if reason := closed(offering, today):
        found.append(PlanWarning(code="closed", message=reason))
    else:
        if life.training_closes:
            days = _days((life.training_closes - today).days)
            message = f"{offering.provider} takes no new jobs for {offering.model} after {life.training_closes} ({days} left)"
            found.append(PlanWarning(code="lifetime", message=message))
        if life.inference_ends:
            days = _days((life.inference_ends - today).days)
            ends = f"stop answering at {offering.provider} on {life.inference_ends} ({days} left)"
            message = f"{offering.model} and every model tuned from it {ends}"
            found.append(PlanWarning(code="lifetime", message=message))
        if life.eligibility:
            found.append(PlanWarning(code="eligibility", message=life.eligibility))
    if offering.source and (age := staleness(offering.source, today)):
        message = f"what the catalogue says of {offering.model} at {offering.provider} is {age} ({offering.source.title})"
        found.append(PlanWarning(code="stale", message=message))
    return tuple(found)


def _days(count: int) -> str:
    return f"{count} day" if count == 1 else f"{count} days"
