"""The four figures under the decision: those that the verdict rests on, for a reader who reads nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneport.advisor.facts import SUITE_ROWS, best_route
from tuneport.advisor.measurement import Comparison, Estimate
from tuneport.advisor.report.model import Report
from tuneport.advisor.report.words import UNKNOWN, months, months_range, pair, percent, plain, points, probability, usd, usd_range


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure with its name and its range; ``tone`` is "plus", "minus" or ""."""

    name: str
    figure: str
    range: str = ""
    tone: str = ""


def tiles_of(report: Report, deciding: Comparison | None) -> Sequence[Tile]:
    """Four figures. Money of an offer that is not recommended says so."""
    verdict = report.decision.verdict
    tunes = verdict == "fine_tune" or (verdict == "migrate" and report.decision.offer is not None)
    quality = _gain(deciding) if deciding else _best_prompt(report)
    if verdict == "pilot" and report.pilot is not None:
        return [quality, *_pilot(report)]
    if verdict == "route":
        return [*_route(report), _bar(report)]
    if verdict == "measure":
        cost = Tile(
            "Measuring costs", usd_range(report.measuring_usd), f"Today's model asked once for {SUITE_ROWS} rows; people's time on top"
        )
        return [quality, _bar(report), cost, _money(report, "If fine-tuned: ")[0]]
    money = _money(report, "" if tunes else "If fine-tuned all the same: ")
    return [quality, *money] if tunes or deciding else [quality, _bar(report), *money[::2]]


def deciding_comparison(report: Report) -> Comparison | None:
    """The comparison that the headline quotes: the best tuned arm against the best prompt, on the decision's metric."""
    evidence = report.evidence
    if evidence is None:
        return None
    lines = {line.rule: line for line in report.decision.trace}
    if lines["gain-shown"].fired is None:
        return None
    arms = [a for a in evidence.arms if evidence.metric in a.metrics]
    best = {}
    for kind in ("prompted", "tuned"):
        best[kind] = max((a for a in arms if a.kind == kind), key=lambda a: a.metrics[evidence.metric].value, default=None)
    one, two = best["prompted"], best["tuned"]
    if one is None or two is None:
        return None
    wanted = (one.name, two.name, evidence.metric)
    return next((c for c in evidence.comparisons if (c.baseline, c.challenger, c.metric) == wanted), None)


def _gain(comparison: Comparison) -> Tile:
    d = comparison.difference
    span = f"{points(d.low)} to {points(d.high)}, 95 % interval"
    return Tile(f"Gain in {plain(comparison.metric)}", f"{points(d.value)} pts", span, "plus" if d.low > 0 else "")


def _best_prompt(report: Report) -> Tile:
    evidence = report.evidence
    measured = (
        [a.metrics[evidence.metric] for a in evidence.arms if a.kind == "prompted" and evidence.metric in a.metrics] if evidence else []
    )
    best: Estimate | None = max(measured, key=lambda e: e.value, default=None)
    if best is None or evidence is None:
        return Tile("Quality today", "not measured", "No prompt was measured on this metric")
    return Tile(
        f"Best prompt, {plain(evidence.metric)}",
        percent(best.value, 0),
        f"{percent(best.low, 0)} to {percent(best.high, 0)}, 95 % interval",
    )


def _bar(report: Report) -> Tile:
    quality = report.intake.quality
    return Tile("Bar that must be met", percent(quality.bar, 0), plain(quality.metric))


def _money(report: Report, condition: str) -> list[Tile]:
    money = report.savings.economics
    if money is None:
        why = "No offer with known prices"
        names = ("Saved by fine-tuning" if condition else "Saved", "Paid back after", "Chance of saving money")
        return [Tile(name, UNKNOWN, why) for name in names]
    saved = f"saved in {months(money.months)}"
    tone = "plus" if (money.npv.p10 or 0) > 0 else "minus" if (money.npv.p50 or 0) < 0 else ""
    likely, back = money.likely, money.payback_months
    return [
        Tile(
            condition + (saved if condition else saved.capitalize()),
            usd(likely.npv),
            f"{usd(money.npv.p10)} to {usd(money.npv.p90)}, P10 to P90; all costs, discounted, against today",
            tone,
        ),
        Tile(
            "Paid back after",
            months(likely.payback_months),
            f"{months_range(back.p10, back.p90)}, P10 to P90; not discounted",
        ),
        Tile(
            "Chance that tuning saves money" if condition else "Chance of saving money",
            probability(money.p_saves),
            f"Pays back in time: {probability(money.p_pays_back)}",
        ),
    ]


def _pilot(report: Report) -> list[Tile]:
    pilot = report.pilot
    assert pilot is not None  # noqa: S101 - the caller has looked
    place = next(f"{o.provider} {o.model}" for o in report.offers if o.id == pilot.offer)
    shows = "a number of right answers is not set for this metric" if pilot.needed is None else f"of {pilot.rows} test rows right"
    return [
        Tile("The pilot costs", usd_range(pilot.usd), f"{place}: {pilot.basis}; people's time on top"),
        Tile("It must show", UNKNOWN if pilot.needed is None else f"{pilot.needed}", shows),
        Tile(
            "Chance that it does",
            probability(pilot.p_shows),
            "By the stated prior" + (f"; knowing before spending is worth {usd(pilot.worth_usd)}" if pilot.worth_usd is not None else ""),
        ),
    ]


def _route(report: Report) -> list[Tile]:
    route = best_route(report.routes, report.intake.quality.bar)
    assert route is not None  # noqa: S101 - the verdict rests on it
    saved, q = route.saving_per_month, route.quality
    return [
        Tile(
            f"Route, {plain(report.intake.quality.metric)}",
            percent(q.value, 0),
            f"{percent(q.low, 0)} to {percent(q.high, 0)}, 95 % interval",
        ),
        Tile(
            "Saved per month",
            usd(saved.p50 if saved else None),
            f"{pair(usd(saved.p10), usd(saved.p90))}, P10 to P90; not discounted, against today" if saved else "",
            "plus",
        ),
        Tile("Chance of saving money", probability(route.p_saves), f"{percent(route.passed_on, 0)} of requests passed on"),
    ]
