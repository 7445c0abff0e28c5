"""Statistics: oracles (statsmodels, scipy), the tables of the design material, published examples, and ranges."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from tuneport.advisor.statistics import (
    bootstrap_macro_f1,
    bootstrap_macro_f1_difference,
    bootstrap_mean_difference,
    bootstrap_micro_f1,
    clustered_difference,
    detectable_difference,
    holm,
    macro_f1,
    mcnemar_exact,
    mean_interval,
    newcombe_paired,
    power_statement,
    sample_size,
    wilson,
)
from tuneport.core.errors import UsageError

COUNTS = st.integers(0, 300)
QUICK = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 17), (17, 17), (80, 100), (160, 200), (400, 500), (3, 99_999)])
def test_wilson_agrees_with_statsmodels(successes: int, n: int) -> None:
    ours = wilson(successes, n)
    low, high = proportion_confint(successes, n, method="wilson")
    assert ours.low == pytest.approx(low, abs=1e-9)
    assert ours.high == pytest.approx(high, abs=1e-9)


@pytest.mark.parametrize(("successes", "n", "low", "high"), [(80, 100, 71.1, 86.7), (160, 200, 73.9, 85.0), (400, 500, 76.3, 83.3)])
def test_wilson_table(successes: int, n: int, low: float, high: float) -> None:
    ours = wilson(successes, n)
    assert (round(ours.low * 100, 1), round(ours.high * 100, 1)) == (low, high)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 5), (6, 0), (10, 3), (50, 50), (2000, 1900)])
def test_mcnemar_agrees_with_statsmodels(b: int, c: int) -> None:
    oracle = mcnemar([[7, b], [c, 9]], exact=True).pvalue
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, oracle), abs=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mean_interval_agrees_with_statsmodels() -> None:
    scores = [0.2, 0.5, 0.5, 1.0, 0.75, 0.0, 0.6, 0.4]
    low, high = DescrStatsW(scores).tconfint_mean()
    ours = mean_interval(scores)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-9)
    assert ours.method == "t"


def test_mean_of_equal_scores_still_has_a_width() -> None:
    perfect = mean_interval([1.0] * 10)
    assert perfect.low == pytest.approx(wilson(10, 10).low, abs=1e-12)
    assert perfect.high == 1.0


def test_holm_agrees_with_statsmodels() -> None:
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    oracle = multipletests(list(p.values()), method="holm")[1]
    assert list(holm(p).values()) == pytest.approx(list(oracle), abs=1e-9)
    assert holm({}) == {}


@pytest.mark.parametrize(
    ("table", "limits"),  # table: both, only the first, only the second, neither; the difference is first minus second
    [
        # Altman et al., Statistics with Confidence, table 6.2.
        ((14, 5, 0, 22), (0.011, 0.226)),
        # Bentur et al. 2009, in Fagerland et al., Statistical Analysis of Contingency Tables, chapter 8.
        ((1, 1, 7, 12), (-0.507, -0.026)),
    ],
)
def test_newcombe_published_examples(table: tuple[int, int, int, int], limits: tuple[float, float]) -> None:
    both, first, second, neither = table
    ours = newcombe_paired(both, second, first, neither)
    assert (round(ours.low, 3), round(ours.high, 3)) == limits


@pytest.mark.parametrize(
    ("difference", "discordant", "rows"),
    [
        (0.02, 0.15, 2936), (0.03, 0.15, 1301), (0.05, 0.15, 464), (0.10, 0.15, 110),
        (0.02, 0.25, 4898), (0.03, 0.25, 2173), (0.05, 0.25, 778), (0.10, 0.25, 189),
    ],
)  # fmt: skip
def test_sample_size_table(difference: float, discordant: float, rows: int) -> None:
    assert sample_size(difference, discordant) == rows


@pytest.mark.parametrize(("n", "points"), [(50, 17.7), (100, 12.5), (200, 8.9), (500, 5.6), (1000, 4.0)])
def test_detectable_difference_table(n: int, points: float) -> None:
    assert round(detectable_difference(n, 0.2) * 100, 1) == points


def exact_power(n: int, discordant: float, difference: float) -> float:
    """Probability that the exact McNemar test finds a true difference, by summing over all outcomes."""
    share = (discordant + difference) / 2 / discordant
    total = 0.0
    for d in range(n + 1):
        k = np.arange(d + 1)
        p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(k, d - k), d, 0.5))
        total += stats.binom.pmf(d, n, discordant) * stats.binom.pmf(k, d, share)[p <= 0.05].sum()
    return float(total)


@pytest.mark.parametrize(("n", "discordant"), [(30, 0.2), (50, 0.2), (120, 0.2), (120, 0.05), (200, 0.3)])
def test_detectable_difference_is_detected(n: int, discordant: float) -> None:
    difference = detectable_difference(n, discordant)
    assert 0.76 < exact_power(n, max(discordant, difference), difference) < 0.87


def test_five_rows_detect_nothing_and_six_something() -> None:
    assert detectable_difference(5) == 1.0
    assert mcnemar_exact(0, 5) > 0.05 >= mcnemar_exact(0, 6)


def test_power_statements() -> None:
    assert power_statement(120, detectable_difference(120)) == "120 rows can detect about 11 points"
    assert power_statement(5, detectable_difference(5)) == "5 rows cannot detect any difference"
    assert power_statement(7, detectable_difference(7)) == "7 rows can detect nothing short of 100 points"
    assert power_statement(100_000, detectable_difference(100_000)) == "100,000 rows can detect about 0.4 points"


def test_macro_f1_by_hand() -> None:
    # cat: precision 1/2, recall 1/2 -> 0.5; dog: precision 1/1, recall 1/2 -> 2/3; "bird" and None are plain misses.
    assert macro_f1(["cat", "cat", "dog", "dog"], ["cat", "bird", "dog", "cat"]) == pytest.approx((0.5 + 2 / 3) / 2)
    assert macro_f1(["cat", "dog"], [None, None]) == 0.0
    assert macro_f1(["cat", "dog"], ["cat", "dog"]) == 1.0


def test_bootstrap_of_macro_f1_agrees_with_resampling_rows() -> None:
    rng = random.Random(3)
    expected = [rng.choice("abc") for _ in range(150)]
    predicted = [e if rng.random() < 0.7 else rng.choice("abcz") for e in expected]
    ours = bootstrap_macro_f1(expected, predicted, resamples=4000)
    draws = []
    for _ in range(1500):
        rows = [rng.randrange(150) for _ in range(150)]
        draws.append(macro_f1([expected[i] for i in rows], [predicted[i] for i in rows]))
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.02)


def test_macro_f1_agrees_with_its_definition() -> None:
    rng = random.Random(5)
    expected = [rng.randrange(30) for _ in range(400)]
    predicted = [e if rng.random() < 0.5 else rng.randrange(40) for e in expected]
    scores = []
    for label in set(expected):
        hits = sum(e == p == label for e, p in zip(expected, predicted, strict=True))
        scores.append(2 * hits / (expected.count(label) + predicted.count(label)))
    assert macro_f1(expected, predicted) == pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_bootstrap_mean_difference_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(80), rng.random(80) * 0.8 + 0.2
    ours = bootstrap_mean_difference(before.tolist(), after.tolist(), resamples=8000)
    oracle = stats.bootstrap((after - before,), np.mean, n_resamples=8000, method="percentile", rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high), abs=0.01)


def test_bootstrap_is_seeded_and_independent_of_row_order() -> None:
    before, after = [0.0, 0.3, 0.6, 0.9, 1.0], [0.2, 0.1, 0.8, 1.0, 1.0]
    once = bootstrap_mean_difference(before, after, seed=7)
    assert once == bootstrap_mean_difference(before, after, seed=7)
    assert once == bootstrap_mean_difference(before[::-1], after[::-1], seed=7)
    assert once != bootstrap_mean_difference(before, after, seed=8)


def test_no_interval_without_width_comes_from_rows_without_spread() -> None:
    """What a handful of equal rows shows is what Wilson says of them; arms that agree on few rows are not shown to be equal."""
    labels, wrong = ["a", "b"] * 5, ["b", "a"] * 5
    none, every = bootstrap_macro_f1(labels, wrong), bootstrap_macro_f1(labels, labels)
    assert (none.low, none.high) == pytest.approx((0, wilson(0, 10).high))
    assert (every.low, every.high) == pytest.approx((wilson(10, 10).low, 1))
    assert "no spread" in none.method
    uneven = bootstrap_macro_f1(["a"] * 99 + ["b"], ["b"] * 99 + ["a"])
    assert uneven.high == pytest.approx(wilson(0, 4).high)  # the one row of b is half of the score
    assert bootstrap_micro_f1(labels, wrong).high == pytest.approx(wilson(0, 10).high)
    assert bootstrap_macro_f1(labels, wrong, clusters=[0] * 5 + [1] * 5).high == pytest.approx(wilson(0, 2).high)
    alike, (same, p_same) = bootstrap_mean_difference([0.5] * 4, [0.5] * 4), bootstrap_macro_f1_difference(labels, wrong, wrong)
    assert (alike.low, alike.high) == pytest.approx((-wilson(0, 4).high, wilson(0, 4).high))
    assert (same.low, same.high, p_same) == pytest.approx((-wilson(0, 10).high, wilson(0, 10).high, 1.0))
    better, p_better = bootstrap_macro_f1_difference(["a", "b"], ["b", "a"], ["a", "b"])
    assert better.value == 1 and better.low < 0 and p_better == 0.5  # two rows show no gain
    level, _ = clustered_difference([0.5] * 6, [0.5] * 6, [0, 0, 1, 1, 2, 2])
    assert (level.low, level.high) == pytest.approx((-wilson(0, 3).high, wilson(0, 3).high))


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: mean_interval([]),
        lambda: newcombe_paired(0, 0, 0, 0),
        lambda: newcombe_paired(1, -1, 0, 3),
        lambda: mcnemar_exact(-1, 3),
        lambda: bootstrap_mean_difference([1.0], [1.0, 0.0]),
        lambda: macro_f1([], []),
        lambda: sample_size(0, 0.2),
        lambda: detectable_difference(0),
    ],
)
def test_impossible_inputs_are_usage_errors(call: object) -> None:
    with pytest.raises(UsageError):
        call()  # type: ignore[operator]


@QUICK
@given(st.integers(1, 100_000), st.floats(0, 1))
def test_wilson_holds_the_estimate(n: int, share: float) -> None:
    ours = wilson(round(n * share), n)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@QUICK
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_newcombe_holds_the_estimate_and_mirrors(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    ours, mirrored = newcombe_paired(a, b, c, d), newcombe_paired(a, c, b, d)
    assert -1 <= ours.low <= ours.value <= ours.high <= 1
    assert (-mirrored.high, -mirrored.low) == pytest.approx((ours.low, ours.high))


@QUICK
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_mean_holds_the_estimate(scores: list[float]) -> None:
    ours = mean_interval(scores)
    assert 0 <= ours.low <= ours.high <= 1
    assert ours.low - 1e-9 <= ours.value <= ours.high + 1e-9


@QUICK
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "z", None]), st.sampled_from("abc")), min_size=1, max_size=30))
def test_macro_f1_ranges(rows: list[tuple[str, str | None, str]]) -> None:
    expected, one, other = ([*column] for column in zip(*rows, strict=True))
    single = bootstrap_macro_f1(expected, one, resamples=50)
    paired, p_value = bootstrap_macro_f1_difference(expected, one, other, resamples=50)
    assert 2 / 51 <= p_value <= 1
    assert 0 <= single.low <= single.value <= single.high <= 1
    assert -1 <= paired.low <= paired.value <= paired.high <= 1
    assert paired.value == pytest.approx(macro_f1(expected, other) - macro_f1(expected, one))


@QUICK
@given(st.floats(0.005, 1), st.floats(0, 1))
def test_sample_size_and_detectable_difference_agree(difference: float, discordant: float) -> None:
    rows = sample_size(difference, discordant)
    found = detectable_difference(rows, max(discordant, difference))
    assert found == 1.0 or found >= difference - 1e-9
    assert math.isfinite(found)


@QUICK
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)
