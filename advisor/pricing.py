"""Looks up what a side of the comparison charges, and notes every price with its source, date, grade and age."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Arm
from tuneport.advisor.simulation import FREE, Cache, Paid, Terms
from tuneport.core.catalogue import Catalogue, Offering, base_of
from tuneport.core.deployment import HOURS_PER_MONTH
from tuneport.core.estimate import load_providers
from tuneport.core.money import Range
from tuneport.core.prices import Price, PriceBook
from tuneport.core.sources import staleness

GPU_MEMORY_GB = 80
"""Of an H100 or A100-80, the GPUs that dedicated hosting is priced for here."""
SERVING_OVERHEAD = 1.2
"""Weights at 2 bytes per parameter plus a fifth for the key-value cache and buffers (economics.md 3.2: 5-10 % and 1-2 GiB)."""
HOSTING_GPUS = ("H100", "H200", "A100")
"""GPUs to look up for dedicated hosting, in this order."""

GRADE_SPREAD: dict[str, float] = {
    "P": 0.0,
    "R": 0.0,
    "SDK": 0.0,
    "SPEC": 0.0,
    "DOC": 0.0,
    "REPO": 0.0,
    "USER": 0.0,
    "M": 0.1,
    "S": 0.25,
    "3P": 0.25,
}
"""How far a price of each grade may lie from the truth, either way; 25 % where the grade is weaker still. Our judgement."""
WEAKEST_SPREAD = 0.25


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PriceNote(_Frozen):
    """One price as the report shows it. ``usd`` None: unknown."""

    item: str
    usd: Range | None
    unit: str
    source: str
    observed_on: date | None = None
    grade: str = ""
    stale: str = ""
    note: str = ""


@dataclass(slots=True)
class Side:
    """Prices collected for one side; ``unknown`` names what the book lacks."""

    notes: list[PriceNote]
    unknown: list[str]
    remarks: list[str]
    terms: Terms | None = None
    spread: float = 0.0
    clashes: list[str] = field(default_factory=list)  # answers of the decision file that cannot all hold, in sentences


class Desk:
    """Looks up prices for one decision."""

    def __init__(self, intake: Intake, catalogue: Catalogue, prices: PriceBook, today: date) -> None:
        self.intake = intake
        self.catalogue = catalogue
        self.book = prices
        self.today = today

    def same_model(self, one: str, other: str) -> bool:
        """True when two names or vendor ids mean one base model. Two ids of tuned models are the same only when they are equal."""
        if one == other:
            return True
        bases = base_of(one), base_of(other)
        if bases[0] != one and bases[1] != other:
            return False
        return len({self.catalogue.name_of(base) or base for base in bases}) == 1

    def offering_of(self, provider: str, model: str) -> Offering | None:
        """The catalogue's entry for a model at a provider, by name or vendor id; that of the base for the id of a tuned one."""
        name = self.catalogue.name_of(base_of(model))
        return next((o for o in self.catalogue.models() if o.provider == provider and o.model == name), None) if name else None

    def price(
        self,
        side: Side,
        item: str,
        provider: str,
        kind: str,
        offering: Offering | None,
        model: str,
        *,
        variants: Sequence[str] = ("",),
        method: str | None = None,
        tuning: str | None = None,
        gpu: str | None = None,
        tuned: bool = False,
    ) -> Price | None:
        """Find a price, under the first of the terms that the book lists, and note it.

        A missing one is noted only by the caller, who knows whether it matters.
        """
        size = offering.parameters_b if offering else None
        found = None
        for variant in dict.fromkeys(variants):
            found = found or self.book.find(
                provider, kind, model=base_of(model), method=method, tuning=tuning, parameters_b=size, gpu=gpu, tuned=tuned,
                variant=variant, today=self.today,
            )  # fmt: skip
        if found is not None:
            stale = staleness(found.source, self.today)
            side.notes.append(
                PriceNote(
                    item=item, usd=found.amount, unit=f"per {found.unit}", source=found.source.title, observed_on=found.source.observed_on,
                    grade=found.source.grade, stale=stale, note=found.note,
                )
            )  # fmt: skip
            side.spread = max(side.spread, GRADE_SPREAD.get(found.source.grade, WEAKEST_SPREAD))
        return found

    def missing(self, side: Side, item: str, unit: str, why: str) -> None:
        """Note a price that is needed and not known."""
        side.notes.append(PriceNote(item=item, usd=None, unit=unit, source=why))
        side.unknown.append(f"{item}: {why}")

    def tokens(
        self, provider: str, model: str, *, tuned: bool, hit: Range, mode: str = "", method: str | None = None, tuning: str | None = None
    ) -> Side:
        """A side that is billed per token; ``hit`` is its cache-hit share, ``mode`` the serving mode, under which the book may list
        other terms.
        """
        side = Side([], [], [])
        offering = self.offering_of(provider, model)
        found = {
            kind: self.price(side, item, provider, kind, offering, model, tuned=tuned, method=method, tuning=tuning, variants=("", mode))
            for kind, item in (("infer_in", "input tokens"), ("infer_cached", "cached input tokens"), ("infer_out", "output tokens"))
        }
        whose = f"{model} at {provider}"
        for kind, item in (("infer_in", "input tokens"), ("infer_out", "output tokens")):
            if found[kind] is None:
                self.missing(side, item, "per 1M tokens", f"the price book has no price for {'tuned ' if tuned else ''}{whose}")
        read, cached, written = found["infer_in"], found["infer_cached"], found["infer_out"]
        if read and written:
            if cached is None:
                side.remarks.append(f"no price for cached input of {whose}: cache hits are counted at the full input price")
            batch = self._batch(side, provider, model, offering, whose, tuned)
            cache = self._cache(side, provider, model, offering, whose, tuned, hit) if cached and hit.high > 0 else None
            side.terms = Terms(
                input=read.amount, cached=(cached or read).amount, output=written.amount, batch_input=batch[0], batch_output=batch[1],
                cache=cache,
            )  # fmt: skip
        return side

    def _cache(
        self, side: Side, provider: str, model: str, offering: Offering | None, whose: str, tuned: bool, hit: Range
    ) -> Cache | None:
        """What caching costs beside its reads; None where that is nothing, or not known."""
        write, store = (
            self.price(side, item, provider, kind, offering, model, tuned=tuned)
            for kind, item in (("cache_write", "surcharge for writing to the cache"), ("cache_store", "storage in the cache"))
        )
        if write is None and store is None:
            side.remarks.append(f"whether writing to the cache of {whose} costs extra is not known: it is counted at the plain input price")
            return None
        if write is None:
            side.remarks.append(f"no charge for writing to the cache of {whose} is known beside its storage: none is counted")
        terms = [price for price in (write, store) if price is not None]
        kept = terms[0].ttl_minutes or FREE
        minutes = f"{kept.low:g} minutes" if kept.low == kept.high else f"{kept.low:g} to {kept.high:g} minutes"
        volume, hours = self.intake.volume_per_month, self.intake.open_hours_per_month
        found = 1 - math.exp(-volume.high / hours.low * kept.high / 60)
        if hit.low > found + 0.005:
            side.clashes.append(
                f"The decision file has {hit.low:.0%} of the static prompt read from the cache of {whose}, but at its volume at most "
                f"{found:.0%} of the requests come within {kept.high:g} minutes of the one before, were they spread at random."
            )
        if all(price.amount.high <= 0 for price in terms):
            return None
        side.remarks.append(
            f"how often the cache of {whose} is written follows from the volume: one prompt, requests at random over the open hours, and a "
            f"cache that keeps it for {minutes} after it was last read"
        )
        return Cache(write=write.amount if write else FREE, store=store.amount if store else FREE, ttl_minutes=kept)

    def _batch(
        self, side: Side, provider: str, model: str, offering: Offering | None, whose: str, tuned: bool
    ) -> tuple[Range | None, Range | None]:
        """Prices of the batch tier, looked up only when some requests can wait."""
        if self.intake.batch_share.high <= 0:
            return None, None
        read, written = (
            self.price(side, item, provider, kind, offering, model, tuned=tuned)
            for kind, item in (("batch_in", "batch input tokens"), ("batch_out", "batch output tokens"))
        )
        if read is None or written is None:
            side.remarks.append(f"no batch price for {whose}: requests that could wait are counted at the full price")
            return None, None
        return read.amount, written.amount

    def hosted(self, provider: str, model: str, mode: str) -> Side:
        """A side that is billed by the hour, tokens included."""
        side = Side([], [], [])
        offering = self.offering_of(provider, model)
        found: Price | None = None
        for gpu in (None, *HOSTING_GPUS) if mode == "provisioned" else (*HOSTING_GPUS, None):
            label = f"{mode} hosting" + (f", {gpu}" if gpu else "")
            found = self.price(side, label, provider, "host_hour", offering, model, gpu=gpu, tuned=True)
            if found:
                break
        if found is None:
            self.missing(side, f"{mode} hosting", "per hour", f"the price book has no hourly price for {model} at {provider}")
            return side
        units = self._units(side, offering) if mode == "dedicated" else 1
        rate = self.intake.self_hosting.requests_per_hour
        if rate is None:
            side.remarks.append("requests per hour of one machine are not known: one machine is taken to do, so hosting is a floor")
        paid = self._paid(side, provider) if mode == "dedicated" else "always"
        side.terms = Terms(input=FREE, cached=FREE, output=FREE, hour=found.amount * units, requests_per_hour=rate, paid=paid)
        return side

    def own(self, arm: Arm | None) -> Side:
        """A side that runs on one's own or rented machine."""
        side = Side([], [], [])
        hosting = self.intake.self_hosting
        if hosting.usd_per_hour is None:
            self.missing(side, "own machine", "per hour", "self_hosting.usd_per_hour is not set in the decision file")
            return side
        side.notes.append(PriceNote(item="own machine", usd=hosting.usd_per_hour, unit="per hour", source="stated in the decision file"))
        rate = hosting.requests_per_hour
        if rate is None and arm is not None and (seconds := mean_seconds(arm)):
            rate = Range(low=3600 / seconds, high=3600 / seconds)
            side.remarks.append(f"requests per hour of the own machine from the measured {seconds:.2f} seconds per answer of {arm.name!r}")
        if rate is None and not hosting.always_on:
            self.missing(side, "own machine's speed", "requests per hour", "neither stated in the decision file nor measured")
            return side
        if rate is None:
            side.remarks.append("requests per hour of the own machine are not known: one machine is taken to do, so hosting is a floor")
        paid: Paid = "always" if hosting.always_on else "worked"
        side.terms = Terms(input=FREE, cached=FREE, output=FREE, hour=hosting.usd_per_hour, requests_per_hour=rate, paid=paid, own=True)
        return side

    def _paid(self, side: Side, provider: str) -> Paid:
        """Is a dedicated machine billed while nobody calls it?"""
        if self.intake.open_hours_per_month.low >= HOURS_PER_MONTH:
            return "always"
        entry = load_providers().providers.get(provider)
        if entry is None or entry.idle is None:
            side.remarks.append(f"whether {provider} stops idle machines is not known: every hour of the month is counted")
            return "always"
        side.remarks.append(f"idle machines at {provider}: {entry.idle.note}")
        return "open hours" if entry.idle.stops else "always"

    def _units(self, side: Side, offering: Offering | None) -> int:
        if offering is None or offering.parameters_b is None:
            side.remarks.append("the model's size is not known: one GPU is taken to hold it")
            return 1
        units = math.ceil(offering.parameters_b * 2 * SERVING_OVERHEAD / GPU_MEMORY_GB)
        side.remarks.append(f"{units} GPU{'s' if units > 1 else ''} for {offering.parameters_b:g}B parameters in 16 bits")
        return units


def local_only(arm: Arm | None) -> Arm | None:
    """The arm, if it ran on one's own machine: another machine's speed says nothing of this one."""
    return arm if arm is not None and arm.provider == "local" else None


def mean_seconds(arm: Arm) -> float | None:
    """Mean seconds per answer; None when no answer carries a time."""
    known = [a.seconds for a in arm.answers if a.seconds]
    return sum(known) / len(known) if known else None
