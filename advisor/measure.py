"""Compares arms on the same rows, and says what a suite can detect.

suite = load_suite(spec)
arms = [run_arm(provider, model, suite, name="zero-shot"), run_arm(provider, model, suite, name="few-shot (6)", shots=6)]
measurement = measure(suite, arms)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from tuneport.advisor.arm import MACRO_F1, binary
from tuneport.advisor.cautions import about_arm, about_judges, about_looks, about_power, about_several, about_suite
from tuneport.advisor.labels import asked_labels
from tuneport.advisor.measurement import Arm, Comparison, Duel, Judge, Look, Measurement, Power
from tuneport.advisor.statistics import (
    ASSUMED_DISCORDANCE,
    bootstrap_macro_f1_difference,
    bootstrap_mean_difference,
    clustered_difference,
    detectable_difference,
    holm,
    mcnemar_exact,
    newcombe_paired,
    paired_t,
    power_statement,
)
from tuneport.advisor.suite import EvalSuite
from tuneport.core.errors import UsageError

MARGIN = 0.02
"""The loss on the primary metric that counts as none, unless the caller says otherwise: 2 points. Our judgement."""


def compare(baseline: Arm, challenger: Arm, metric: str, suite: EvalSuite | None = None, *, margin: float | None = None) -> Comparison:
    """Two arms on the same rows, as far as both have the metric there. Macro-F1 and clustered rows need the suite.

    Where rows hang together the interval and the test are cluster-robust. Else, where all scores are 0 or 1, the interval is
    Newcombe's for paired proportions and the test McNemar's exact one; otherwise (graded scores, means over repeats) they are a paired
    bootstrap and Student's paired t. With a ``margin`` the comparison says
    whether the challenger is no worse than that (the whole interval lies above -margin).
    Raises UsageError when the arms do not fit each other or lack the metric, and for a margin outside 0 to 1.
    """
    if len(baseline.answers) != len(challenger.answers):
        raise UsageError(
            f"arms {baseline.name!r} and {challenger.name!r} have {len(baseline.answers)} and {len(challenger.answers)} rows",
            fix="run both on the same suite",
        )
    for arm in (baseline, challenger):
        if metric not in arm.metrics:
            raise UsageError(f"arm {arm.name!r} has no metric {metric!r}", fix=f"choose one of: {', '.join(arm.metrics)}")
    if margin is not None and not 0 <= margin <= 1:
        raise UsageError(f"{margin} is no loss that could count as none", fix="give a share from 0 to 1, e.g. 0.02")
    found = _compared(baseline, challenger, metric, suite)
    if margin is None:
        return found
    return found.model_copy(update={"margin": margin, "non_inferior": found.difference.low > -margin})


def _compared(baseline: Arm, challenger: Arm, metric: str, suite: EvalSuite | None) -> Comparison:
    names = {"baseline": baseline.name, "challenger": challenger.name, "metric": metric}
    if metric == MACRO_F1:
        if suite is None:
            raise UsageError("comparing macro-F1 needs the suite", fix="pass the suite that the arms ran on")
        times = math.lcm(*(1 + len(arm.answers[0].others) for arm in (baseline, challenger)))
        expected, before, clusters = asked_labels(suite, baseline.answers, times)
        interval, p_value = bootstrap_macro_f1_difference(expected, before, asked_labels(suite, challenger.answers, times)[1], clusters)
        interval = interval.model_copy(update={"n": len(baseline.answers)})
        return Comparison(**names, difference=interval, p_value=p_value, test="bootstrap")
    rows = _common_rows(baseline, challenger, metric)
    if not rows:
        raise UsageError(f"{metric!r} is no mean over rows, so two arms are not compared on it", fix="compare on a metric per row")
    one, other = ([arm.answers[row].scores[metric] for row in rows] for arm in (baseline, challenger))
    together = [suite.clusters[row] for row in rows] if suite is not None and suite.clusters else []
    if len(set(together)) < len(together):
        difference, p_value = clustered_difference(one, other, together)
        return Comparison(**names, difference=difference, p_value=p_value, test="cluster-robust t")
    if not binary([*one, *other]):
        return Comparison(**names, difference=bootstrap_mean_difference(one, other), p_value=paired_t(one, other), test="paired t")
    pairs = list(zip(one, other, strict=True))
    only_one, only_other = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    return Comparison(
        **names,
        difference=newcombe_paired(pairs.count((1.0, 1.0)), only_one, only_other, pairs.count((0.0, 0.0))),
        only_baseline=only_one,
        only_challenger=only_other,
        p_value=mcnemar_exact(only_one, only_other),
        test="exact McNemar",
    )


def measure(
    suite: EvalSuite,
    arms: Sequence[Arm],
    *,
    margin: float = MARGIN,
    looks: Sequence[Look] = (),
    judges: Sequence[Judge] = (),
    duels: Sequence[Duel] = (),
    general: Measurement | None = None,
    notes: Sequence[str] = (),
) -> Measurement:
    """All arms on one suite: every pair compared on every metric, what the suite can detect, and what to beware of.

    In a pair the baseline is the prompted arm, or the earlier of two arms of one kind. ``margin`` is the loss on the primary metric that
    counts as none, ``notes`` are further warnings. Raises UsageError when two arms share a name or an arm has not answered
    the suite's rows.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise UsageError(f"two arms share a name ({', '.join(names)})", fix="give each arm its own name")
    for arm in arms:
        if [answer.row for answer in arm.answers] != list(range(len(suite))):
            raise UsageError(f"arm {arm.name!r} has {len(arm.answers)} answers for {len(suite)} rows", fix="run it on this suite")
    ordered = sorted(arms, key=lambda arm: arm.kind == "tuned")
    first = suite.scorer.primary
    comparisons = _corrected(
        [
            compare(one, other, metric, suite, margin=margin if metric == first else None)
            for one, other in combinations(ordered, 2)
            for metric in one.metrics
            if metric in other.metrics and (metric == MACRO_F1 or _common_rows(one, other, metric))
        ],
        first,
    )
    primary = [comparison for comparison in comparisons if comparison.metric == first]
    deciding = _deciding(arms, primary)
    groups = len(set(suite.clusters)) or len(suite)
    power = power_of(groups, deciding, grouped=bool(suite.clusters))
    return Measurement(
        suite=suite.source,
        suite_sha256=suite.sha256,
        task=suite.scorer.task,
        primary_metric=first,
        arms=tuple(arms),
        comparisons=comparisons,
        power=power,
        part=suite.part,
        clusters=groups if suite.clusters else None,
        row_clusters=suite.clusters,
        uniform=suite.uniform,
        looks=tuple(looks),
        judges=tuple(judges),
        duels=tuple(duels),
        general=general,
        warnings=(
            *notes,
            *about_power(power, deciding),
            *about_suite(suite),
            *about_looks(looks),
            *about_judges(judges),
            *(warning for arm in arms for warning in about_arm(suite, arm)),
            *about_several(primary),
        ),
    )


def _common_rows(one: Arm, other: Arm, metric: str) -> list[int]:
    """Rows on which both arms have the metric; none for a metric that is no mean over rows."""
    return [a.row for a, b in zip(one.answers, other.answers, strict=True) if metric in a.scores and metric in b.scores]


def _corrected(comparisons: Sequence[Comparison], primary: str) -> tuple[Comparison, ...]:
    """The comparisons, those on the primary metric with Holm's correction for their number."""
    tested = {str(i): c.p_value for i, c in enumerate(comparisons) if c.metric == primary and c.p_value is not None}
    adjusted = holm(tested)
    return tuple(c.model_copy(update={"p_holm": adjusted[str(i)]}) if str(i) in adjusted else c for i, c in enumerate(comparisons))


def power_of(n: int, comparison: Comparison | None = None, *, grouped: bool = False) -> Power:
    """What n rows detect, at the discordance of a comparison of two arms, or at an assumed one before there is any.

    ``grouped``: n counts groups of rows that hang together.
    """
    discordant: float | None = None
    if comparison is not None and comparison.only_baseline is not None and comparison.only_challenger is not None:
        # Two arms that never disagree tell nothing of what other arms would do.
        discordant = (comparison.only_baseline + comparison.only_challenger) / n or None
    share = ASSUMED_DISCORDANCE if discordant is None else discordant
    detectable = detectable_difference(n, share)
    return Power(
        n=n,
        discordant=share,
        discordant_source="assumed" if discordant is None else "measured",
        detectable=detectable,
        statement=power_statement(n, detectable, grouped=grouped),
    )


def _deciding(arms: Sequence[Arm], primary: Sequence[Comparison]) -> Comparison | None:
    """The comparison of the best prompted with the best tuned arm; of the first two arms when one kind is absent."""

    def best(kind: str) -> str | None:
        metric = primary[0].metric
        scores = {arm.name: arm.metrics[metric].value for arm in arms if arm.kind == kind and metric in arm.metrics}
        return max(scores, key=lambda name: scores[name], default=None)

    if not primary:
        return None
    pair = (best("prompted"), best("tuned"))
    return next((c for c in primary if (c.baseline, c.challenger) == pair), primary[0])
