"""Formulas against published examples, and properties of the simulation."""

from __future__ import annotations

import dataclasses
import math
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, spearmanr

from tuneport.advisor import economics as e
from tuneport.advisor.sensitivity import tornado
from tuneport.advisor.simulation import (
    Cache,
    OfferTerms,
    Setting,
    Terms,
    cumulative,
    draw,
    draw_acceptance,
    evaluate,
    offer_drivers,
    quality_drivers,
    shared_drivers,
)
from tuneport.advisor.statistics import clustered_difference, clustered_mean
from tuneport.core.money import Range
from tuneport.tests.advice_cases import TODAY, intake

MINI_BASE = e.TokenPrices(0.40, 0.10, 1.60)  # gpt-4.1-mini, OpenAI price table of Oct-Nov 2026
MINI_TUNED = e.TokenPrices(0.80, 0.20, 3.20)


def fixed(value: float) -> Range:
    return Range(low=value, high=value)


def terms(prices: e.TokenPrices, **more: object) -> Terms:
    return Terms(fixed(float(prices.input)), fixed(float(prices.cached)), fixed(float(prices.output)), **more)  # type: ignore[arg-type]


def offer(**changes: object) -> OfferTerms:
    values = {
        "id": "x", "today": terms(MINI_BASE), "tuned": terms(MINI_TUNED), "train_run": fixed(15.0), "storage": fixed(0.0),
        "months": 24.0, "ends_inside": False,
    }  # fmt: skip
    return OfferTerms(**(values | changes))  # type: ignore[arg-type]


def test_the_aws_text_to_sql_example_is_reproduced() -> None:
    """AWS Machine Learning blog, 2026-03-23: every figure of its cost table."""
    nova_micro = e.TokenPrices(0.035, 0.035, 0.14)
    assert float(e.training_cost(2_000 * 800, 5, 1.0)) == pytest.approx(8.00)  # 0.001 USD per 1k tokens
    assert float(e.hosting_per_month(16.288, paid_hours=4)) == pytest.approx(65.15, abs=0.005)  # 4 hours of ml.g5.48xlarge
    inputs = 22_000 * float(e.request_cost(e.Request(800, 0, 0), nova_micro))
    outputs = 22_000 * float(e.request_cost(e.Request(0, 0, 60), nova_micro))
    assert inputs == pytest.approx(0.616)
    assert outputs == pytest.approx(0.185, abs=0.0005)
    assert inputs + outputs == pytest.approx(0.80, abs=0.001)
    year = e.total_cost(one_time=8.0, volume=22_000, per_request=(inputs + outputs) / 22_000, fixed=1.95, retraining=0, months=12)
    assert float(year) == pytest.approx(8 + 12 * (0.8008 + 1.95))
    assert [f"{usd:.2f}" for usd in (inputs + outputs, inputs + outputs + 1.95, float(year))] == ["0.80", "2.75", "41.01"]  # to the cent


@pytest.mark.parametrize(("hit", "prompted", "saving"), [(0.0, 0.00116, 0.00044), (0.9, 0.00062, -0.00010)])
def test_caching_turns_the_sign_of_the_saving(hit: float, prompted: float, saving: float) -> None:
    before = float(e.request_cost(e.Request(300, 2000, 150, hit), MINI_BASE))
    after = float(e.request_cost(e.Request(300, 0, 150), MINI_TUNED))
    assert before == pytest.approx(prompted)
    assert after == pytest.approx(0.00072)
    assert before - after == pytest.approx(saving)
    volume = float(e.break_even_volume(one_time=15, fixed=0, retraining=0, horizon=12, saving=before - after))
    assert math.isinf(volume) == (saving < 0)


# Claude Haiku 4.5 on Bedrock, global profile (genai-prices 0.2.3): 1.00 in, 0.10 cached, 5.00 out; writing for 5 minutes 1.25.
HAIKU = e.TokenPrices(1.00, 0.10, 5.00, write=0.25)


@pytest.mark.parametrize(
    ("per_month", "hit", "writes", "usd"),
    [
        (8_760, 0.5, 0.367879, 0.002333939),  # 12 an hour, one in 5 minutes: exp(-1); 300 + 2000 * (0.55 + 0.25 * 0.367879) + 750
        (730, 0.5, 0.5, 0.0024),  # 1 an hour: exp(-1/12) = 0.92, and every miss writes; 300 + 2000 * (0.55 + 0.125) + 750
        (876_000, 0.95, 0.0, 0.00134),  # 100 in 5 minutes: written once and for all; 300 + 2000 * (0.05 + 0.095) + 750
        (8_760, 0.0, 0.0, 0.00305),  # not cached at all: 300 + 2000 + 750
    ],
)
def test_writing_to_the_cache_has_its_surcharge(per_month: float, hit: float, writes: float, usd: float) -> None:
    written, hours = e.cache_traffic(per_month / 730, 5 / 60, hit)
    assert float(written) == pytest.approx(writes, abs=1e-6)
    assert float(e.request_cost(e.Request(300, 2000, 150, hit, written, hours), HAIKU)) == pytest.approx(usd, abs=1e-9)


def test_storage_in_the_cache_is_paid_for_the_time_between_requests() -> None:
    """12 requests an hour and a cache of an hour: it never runs empty, so each request pays a twelfth of an hour for 2,000 tokens."""
    stored = e.TokenPrices(0.30, 0.03, 2.50, store=1.00)
    written, hours = e.cache_traffic(12.0, 1.0, 0.9)
    assert float(hours) == pytest.approx((1 - math.exp(-12)) / 12)
    cost = float(e.request_cost(e.Request(300, 2000, 150, 0.9, written, hours), stored))
    assert cost == pytest.approx((300 * 0.3 + 2000 * (0.1 * 0.3 + 0.9 * 0.03 + float(hours)) + 150 * 2.5) / 1e6)
    lonely = e.cache_traffic(0.001, 1.0, 0.9)  # one request in six weeks: it lies there for its hour
    assert float(lonely[1]) == pytest.approx(1.0, abs=0.001)


def test_the_surcharge_enters_the_simulation_at_the_volume_and_can_turn_the_money() -> None:
    asked = intake(volume_per_month=8_760, cache_hit_share=0.5)
    now = terms(HAIKU, cache=Cache(write=fixed(0.25), ttl_minutes=fixed(5)))
    priced = offer(today=now)
    drivers = offer_drivers(shared_drivers(asked, seed=0, draws=2), priced, asked, seed=0)
    assert evaluate(drivers, priced, Setting()).per_request_today == pytest.approx([0.002333939] * 2, abs=1e-9)
    plain = offer(today=terms(HAIKU))
    same = offer_drivers(shared_drivers(asked, seed=0, draws=2), plain, asked, seed=0)
    assert evaluate(same, plain, Setting()).per_request_today == pytest.approx([0.00215] * 2, abs=1e-9)
    assert {k: v.tolist() for k, v in drivers.items() if k in same} == {k: v.tolist() for k, v in same.items()}  # no other draw moved


def test_training_is_rarely_the_driver() -> None:
    run = float(e.training_cost(2_000 * 500, 3, 5.0))
    assert run == pytest.approx(15.0)
    assert float(e.requests_to_cover(run, 0.00044)) == pytest.approx(34_000, rel=0.01)
    assert float(e.requests_to_cover(run + 3_000, 0.00044)) == pytest.approx(6.9e6, rel=0.01)


@pytest.mark.parametrize(
    ("hourly", "monthly", "uncached", "cached"),
    [
        (1.70, 1_241, 1.1e6, 2.0e6),
        (3.99, 2_913, 2.5e6, 4.7e6),
        (6.49, 4_738, 4.1e6, 7.6e6),
        (8.0, 5_840, 5.0e6, 9.4e6),
        (23.50, 17_155, 14.8e6, 27.7e6),
    ],
)
def test_hosting_sets_a_floor(hourly: float, monthly: float, uncached: float, cached: float) -> None:
    month = float(e.hosting_per_month(hourly))
    assert month == pytest.approx(monthly, abs=0.5)
    assert float(e.requests_to_cover(month, 0.00116)) == pytest.approx(uncached, abs=0.051e6)
    assert float(e.requests_to_cover(month, 0.00062)) == pytest.approx(cached, abs=0.051e6)


def test_hosting_pays_for_whole_machines() -> None:
    capacity = 100 * e.HOURS_PER_MONTH
    assert float(e.hosting_per_month(1.0, capacity, 100)) == pytest.approx(730)
    assert float(e.hosting_per_month(1.0, capacity + 1, 100)) == pytest.approx(1460)
    assert float(e.hosting_per_month(1.0, 0, 100)) == pytest.approx(730)
    assert float(e.hosting_per_month(1.0, 1, 100, open_hours=200, paid_hours=200)) == pytest.approx(200)  # scaled to zero at night
    assert float(e.hosting_per_month(1.0, 20_001, 100, open_hours=200)) == pytest.approx(1460)  # two machines for the busy hours


def test_the_models_remaining_life_caps_the_horizon() -> None:
    ends = date(2027, 1, 14)
    assert e.remaining_days(ends, TODAY) == 53
    assert e.economic_months(24, ends, TODAY) == pytest.approx(53 / e.DAYS_PER_MONTH)
    assert e.economic_months(1, ends, TODAY) == 1
    assert e.economic_months(24, None, TODAY) == 24
    assert e.remaining_days(date(2026, 10, 23), TODAY) == 0


def test_payback_is_never_when_nothing_is_saved() -> None:
    assert float(e.payback_months(one_time=100, saving_per_month=25)) == 4
    assert math.isinf(float(e.payback_months(one_time=100, saving_per_month=0)))
    assert math.isinf(float(e.payback_months(one_time=100, saving_per_month=-5)))


def test_an_accepted_answer_costs_more_than_an_answer() -> None:
    assert float(e.cost_per_accepted(1.0, 0.5)) == 2.0
    assert float(e.cost_per_accepted(1.0, 0.75, fallback=4.0)) == 2.0
    assert math.isinf(float(e.cost_per_accepted(1.0, 0.0)))


def test_discounting_counts_a_part_of_the_last_month() -> None:
    assert e.discount_factors(2.5, 0.0).tolist() == [1, 1, 0.5]
    assert e.discount_factors(12, 0.1).sum() < 12
    assert (1 + e.monthly_rate(0.1)) ** 12 == pytest.approx(1.1)


@given(
    one_time=st.floats(0, 1e6), fixed=st.floats(0, 1e5), retraining=st.floats(0, 1e5), horizon=st.floats(1, 60), saving=st.floats(1e-6, 10)
)
def test_at_the_break_even_volume_the_saving_covers_everything(
    one_time: float, fixed: float, retraining: float, horizon: float, saving: float
) -> None:
    volume = float(e.break_even_volume(one_time=one_time, fixed=fixed, retraining=retraining, horizon=horizon, saving=saving))
    assert horizon * (volume * saving - fixed - retraining) == pytest.approx(one_time, rel=1e-6, abs=1e-3)


# -- simulation --------------------------------------------------------------------------------------------------------


def test_without_uncertainty_the_simulation_is_the_formula() -> None:
    certain = intake(
        volume_per_month=100_000, cache_hit_share=0, runs={"planned": 1, "failure_share": 0},
        costs={"engineering_usd": 2000}, discount_rate=0.1,
    )  # fmt: skip
    drivers = offer_drivers(shared_drivers(certain, seed=0, draws=50), offer(), certain, seed=0)
    result = evaluate(drivers, offer(), Setting(certain.discount_rate))
    assert np.ptp(result.npv) == 0
    assert result.one_time[0] == pytest.approx(3515)
    assert result.saving_per_month[0] == pytest.approx(44)
    assert result.payback[0] == pytest.approx(3515 / 44)
    before = e.total_cost(one_time=0, volume=1e5, per_request=0.00116, fixed=0, retraining=0, months=24, annual_rate=0.1)
    after = e.total_cost(one_time=3515, volume=1e5, per_request=0.00072, fixed=0, retraining=0, months=24, annual_rate=0.1)
    assert result.npv[0] == pytest.approx(float(before - after))


def test_openais_remaining_life_keeps_a_good_offer_from_paying_back() -> None:
    rich = intake(volume_per_month=1_000_000, costs={"engineering_usd": 0})
    shared = shared_drivers(rich, seed=0, draws=500)
    lasting, ending = offer(), offer(months=53 / e.DAYS_PER_MONTH, ends_inside=True)
    years, days = (evaluate(offer_drivers(shared, o, rich, seed=0), o, Setting(0.05)) for o in (lasting, ending))
    assert (years.payback <= lasting.months).mean() > 0.99
    assert (days.payback <= ending.months).mean() < 0.01
    assert (days.npv < 0).all()
    assert (years.npv > 0).mean() > 0.99


def test_the_same_seed_gives_the_same_draws_whatever_the_other_offers() -> None:
    ask = intake(cache_hit_share=[0.1, 0.6], retraining={"every_months": 6})
    one = offer_drivers(shared_drivers(ask, seed=3, draws=100), offer(spread=0.1), ask, seed=3)
    offer_drivers(shared_drivers(ask, seed=3, draws=100), offer(id="other"), ask, seed=3)
    two = offer_drivers(shared_drivers(ask, seed=3, draws=100), offer(spread=0.1), ask, seed=3)
    assert all((one[name] == two[name]).all() for name in one)
    assert not (one["volume"] == shared_drivers(ask, seed=4, draws=100)["volume"]).all()
    other = offer_drivers(shared_drivers(ask, seed=3, draws=100), offer(id="other", spread=0.1), ask, seed=3)
    theirs = {name for name in one if not (one[name] == other[name]).all()}  # two offers differ by what is theirs alone
    assert theirs and all(name.startswith("q_") or name in ("train_run", "retrainings") for name in theirs)


@given(low=st.floats(1e-3, 1e5), factor=st.floats(1.01, 50))
def test_a_pair_is_the_tenth_and_ninetieth_percentile(low: float, factor: float) -> None:
    values = draw(np.random.default_rng(0), Range(low=low, high=low * factor), 20_000)
    assert (values < low).mean() == pytest.approx(0.1, abs=0.01)
    assert (values > low * factor).mean() == pytest.approx(0.1, abs=0.01)
    assert (values > 0).all()


def test_acceptance_is_drawn_jointly_and_is_beta() -> None:
    today = np.array([1.0] * 60 + [0.0] * 40)
    tuned = np.array([1.0] * 90 + [0.0] * 10)
    before, after = draw_acceptance(np.random.default_rng(0), today, tuned, 20_000)
    assert before.mean() == pytest.approx(60.5 / 101, abs=0.003)  # Jeffreys: Beta(60.5, 40.5)
    assert before.std() == pytest.approx(math.sqrt(60.5 * 40.5 / 101**2 / 102), rel=0.03)
    assert np.corrcoef(before, after)[0, 1] > 0.2
    graded = draw_acceptance(np.random.default_rng(0), today * 0.5, tuned * 0.5, 2_500)
    assert graded[0].shape == (2_500,)
    assert graded[1].mean() == pytest.approx(0.45, abs=0.01)


def clustered_scores() -> tuple[np.ndarray, np.ndarray, list[int]]:
    """40 documents of 10 rows, most of them right or wrong as a whole, by both arms alike."""
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(40), 10)
    levels = rng.beta(0.5, 0.5, (40, 1)) * np.array([[0.7, 0.95]])
    today, tuned = ((rng.random(400) < levels[clusters, k]).astype(float) for k in (0, 1))
    return today, tuned, clusters.tolist()


def test_rows_that_hang_together_spread_the_draws_as_their_cluster_robust_intervals_do() -> None:
    today, tuned, clusters = clustered_scores()
    one, two = draw_acceptance(np.random.default_rng(0), today, tuned, 200_000, clusters)
    for drawn, told in (
        (one, clustered_mean(today.tolist(), clusters)),
        (two, clustered_mean(tuned.tolist(), clusters)),
        (two - one, clustered_difference(today.tolist(), tuned.tolist(), clusters)[0]),
    ):
        assert np.percentile(drawn, [2.5, 97.5]) == pytest.approx([told.low, told.high], abs=0.002)
        assert drawn.mean() == pytest.approx(told.value, abs=0.002)
    alone, _ = draw_acceptance(np.random.default_rng(0), today, tuned, 20_000)
    assert one.std() > 2 * alone.std()


def test_clusters_without_spread_count_as_one_row_each() -> None:
    """Every document wholly right: nobody knows more than 20 rows tell."""
    right, clusters = np.ones(400), np.repeat(np.arange(20), 20).tolist()
    one, two = draw_acceptance(np.random.default_rng(0), right, right, 50_000, clusters)
    assert float(np.percentile(one, 2.5)) == pytest.approx(beta(20.5, 0.5).ppf(0.025), abs=0.01)
    assert one.max() <= 1
    assert np.corrcoef(one, two)[0, 1] > 0.4


def test_failed_runs_are_paid_for() -> None:
    ask = intake(runs={"planned": 3, "failure_share": 0.25})
    runs = shared_drivers(ask, seed=0)["runs"]
    assert runs.min() >= 3
    assert runs.mean() == pytest.approx(4, abs=0.05)  # negative binomial: 3 / (1 - 0.25)


def test_better_answers_are_worth_what_misses_cost() -> None:
    ask = intake(quality={"rejected_answer_usd": 1.0})
    shared = shared_drivers(ask, seed=0, draws=2_000)
    half, most = np.array([1.0, 0.0] * 100), np.array([1.0] * 180 + [0.0] * 20)

    def measured(tuned: np.ndarray) -> dict[str, np.ndarray]:
        quality = quality_drivers(ask, shared["removed"], half, tuned, seed=0)
        return offer_drivers(shared, offer(), ask, seed=0, quality=quality)

    same, better = (evaluate(measured(tuned), offer(), Setting(0.05)) for tuned in (half, most))
    guessing = shared_drivers(ask, seed=0, draws=20_000, prior=Range(low=-0.2, high=0.6))
    assumed = quality_drivers(ask, guessing["removed"], half, seed=0)
    assert np.median(better.npv - same.npv) == pytest.approx(0.4 * 24 * 9_800, rel=0.1)
    removed = (assumed["accepted_tuned"] - assumed["accepted"]) / (1 - assumed["accepted"])
    assert np.percentile(removed[removed > 0], 100) <= 1
    assert (removed > 0.6).mean() == pytest.approx(0.1, abs=0.01)  # the prior's 90th percentile


def test_the_tornado_agrees_with_the_model() -> None:
    ask = intake(volume_per_month=[1e5, 1e6], cache_hit_share=[0.0, 0.5])
    drivers = offer_drivers(shared_drivers(ask, seed=0), offer(), ask, seed=0)
    result = evaluate(drivers, offer(), Setting(0.05))
    swings = tornado(drivers, offer(), Setting(0.05), result.npv)
    widths = [abs(s.npv_high - s.npv_low) for s in swings]
    assert widths == sorted(widths, reverse=True)
    by_name = {s.driver: s for s in swings}
    assert by_name["volume"].rank_correlation > 0.2
    assert by_name["cache_hit"].npv_high < by_name["cache_hit"].npv_low
    middle = {name: np.array([np.median(v)]) for name, v in drivers.items()}
    at_p10 = middle | {"volume": np.percentile(drivers["volume"], [10])}
    assert evaluate(at_p10, offer(), Setting(0.05)).npv[0] == pytest.approx(by_name["volume"].npv_low)


def test_one_machine_has_one_price_whatever_runs_on_it() -> None:
    machine = {"usd_per_hour": [0.5, 4.0], "requests_per_hour": [100, 400], "always_on": True}
    ask = intake(self_hosting=machine, volume_per_month=[1e5, 1e6])
    hour, rate = ask.self_hosting.usd_per_hour, ask.self_hosting.requests_per_hour
    assert hour is not None
    own = Terms(fixed(0), fixed(0), fixed(0), hour=hour, requests_per_hour=rate, own=True)
    shared = shared_drivers(ask, seed=0, draws=2000)
    both, other = (offer_drivers(shared, offer(id=name, today=own, tuned=own), ask, seed=0) for name in ("one", "two"))
    assert (both["q_hour"] == other["q_hour"]).all()  # and it is the same machine for two offers
    result = evaluate(both, offer(today=own, tuned=own), Setting(0.05))
    assert (result.saving_per_month == 0).all()
    machines = np.ceil(both["volume"] / (both["p_rate"] * 730))
    mean_drift = np.where(both["drift"] == 0, 1, ((1 + both["drift"]) ** 2 - 1) / (2 * np.log1p(both["drift"])))
    assert np.allclose(result.today_per_month, machines * 730 * both["p_hour"] * mean_drift)
    assert np.array_equal(result.today_per_month, result.tuned_per_month)
    assert {s.driver for s in tornado(both, offer(today=own, tuned=own), Setting(0.05), result.npv)}.isdisjoint({"q_hour", "q_rate"})
    alone = offer(tuned=own)
    bars = tornado(drivers := offer_drivers(shared, alone, ask, seed=0), alone, Setting(0.05), evaluate(drivers, alone, Setting(0.05)).npv)
    assert "q_hour" in {s.driver for s in bars if s.npv_low != s.npv_high}  # beside a vendor's model it does move the money


def test_what_is_one_input_moves_as_one_in_the_tornado() -> None:
    ask = intake(volume_per_month=1e6, tokens={"output": [100, 600]}, costs={"engineering_usd": [2000, 6000]})
    ending = offer(months=12.0, ends_inside=True)
    drivers = offer_drivers(shared_drivers(ask, seed=0), ending, ask, seed=0)
    result = evaluate(drivers, ending, Setting(0.05))
    bars = {s.label: s for s in tornado(drivers, ending, Setting(0.05), result.npv)}
    low, high = np.percentile(drivers["output"], [10, 90])
    years = sum((1.05 ** (1 / 12)) ** -k for k in range(1, 13))
    assert bars["Answer tokens"].npv_high - bars["Answer tokens"].npv_low == pytest.approx(-1.6 * (high - low) * years, rel=1e-6)
    low, high = np.percentile(drivers["engineering"], [10, 90])  # due once more at the end of the base model
    swing = bars["Cost of engineering"].npv_high - bars["Cost of engineering"].npv_low
    assert swing == pytest.approx(-(high - low) * (1 + 1.05**-1), rel=1e-6)


def test_rank_correlations_are_spearmans_where_draws_tie() -> None:
    ask = intake(volume_per_month=[1e5, 1e6], retraining={"every_months": 6, "people_usd": 500})
    drivers = offer_drivers(shared_drivers(ask, seed=0), offer(), ask, seed=0)
    npv = evaluate(drivers, offer(), Setting(0.05)).npv
    found = {s.driver: s.rank_correlation for s in tornado(drivers, offer(), Setting(0.05), npv)}
    assert {"runs", "retrainings", "volume"} <= found.keys()
    for name, correlation in found.items():
        assert correlation == pytest.approx(spearmanr(drivers[name], npv).statistic, abs=1e-9)


def test_what_recurs_each_month_is_told_for_both_sides() -> None:
    ask = intake(volume_per_month=[1e4, 1e6], retraining={"every_months": 6, "people_usd": 500}, costs={"monitoring_usd_per_month": 40})
    drivers = offer_drivers(shared_drivers(ask, seed=0), offer(), ask, seed=0)
    found = evaluate(drivers, offer(), Setting(0.05))
    assert np.allclose(found.today_per_month, drivers["volume"] * (2300 * 0.4 + 150 * 1.6) / 1e6)
    again = drivers["retrainings"] * (drivers["train_run"] + 500) / 24
    assert np.allclose(found.tuned_per_month, drivers["volume"] * (300 * 0.8 + 150 * 3.2) / 1e6 + 40 + again)
    assert np.allclose(found.saving_per_month, found.today_per_month - found.tuned_per_month)


def test_after_its_end_the_offer_costs_what_today_costs_plus_the_move() -> None:
    ask = intake(volume_per_month=1e6)
    ending = offer(months=6.0, ends_inside=True)
    drivers = offer_drivers(shared_drivers(ask, seed=0, draws=100), ending, ask, seed=0)
    today, tuned = cumulative(drivers, ending, Setting(0.05), 12)
    assert (today[0] == 0).all()
    assert (tuned[0] > 0).all()
    assert np.allclose(tuned[12] - tuned[6], today[12] - today[6])
    assert (tuned[6] - tuned[5] > today[6] - today[5]).all()  # the move is paid in the month of the end


# -- volumes that move -------------------------------------------------------------------------------------------------


def test_volumes_grow_and_have_seasons() -> None:
    assert e.volume_path(0.0, (), 24).tolist() == [[1.0]]
    assert e.volume_path(1.0, (), 13)[[0, 12], 0].tolist() == [1.0, 2.0]
    weights = (2.0, *(1.0,) * 10, 0.0)
    year = e.volume_path(0.0, weights, 24)[:, 0]
    assert year.mean() == pytest.approx(1)
    assert year[[0, 11, 12]].tolist() == [2.0, 0.0, 2.0]


@given(saving=st.floats(0.1, 100), one_time=st.floats(0, 5_000))
def test_payback_by_month_is_the_formula_when_every_month_is_alike(saving: float, one_time: float) -> None:
    payback = e.Payback(np.array([one_time]))
    for _ in range(24):
        payback.add(np.array([saving]))
    assert float(payback.months()[0]) == pytest.approx(one_time / saving, rel=1e-9, abs=1e-9)


def plainly(d: dict[str, np.ndarray], terms: OfferTerms, setting: Setting, draw: int) -> dict[str, float]:
    """One draw, month after month, as ``docs/economics.md`` tells it; ``e.Payback`` and the vectorised loop are not used."""
    of = {name: float(values[draw]) for name, values in d.items()}
    one_time = of["data"] + of["labelling"] + of["engineering"] + of["evaluation"] + of["train_run"] * of["runs"]
    each, machine = {}, {}
    for mark, suffix, side in (("p", "", terms.today), ("q", "_tuned", terms.tuned)):
        hit, static = of[f"cache_hit{suffix}"], of[f"static{suffix}"]
        usd = of["fresh"] * of[f"{mark}_in"] + static * ((1 - hit) * of[f"{mark}_in"] + hit * of[f"{mark}_cached"])
        usd = (usd + of[f"output{suffix}"] * of[f"{mark}_out"]) / 1e6
        years = math.log1p(of["drift"]) * terms.months / 12
        hour = of[f"{mark}_hour"] * (math.expm1(years) / years)  # the mean of a price that drifts
        each[mark] = usd + (hour / of[f"{mark}_rate"] if side.paid == "worked" else 0.0)
        machine[mark] = (hour * (730 if side.paid == "always" else of["open_hours"]) if side.paid != "worked" else 0.0, of[f"{mark}_rate"])
    npv = standing = average = spent = 0.0
    paid, flows = math.inf, []
    retraining = of["retrainings"] * (of["train_run"] + of["retrain_people"]) / terms.months
    for month in range(math.ceil(terms.months)):
        season = setting.seasonality[month % 12] / np.mean(setting.seasonality) if setting.seasonality else 1.0
        requests = of["volume"] * (1 + of["growth"]) ** (month / 12) * season
        hosting = {m: max(1, math.ceil(requests / (rate * of["open_hours"]))) * usd for m, (usd, rate) in machine.items()}
        fixed = hosting["q"] - hosting["p"] + of["storage"] + of["monitoring"]
        flow = requests * (each["p"] - each["q"]) - fixed - retraining
        length = min(1.0, terms.months - month)
        npv += flow * length / (1 + setting.annual_rate) ** (min(month + 1, terms.months) / 12)
        standing, average = standing + fixed * length / terms.months, average + flow * length / terms.months
        if paid == math.inf and spent + flow >= one_time:
            paid = month + ((one_time - spent) / flow if flow > 0 else 0.0)
        spent += flow
        flows.append(flow)
    late = sum(flows[-12:]) / len(flows[-12:])
    if paid == math.inf and late > 0:
        paid = len(flows) + (one_time - spent) / late
    return {"npv": npv - one_time, "fixed": standing, "saving_per_month": average, "payback": paid}


@settings(max_examples=40, deadline=None)
@given(
    growth=st.tuples(st.floats(-0.5, 0.0), st.floats(0.01, 1.5)),
    seasons=st.one_of(st.just([]), st.lists(st.floats(0.1, 3), min_size=12, max_size=12)),
    months=st.floats(1.1, 37), paid=st.sampled_from(["always", "open hours", "worked"]), rate=st.floats(20, 5_000), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_fast_months_are_the_plain_ones(
    growth: tuple[float, float], seasons: list[float], months: float, paid: Any, rate: float, seed: int
) -> None:
    asked = intake(
        volume_per_month=[1e4, 1e6], volume_growth_per_year=list(growth), seasonality=seasons, cache_hit_share=[0, 0.8], batch_share=0,
        open_hours_per_month=[150, 400], retraining={"every_months": 6}, quality={"rejected_answer_usd": None},
    )  # fmt: skip
    hosted = terms(MINI_TUNED, hour=Range(low=0.5, high=2), requests_per_hour=Range(low=rate, high=2 * rate), paid=paid)
    priced = offer(today=terms(MINI_BASE, hour=fixed(0.7), requests_per_hour=fixed(3 * rate)), tuned=hosted, months=months)
    drivers = offer_drivers(shared_drivers(asked, seed=seed, draws=8), priced, asked, seed=seed)
    setting = Setting(0.08, asked.seasonality)
    fast = evaluate(drivers, priced, setting)
    for draw_ in range(8):
        for name, value in plainly(drivers, priced, setting, draw_).items():
            scale = fast.one_time[draw_] if name == "npv" else abs(value)  # an NPV may cancel to next to nothing
            assert getattr(fast, name)[draw_] == pytest.approx(value, rel=1e-9, abs=max(1e-9 * scale, 1e-9)), name


def test_growth_pays_back_sooner_than_the_same_volume_today_and_a_late_season_later() -> None:
    flat, growing = intake(volume_per_month=100_000), intake(volume_per_month=100_000, volume_growth_per_year=1.0)
    late = intake(volume_per_month=100_000, seasonality=[0] * 6 + [2] * 6)
    paid, value = [], []
    for ask in (flat, growing, late):
        drivers = offer_drivers(shared_drivers(ask, seed=0, draws=200), offer(), ask, seed=0)
        result = evaluate(drivers, offer(), Setting(0.0, ask.seasonality))
        paid.append(np.median(result.payback))
        value.append(result.npv)
    assert paid[1] < paid[0]
    assert np.allclose(value[2], value[0], rtol=1e-9)  # a whole year of seasons is a year without them
    assert np.median(value[1]) > np.median(value[0])


def test_a_busy_season_needs_more_machines() -> None:
    hosted = Terms(fixed(0), fixed(0), fixed(0), hour=fixed(1.0), requests_per_hour=fixed(100))
    ask = intake(volume_per_month=70_000, seasonality=[0.5] * 6 + [1.5] * 6, machine_price_drift_per_year=0)
    drivers = offer_drivers(shared_drivers(ask, seed=0, draws=10), offer(tuned=hosted), ask, seed=0)
    result = evaluate(drivers, offer(tuned=hosted), Setting(0.0, ask.seasonality))
    assert result.fixed[0] == pytest.approx(1.5 * 730)  # one machine for half of the year, two for the other half


def test_a_host_that_stops_idle_machines_bills_the_open_hours() -> None:
    always = Terms(fixed(0), fixed(0), fixed(0), hour=fixed(8.0))
    ask = intake(open_hours_per_month=200, machine_price_drift_per_year=0)
    fixed_cost = []
    for paid in ("always", "open hours"):
        one = offer(tuned=dataclasses.replace(always, paid=paid))
        fixed_cost.append(evaluate(offer_drivers(shared_drivers(ask, seed=0, draws=10), one, ask, seed=0), one, Setting()).fixed[0])
    assert fixed_cost == pytest.approx([8 * 730, 8 * 200])


def test_what_can_wait_is_charged_at_the_batch_price() -> None:
    tier = terms(MINI_TUNED, batch_input=fixed(0.4), batch_output=fixed(1.6))
    ask = intake(volume_per_month=1e5, batch_share=0.5)
    one = offer(tuned=tier)
    result = evaluate(offer_drivers(shared_drivers(ask, seed=0, draws=10), one, ask, seed=0), one, Setting())
    assert result.per_request_tuned[0] == pytest.approx(0.00072 * 0.75)  # half of the requests at half of the price


def test_a_move_that_tuning_spares_counts_for_it() -> None:
    ask = intake(costs={"incumbent_move_usd": 1_000})
    drivers = offer_drivers(shared_drivers(ask, seed=0, draws=10), offer(), ask, seed=0)
    plain, spared = (evaluate(drivers, offer(), Setting(0.0, (), ends)).npv for ends in (None, 6.0))
    assert np.allclose(spared - plain, 1_000)
    today, _ = cumulative(drivers, offer(), Setting(0.0, (), 6.0), 12)
    assert np.allclose(np.diff(today, axis=0)[5] - np.diff(today, axis=0)[4], 1_000)


def test_machine_prices_may_rise_or_fall() -> None:
    assert float(e.mean_growth(0.0, 24)) == 1
    assert float(e.mean_growth(0.2, 24)) == pytest.approx(1.207, abs=0.001)
    assert float(e.mean_growth(-0.2, 24)) == pytest.approx(0.807, abs=0.001)
