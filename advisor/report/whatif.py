"""The decision again with one input moved: from which value on another verdict stands, or the net present value turns.

The draws of the report are kept and the input's alone are moved: scaled, or shifted where it is a share. So a value can be checked: a
decision file in which the input's range is scaled to it has the very same draws and, with everything else as it was, the same verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from tuneport.advisor.decide import VERDICT_WORDS, at_quality, verdict_if
from tuneport.advisor.economics import FloatArray
from tuneport.advisor.experiments import worth_of_knowing
from tuneport.advisor.facts import Situation, gather_facts, money_facts
from tuneport.advisor.offers import Offer, percentiles
from tuneport.advisor.report.appraisal import Appraisal, best_pilot, shown_as
from tuneport.advisor.report.model import Switch
from tuneport.advisor.routing import Route
from tuneport.advisor.rules import Fact, Verdict
from tuneport.advisor.sensitivity import SHARES
from tuneport.advisor.simulation import LABELS, Drivers, OfferTerms, evaluate

INPUTS = (
    "volume", "cache_hit", "accepted", "accepted_tuned", "removed", "rejected_usd", "engineering", "train_run", "q_in", "q_out", "q_hour",
)  # fmt: skip
"""Inputs for which the report states the values that change the decision."""
OWN = frozenset({"train_run", "q_in", "q_out", "q_hour"})
"""Inputs of one offer; the others are shared by all."""
QUALITY: Mapping[str, str] = {"accepted": "baseline", "accepted_tuned": "tuned"}
"""Inputs that are a measured quality, by the name that the rules know them under."""
REACH = 1000.0
"""How far an amount is moved: up to so many times its median, and down to as small a part of it."""
STEPS, HALVINGS = 6, 7
THINNED = 10
"""Looking for a value takes every tenth draw; what was found is then checked with all of them."""

Money = Callable[[str, float], Mapping[str, Fact]]


@dataclass(frozen=True, slots=True)
class Found:
    """What holds with an input at some value: the verdict, and whether the chosen offer's median net present value lies above 0."""

    verdict: Verdict
    gains: bool


class WhatIf:
    """One report's decision, to be asked again. ``reroute`` gives the routes for draws and a factor on what a miss costs."""

    def __init__(
        self, simulation: Appraisal, situation: Situation, chosen: Offer, reroute: Callable[[Drivers, float], Sequence[Route]]
    ) -> None:
        self._simulation = simulation
        self._situation = situation
        self._chosen = chosen
        self._reroute = reroute
        self._facts = gather_facts(situation)
        self._drivers = simulation.kept[chosen.id][1]
        piloted = {situation.pilot.offer} & simulation.kept.keys() if situation.pilot else set()
        self._always = {chosen.id, *piloted}
        self._thin: dict[str, Drivers] = {}
        self._same_arm = situation.arms.today is situation.arms.baseline

    def switches(self) -> tuple[Switch, ...]:
        """Every input with the values at which the decision changes or the net present value turns; one line where there is none."""
        return tuple(switch for name in INPUTS if self._counts(name) for switch in self._switches(name))

    def money_at(self, subject: str, value: float) -> Mapping[str, Fact]:
        """The facts of money with the best prompt ("baseline") or the tuned model ("tuned") at another quality, as far as it is counted."""
        name = next(name for name, whose in QUALITY.items() if whose == subject)
        now = self._facts[f"{subject}_value"]
        if not self._counts(name) or not isinstance(now, float):
            return {}
        return self._money(name, float(np.median(self._drivers[name])) + value - now, self._always, THINNED)[0]

    def _counts(self, name: str) -> bool:
        values = self._drivers.get(name)
        if values is None or not np.isfinite(values).all():
            return False
        if name in (*QUALITY, "removed"):
            if not (self._drivers["rejected_usd"] > 0).any() or (name == "accepted_tuned" and "removed" in self._drivers):
                return False
            return name != "accepted" or self._same_arm
        return bool(self._drivers["p_in"].max() > 0) if name == "cache_hit" else bool(values.max() > 0)

    def _switches(self, name: str) -> Iterator[Switch]:
        middle = float(np.median(self._drivers[name]))
        contenders = self._contenders(name, middle)

        @cache
        def at(value: float, thin: int = THINNED) -> Found:
            facts, npv = self._money(name, value, contenders, thin)
            quality: Mapping[str, Fact] = {}
            if (subject := QUALITY.get(name)) and isinstance(measured := self._facts[f"{subject}_value"], float):
                quality = at_quality(self._facts, subject, min(1.0, max(0.0, measured + value - middle)))
            return Found(verdict_if(self._facts, {**facts, **quality}), bool(np.median(npv) > 0))

        now = at(middle, 1)
        found = [s for outward in (-1, 1) for s in self._outward(name, middle, outward, at, now)]
        if not found:
            statement = f"{LABELS[name]}: no value within reach changes the decision or turns the net present value "
            statement += f"(now about {shown_as(name)(middle)})."
            found = [Switch(driver=LABELS[name], share=name in SHARES, middle=middle, at=None, statement=statement)]
        yield from found

    def _outward(self, name: str, middle: float, outward: int, at: Callable[..., Found], now: Found) -> Iterator[Switch]:
        """The nearest value on one side at which the decision changes, and before it the one at which the net present value turns.

        Where quality changes the decision is said by ``turning_points``.
        """
        money = self._turn(name, middle, outward, at, lambda found: found.gains != now.gains)
        turned = money if name in QUALITY else self._turn(name, middle, outward, at, lambda found: found.verdict != now.verdict)
        said = f"{LABELS[name]} {'below' if outward < 0 else 'above'}"
        known = {"driver": LABELS[name], "share": name in SHARES, "middle": middle}
        shown, median = shown_as(name), f"(now about {shown_as(name)(middle)})"
        npv = f"turns the net present value {'negative' if now.gains else 'positive'}"
        if money is not None and money[1].verdict == now.verdict and (turned is None or (turned[0] - money[0]) * outward >= 0):
            statement = f"{said} {shown(money[0])} {median} {npv}. The decision stays: it rests on other grounds."
            yield Switch(**known, at=money[0], statement=statement, verdict=now.verdict)
        if turned is not None and turned[1].verdict != now.verdict:
            value, found = turned
            words = VERDICT_WORDS[found.verdict]
            if found.gains != now.gains:
                statement = f"{said} {shown(value)} {median} {npv}. The decision: {words}."
            else:
                statement = f"{said} {shown(value)} {median}: {words}."
            yield Switch(**known, at=value, statement=statement, verdict=found.verdict)

    def _turn(
        self, name: str, middle: float, outward: int, at: Callable[..., Found], turns: Callable[[Found], bool]
    ) -> tuple[float, Found] | None:
        """The nearest value, rounded outward, at which it has turned in all draws; None when none within reach does."""
        near, far, grid = middle, None, _grid(name, middle, outward)
        if not any(turns(at(value)) for value in (*grid[-1:], *grid[len(grid) // 2 : len(grid) // 2 + 1])):
            return None
        for value in grid:
            if turns(at(value)):
                far = value
                break
            near = value
        if far is None:
            return None
        for _ in range(HALVINGS):
            half = (near + far) / 2 if name in SHARES else math.sqrt(near * far)
            near, far = (near, half) if turns(at(half)) else (half, far)
        value = far
        for _ in range(STEPS):
            value = rounded(value, outward, share=name in SHARES)
            if turns(found := at(value, 1)):
                return value, found
            value += outward * 1e-9 * max(1.0, abs(value))  # on to the next round value
        return None

    def _contenders(self, name: str, middle: float) -> set[str]:
        """The offers that may be chosen: the choice of now, the pilot's, and who leads at some value with all else at its median."""
        if name in OWN:
            return self._always
        grid = np.array([*_grid(name, middle, -1), *_grid(name, middle, 1)])
        rank = self._standing(self._chosen)
        worth = {}
        for offer in self._situation.offers:
            if offer.id in self._simulation.kept and offer.status == "open" and self._standing(offer) == rank:
                terms, drivers = self._kept(offer.id)
                trial = {key: np.full(len(grid), float(np.median(values))) for key, values in drivers.items()}
                worth[offer.id] = evaluate(trial | {name: grid}, terms, self._simulation.setting).npv
        ids = list(worth)
        return self._always | {ids[k] for k in np.argmax(np.stack(list(worth.values())), axis=0)} if ids else self._always

    def _standing(self, offer: Offer) -> bool:
        return offer.quality != "not measured"

    def _kept(self, offer: str) -> tuple[OfferTerms, Drivers]:
        candidate, drivers, _ = self._simulation.kept[offer]
        assert candidate.terms is not None  # noqa: S101 - only offers with terms are kept
        return candidate.terms, drivers

    def _thinned(self, offer: str) -> Drivers:
        """Every tenth draw of an offer; what is one input stays one array."""
        if offer not in self._thin:
            drivers = self._simulation.kept[offer][1]
            arrays = {id(values): values[::THINNED] for values in drivers.values()}
            self._thin[offer] = {key: arrays[id(values)] for key, values in drivers.items()}
        return self._thin[offer]

    def _money(self, name: str, value: float, contenders: set[str], thin: int) -> tuple[dict[str, Fact], FloatArray]:
        """(the facts of money, the chosen offer's net present values) with the input's median at ``value``."""
        situation, simulation = self._situation, self._simulation
        flows: dict[str, FloatArray] = {}
        offers = []
        for offer in situation.offers:
            if offer.id not in contenders or offer.economics is None:
                offers.append(offer)
                continue
            terms, drivers = self._kept(offer.id)
            middle = float(np.median(drivers[name])) if name in drivers else 0.0
            drivers = drivers if thin == 1 else self._thinned(offer.id)
            if name in drivers and (name not in OWN or offer.id == self._chosen.id):
                drivers = moved(drivers, name, value, middle)
            result = evaluate(drivers, terms, simulation.setting)
            flows[offer.id] = result.npv
            changed = {
                "npv": percentiles(result.npv),
                "p_saves": float((result.npv > 0).mean()),
                "p_pays_back": float((result.payback <= terms.months).mean()),
            }
            offers.append(offer.model_copy(update={"economics": offer.economics.model_copy(update=changed)}))
        pilots = {
            offer: pilot if offer not in flows or pilot.worth_usd is None else worth_of_knowing(pilot, flows[offer])
            for offer, pilot in simulation.pilots.items()
        }
        routes = situation.routes
        if routes and name in ("cache_hit", "rejected_usd"):
            middle = float(np.median(self._drivers[name]))
            factor = value / middle if name == "rejected_usd" else 1.0
            shared = simulation.shared
            routes = self._reroute(moved(shared, name, value, middle) if name in shared else shared, factor)
        again = replace(situation, offers=offers, pilot=best_pilot(pilots, offers, situation.leaving), routes=routes)
        return money_facts(again), flows[self._chosen.id]


def moved(drivers: Drivers, name: str, to: float, middle: float) -> Drivers:
    """The draws with one input's median moved from ``middle`` to ``to``: scaled, or shifted where it is a share.

    What is the same input moves with it.
    """
    values = drivers[name]
    new = np.clip(values + (to - middle), _least(name), 1.0) if name in SHARES else values * (to / middle)
    return drivers | {other: new for other, same in drivers.items() if same is values}


def rounded(value: float, outward: int, *, share: bool) -> float:
    """To two digits (a share: to whole per cent), away from the value of now, so that it has turned there."""
    unit = 0.01 if share or value == 0 else 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    steps = value / unit
    whole = math.floor(steps + 1e-9) if outward < 0 else math.ceil(steps - 1e-9)
    return round(whole * unit, 12)


def _grid(name: str, middle: float, outward: int) -> list[float]:
    """Values to try on one side, outward."""
    if name in SHARES:
        return [float(v) for v in np.linspace(middle, _least(name) if outward < 0 else 1.0, STEPS + 1)[1:] if v != middle]
    return [float(v) for v in middle * np.geomspace(1, REACH**outward, STEPS + 1)[1:]]


def _least(share: str) -> float:
    return -1.0 if share == "removed" else 0.0
