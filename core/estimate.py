"""What a training job will cost and how long it will take, before it is submitted: ranges with their sources.

Formulas: tokens x price per million (Together also bills validation passes), hours x price per hour; a minimum charge lifts
the sum. How each provider bills, and how fast it is, stands in ``facts/providers.yaml`` with its sources.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tuneport.core.catalogue import Offering, load_catalogue
from tuneport.core.errors import CatalogueError
from tuneport.core.money import AT_MINIMUM, Cost, CostLine, Duration, Range
from tuneport.core.prices import Price, PriceBook, load_prices
from tuneport.core.sources import Entry, Source, SourceEntry, read_builtin, source_for, staleness
from tuneport.core.spec import JobSpec

MILLION = 1e6
HOUR = 3600.0


class Speed(Entry):
    """How long a job takes: either a bare span of hours, or a start-up span plus tokens at a rate."""

    hours: Annotated[tuple[float, float] | None, Field(description="Whole job, whatever its size.")] = None
    startup_minutes: Annotated[tuple[float, float] | None, Field(description="Queue, validation and start.")] = None
    tokens_per_second: Annotated[tuple[float, float] | None, Field(description="Slowest and fastest rate to expect.")] = None
    source: str
    note: str = ""

    @model_validator(mode="after")
    def _one_form(self) -> Speed:
        if (self.hours is None) == (self.tokens_per_second is None):
            raise ValueError("give either hours or tokens_per_second")
        return self


class Idle(Entry):
    """What becomes of a dedicated machine that nobody calls."""

    stops: Annotated[bool, Field(description="It can be stopped, and is then not billed.")]
    source: str
    note: str = ""


class ProviderEntry(Entry):
    """Facts about a provider as a whole."""

    title: str
    bills_evaluation: Annotated[bool | Literal["unknown"], Field(description="Are validation tokens billed like training tokens?")]
    billing: Annotated[str, Field(description="What is billed, in words.")]
    source: str
    speed: Speed | None = None
    idle: Annotated[Idle | None, Field(description="Dedicated machines without traffic; unknown when left out.")] = None


class OtherEntry(Entry):
    """A place that trains but that tuneport has no compiler for: its state, for people who choose."""

    title: str
    state: str
    source: str
    training_closes: date | None = None
    note: str = ""


class ProviderFile(Entry):
    """facts/providers.yaml."""

    version: Literal[1] = 1
    sources: dict[str, SourceEntry]
    providers: dict[str, ProviderEntry]
    others: dict[str, OtherEntry] = Field(default_factory=dict)

    def source(self, key: str) -> Source:
        """The source under a key."""
        return source_for(key, self.sources, "providers.yaml", "source")


@lru_cache(maxsize=1)
def load_providers() -> ProviderFile:
    """Facts about providers. Raises CatalogueError when the file breaks its schema."""
    facts = read_builtin("providers.yaml", ProviderFile)
    parts = [part.source for entry in facts.providers.values() for part in (entry.speed, entry.idle) if part]
    for key in [*parts, *(entry.source for entry in facts.providers.values()), *(entry.source for entry in facts.others.values())]:
        facts.source(key)
    return facts


def training_cost(
    offering: Offering,
    *,
    method: str,
    tuning: str | None = None,
    trained_tokens: Range | None,
    evaluated_tokens: Range | None = None,
    hours: Range | None = None,
    gpu: str | None = None,
    usd_per_hour: float | None = None,
    today: date,
) -> Cost:
    """The cost of one training job in USD, a line for each part.

    ``trained_tokens`` are tokens in the training rows x epochs; ``evaluated_tokens`` tokens in the validation rows x passes;
    None means unknown. ``hours`` is the length of the run where hours are billed (rft at OpenAI, and ``local``). For ``local``,
    ``usd_per_hour`` is the user's own figure for the machine, else ``gpu`` is looked up in the rental market.
    ``tuning=None`` leaves the choice to the provider: the range then spans every kind it offers.
    A part whose price or amount is unknown becomes a line with ``usd`` None that says so.
    """
    if offering.provider == "local":
        return Cost(lines=(_machine_line(hours, gpu, usd_per_hour, today),))
    find = _finder(offering, method, today)
    kinds = [tuning] if tuning is not None or not offering.tunings else sorted(offering.tunings)
    found = [find("train_token", kind) for kind in kinds]
    tokens = [price for price in found if price is not None]
    if tokens and len(tokens) == len(found):
        return Cost(lines=_token_lines(tokens, trained_tokens, evaluated_tokens, offering.provider, today))
    hourly = find("train_hour", tuning)
    if hourly is not None:
        return Cost(lines=(_line("training time", hours, hourly, today),))
    what = " ".join(part for part in (tuning or "", method) if part)
    basis = f"no price known for {what} of {offering.vendor_id} at {offering.provider}"
    return Cost(lines=(CostLine(item="training", usd=None, basis=basis),))


def tokens_bill(provider: str, spec: JobSpec, tokens: int, on: date) -> CostLine | None:
    """What the tokens that a vendor billed for a job come to in USD, by the price of the day it was submitted.

    For vendors that report tokens but no price (OpenAI: ``trained_tokens`` are the billable ones). None when the price book has
    no price per token for the job, or the catalogue no longer has its model.
    """
    try:
        offering = load_catalogue().offering(spec, provider)
    except CatalogueError:
        return None
    find = _finder(offering, spec.method, on)
    kind = spec.tuning.kind
    kinds = [kind] if kind is not None or not offering.tunings else sorted(offering.tunings)
    prices = [price for price in (find("train_token", kind) for kind in kinds) if price is not None]
    if not prices or len(prices) < len(kinds):
        return None
    price = _spanning(prices)
    line = _line("billed tokens", Range(low=tokens, high=tokens), price, on)
    return line if price.min_charge is None or line.usd is None else _lifted(line, line.usd, Range(low=0, high=0), price.min_charge)


def _finder(offering: Offering, method: str, today: date) -> Callable[[str, str | None], Price | None]:
    book: PriceBook = load_prices()

    def find(kind: str, tuning: str | None) -> Price | None:
        return book.find(
            offering.provider,
            kind,
            model=offering.vendor_id if offering.known else offering.model,
            method=method,
            tuning=tuning,
            parameters_b=offering.parameters_b,
            today=today,
        )

    return find


def _token_lines(
    prices: list[Price], trained: Range | None, evaluated: Range | None, provider: str, today: date
) -> tuple[CostLine, ...]:
    """Training tokens and, where they are or may be billed, validation tokens; the first line carries the minimum charge."""
    price = _spanning(prices)
    training = _line("training tokens", trained, price, today)
    lines = [training]
    evaluation = Range(low=0, high=0)
    facts = load_providers().providers.get(provider)
    billed: bool | Literal["unknown"] = facts.bills_evaluation if facts else "unknown"
    if evaluated is not None and evaluated.high > 0 and billed:
        line = _line("validation tokens", evaluated, price, today)
        if billed == "unknown" and line.usd is not None:
            basis = f"0 or {line.basis}: whether {provider} bills validation is not documented"
            line = line.model_copy(update={"usd": Range(low=0, high=line.usd.high), "basis": basis})
        lines.append(line)
        evaluation = line.usd or evaluation
    if training.usd is not None and price.min_charge is not None:
        lines[0] = _lifted(training, training.usd, evaluation, price.min_charge)
    return tuple(lines)


def _lifted(line: CostLine, usd: Range, beside: Range, minimum: Range) -> CostLine:
    low = max(usd.low, minimum.low - beside.low)
    high = max(usd.high, minimum.high - beside.high, low)
    if (low, high) == (usd.low, usd.high):
        return line
    basis = f"{line.basis}; {AT_MINIMUM} of {_usd(minimum)} USD per job"
    return line.model_copy(update={"usd": Range(low=low, high=high), "basis": basis})


def _spanning(prices: list[Price]) -> Price:
    """One price that covers all: the widest range, with the source of the oldest."""
    if len(prices) == 1:
        return prices[0]
    oldest = min(prices, key=lambda p: p.source.observed_on)
    minimums = [p.min_charge for p in prices if p.min_charge is not None]
    return Price(
        provider=oldest.provider,
        kind=oldest.kind,
        amount=_hull([p.amount for p in prices]),
        unit=oldest.unit,
        source=oldest.source,
        min_charge=Range(low=0 if len(minimums) < len(prices) else _hull(minimums).low, high=_hull(minimums).high) if minimums else None,
        note="spans the kinds of tuning that the provider may choose",
    )


def _hull(ranges: list[Range]) -> Range:
    return Range(low=min(r.low for r in ranges), high=max(r.high for r in ranges))


def _line(item: str, amount: Range | None, price: Price, today: date) -> CostLine:
    """An amount of tokens (priced per million) or hours times its price."""
    noun, per = ("tokens", MILLION) if price.kind == "train_token" else ("hours", 1.0)
    rate = f"{_usd(price.amount)} USD per {price.unit} ({price.source}{'; ' + price.note if price.note else ''})"
    stale = staleness(price.source, today)
    if amount is None:
        return CostLine(item=item, usd=None, basis=f"unknown number of {noun} x {rate}", stale=stale)
    usd = Range(low=amount.low * price.amount.low / per, high=amount.high * price.amount.high / per)
    return CostLine(item=item, usd=usd, basis=f"{_count(amount)} {noun} x {rate}", stale=stale)


def _machine_line(hours: Range | None, gpu: str | None, usd_per_hour: float | None, today: date) -> CostLine:
    """An hour of the user's machine: their own figure, else what renting such a GPU costs, else unknown."""
    item = "machine time"
    amount = f"{_count(hours)} hours" if hours else "unknown hours"
    if usd_per_hour is not None:
        basis = f"{amount} x {usd_per_hour:g} USD per hour (options.local.gpu_usd_per_hour)"
        usd = Range(low=0, high=0) if usd_per_hour == 0 else hours * usd_per_hour if hours else None
        return CostLine(item=item, usd=usd, basis=basis)
    market = load_prices().gpu_market(gpu, today) if gpu else ()
    if not market:
        basis = "no vendor bills this; what an hour of this machine costs you is unknown, set options.local.gpu_usd_per_hour (0 if free)"
        return CostLine(item=item, usd=None, basis=basis)
    rent = _hull([p.amount for p in market])
    oldest = min((p.source for p in market), key=lambda s: s.observed_on)
    renters = ", ".join(sorted({p.provider for p in market}))
    basis = f"{amount} x {_usd(rent)} USD per {gpu}-hour if rented ({renters}; oldest source: {oldest})"
    return CostLine(item=item, usd=hours * rent if hours else None, basis=basis, stale=staleness(oldest, today))


def training_time(provider: str, trained_tokens: Range | None, today: date) -> Duration:
    """How long a job takes from submission to the finished model, in seconds.

    Unknown (``seconds`` None) for a provider without a speed fact, and for ``local``, whose time the local backend measures.
    """
    facts = load_providers()
    entry = facts.providers.get(provider)
    if entry is None or entry.speed is None:
        return Duration(seconds=None, basis=f"no speed known for {provider}")
    speed = entry.speed
    source = facts.source(speed.source)
    age = staleness(source, today)
    evidence = f"{source}{', ' + age if age else ''}{'; ' + speed.note if speed.note else ''}"
    if speed.hours is not None:
        seconds = Range(low=speed.hours[0] * HOUR, high=speed.hours[1] * HOUR)
        return Duration(seconds=seconds, basis=f"{speed.hours[0]:g} to {speed.hours[1]:g} hours ({evidence})")
    assert speed.tokens_per_second is not None  # noqa: S101 - the schema guarantees one of the two
    slow, fast = speed.tokens_per_second
    start = speed.startup_minutes or (0.0, 0.0)
    rate = f"{start[0]:g} to {start[1]:g} minutes to start, then {slow:,.0f} to {fast:,.0f} tokens per second ({evidence})"
    if trained_tokens is None:
        return Duration(seconds=None, basis=f"unknown number of tokens; {rate}")
    seconds = Range(low=start[0] * 60 + trained_tokens.low / fast, high=start[1] * 60 + trained_tokens.high / slow)
    return Duration(seconds=seconds, basis=f"{_count(trained_tokens)} tokens: {rate}")


def _usd(amount: Range) -> str:
    return f"{amount.low:g}" if amount.low == amount.high else f"{amount.low:g} to {amount.high:g}"


def _count(amount: Range) -> str:
    low, high = _si(amount.low), _si(amount.high)
    return low if low == high else f"{low} to {high}"


def _si(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
