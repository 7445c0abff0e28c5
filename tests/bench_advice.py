"""Timing of the economics: 40 offers with 10,000 draws each, beside the bare drawing of as many numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tuneport.advisor.intake import Intake
from tuneport.advisor.simulation import DRAWS, FREE, OfferTerms, Setting, Terms, evaluate, offer_drivers, shared_drivers
from tuneport.core.money import Range
from tuneport.tests.advice_cases import intake

OFFERS = 40
LIMIT = 1.0
"""Seconds that the issue allows for all offers together."""


def economics(best: Callable[..., float]) -> list[tuple[str, float, float, float | None]]:
    """Rows of (what, seconds, ratio to the reference, limit in seconds)."""
    price = Range(low=0.4, high=0.6)
    terms = Terms(price, price, price, hour=Range(low=1, high=2), requests_per_hour=Range(low=500, high=900))
    steady = intake(volume_per_month=[1e5, 1e6], cache_hit_share=[0, 0.5])
    moving = intake(volume_per_month=[1e5, 1e6], cache_hit_share=[0, 0.5], volume_growth_per_year=[0, 1], seasonality=[1, 2] * 6)
    drawn = len(offer_drivers(shared_drivers(steady, seed=0), _offer(0, terms), steady, seed=0))

    def draws() -> None:
        rng = np.random.default_rng(0)
        for _ in range(OFFERS):
            for _ in range(drawn):
                rng.normal(size=DRAWS)

    reference = best(draws, 3)
    rows: list[tuple[str, float, float, float | None]] = [
        (f"numpy: {OFFERS} x {drawn} x {DRAWS:,} normal draws (reference)", reference, 1.0, None)
    ]
    for name, asked in (("steady volume", steady), ("growing, seasonal volume", moving)):

        def simulate(asked: Intake = asked) -> None:
            shared, setting = shared_drivers(asked, seed=0), Setting(0.08, asked.seasonality)
            for number in range(OFFERS):
                offer = _offer(number, terms)
                evaluate(offer_drivers(shared, offer, asked, seed=0), offer, setting)

        seconds = best(simulate, 3)
        rows.append((f"{OFFERS} offers, {DRAWS:,} draws, {name}", seconds, seconds / reference, LIMIT))
    return rows


def _offer(number: int, terms: Terms) -> OfferTerms:
    run = Range(low=10, high=20)
    return OfferTerms(str(number), terms, terms, train_run=run, storage=FREE, months=24.0, ends_inside=False, spread=0.1)
