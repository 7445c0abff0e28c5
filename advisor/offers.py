"""Offers: provider x base model x method x serving mode, each with its prices, its lifetime and what speaks against it.

An offer whose price is not known stays in the table as unknown, never as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneport.advisor.breakdown import Breakdown
from tuneport.advisor.economics import FloatArray, economic_months
from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Arm
from tuneport.advisor.pricing import Desk, PriceNote, Side, local_only
from tuneport.advisor.simulation import FREE, OfferTerms
from tuneport.core.catalogue import Catalogue, Lifetime, Offering, base_of, closed
from tuneport.core.money import Range
from tuneport.core.plan import Plan
from tuneport.core.prices import PriceBook

Quality = Literal["measured", "same model, measured elsewhere", "not measured"]
"""What the measurement says of an offer's answers."""


UNKNOWN_STORAGE = Range(low=0, high=2)
"""USD per model and month where no charge is known: the one published figure is 1.95 (AWS, on custom models of Bedrock)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Percentiles(_Frozen):
    """10th, 50th and 90th percentile over the draws; None stands for "never" (infinite)."""

    p10: float | None
    p50: float | None
    p90: float | None


def percentiles(values: FloatArray) -> Percentiles:
    """By rank: interpolating next to infinity would not give a number."""
    ordered = np.sort(values)
    found = [float(ordered[min(len(ordered) - 1, int(len(ordered) * q))]) for q in (0.1, 0.5, 0.9)]
    low, middle, high = (v if np.isfinite(v) else None for v in found)
    return Percentiles(p10=low, p50=middle, p90=high)


class OfferEconomics(_Frozen):
    """What an offer costs and saves against today's model. USD; months."""

    months: float  # that count: the horizon, or the base model's remaining life
    per_request_today: Percentiles
    per_request_tuned: Percentiles
    one_time: Percentiles
    fixed_per_month: Percentiles  # beyond today's: machines, storage, monitoring
    today_per_month: Percentiles  # all that recurs
    tuned_per_month: Percentiles
    saving_per_month: Percentiles
    break_even_volume: Percentiles  # requests per month
    payback_months: Percentiles
    npv: Percentiles
    p_saves: float
    p_pays_back: float  # within ``months``
    likely: Breakdown  # the case that the report shows, line by line
    misses_counted: bool  # the cost of answers that miss is part of it
    quality_assumed: bool  # quality was not measured: the prior stands for it


class Offer(_Frozen):
    """One way to get and to run a tuned model."""

    id: str
    provider: str
    model: str
    method: str
    tuning: str
    serving: str
    regions: tuple[str, ...] = ()  # where it runs, as far as the catalogue knows
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
) -> tuple[list[Candidate], Side]:
    """An offer per plan and serving mode, and today's side with its prices.

    ``baseline`` and ``tuned`` are the arms whose speed and quality stand for today's and the tuned model; ``tuned_from``
    maps a tuned arm's name to its base model.
    """
    desk = Desk(intake, catalogue, prices, today)
    incumbent = intake.incumbent
    on_own = incumbent.provider == "local"
    now = (
        desk.own(local_only(baseline))
        if on_own
        else desk.tokens(incumbent.provider, incumbent.model, tuned=incumbent.tuned, hit=intake.cache_hit_share)
    )
    base = base_model(tuned, plans, tuned_from) if tuned else None
    candidates: list[Candidate] = []
    for plan in plans:
        offering = desk.offering_of(plan.provider, plan.vendor_model) or desk.offering_of(plan.provider, plan.model)
        modes: Iterable[str] = (
            offering.serving if offering and offering.serving else ("local",) if plan.provider == "local" else ("unknown",)
        )
        candidates += [_candidate(desk, plan, offering, mode, now, baseline, tuned, base) for mode in modes]
    now.notes = [note.model_copy(update={"item": f"{note.item} today ({incumbent.provider} {incumbent.model})"}) for note in now.notes]
    return candidates, now


def _candidate(
    desk: Desk, plan: Plan, offering: Offering | None, mode: str, now: Side, baseline: Arm | None, tuned: Arm | None, base: str | None
) -> Candidate:
    values = {o.path: o.value for o in plan.outcomes}
    method, tuning = str(values.get("method") or "sft"), str(values.get("tuning.kind") or "provider's choice")
    picked = None if tuning == "provider's choice" else tuning
    if mode in ("serverless", "on-demand"):
        hit = desk.intake.cache_hit_share_tuned
        side = desk.tokens(plan.provider, plan.model, tuned=True, hit=hit, mode=mode, method=method, tuning=picked)
    elif mode in ("dedicated", "provisioned"):
        side = desk.hosted(plan.provider, plan.model, mode)
    elif mode == "local":
        side = desk.own(local_only(tuned) or local_only(baseline))
    else:
        side = Side([], [], [])
        desk.missing(side, "serving", "", f"the catalogue does not say how {plan.provider} serves a tuned {plan.model}")
    storage = desk.price(side, "storage", plan.provider, "store_month", offering, plan.model)
    if storage is None and plan.provider != "local":
        side.remarks.append(
            f"no storage charge is known at {plan.provider}: counted as 0 to {UNKNOWN_STORAGE.high:g} USD a month, since the one "
            "published charge is 1.95 (AWS)"
        )
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
    asked, latency = desk.intake.privacy.regions, desk.intake.needs.latency_p95_seconds
    if asked and plan.provider != "local" and not (offering and offering.regions):
        against.append(f"where it runs is not in the catalogue: have {plan.provider} confirm {', '.join(asked)} before any data leaves")
    if plan.provider == "local" and desk.intake.skills in ("prompting", "api"):
        against.append(f"it needs people who train and run models; the team's skills end at {desk.intake.skills} (S0)")
    if latency is not None and side.terms is not None and side.terms.paid == "open hours":
        against.append("the first calls after an idle time wait for a machine to start, longer than the latency that is needed")
    identity = f"{plan.provider} · {plan.model} · {method} {tuning} · {mode}"
    terms = None
    if not refused and not unknown and side.terms and now.terms and training:
        terms = OfferTerms(
            id=identity,
            today=now.terms,
            tuned=side.terms,
            train_run=training,
            storage=storage.amount if storage else FREE if plan.provider == "local" else UNKNOWN_STORAGE,
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
        regions=offering.regions if offering else (),
        status="closed" if refused else "unpriced" if unknown else "open",
        reasons=tuple(against),
        quality=_quality(desk, plan, tuned, base),
        training_usd=training,
        training_basis=basis,
        training_closes=life.training_closes,
        inference_ends=life.inference_ends,
        prices=tuple(side.notes),
        notes=tuple(side.remarks + side.clashes + [f"{w.code}: {w.message}" for w in plan.warnings]),
    )
    return Candidate(offer, terms)


def _training(desk: Desk, plan: Plan) -> tuple[Range | None, str]:
    """USD of one run: on one's own machine the plan's time at the rate of the decision file, else the plan's cost."""
    stale = "; ".join(sorted({line.stale for line in plan.cost.lines if line.stale}))
    basis = "; ".join(line.basis for line in plan.cost.lines) + (f" [{stale}]" if stale else "")
    rate, seconds = desk.intake.self_hosting.usd_per_hour, plan.time.seconds
    if plan.provider == "local" and rate is not None and seconds is not None:
        return seconds * (1 / 3600) * rate, f"{plan.time.basis} at self_hosting.usd_per_hour of the decision file"
    if plan.cost.usd is not None:
        return plan.cost.usd, basis
    return None, basis or "the plan has no cost"


def _closed(desk: Desk, plan: Plan, offering: Offering | None) -> list[str]:
    reasons = []
    if not desk.intake.privacy.data_may_leave and plan.provider != "local":
        reasons.append("the data may not leave the organisation (S0, S1, S4)")
    allowed, regions = desk.intake.privacy.regions, offering.regions if offering else ()
    if allowed and regions and plan.provider != "local" and not any(r.startswith(a) for r in regions for a in allowed):
        reasons.append(f"it runs in {', '.join(regions)}, and data may be processed only in {', '.join(allowed)}")
    shut = closed(offering, desk.today) if offering else ""
    if shut:
        reasons.append(shut)
    reasons += [f"the plan is refused at {path}: {why}" for path, why in plan.refusals.items() if not (path == "model" and why == shut)]
    return reasons


def base_model(tuned: Arm, plans: Sequence[Plan], tuned_from: Mapping[str, str] | None) -> str | None:
    """The base model of a tuned arm: as told, else by its own id, else by its name where a plan knows it, else of the one plan there."""
    if tuned_from and tuned.name in tuned_from:
        return tuned_from[tuned.name]
    if base_of(tuned.model) != tuned.model:
        return base_of(tuned.model)
    here = [p for p in plans if p.provider == tuned.provider]
    named = [p.model for p in here if tuned.model in (p.model, p.vendor_model)]
    return next(iter(named), here[0].model if len(here) == 1 else None)


def _quality(desk: Desk, plan: Plan, tuned: Arm | None, base: str | None) -> Quality:
    """Does the tuned arm speak for this offer? Only when both start from one base model."""
    if tuned is None or base is None or not (desk.same_model(base, plan.model) or desk.same_model(base, plan.vendor_model)):
        return "not measured"
    return "measured" if tuned.provider == plan.provider else "same model, measured elsewhere"


def outlives(offer: Offer, leaving: date | None) -> bool:
    """Is it a place to move to from a model that ends on ``leaving``? None: today's model stays."""
    return leaving is None or offer.inference_ends is None or offer.inference_ends > leaving


def choose_offer(offers: Sequence[Offer], leaving: date | None = None) -> Offer | None:
    """The offer whose money the report shows: a measured one if there is any, then the highest median net present value.

    An offer that ends with today's model (on ``leaving``), or before it has paid back, stands behind those that do not.
    """
    priced = [o for o in offers if o.status == "open" and o.economics]

    def rank(offer: Offer) -> tuple[bool, bool, bool, float]:
        economics = offer.economics
        assert economics is not None  # noqa: S101 - filtered above
        return offer.quality != "not measured", outlives(offer, leaving), not dies(offer), economics.npv.p50 or 0.0

    return max(priced, key=rank, default=None)


def ranked(offers: Sequence[Offer], leaving: date | None = None) -> tuple[Offer, ...]:
    """Best first: open before unpriced before closed; then as ``choose_offer`` weighs them."""

    def key(offer: Offer) -> tuple[int, bool, bool, bool, float]:
        middle = offer.economics.npv.p50 if offer.economics else None
        order = ("open", "unpriced", "closed").index(offer.status)
        worth = middle if middle is not None else float("-inf")
        return order, offer.quality == "not measured", not outlives(offer, leaving), dies(offer), -worth

    return tuple(sorted(offers, key=key))


def dies(offer: Offer) -> bool:
    """True when the base model ends before the offer has, more likely than not, paid back."""
    return offer.inference_ends is not None and (offer.economics is None or offer.economics.p_pays_back < 0.5)
