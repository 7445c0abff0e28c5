"""Intervals, paired tests and power for evaluations in which the rows of a suite are the sample.

Every interval is two-sided; alpha is 0.05 unless a function takes it. Sources, by function:

- Wilson: Wilson 1927, as in Newcombe, Stat. Med. 17:857 (1998).
- Paired difference of proportions: Newcombe, Stat. Med. 17:2635 (1998), method 10 (Wilson limits, squared and added,
  with the continuity-corrected phi coefficient).
- McNemar: the exact binomial form on the discordant rows.
- Bootstrap: Efron's percentile interval over rows; both arms are resampled together. Where every resample is alike it has no width:
  then Wilson's bound on the share of rows that would differ although none of n does (``without_spread``).
- Clusters (rows of one document, conversation or prompt): the sandwich estimator of a mean with the correction G / (G - 1),
  and t with G - 1 degrees of freedom, for G clusters (Liang and Zeger, Biometrika 73:13, 1986; Miller, arXiv 2411.00640).
- Cohen's kappa: the large-sample variance of Fleiss, Cohen and Everitt, Psychol. Bull. 72:323 (1969).
- Power: paired binary data with discordance d, n = (z_a + z_b)^2 (d - delta^2) / delta^2 (Connor 1987, with the normal
  approximation under the alternative); plan for paired differences as in Miller, arXiv 2411.00640 (2024).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tuneport.advisor.measurement import Estimate
from tuneport.core.errors import UsageError

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 2_000
ASSUMED_DISCORDANCE = 0.2
"""Share of rows on which two arms disagree, assumed before two arms were measured (economics.md section 4, the table)."""

CHUNK = 4_000_000  # numbers drawn at once: bounds memory at 32 MB, whatever the size of the suite
_T = TypeVar("_T", bound=Hashable)
# (cells, weights, labels) to one score for each row of weights
_Score = Callable[[NDArray[np.int64], NDArray[np.int64], int], NDArray[np.float64]]


def wilson(successes: int, n: int, *, alpha: float = ALPHA) -> Estimate:
    """A proportion with its Wilson score interval. Raises UsageError unless 0 <= successes <= n and n >= 1."""
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"{successes} successes of {n} rows is no proportion", fix="give 0 <= successes <= n and at least 1 row")
    low, high = _wilson_limits(successes, n, alpha)
    return Estimate(value=successes / n, low=low, high=high, n=n, method="Wilson")


def without_spread(value: float, n: int, *, lowest: float = 0.0, highest: float = 1.0, alpha: float = ALPHA) -> tuple[float, float]:
    """The interval of a score that n rows show without any spread: up to Wilson's bound of them could lie at either end."""
    _, unseen = _wilson_limits(0, n, alpha)
    return value + unseen * (lowest - value), value + unseen * (highest - value)


def mean_interval(scores: Sequence[float], *, alpha: float = ALPHA) -> Estimate:
    """The mean of graded scores in 0..1 with its t interval, cut at 0 and 1.

    Scores without spread leave t no width; the Wilson interval then stands in. It is conservative for any scores in
    0..1, because their variance is at most mean * (1 - mean).
    """
    n = _rows(scores)
    mean = fmean(scores)
    spread = stdev(scores) if n > 1 else 0.0
    if spread == 0:
        low, high = _wilson_limits(mean * n, n, alpha)
        return Estimate(value=mean, low=low, high=high, n=n, method="Wilson (scores have no spread)")
    from scipy.special import stdtrit  # noqa: PLC0415  far quicker to import than scipy.stats

    half = float(stdtrit(n - 1, 1 - alpha / 2)) * spread / math.sqrt(n)
    return Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=n, method="t")


def clustered_mean(scores: Sequence[float], clusters: Sequence[Hashable], *, alpha: float = ALPHA) -> Estimate:
    """The mean of scores in 0..1 where rows of one cluster hang together, with its cluster-robust t interval, cut at 0 and 1.

    Where no spread is left between clusters, the Wilson interval of as many rows as there are clusters stands in.
    """
    mean, half, groups, _ = _clustered(scores, clusters, alpha)
    if half == 0 or groups == 1:
        low, high = _wilson_limits(mean * groups, groups, alpha)
        return Estimate(value=mean, low=low, high=high, n=len(scores), method=f"Wilson over {groups} clusters (no spread between them)")
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Estimate(value=mean, low=low, high=high, n=len(scores), method=f"cluster-robust t ({groups} clusters)")


def clustered_difference(
    baseline: Sequence[float], challenger: Sequence[float], clusters: Sequence[Hashable], *, alpha: float = ALPHA
) -> tuple[Estimate, float]:
    """Mean of challenger minus mean of baseline over the same rows, where rows of one cluster hang together: (interval, p-value).

    With one cluster nothing is known: the interval is -1..1 and p is 1. The same holds where no spread is left between clusters
    but a difference is; where none is, up to Wilson's bound of the clusters could still differ.
    """
    n = _paired_rows(baseline, challenger)
    mean, half, groups, p_value = _clustered([after - before for before, after in zip(baseline, challenger, strict=True)], clusters, alpha)
    method = f"cluster-robust t on differences ({groups} clusters)"
    if half == 0:
        reach = 1.0 if groups == 1 or mean else without_spread(0.0, groups, lowest=-1.0, alpha=alpha)[1]
        return Estimate(value=mean, low=min(mean, -reach), high=max(mean, reach), n=n, method=f"{method}; no spread between them"), 1.0
    return Estimate(value=mean, low=max(-1.0, mean - half), high=min(1.0, mean + half), n=n, method=method), p_value


def cluster_covariance(scores: NDArray[np.float64], clusters: Sequence[Hashable]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """(means, their cluster-robust covariance, number of clusters) of several arms' scores on the same rows, as an array [arms, rows].

    With one cluster the covariance is not known, and is infinite.
    """
    n = scores.shape[1]
    codes: dict[Hashable, int] = {}
    index = np.asarray([codes.setdefault(cluster, len(codes)) for cluster in clusters])
    means, groups = scores.mean(axis=1), len(codes)
    if groups == 1:
        return means, np.full((len(means), len(means)), np.inf), 1
    sums = np.stack([np.bincount(index, weights=row - mean, minlength=groups) for row, mean in zip(scores, means, strict=True)])
    sums[np.abs(sums).max(axis=1) < 1e-12] = 0.0  # rounding is no spread
    return means, sums @ sums.T * groups / (groups - 1) / n**2, groups


def effective_rows(scores: Sequence[float], clusters: Sequence[Hashable]) -> int:
    """As many rows that stand alone tell as much of the mean of 0/1 scores as these clustered ones (n over Kish's design effect).

    At most the number of rows, at least that of clusters where no spread is left between them.
    """
    means, covariance, groups = cluster_covariance(np.asarray([scores], dtype=float), clusters)
    variance, p = float(covariance[0, 0]), float(means[0])
    if not 0 < variance < math.inf:
        return groups
    return max(1, min(len(scores), round(p * (1 - p) / variance)))


def _clustered(scores: Sequence[float], clusters: Sequence[Hashable], alpha: float) -> tuple[float, float, int, float]:
    """(mean, half width, number of clusters, p-value against a mean of 0)."""
    _paired_rows(scores, clusters)
    means, covariance, groups = cluster_covariance(np.asarray([scores], dtype=float), clusters)
    mean, error = float(means[0]), math.sqrt(float(covariance[0, 0]))
    if groups == 1 or error == 0:
        return mean, 0.0, groups, 1.0
    from scipy.special import stdtr, stdtrit  # noqa: PLC0415

    return mean, float(stdtrit(groups - 1, 1 - alpha / 2)) * error, groups, 2 * float(stdtr(groups - 1, -abs(mean) / error))


def newcombe_paired(both: int, only_baseline: int, only_challenger: int, neither: int, *, alpha: float = ALPHA) -> Estimate:
    """Challenger's share right minus the baseline's, on the same rows (Newcombe's method 10), in -1..1.

    The four counts say which arm was right on how many rows. Unlike Wald's interval it keeps a width when the arms
    agree on every row.
    """
    a, b, c, d = both, only_challenger, only_baseline, neither
    n = a + b + c + d
    if n < 1 or min(a, b, c, d) < 0:
        raise UsageError("a paired difference needs at least one row and no negative counts", fix="check the four counts")
    p, q = (a + b) / n, (a + c) / n
    low_p, high_p = _wilson_limits(a + b, n, alpha)
    low_q, high_q = _wilson_limits(a + c, n, alpha)
    cross = a * d - b * c
    corrected = max(cross - n / 2, 0.0) if cross > 0 else cross
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = corrected / math.sqrt(margins) if margins else 0.0
    below = _square_and_add(p - low_p, high_q - q, phi)
    above = _square_and_add(high_p - p, q - low_q, phi)
    value = (b - c) / n
    return Estimate(value=value, low=max(-1.0, value - below), high=min(1.0, value + above), n=n, method="Newcombe paired (method 10)")


def mcnemar_exact(only_baseline: int, only_challenger: int) -> float:
    """The exact two-sided p-value that two arms are equally often right, from the rows on which just one is."""
    discordant = only_baseline + only_challenger
    if min(only_baseline, only_challenger) < 0:
        raise UsageError("McNemar's test needs counts of at least 0", fix="check the discordant counts")
    if discordant == 0:
        return 1.0
    from scipy.special import bdtr  # noqa: PLC0415

    return min(1.0, 2 * float(bdtr(min(only_baseline, only_challenger), discordant, 0.5)))


def bootstrap_mean_difference(
    baseline: Sequence[float], challenger: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0, alpha: float = ALPHA
) -> Estimate:
    """Mean of challenger minus mean of baseline over the same rows, by a paired bootstrap."""
    n = _paired_rows(baseline, challenger)
    values, counts = np.unique(np.asarray(challenger, dtype=float) - np.asarray(baseline, dtype=float), return_counts=True)
    draws = np.concatenate([(chunk @ values) / n for chunk in _resampled(counts, n, resamples, seed)])
    tells = n if len(values) == 1 else None
    return _percentiles(float(values @ counts) / n, draws, n=n, seed=seed, alpha=alpha, flat=tells, lowest=-1.0)


def macro_f1(expected: Sequence[_T], predicted: Sequence[_T | None]) -> float:
    """Unweighted mean of F1 over the labels that occur in ``expected``.

    A prediction outside these labels (or None: no usable answer) is a miss of the expected label and adds no label of
    its own; otherwise each new kind of rubbish would lower the score once more.
    """
    return _f1(_macro_f1, expected, predicted)


def bootstrap_macro_f1(
    expected: Sequence[_T],
    predicted: Sequence[_T | None],
    clusters: Sequence[Hashable] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    alpha: float = ALPHA,
) -> Estimate:
    """Macro-F1 with a bootstrap interval over rows, or over clusters where rows hang together."""
    return _bootstrap_f1(_macro_f1, expected, predicted, clusters, resamples, seed, alpha)


def micro_f1(expected: Sequence[_T], predicted: Sequence[_T | None]) -> float:
    """F1 over all rows together. It equals the accuracy unless answers carry none of the labels that occur in ``expected``."""
    return _f1(_micro_f1, expected, predicted)


def bootstrap_micro_f1(
    expected: Sequence[_T],
    predicted: Sequence[_T | None],
    clusters: Sequence[Hashable] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    alpha: float = ALPHA,
) -> Estimate:
    """Micro-F1 with a bootstrap interval over rows, or over clusters where rows hang together."""
    return _bootstrap_f1(_micro_f1, expected, predicted, clusters, resamples, seed, alpha)


def kappa(one: Sequence[_T], other: Sequence[_T], *, alpha: float = ALPHA) -> Estimate | None:
    """Cohen's kappa of two raters of the same things, in -1..1: agreement beyond chance. None where chance alone agrees always,
    i.e. where both gave one and the same rating throughout."""
    n = _paired_rows(one, other)
    codes: dict[object, int] = {}
    pairs = [(codes.setdefault(a, len(codes)), codes.setdefault(b, len(codes))) for a, b in zip(one, other, strict=True)]
    counts = np.zeros((len(codes), len(codes)), dtype=np.int64)
    np.add.at(counts, tuple(zip(*pairs, strict=True)), 1)
    by_chance = int(counts.sum(axis=1) @ counts.sum(axis=0))  # of n * n; whole numbers keep 0 and 1 exact
    if by_chance == n * n:
        return None
    value = (n * int(np.trace(counts)) - by_chance) / (n * n - by_chance)
    table, chance = counts / n, by_chance / (n * n)
    rows, columns, agreed = table.sum(axis=1), table.sum(axis=0), np.diag(table)
    on = float(agreed @ (1 - (rows + columns) * (1 - value)) ** 2)
    spread = table * (columns[:, None] + rows[None, :]) ** 2
    off = (1 - value) ** 2 * float(spread.sum() - np.trace(spread))
    variance = (on + off - (value - chance * (1 - value)) ** 2) / ((1 - chance) ** 2 * n)
    half = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(max(0.0, variance))
    return Estimate(value=value, low=max(-1.0, value - half), high=min(1.0, value + half), n=n, method="Cohen's kappa, large sample")


def bootstrap_macro_f1_difference(
    expected: Sequence[_T],
    baseline: Sequence[_T | None],
    challenger: Sequence[_T | None],
    clusters: Sequence[Hashable] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    alpha: float = ALPHA,
) -> tuple[Estimate, float]:
    """Challenger's macro-F1 minus the baseline's on the same rows, by a paired bootstrap over rows or clusters: (interval, p-value).

    The p-value is twice the share of resamples on the other side of 0, the sample itself counted as one of them, so that it never falls
    below 2 / (resamples + 1) (Davison and Hinkley, Bootstrap Methods, 1997, 4.2). Where every resample is alike it is that of a sign test.
    """
    n = _paired_rows(expected, baseline)
    _paired_rows(expected, challenger)
    cells, counts, labels, index = _cells(expected, baseline, challenger)
    before, after = cells[:, [0, 1]], cells[:, [0, 2]]

    def difference(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return _macro_f1(after, weights, labels) - _macro_f1(before, weights, labels)

    weights_of = _resampled_cells(counts, index, clusters, n, resamples, seed, width=labels)
    draws = np.concatenate([difference(chunk) for chunk in weights_of])
    value = float(difference(counts[None, :])[0])
    flat = _telling_rows(expected, clusters) if np.ptp(draws) == 0 else None
    found = _percentiles(value, draws, n=n, seed=seed, alpha=alpha, flat=flat, clusters=clusters, lowest=-1.0)
    if flat is not None:
        return found, min(1.0, 2 * 0.5**flat) if value else 1.0
    beyond = 1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return found, min(1.0, 2 * beyond / (len(draws) + 1))


def paired_t(baseline: Sequence[float], challenger: Sequence[float]) -> float:
    """The two-sided p-value of Student's paired t test that two arms' mean scores are equal; 1 where the differences have no spread."""
    differences = [after - before for before, after in zip(baseline, challenger, strict=True)]
    return _clustered(differences, range(len(differences)), ALPHA)[3]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for testing several hypotheses (Holm 1979), by the names given."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def sample_size(difference: float, discordant: float = ASSUMED_DISCORDANCE, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Rows needed to detect a true difference (a share, e.g. 0.05) between two arms on the same rows.

    Arms cannot differ by more than they disagree, so a discordance below the difference is raised to it.
    """
    if not 0 < difference <= 1 or not 0 <= discordant <= 1:
        raise UsageError(
            f"no sample size exists for a difference of {difference} at a discordance of {discordant}",
            fix="give a difference above 0 and at most 1, and a discordance between 0 and 1",
        )
    disagree = max(discordant, difference)
    # 1e-9 keeps the rounding noise of an exact whole number from adding a row; one row is the least.
    return max(1, math.ceil(_z_sum_squared(alpha, power) * (disagree - difference**2) / difference**2 - 1e-9))


def detectable_difference(n: int, discordant: float = ASSUMED_DISCORDANCE, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true difference (a share) that n rows detect, with two arms on the same rows.

    Takes the variance under "no difference" (n = (z_a + z_b)^2 d / delta^2), which reproduces economics.md section 4.
    ``sample_size`` also has a term delta^2, so its answer is a little lower. Leaving that out is wanted here, because
    the exact McNemar test is conservative: its exact power at the difference returned is 77 to 84 % (30 to 1,000 rows,
    discordance 10 to 30 %); with the term it falls to 71 % (50 rows, 30 %).
    Arms cannot differ by more than they disagree; where the formula says so, d = delta is solved instead. At most 1.0,
    which it is below 8 rows.
    """
    if n < 1 or not 0 <= discordant <= 1:
        raise UsageError(f"no detectable difference exists for {n} rows", fix="give at least one row and a discordance between 0 and 1")
    k = _z_sum_squared(alpha, power)
    delta = math.sqrt(k * discordant / n)
    return min(1.0, delta if delta <= discordant else k / n)


def power_statement(n: int, detectable: float, *, grouped: bool = False) -> str:
    """One plain sentence, e.g. "120 rows can detect about 11 points". ``grouped``: n counts groups of rows that hang together."""
    rows = f"{n:,} {'group' if grouped else 'row'}{'' if n == 1 else 's'}{' of rows' if grouped else ''}"
    if detectable >= 1:  # below 6 rows no outcome of the exact test is significant: 2 / 2**5 > 0.05
        return f"{rows} cannot detect any difference" if n < 6 else f"{rows} can detect nothing short of 100 points"
    points = detectable * 100
    shown = f"{points:.0f}" if points >= 1.5 else f"{points:.1f}"
    return f"{rows} can detect about {shown} {'point' if shown == '1' else 'points'}"


def _z_sum_squared(alpha: float, power: float) -> float:
    return (NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)) ** 2


def _wilson_limits(successes: float, n: int, alpha: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(1 - alpha / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n successes the limit is exactly 0 and 1; floating point misses by 1e-17.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def _square_and_add(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _rows(values: Sequence[object]) -> int:
    if not values:
        raise UsageError("there is no row to take statistics of", fix="give at least one row")
    return len(values)


def _paired_rows(one: Sequence[object], other: Sequence[object]) -> int:
    if len(one) != len(other):
        raise UsageError(f"paired arms have {len(one)} and {len(other)} rows", fix="measure both on the same rows")
    return _rows(one)


def _resampled(counts: NDArray[np.int64], n: int, resamples: int, seed: int, *, width: int = 1) -> Iterator[NDArray[np.int64]]:
    """Row resampling, done on the counts of equal rows: the same distribution, and independent of the rows' order."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // max(len(counts), width))
    for start in range(0, resamples, step):
        yield generator.multinomial(n, counts / n, size=min(step, resamples - start))


def _resampled_cells(
    counts: NDArray[np.int64], index: NDArray[np.int64], clusters: Sequence[Hashable], n: int, resamples: int, seed: int, *, width: int
) -> Iterator[NDArray[np.int64]]:
    """Counts of the cells in each resample: of rows, or of whole clusters. ``index`` is each row's cell."""
    if not clusters:
        yield from _resampled(counts, n, resamples, seed, width=width)
        return
    from scipy.sparse import csr_array  # noqa: PLC0415

    _paired_rows(index.tolist(), clusters)
    codes: dict[Hashable, int] = {}
    group = np.asarray([codes.setdefault(cluster, len(codes)) for cluster in clusters])
    cells_of = csr_array((np.ones(n, dtype=np.int64), (group, index)), shape=(len(codes), len(counts)))  # equal places add up
    for drawn in _resampled(np.ones(len(codes), dtype=np.int64), len(codes), resamples, seed, width=max(width, len(counts))):
        yield np.asarray(drawn @ cells_of, dtype=np.int64)


def _percentiles(
    value: float, draws: NDArray[np.float64], *, n: int, seed: int, alpha: float, flat: int | None, clusters: Sequence[Hashable] = (),
    lowest: float = 0.0,
) -> Estimate:  # fmt: skip
    """``flat``: every resample is alike, and so many rows say so."""
    low, high = (float(q) for q in np.quantile(draws, [alpha / 2, 1 - alpha / 2]))
    over = f" of {len(set(clusters))} clusters" if clusters else ""
    method = f"bootstrap ({len(draws):,} resamples{over}, seed {seed})"
    if flat is not None:
        low, high = without_spread(value, flat, lowest=lowest, alpha=alpha)
        method = f"Wilson on {flat} {'row' if flat == 1 else 'rows'} that tell (no spread in the sample)"
    # Macro-F1 is biased under resampling; the interval is stretched to hold the estimate rather than contradict it.
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, method=method)


def _telling_rows(expected: Sequence[_T], clusters: Sequence[Hashable]) -> int:
    """As many rows tell as much of a mean over even labels: labels times the harmonic mean of their rows, at most the clusters."""
    counts = np.array(list(Counter(expected).values()), dtype=float)
    return max(1, min(round(len(counts) ** 2 / float((1 / counts).sum())), len(set(clusters)) or len(expected)))


def _cells(
    expected: Sequence[_T], *predicted: Sequence[_T | None]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int, NDArray[np.int64]]:
    """Distinct (expected, predicted, ...) code rows, how often each occurs, the number of labels, and each row's place among them.

    Labels are coded in order of first appearance; a prediction outside them has the code ``labels``.
    """
    codes: dict[object, int] = {}
    for label in expected:
        codes.setdefault(label, len(codes))
    outside = len(codes)
    table = [[codes[e], *(codes.get(p, outside) for p in row)] for e, *row in zip(expected, *predicted, strict=True)]
    cells, index, counts = np.unique(np.asarray(table, dtype=np.int64), axis=0, return_inverse=True, return_counts=True)
    return cells, counts.astype(np.int64), outside, index.reshape(-1).astype(np.int64)


def _f1(score: _Score, expected: Sequence[_T], predicted: Sequence[_T | None]) -> float:
    _paired_rows(expected, predicted)
    cells, counts, labels, _ = _cells(expected, predicted)
    return float(score(cells, counts[None, :], labels)[0])


def _bootstrap_f1(
    score: _Score,
    expected: Sequence[_T],
    predicted: Sequence[_T | None],
    clusters: Sequence[Hashable],
    resamples: int,
    seed: int,
    alpha: float,
) -> Estimate:
    n = _paired_rows(expected, predicted)
    cells, counts, labels, index = _cells(expected, predicted)
    weights = _resampled_cells(counts, index, clusters, n, resamples, seed, width=labels)
    draws = np.concatenate([score(cells, chunk, labels) for chunk in weights])
    value = float(score(cells, counts[None, :], labels)[0])
    flat = None if np.ptp(draws) else _telling_rows(expected, clusters) if score is _macro_f1 else len(set(clusters)) or n
    return _percentiles(value, draws, n=n, seed=seed, alpha=alpha, flat=flat, clusters=clusters)


def _macro_f1(cells: NDArray[np.int64], weights: NDArray[np.int64], labels: int) -> NDArray[np.float64]:
    """Macro-F1 of each row of ``weights`` (counts of the cells), over the labels expected in that resample."""
    from scipy.sparse import csr_array  # noqa: PLC0415  dense would be cells x labels: gigabytes with thousands of labels

    true, guess, every = cells[:, 0], cells[:, 1], np.arange(len(cells))
    hit, known = true == guess, guess < labels
    shape = (len(cells), labels)
    is_true = csr_array((np.ones(len(cells)), (every, true)), shape=shape)
    is_guess = csr_array((np.ones(int(known.sum())), (every[known], guess[known])), shape=shape)
    is_hit = csr_array((np.ones(int(hit.sum())), (every[hit], true[hit])), shape=shape)
    counts = weights.astype(np.float64)
    support, guessed, hits = counts @ is_true, counts @ is_guess, counts @ is_hit
    f1 = 2 * hits / np.maximum(support + guessed, 1)
    present = support > 0
    return np.asarray((f1 * present).sum(axis=1) / present.sum(axis=1), dtype=np.float64)


def _micro_f1(cells: NDArray[np.int64], weights: NDArray[np.int64], labels: int) -> NDArray[np.float64]:
    """Micro-F1 of each row of ``weights`` (counts of the cells): precision over the answers that carry a label, recall over all."""
    true, guess = cells[:, 0], cells[:, 1]
    hits, guessed = weights @ (true == guess), weights @ (guess < labels)
    return np.asarray(2 * hits / (weights.sum(axis=1) + guessed), dtype=np.float64)
