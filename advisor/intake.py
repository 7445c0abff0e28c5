"""The questions that only people can answer: what is wanted, how much of it, and what it may cost (``decision.yaml``).

Every amount may be one number, a pair ``[low, high]`` or ``{low:, high:}``; a pair is read as the 10th and 90th percentile.
What is left out is unknown and shown as unknown; nothing is assumed to be free.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from tuneport.advisor.metrics import METRIC_FAMILIES, METRICS
from tuneport.core.catalogue import base_of
from tuneport.core.errors import DataError
from tuneport.core.money import Range
from tuneport.core.spec import Section
from tuneport.core.spec_file import read_document, validate

CHANGE_MONTHS: dict[str, float] = {"never": float("inf"), "yearly": 12, "quarterly": 3, "monthly": 1, "weekly": 0.25, "daily": 1 / 30}
"""Months between two changes of the facts or requirements that the answers depend on."""


def _as_range(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("amount", "a number, or a pair [low, high]")
    if isinstance(value, int | float):
        return {"low": value, "high": value}
    if isinstance(value, list | tuple):
        if len(value) != 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
            raise PydanticCustomError("amount", "a number, or a pair [low, high]")
        value = {"low": value[0], "high": value[1]}
    if isinstance(value, dict) and {"low", "high"} <= value.keys():
        low, high = value["low"], value["high"]
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            raise PydanticCustomError("amount", "a pair [low, high] with low <= high")
    return value


def _within(low: float, high: float, words: str) -> Any:
    def check(value: Range) -> Range:
        if not low <= value.low <= value.high <= high or value.high == float("inf"):
            raise PydanticCustomError("amount", "{words}", {"words": words})
        return value

    return AfterValidator(check)


_FROM_SHORT = BeforeValidator(_as_range, json_schema_input_type=float | tuple[float, float] | Range)
Amount = Annotated[Range, _FROM_SHORT, _within(0, float("inf"), "a number, or a pair, of 0 or more")]
"""A quantity that is known as a range, 0 or more."""
PositiveAmount = Annotated[Range, _FROM_SHORT, _within(1e-9, float("inf"), "a number, or a pair, above 0")]
Share = Annotated[Range, _FROM_SHORT, _within(0, 1, "a share from 0 to 1, e.g. 0.4 or [0.2, 0.6]")]
Change = Annotated[Range, _FROM_SHORT, _within(-0.95, 20, "a change per year from -0.95 to 20, e.g. 0.3 or [-0.1, 0.5]")]
"""A yearly change as a share: 0.3 is 30 % more each year."""
Hours = Annotated[Range, _FROM_SHORT, _within(1, 730, "hours of a month, from 1 to 730")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]


Symptom = Literal[
    "missing_facts", "stale_facts", "invented_facts", "wrong_format", "wrong_labels", "wrong_style", "too_long", "wrong_refusals",
    "weak_reasoning", "domain_terms", "too_slow", "too_dear",
]  # fmt: skip
"""What goes wrong today; what each speaks for stands in rules.yaml under ``symptoms``."""


def _known_metric(name: str) -> str:
    if name in METRICS or name.startswith(tuple(METRIC_FAMILIES)):
        return name
    close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.6)
    meant = f" (did you mean {close[0]}?)" if close else ""
    known = ", ".join((*METRICS, *(begin + rest for begin, rest in METRIC_FAMILIES.items())))
    raise PydanticCustomError("metric", "{words}", {"words": f"a metric{meant}: {known}"})


class Quality(Section):
    """What counts as good enough, on rows that nobody trained on."""

    metric: Annotated[str, Field(min_length=1, description="Metric of the measurement, e.g. exact_match."), AfterValidator(_known_metric)]
    bar: Annotated[float, Field(gt=0, le=1, description="Lowest value that is good enough, as a share.")]
    rejected_answer_usd: Annotated[
        Amount | None, Field(description="What one answer that misses costs: a person's time, a fallback call. Unknown when left out.")
    ] = None


class Incumbent(Section):
    """What answers today: a model with a prompt. An id that OpenAI gives to a tuned model (``ft:BASE:...``) sets ``tuned``."""

    provider: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1, description="Catalogue name or the vendor's id, that of a tuned model (ft:...) included.")]
    arm: Annotated[str | None, Field(description="Name of the measured arm that is in use today, e.g. zero-shot.")] = None
    tuned: Annotated[bool, Field(description="true: today's model is itself a fine-tuned one.")] = False

    @model_validator(mode="before")
    @classmethod
    def _tuned_by_its_id(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(model := data.get("model"), str) and base_of(model) != model:
            return {**data, "tuned": True}
        return data


class Tokens(Section):
    """Tokens of one request."""

    static: Annotated[Amount, Field(description="The part of the prompt that never changes: instructions and examples.")]
    static_tuned: Annotated[Amount, Field(description="What is left of it once a model is tuned.")]
    fresh: Annotated[Amount, Field(description="The part that changes with every request.")]
    output: Annotated[PositiveAmount, Field(description="The answer.")]
    output_tuned: Annotated[PositiveAmount | None, Field(description="The tuned model's answer; the same when left out.")] = None


class Costs(Section):
    """People's cost, USD. One-time unless the name says otherwise."""

    data_usd: Amount
    labelling_usd: Amount
    engineering_usd: Amount
    evaluation_usd: Amount
    migration_usd: Annotated[
        Amount | None, Field(description="Moving to another base model when this one ends; engineering plus evaluation when left out.")
    ] = None
    incumbent_move_usd: Annotated[
        Amount | None,
        Field(description="Moving today's prompt to another model when today's ends within the horizon. Not counted when left out."),
    ] = None
    monitoring_usd_per_month: Amount = Range(low=0, high=0)


class Runs(Section):
    """Training runs until one is kept."""

    planned: Annotated[int, Field(ge=1, le=1000, description="Runs that one means to make, sweeps included (S4: expect 3 to 5).")] = 3
    failure_share: Annotated[float, Field(ge=0, lt=1, description="Share of runs that fail and are paid for.")] = 0.1


class Retraining(Section):
    """How often the model must learn anew."""

    every_months: Annotated[float | None, Field(gt=0, description="Months between two trainings; never when left out.")] = None
    people_usd: Annotated[Amount, Field(description="Data, labels and checks for one retraining, beside the run itself.")] = Range(
        low=0, high=0
    )


class Privacy(Section):
    """Where the data may go."""

    data_may_leave: Annotated[bool, Field(description="false: neither training nor requests may leave the organisation's own machines.")]
    regions: Annotated[
        tuple[Annotated[str, Field(min_length=2, max_length=40)], ...],
        Field(description="Where data may be processed, as beginnings of region names, e.g. eu, us-east; anywhere when left out."),
    ] = ()
    regulations: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=80)], ...], Field(description="Rules that bind, e.g. GDPR, HIPAA.")
    ] = ()


class Facts(Section):
    """Does the answer need facts that the model cannot have learnt?"""

    fresh_or_private: bool
    change: Literal["never", "yearly", "quarterly", "monthly", "weekly", "daily"]


class Needs(Section):
    """What the answers must satisfy beside being right."""

    format: Annotated[
        Literal["free", "loose", "strict"] | None,
        Field(description="free text; a loose structure; or strict: a program reads the answer and one slip is a failure."),
    ] = None
    latency_p95_seconds: Annotated[
        float | None, Field(gt=0, le=86_400, description="19 of 20 answers must be there by then; no limit when left out.")
    ] = None


class DataAtHand(Section):
    """What there is to learn from. Training rows of the spec take precedence over ``labelled_rows``."""

    labelled_rows: Annotated[int | None, Field(ge=0)] = None
    preference_pairs: Annotated[int | None, Field(ge=0, description="Pairs of a better and a worse answer to one prompt.")] = None
    raw_tokens: Annotated[float | None, Field(ge=0, description="Tokens of unlabelled text of the domain or language.")] = None


class CurvePoint(Section):
    """One run of the learning curve: a measured arm and the rows that it was trained on."""

    arm: Annotated[str, Field(min_length=1)]
    rows: Annotated[int, Field(ge=1)]


class SelfHosting(Section):
    """One's own or rented machine, for offers that need one."""

    usd_per_hour: Annotated[Amount | None, Field(description="What an hour of it costs; prices of the price book when left out.")] = None
    requests_per_hour: Annotated[
        PositiveAmount | None, Field(description="What one machine answers in an hour; from the measurement when left out.")
    ] = None
    gpu_memory_gb: Annotated[float | None, Field(gt=0, description="Memory of its GPU.")] = None
    always_on: Annotated[bool, Field(description="true: paid for every hour of the month; false: only while it works.")] = True


class Intake(Section):
    """One decision to be made."""

    version: Literal[1] = 1
    title: Annotated[str, Field(min_length=1, max_length=120)]
    problem: Annotated[Text, Field(description="What is wrong today.")]
    wanted: Annotated[Text, Field(description="What is wanted instead.")]
    gap: Annotated[
        Literal["knowledge", "behaviour", "both", "unknown"],
        Field(description="Does the model lack facts (knowledge), or answer in the wrong way (behaviour)?"),
    ] = "unknown"
    symptoms: Annotated[
        tuple[Symptom, ...], Field(description="What goes wrong today; the diagnosis rests on it where gap is unknown.")
    ] = ()
    decision_makers: tuple[str, ...] = ()
    quality: Quality
    incumbent: Incumbent
    volume_per_month: Annotated[PositiveAmount, Field(description="Requests per month, now.")]
    volume_growth_per_year: Annotated[Change, Field(description="Growth of the volume per year; it may shrink.")] = Range(low=0, high=0)
    seasonality: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1000)], ...],
        Field(description="Twelve relative weights of the months, the first for the month after the report; none when left out."),
    ] = ()
    open_hours_per_month: Annotated[
        Hours, Field(description="Hours of a month in which requests arrive; a host that stops idle machines bills only these.")
    ] = Range(low=730, high=730)
    batch_share: Annotated[Share, Field(description="Share of requests that can wait for a batch tier, usually up to 24 hours.")] = Range(
        low=0, high=0
    )
    tokens: Tokens
    cache_hit_share: Annotated[Share, Field(description="Share of the static prompt that is read from the provider's cache today.")]
    cache_hit_share_tuned: Annotated[Share, Field(description="The same after tuning; short prompts are rarely cached.")] = Range(
        low=0, high=0
    )
    horizon_months: Annotated[int, Field(ge=1, le=120)]
    discount_rate: Annotated[float, Field(ge=0, le=1, description="Per year.")]
    machine_price_drift_per_year: Annotated[
        Change, Field(description="Change of hourly machine prices. Rents rose in 2026, so both signs are possible (economics notes 1.7).")
    ] = Range(low=-0.2, high=0.2)
    costs: Costs
    runs: Runs = Runs()
    retraining: Retraining = Retraining()
    privacy: Privacy
    facts: Facts
    needs: Needs = Needs()
    data: DataAtHand = DataAtHand()
    skills: Annotated[
        Literal["prompting", "api", "training", "operations"] | None,
        Field(description="The most that the team can do itself: write prompts, call a tuning API, train a model, or run machines."),
    ] = None
    learning_curve: Annotated[tuple[CurvePoint, ...], Field(description="Arms trained on parts of the data, e.g. 25, 50 and 100 %.")] = ()
    self_hosting: SelfHosting = SelfHosting()

    @model_validator(mode="after")
    def _whole(self) -> Intake:
        if self.seasonality and (len(self.seasonality) != 12 or not any(self.seasonality)):
            raise ValueError("seasonality needs twelve weights, one for each month, that are not all 0")
        return self


def load_intake(path: str | Path) -> Intake:
    """The Intake in a YAML or JSON file. Raises SpecError with every fault found, DataError for another kind of file or none."""
    source = Path(path)
    document, lines = read_document(source)
    if not document.keys() & {name for name, field in Intake.model_fields.items() if field.is_required()}:
        spec = {"model", "data"} <= document.keys()
        raise DataError(
            f"{source} is {'a job spec, not a decision file' if spec else 'no decision file'}",
            fix=f"make one with: tuneport advise decision.yaml --interactive{f' --spec {source}' if spec else ''}",
        )
    return validate(Intake, document, str(source), lines)
