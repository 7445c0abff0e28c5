"""Offers: provider x base model x method x serving mode, each with its prices, its lifetime and what speaks against it.

An offer whose price is not known stays in the table as unknown, never as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.economics import economic_months
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Arm
from tuneport.advisor.simulation import FREE, OfferTerms, Terms
from tuneport.core.catalogue import Catalogue, Lifetime, Offering, closed
from tuneport.core.money import Range
from tuneport.core.plan import Plan
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


Quality = Literal["measured", "same model, measured elsewhere", "not measured"]
"""What the measurement says of an offer's answers."""


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


class Percentiles(_Frozen):
    """10th, 50th and 90th percentile over the draws; None stands for "never" (infinite)."""

    p10: float | None
    p50: float | None
    p90: float | None


class OfferEconomics(_Frozen):
    """What an offer costs and saves against today's model. USD; months."""

    months: float  # that count: the horizon, or the base model's remaining life
    per_request_today: Percentiles
    per_request_tuned: Percentiles
    one_time: Percentiles
    fixed_per_month: Percentiles
    saving_per_month: Percentiles
    break_even_volume: Percentiles  # requests per month
    payback_months: Percentiles
    npv: Percentiles
    p_saves: float
    p_pays_back: float  # within ``months``
    misses_counted: bool  # the cost of answers that miss is part of it
    bar_assumed: bool  # quality was not measured: the tuned model is taken to reach the bar, and no more


class Offer(_Frozen):
    """One way to get and to run a tuned model."""

    id: str
    provider: str
    model: str
    method: str
    tuning: str
    serving: str
    status: Literal["open", "unpriced", "closed"]
    reasons: tuple[str, ...] = ()  # why it is closed or unpriced, or what speaks against it
    quality: Quality
    training_usd: Range | None
    training_basis: str
    training_closes: date | None = None
    inference_ends: date | None = None
    prices: tuple[PriceNote, ...] = ()
    notes: tuple[str, ...] = ()
    economics: OfferEconomics | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offer with the terms for the simulation; ``terms`` is None when a price is unknown or the offer is closed."""

    offer: Offer
    terms: OfferTerms | None


@dataclass(slots=True)
class _Side:
    """Prices collected for one side; ``unknown`` names what the book lacks."""

    notes: list[PriceNote]
    unknown: list[str]
    remarks: list[str]
    terms: Terms | None = None
    storage: Range = FREE
    spread: float = 0.0


class Desk:
    """Looks up prices for one decision. ``measured`` gives seconds per answer where the price book cannot."""

    def __init__(self, intake: Intake, catalogue: Catalogue, prices: PriceBook, today: date) -> None:
        self.intake = intake
        self.catalogue = catalogue
        self.book = prices
        self.today = today

    def same_model(self, one: str, other: str) -> bool:
        """True when two names or vendor ids mean one base model."""
        return one == other or (self.catalogue.name_of(one) or one) == (self.catalogue.name_of(other) or other)

    def offering_of(self, provider: str, model: str) -> Offering | None:
        """The catalogue's entry for a model at a provider, by name or vendor id."""
        name = self.catalogue.name_of(model)
        return next((o for o in self.catalogue.models() if o.provider == provider and o.model == name), None) if name else None

    def price(
        self,
        side: _Side,
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
                provider, kind, model=model, method=method, tuning=tuning, parameters_b=size, gpu=gpu, tuned=tuned, variant=variant,
                today=self.today,
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

    def missing(self, side: _Side, item: str, unit: str, why: str) -> None:
        """Note a price that is needed and not known."""
        side.notes.append(PriceNote(item=item, usd=None, unit=unit, source=why))
        side.unknown.append(f"{item}: {why}")

    def tokens(
        self, provider: str, model: str, *, tuned: bool, mode: str = "", method: str | None = None, tuning: str | None = None
    ) -> _Side:
        """A side that is billed per token; ``mode`` names the serving mode, under which the book may list other terms."""
        side = _Side([], [], [])
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
            side.terms = Terms(input=read.amount, cached=(cached or read).amount, output=written.amount)
        return side

    def hosted(self, provider: str, model: str, mode: str) -> _Side:
        """A side that is billed by the hour, tokens included."""
        side = _Side([], [], [])
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
        side.terms = Terms(input=FREE, cached=FREE, output=FREE, hour=found.amount * units, requests_per_hour=rate)
        return side

    def own(self, arm: Arm | None) -> _Side:
        """A side that runs on one's own or rented machine."""
        side = _Side([], [], [])
        hosting = self.intake.self_hosting
        if hosting.usd_per_hour is None:
            self.missing(side, "own machine", "per hour", "self_hosting.usd_per_hour is not set in the decision file")
            return side
        side.notes.append(
            PriceNote(item="own machine", usd=hosting.usd_per_hour, unit="per hour", source="stated in the decision file", grade="USER")
        )
        rate = hosting.requests_per_hour
        if rate is None and arm is not None and (seconds := mean_seconds(arm)):
            rate = Range(low=3600 / seconds, high=3600 / seconds)
            side.remarks.append(f"requests per hour of the own machine from the measured {seconds:.2f} seconds per answer of {arm.name!r}")
        if rate is None and not hosting.always_on:
            self.missing(side, "own machine's speed", "requests per hour", "neither stated in the decision file nor measured")
            return side
        if rate is None:
            side.remarks.append("requests per hour of the own machine are not known: one machine is taken to do, so hosting is a floor")
        side.terms = Terms(
            input=FREE, cached=FREE, output=FREE, hour=hosting.usd_per_hour, requests_per_hour=rate, always_on=hosting.always_on
        )
        return side

    def _units(self, side: _Side, offering: Offering | None) -> int:
        if offering is None or offering.parameters_b is None:
            side.remarks.append("the model's size is not known: one GPU is taken to hold it")
            return 1
        units = math.ceil(offering.parameters_b * 2 * SERVING_OVERHEAD / GPU_MEMORY_GB)
        side.remarks.append(f"{units} GPU{'s' if units > 1 else ''} for {offering.parameters_b:g}B parameters in 16 bits")
        return units


def _local(arm: Arm | None) -> Arm | None:
    """The arm, if it ran on one's own machine: another machine's speed says nothing of this one."""
    return arm if arm is not None and arm.provider == "local" else None


def mean_seconds(arm: Arm) -> float | None:
    """Mean seconds per answer; None when no answer carries a time."""
    known = [a.seconds for a in arm.answers if a.seconds]
    return sum(known) / len(known) if known else None


def build_offers(
    intake: Intake,
    plans: Sequence[Plan],
    catalogue: Catalogue,
    prices: PriceBook,
    *,
    today: date,
    baseline: Arm | None = None,
    tuned: Arm | None = None,
    tuned_from: Mapping[str, str] | None = None,
) -> tuple[list[Candidate], list[PriceNote]]:
    """An offer per plan and serving mode, and the prices of today's model.

    ``baseline`` and ``tuned`` are the arms whose speed and quality stand for today's and the tuned model; ``tuned_from``
    maps a tuned arm's name to its base model.
    """
    desk = Desk(intake, catalogue, prices, today)
    incumbent = intake.incumbent
    on_own = incumbent.provider == "local"
    now = desk.own(_local(baseline)) if on_own else desk.tokens(incumbent.provider, incumbent.model, tuned=False)
    base = base_model(tuned, plans, tuned_from) if tuned else None
    candidates: list[Candidate] = []
    for plan in plans:
        offering = desk.offering_of(plan.provider, plan.vendor_model) or desk.offering_of(plan.provider, plan.model)
        modes: Iterable[str] = (
            offering.serving if offering and offering.serving else ("local",) if plan.provider == "local" else ("unknown",)
        )
        candidates += [_candidate(desk, plan, offering, mode, now, baseline, tuned, base) for mode in modes]
    notes = [note.model_copy(update={"item": f"{note.item} today ({incumbent.provider} {incumbent.model})"}) for note in now.notes]
    return candidates, notes


def _candidate(
    desk: Desk, plan: Plan, offering: Offering | None, mode: str, now: _Side, baseline: Arm | None, tuned: Arm | None, base: str | None
) -> Candidate:
    values = {o.path: o.value for o in plan.outcomes}
    method, tuning = str(values.get("method") or "sft"), str(values.get("tuning.kind") or "provider's choice")
    picked = None if tuning == "provider's choice" else tuning
    if mode in ("serverless", "on-demand"):
        side = desk.tokens(plan.provider, plan.model, tuned=True, mode=mode, method=method, tuning=picked)
    elif mode in ("dedicated", "provisioned"):
        side = desk.hosted(plan.provider, plan.model, mode)
    elif mode == "local":
        side = desk.own(_local(tuned) or _local(baseline))
    else:
        side = _Side([], [], [])
        desk.missing(side, "serving", "", f"the catalogue does not say how {plan.provider} serves a tuned {plan.model}")
    storage = desk.price(side, "storage", plan.provider, "store_month", offering, plan.model)
    if storage is None and plan.provider != "local":
        side.remarks.append(f"the price book has no storage charge at {plan.provider}: none is counted")
    training, basis = _training(desk, plan)
    unknown = [*side.unknown]
    if training is None:
        unknown.append(f"training: {basis}")
    unknown += [f"today's {item}" for item in now.unknown]
    life = offering.lifetime if offering else Lifetime()
    months = economic_months(desk.intake.horizon_months, life.inference_ends, desk.today)
    refused = _closed(desk, plan, offering)
    against = [*refused, *unknown]
    if life.inference_ends and months < desk.intake.horizon_months:
        against.append(
            f"the base model and everything tuned from it end on {life.inference_ends}, {months * 365.25 / 12:.0f} days from now"
        )
    if life.eligibility:
        against.append(life.eligibility)
    identity = f"{plan.provider} · {plan.model} · {method} {tuning} · {mode}"
    terms = None
    if not refused and not unknown and side.terms and now.terms and training:
        terms = OfferTerms(
            id=identity,
            today=now.terms,
            tuned=side.terms,
            train_run=training,
            storage=storage.amount if storage else FREE,
            months=months,
            ends_inside=months < desk.intake.horizon_months,
            spread=max(side.spread, now.spread),
        )
    offer = Offer(
        id=identity,
        provider=plan.provider,
        model=plan.model,
        method=method,
        tuning=tuning,
        serving=mode,
        status="closed" if refused else "unpriced" if unknown else "open",
        reasons=tuple(against),
        quality=_quality(desk, plan, tuned, base),
        training_usd=training,
        training_basis=basis,
        training_closes=life.training_closes,
        inference_ends=life.inference_ends,
        prices=tuple(side.notes),
        notes=tuple(side.remarks + [f"{w.code}: {w.message}" for w in plan.warnings]),
    )
    return Candidate(offer, terms)


def _training(desk: Desk, plan: Plan) -> tuple[Range | None, str]:
    """USD of one run: the plan's cost; on one's own machine the plan's time at the rate of the decision file."""
    stale = "; ".join(sorted({line.stale for line in plan.cost.lines if line.stale}))
    basis = "; ".join(line.basis for line in plan.cost.lines) + (f" [{stale}]" if stale else "")
    if plan.cost.usd is not None:
        return plan.cost.usd, basis
    rate, seconds = desk.intake.self_hosting.usd_per_hour, plan.time.seconds
    if plan.provider == "local" and rate is not None and seconds is not None:
        return seconds * (1 / 3600) * rate, f"{plan.time.basis} at self_hosting.usd_per_hour of the decision file"
    return None, basis or "the plan has no cost"


def _closed(desk: Desk, plan: Plan, offering: Offering | None) -> list[str]:
    reasons = []
    if not desk.intake.privacy.data_may_leave and plan.provider != "local":
        reasons.append("the data may not leave the organisation (S0, S1, S4)")
    shut = closed(offering, desk.today) if offering else ""
    if shut:
        reasons.append(shut)
    reasons += [f"the plan is refused at {path}: {why}" for path, why in plan.refusals.items() if not (path == "model" and why == shut)]
    return reasons


def base_model(tuned: Arm, plans: Sequence[Plan], tuned_from: Mapping[str, str] | None) -> str | None:
    """The base model of a tuned arm: as told, else the arm's own name where a plan knows it, else the plan at its provider."""
    if tuned_from and tuned.name in tuned_from:
        return tuned_from[tuned.name]
    here = [p for p in plans if p.provider == tuned.provider]
    named = [p.model for p in here if tuned.model in (p.model, p.vendor_model)]
    return next(iter(named), here[0].model if len(here) == 1 else None)


def _quality(desk: Desk, plan: Plan, tuned: Arm | None, base: str | None) -> Quality:
    """Does the tuned arm speak for this offer? Only when both start from one base model."""
    if tuned is None or base is None or not (desk.same_model(base, plan.model) or desk.same_model(base, plan.vendor_model)):
        return "not measured"
    return "measured" if tuned.provider == plan.provider else "same model, measured elsewhere"
