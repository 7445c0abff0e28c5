"""The cheapest experiment that could change the decision: what it costs, what it must show, and what knowing is worth.

Worth of knowing = E[max(0, NPV)] - max(0, E[NPV]): what perfect knowledge of the offer's money would add before the money is
spent. An experiment that costs more than that is not worth making, unless the offer is expected to gain more than the experiment costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneport.advisor.economics import FloatArray
from tuneport.advisor.measurement import Arm
from tuneport.advisor.offers import Candidate
from tuneport.advisor.simulation import Drivers, after_tuning, draw_acceptance
from tuneport.advisor.statistics import effective_rows, newcombe_paired
from tuneport.core.money import Range

START_HOURS = 2.0
"""Hours that a dedicated machine is paid for while a suite runs on it, its start included. Our judgement."""


class Pilot(BaseModel):
    """One training run and its measurement. Money is USD; people's time is not in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    offer: str
    usd: Range | None
    basis: str
    rows: int  # of the suite
    must_show: str
    needed: int | None  # right answers, where the metric is right or wrong
    p_shows: float | None  # by the prior
    worth_usd: float | None  # of knowing the offer's money beforehand; None: nothing to simulate
    worth_it: bool | None
    rows_needed: int | None = None  # where no result on these rows could be told from chance: so many could show a flawless model


def pilot_of(
    candidate: Candidate, drivers: Drivers | None, npv: FloatArray | None, *, baseline: Arm, metric: str, bar: float,
    clusters_of: Callable[[Iterable[int]], Sequence[int]], removed: FloatArray, seed: int, priced: bool, loss: float = 0.0,
) -> Pilot:  # fmt: skip
    """The pilot at one offer. ``priced``: the money counts what a miss costs, so that the worth of knowing can be told.

    ``loss`` is what counts as none where the tuned model need only be as good and cheaper; 0 where it must be better. Rows that hang
    together (``clusters_of``) count as the fewer rows that tell as much.
    """
    answered = [a for a in baseline.answers if metric in a.scores]
    scores, clusters = np.array([a.scores[metric] for a in answered]), clusters_of(a.row for a in answered)
    n = len(scores)
    counted = effective_rows(scores.tolist(), clusters) if clusters else n
    usd, basis = _price(candidate, drivers, len(baseline.answers))
    binary = bool(np.isin(scores, (0, 1)).all()) and n > 0
    needed = math.ceil(_needed(counted, round(scores.mean() * counted), bar, loss) * n / counted - 1e-9) if binary else None
    rng = np.random.default_rng(seed)
    chance = None
    if needed is not None:
        before, _ = draw_acceptance(rng, scores, scores, len(removed), clusters)
        chance = float((rng.binomial(counted, after_tuning(before, removed)) * n >= needed * counted).mean())
    more = None
    what, gain = metric.replace("_", " "), f"a gain over {baseline.name!r} whose interval lies above zero"
    if loss:
        gain = f"a difference from {baseline.name!r} whose interval lies above {-100 * loss:.0f} points, at a lower price"
    if needed is not None and needed <= n:
        show = f"At least {needed} of the {n} rows right ({100 * needed / n:.0f} %): the bar of {100 * bar:.0f} %, and {gain}."
    elif needed is not None:
        more = math.ceil(_rows_to_show(float(scores.mean()), loss, counted) * n / counted)
        show = f"Nothing that {n} rows could show: {baseline.name!r} is too good for that to be told from chance. About {more:,} test rows "
        show += "could show a flawless model."
    else:
        show = f"A mean {what} of at least {100 * bar:.0f} %, and {gain}."
    pilot = Pilot(
        offer=candidate.offer.id,
        usd=usd,
        basis=basis,
        rows=len(baseline.answers),
        must_show=show,
        needed=needed,
        p_shows=chance,
        worth_usd=None,
        worth_it=None,
        rows_needed=more,
    )
    return worth_of_knowing(pilot, npv) if npv is not None and priced else pilot


def worth_of_knowing(pilot: Pilot, npv: FloatArray) -> Pilot:
    """The pilot with what knowing the offer's money is worth, and whether the pilot is worth its price.

    It is also where the offer is expected to gain: nobody tunes without a measurement, and the pilot is that, however sure the money.
    """
    expected = float(npv.mean())
    worth = float(np.maximum(npv, 0).mean()) - max(0.0, expected)
    worth_it = None if pilot.usd is None else worth > pilot.usd.low or expected > pilot.usd.low
    return pilot.model_copy(update={"worth_usd": worth, "worth_it": worth_it})


def _needed(n: int, right: int, bar: float, loss: float) -> int:
    """Right answers from which the bar is met and the difference's interval lies above ``-loss``, were hits spread independently."""
    for k in range(math.ceil(bar * n - 1e-9), n + 1):
        both = round(right * k / n)
        if newcombe_paired(both, right - both, k - both, n - right - k + both).low > -loss:
            return k
    return n + 1


def _rows_to_show(share: float, loss: float, known: int) -> int:
    """The fewest rows, above ``known``, on which a flawless model could be told from one that gets ``share`` right.

    More than a million is taken for never, and given back as a million.
    """

    def shows(n: int) -> bool:
        right = min(round(share * n), n - 1)
        return newcombe_paired(right, 0, n - right, 0).low > -loss

    low, high = known, 2 * known
    while high < 1_000_000 and not shows(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return min(high, 1_000_000)


def _price(candidate: Candidate, drivers: Drivers | None, n: int) -> tuple[Range | None, str]:
    offer = candidate.offer
    if offer.training_usd is None or candidate.terms is None or drivers is None:
        return None, "a price of the offer is unknown"
    tuned, d = candidate.terms.tuned, drivers
    tokens = ((d["fresh"] + d["static_tuned"]) * d["q_in"] + d["output_tuned"] * d["q_out"]) / 1e6 * n
    hours = START_HOURS if tuned.paid != "worked" else n / d["q_rate"]
    each = tokens + (d["q_hour"] * hours if tuned.hour.high > 0 else 0.0)
    low, high = (float(v) for v in np.percentile(each, [10, 90]))
    basis = f"one run, and {n} answers" + (
        f" on a machine for {START_HOURS:g} hours" if tuned.hour.high > 0 and tuned.paid != "worked" else ""
    )
    return offer.training_usd + Range(low=low, high=high), basis
