"""The price book: dated prices of training, inference, hosting, storage and GPU hours.

Data, not code: ``facts/prices.yaml``. A user's YAML file named by ``TUNEPORT_PRICES`` (same schema) is laid over it: whenever
one of its rows matches, it is used instead of every built-in row. A price that is not in the book is None, never zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from tuneport.core.catalogue import load_catalogue
from tuneport.core.errors import CatalogueError, UsageError
from tuneport.core.money import Range
from tuneport.core.sources import Entry, Source, SourceEntry, read_builtin, read_override, source_for
from tuneport.core.spec import Method, TuningKind

OVERRIDE_VARIABLE = "TUNEPORT_PRICES"

Kind = Literal[
    "train_token", "train_hour", "infer_in", "infer_cached", "cache_write", "cache_store", "infer_out", "batch_in", "batch_out",
    "host_hour", "store_month", "gpu_hour",
]  # fmt: skip
UNITS: Mapping[str, str] = {
    "train_token": "1M tokens",
    "train_hour": "hour",
    "infer_in": "1M tokens",
    "infer_cached": "1M tokens",
    "cache_write": "1M tokens",  # what writing to the cache costs beyond infer_in; 0: nothing, as far as is known
    "cache_store": "1M tokens and hour",  # while they lie in the cache
    "infer_out": "1M tokens",
    "batch_in": "1M tokens",
    "batch_out": "1M tokens",
    "host_hour": "hour",  # of one GPU or one model unit while it runs
    "store_month": "model-month",
    "gpu_hour": "GPU-hour",
}
"""What one amount buys, by kind."""


@dataclass(frozen=True, slots=True)
class Price:
    """One price. A selector that is None (``model``, ``methods``, ...) means the price holds whatever its value."""

    provider: str
    kind: str
    amount: Range  # USD per unit; a range where sources conflict
    unit: str
    source: Source
    min_charge: Range | None = None  # USD per job
    note: str = ""
    model: str | None = None  # catalogue name
    methods: frozenset[str] | None = None
    tunings: frozenset[str] | None = None
    above_b: float | None = None  # size band: above_b < total parameters in billions <= upto_b
    upto_b: float | None = None
    gpu: str | None = None
    tuned: bool | None = None  # inference: of a tuned model (True), of the base (False), or the same for both (None)
    variant: str = ""  # other terms under which the same thing has another price, e.g. "1-month commitment"
    ttl_minutes: Range | None = None  # of a cache: how long a prompt stays after it was last read
    valid_from: date | None = None
    valid_to: date | None = None  # last day
    override: bool = False  # from the user's file

    @property
    def specificity(self) -> int:
        """How exactly the price names what it is for: model over size band over method, tuning, GPU and tuned."""
        named = (self.methods, self.tunings, self.gpu, self.tuned)
        return 16 * (self.model is not None) + 8 * (self.above_b is not None or self.upto_b is not None) + sum(n is not None for n in named)


Amount = Annotated[float, Field(ge=0)] | tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


class PriceEntry(Entry):
    """One price row."""

    provider: Annotated[str, Field(min_length=1)]
    kind: Kind
    amount: Annotated[Amount, Field(description="USD per unit of the kind; [low, high] where sources conflict.")]
    source: Annotated[str, Field(description="Key under `sources`.")]
    min_charge: Annotated[Amount | None, Field(description="USD per job; [low, high] where sources conflict.")] = None
    note: str = ""
    model: Annotated[str | None, Field(description="Catalogue name; every model when left out.")] = None
    methods: frozenset[Method] | None = None
    tunings: frozenset[TuningKind] | None = None
    above_b: Annotated[float | None, Field(ge=0, description="Only models above this many billion parameters (total).")] = None
    upto_b: Annotated[float | None, Field(gt=0, description="Only models up to this many billion parameters (total).")] = None
    gpu: str | None = None
    tuned: Annotated[bool | None, Field(description="Inference of a tuned model, of the base, or (left out) both.")] = None
    variant: str = ""
    ttl_minutes: Annotated[
        Amount | None, Field(description="cache_write, cache_store: minutes that a prompt stays in the cache after it was last read.")
    ] = None
    valid_from: date | None = None
    valid_to: Annotated[date | None, Field(description="Last day of this price.")] = None

    @model_validator(mode="after")
    def _ordered(self) -> PriceEntry:
        if (self.ttl_minutes is not None) != (self.kind in ("cache_write", "cache_store")):
            raise ValueError("cache_write and cache_store need ttl_minutes, and no other kind has them")
        for name in ("amount", "min_charge", "ttl_minutes"):
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: low {value[0]} exceeds high {value[1]}")
        if self.valid_from and self.valid_to and self.valid_from > self.valid_to:
            raise ValueError("valid_from lies after valid_to")
        return self


class PriceFile(Entry):
    """A price file, built-in or the user's."""

    version: Literal[1] = 1
    sources: dict[str, SourceEntry] = Field(default_factory=dict)
    prices: list[PriceEntry] = Field(default_factory=list)


def prices_schema() -> dict[str, Any]:
    """JSON Schema of a price file (built-in and override alike)."""
    return PriceFile.model_json_schema()


class PriceBook:
    """Every price, found by what it is for."""

    def __init__(self, prices: tuple[Price, ...]) -> None:
        self._prices = prices
        self._index: dict[tuple[str, str], list[Price]] = {}
        for price in prices:
            self._index.setdefault((price.provider, price.kind), []).append(price)

    def prices(self) -> tuple[Price, ...]:
        """All rows, in the order of the files."""
        return self._prices

    def find(
        self,
        provider: str,
        kind: str,
        *,
        model: str | None = None,
        method: str | None = None,
        tuning: str | None = None,
        parameters_b: float | None = None,
        gpu: str | None = None,
        tuned: bool = False,
        variant: str = "",
        today: date | None = None,
    ) -> Price | None:
        """The most specific price that holds on ``today`` (default: now), or None when the book has none.

        A row that names a model, method, tuning, size band, GPU or variant matches only a call that names it too.
        ``model`` is a catalogue name or a vendor id. Raises UsageError on an unknown kind.
        """
        if kind not in get_args(Kind):
            raise UsageError(f"unknown kind of price {kind!r}", fix=f"use one of {', '.join(get_args(Kind))}")
        day = today or date.today()
        rows = self._index.get((provider, kind), [])
        name = _canonical(model) if model and any(row.model for row in rows) else model
        best: Price | None = None
        for row in rows:
            if (
                (row.model is None or row.model in (model, name))
                and (row.methods is None or method in row.methods)
                and (row.tunings is None or tuning in row.tunings)
                and _in_band(row, parameters_b)
                and (row.gpu is None or (gpu is not None and row.gpu.lower() == gpu.lower()))
                and (row.tuned is None or row.tuned == tuned)
                and row.variant == variant
                and _holds(row, day)
                and (best is None or _rank(row) >= _rank(best))
            ):
                best = row
        return best

    def gpu_market(self, gpu: str, today: date | None = None) -> tuple[Price, ...]:
        """Every renter's plain price (not spot) for an hour of one GPU of this kind, cheapest first; empty when the book has none."""
        day = today or date.today()
        hourly = [p for p in self._prices if p.kind == "gpu_hour" and p.gpu and not p.variant]
        rows = [p for p in hourly if p.gpu and p.gpu.lower() == gpu.lower() and _holds(p, day)]
        return tuple(sorted(rows, key=lambda p: (p.amount.low, p.amount.high)))


def _rank(price: Price) -> tuple[bool, int, date]:
    return price.override, price.specificity, price.valid_from or date.min


def _in_band(price: Price, parameters_b: float | None) -> bool:
    if price.above_b is None and price.upto_b is None:
        return True
    if parameters_b is None:
        return False
    return (price.above_b is None or parameters_b > price.above_b) and (price.upto_b is None or parameters_b <= price.upto_b)


def _holds(price: Price, day: date) -> bool:
    return (price.valid_from is None or price.valid_from <= day) and (price.valid_to is None or day <= price.valid_to)


def _canonical(model: str) -> str | None:
    return load_catalogue().name_of(model)


def _range(amount: float | tuple[float, float]) -> Range:
    low, high = amount if isinstance(amount, tuple) else (amount, amount)
    return Range(low=low, high=high)


def load_prices() -> PriceBook:
    """The price book, with the user's override file laid over it; read once per process and override path.

    Raises CatalogueError naming the file and path of every fault.
    """
    return _load(os.environ.get(OVERRIDE_VARIABLE, ""))


@lru_cache(maxsize=4)
def _load(_override: str) -> PriceBook:
    files = [(read_builtin("prices.yaml", PriceFile), "prices.yaml", False)]
    if (user := read_override(OVERRIDE_VARIABLE, PriceFile)) is not None:
        files.append((*user, True))
    sources: dict[str, SourceEntry] = {}
    prices: list[Price] = []
    for content, file, override in files:
        sources |= content.sources
        prices += [
            _price(row, source_for(row.source, sources, file, f"prices.{index}"), override) for index, row in enumerate(content.prices)
        ]
        _no_twins(prices, file)
    return PriceBook(tuple(prices))


def _price(row: PriceEntry, source: Source, override: bool) -> Price:
    values = dict(row)
    values.update(
        amount=_range(row.amount),
        min_charge=None if row.min_charge is None else _range(row.min_charge),
        ttl_minutes=None if row.ttl_minutes is None else _range(row.ttl_minutes),
        unit=UNITS[row.kind],
        source=source,
        override=override,
    )
    return Price(**values)


def _no_twins(prices: list[Price], file: str) -> None:
    seen = set()
    for p in prices:
        key = (p.override, p.provider, p.kind, p.model, p.methods, p.tunings, p.above_b, p.upto_b, p.gpu, p.tuned, p.variant, p.valid_from)
        if key in seen:
            named = f"{p.provider} {p.kind} {p.model or p.gpu or ''}".strip()
            raise CatalogueError(f"{file}: two prices for the same thing ({named})", fix="delete one, or tell them apart")
        seen.add(key)
