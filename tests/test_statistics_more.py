"""Clusters, kappa and micro-F1 against statsmodels and against their definitions."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from tuneport.advisor.statistics import (
    bootstrap_macro_f1,
    bootstrap_macro_f1_difference,
    bootstrap_micro_f1,
    clustered_difference,
    clustered_mean,
    detectable_difference,
    effective_rows,
    kappa,
    mean_interval,
    micro_f1,
    sample_size,
    wilson,
)


def clustered_rows(seed: int, groups: int = 23) -> tuple[list[float], list[float], list[int]]:
    draw = random.Random(seed)
    clusters = [g for g in range(groups) for _ in range(draw.randint(1, 6))]
    level = [draw.random() for _ in range(groups)]
    before, after = ([float(draw.random() < level[g] * scale) for g in clusters] for scale in (0.7, 0.95))
    return before, after, clusters


@pytest.mark.parametrize("seed", range(4))
def test_clusters_agree_with_statsmodels(seed: int) -> None:
    before, after, clusters = clustered_rows(seed)
    fitted = sm.OLS(np.array(after), np.ones(len(after))).fit(cov_type="cluster", cov_kwds={"groups": np.array(clusters)}, use_t=True)
    low, high = fitted.conf_int()[0]
    ours = clustered_mean(after, clusters)
    assert (ours.value, ours.low, ours.high) == pytest.approx((fitted.params[0], max(0, low), min(1, high)), abs=1e-9)
    change = np.array(after) - np.array(before)
    fitted = sm.OLS(change, np.ones(len(change))).fit(cov_type="cluster", cov_kwds={"groups": np.array(clusters)}, use_t=True)
    difference, p_value = clustered_difference(before, after, clusters)
    assert (difference.low, difference.high) == pytest.approx(tuple(fitted.conf_int()[0]), abs=1e-9)
    assert p_value == pytest.approx(fitted.pvalues[0], abs=1e-9)


def test_rows_that_repeat_each_other_add_no_certainty() -> None:
    draw = random.Random(1)
    scores = [draw.random() for _ in range(40)]
    alone = mean_interval(scores)
    repeated = clustered_mean(scores * 5, [*range(40)] * 5)
    assert repeated.value == pytest.approx(alone.value)
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert mean_interval(scores * 5).high - mean_interval(scores * 5).low < 0.5 * (alone.high - alone.low)


def test_clusters_without_spread_keep_a_width() -> None:
    assert clustered_mean([1.0] * 6, "aabbcc").low < 0.5
    right = [1.0, 0.0] * 20
    assert effective_rows(right * 5, [*range(40)] * 5) == 39  # forty rows, told five times (G - 1 for the unknown mean)
    assert effective_rows([1.0] * 6, "aabbcc") == 3
    assert effective_rows(right, range(40)) == 39
    assert clustered_mean([1.0, 0.0], "aa").n == 2
    one, p_value = clustered_difference([0.0, 0.0], [1.0, 1.0], "aa")
    assert (one.low, one.high, p_value) == (-1, 1, 1)
    same, p_value = clustered_difference([1.0, 0.0], [1.0, 0.0], "ab")
    assert (same.low, same.value, same.high, p_value) == (-wilson(0, 2).high, 0, wilson(0, 2).high, 1)  # two clusters exclude little


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=60))
@settings(max_examples=60)
def test_kappa_agrees_with_statsmodels(pairs: list[tuple[int, int]]) -> None:
    table = np.zeros((4, 4))
    for a, b in pairs:
        table[a, b] += 1
    ours = kappa([a for a, _ in pairs], [b for _, b in pairs])
    if len({*pairs}) == 1 and pairs[0][0] == pairs[0][1]:
        assert ours is None
        return
    with warnings.catch_warnings(action="ignore"):  # it divides by a deviation of 0
        oracle = cohens_kappa(table)
    assert ours is not None
    assert ours.value == pytest.approx(oracle.kappa, abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx((max(-1, oracle.kappa_low), min(1, oracle.kappa_upp)), abs=1e-9)


def test_micro_f1_is_accuracy_unless_answers_carry_no_label() -> None:
    expected = ["a", "b", "a", "c"]
    assert micro_f1(expected, ["a", "b", "b", "c"]) == 0.75
    assert micro_f1(expected, ["a", "b", None, "rubbish"]) == pytest.approx(2 * 2 / (4 + 2))
    found = bootstrap_micro_f1(expected * 20, ["a", "b", "b", "c"] * 20)
    assert found.low < 0.75 < found.high


def test_f1_over_clusters_is_as_unsure_as_over_the_rows_that_they_repeat() -> None:
    draw = random.Random(5)
    expected = [draw.choice("abc") for _ in range(60)]
    answered = [e if draw.random() < 0.7 else draw.choice("abc") for e in expected]
    better = [e if draw.random() < 0.9 else draw.choice("abc") for e in expected]
    groups = [*range(60)] * 5
    for bootstrap in (bootstrap_macro_f1, bootstrap_micro_f1):
        alone, together = bootstrap(expected, answered), bootstrap(expected * 5, answered * 5, groups)
        naive = bootstrap(expected * 5, answered * 5)
        assert together.value == pytest.approx(alone.value)
        assert (together.high - together.low) == pytest.approx(alone.high - alone.low, rel=0.1)
        assert (naive.high - naive.low) < 0.6 * (together.high - together.low)
        assert "of 60 clusters" in together.method
    alone, p_value = bootstrap_macro_f1_difference(expected, answered, better)
    assert (p_value < 0.05) == (alone.low > 0)
    together, _ = bootstrap_macro_f1_difference(expected * 5, answered * 5, better * 5, groups)
    assert (together.high - together.low) == pytest.approx(alone.high - alone.low, rel=0.1)


def test_rows_needed_before_running() -> None:
    assert [sample_size(d / 100, 0.15) for d in (2, 3, 5, 10)] == [2936, 1301, 464, 110]
    assert [round(100 * detectable_difference(n), 1) for n in (50, 100, 200, 500, 1000)] == [17.7, 12.5, 8.9, 5.6, 4.0]
