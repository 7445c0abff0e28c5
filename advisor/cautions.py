"""What to beware of in a measurement, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tuneport.advisor.labels import expected_labels
from tuneport.advisor.measurement import Arm, Comparison, Judge, Look, Power
from tuneport.advisor.metrics import MISSING, Scorer, parse_json, unfence
from tuneport.advisor.statistics import ALPHA, sample_size
from tuneport.advisor.suite import EvalSuite

WORTHWHILE = 0.05
"""A difference worth detecting, as a share: the "5 points" of the sample-size table in economics.md section 4."""
COARSE = 0.10
"""A suite that detects no less than this gets a warning with the rows it would need for ``WORTHWHILE``."""
FEW_PER_LABEL = 5
LOOKS = 6
"""More arms than this on one test set are warned of: with 6 equal arms the best one's expected lead is 1.27 standard errors."""


def about_power(power: Power, deciding: Comparison | None) -> Iterator[str]:
    """A coarse suite is no fault where it was enough: where the deciding comparison came out significant."""
    settled = deciding is not None and deciding.p_value is not None and deciding.p_value <= ALPHA
    if power.detectable > COARSE and not settled:
        needed = sample_size(WORTHWHILE, power.discordant)
        how = f"{power.discordant:.0%} of the rows, {'as assumed' if power.discordant_source == 'assumed' else 'as measured here'}"
        says = f"to detect {WORTHWHILE * 100:.0f} points it needs about {needed:,} rows where arms disagree on {how}"
        yield f"The suite is small: {power.statement}; {says}."


def about_suite(suite: EvalSuite) -> Iterator[str]:
    n, scorer = len(suite), suite.scorer
    if suite.uniform:
        yield "All expected answers are the same, so a constant answer would score full marks and the measurement says nothing."
    elif scorer.has_labels:
        labels = expected_labels(suite)
        rare = [label for label in set(labels) if labels.count(label) < FEW_PER_LABEL]
        if len(set(labels)) == 1:
            yield "All rows have the same label, so macro-F1 says nothing."
        elif rare:
            yield f"{len(rare)} of {len(set(labels))} labels have fewer than {FEW_PER_LABEL} rows; macro-F1 is unsure there."
    if suite.contaminated:
        known = len(suite.contaminated)
        yield f"{known} of {n} test rows have a prompt that is also in the training rows; a tuned model may have memorised them."
    if suite.repeated:
        yield f"{suite.repeated} of {n} test rows repeat the prompt of an earlier one; rows with one prompt count as one cluster."
    if scorer.schema is not None and scorer.task == "json":
        invalid = sum(not scorer.schema_valid(parse_json(item.expected)) for item in suite.items)
        if invalid:
            yield f"{invalid} of {n} expected answers break the JSON Schema; correct the schema or the rows."


def about_looks(looks: Sequence[Look]) -> Iterator[str]:
    """A test set that was looked at again and again is no longer a test set: what is chosen on it looks better than it is."""
    seen = len({(look.arm, look.provider, look.model) for look in looks})
    if seen > LOOKS:
        yield (
            f"The test set was looked at with {seen} arms; the best of them looks better than it is. Choose prompts and models on"
            " validation rows (--part validation), and look at the test rows once."
        )


def about_judges(judges: Sequence[Judge]) -> Iterator[str]:
    """Judges that are not fit for use, and those whose agreement with people is unknown or poor."""
    for judge in judges:
        if judge.note:
            yield f"Judge {judge.model} ({judge.rubric}): {judge.note}."


def about_arm(suite: EvalSuite, arm: Arm) -> Iterator[str]:
    n = len(arm.answers)
    failed = [answer for answer in arm.answers if answer.error]
    if failed:
        yield f"{len(failed)} of {n} rows of arm {arm.name} have no answer and count as wrong; the first reason: {failed[0].error[:200]}"
    cut = sum((answer.completion_tokens or 0) >= suite.max_tokens for answer in arm.answers)
    if cut:
        yield f"{cut} of {n} answers of arm {arm.name} reached the limit of {suite.max_tokens} tokens and may be cut short."
    if suite.scorer.task == "json":
        wrapped = sum(_only_wrapped(suite.scorer, answer.text) for answer in arm.answers)
        if wrapped:
            yield (
                f"{wrapped} of {n} answers of arm {arm.name} hold JSON inside a code fence and count as wrong;"
                " stripping the fence is cheaper than tuning."
            )


def _only_wrapped(scorer: Scorer, text: str) -> bool:
    if scorer.read(text) is not MISSING:
        return False
    inner = unfence(text)
    return inner is not None and parse_json(inner) is not MISSING


def about_several(primary: Sequence[Comparison]) -> Iterator[str]:
    """Pairs that are significant alone but not after Holm's correction for the number of pairs."""
    tested = [c for c in primary if c.p_value is not None]
    for c in tested:
        if c.p_value is not None and c.p_holm is not None and c.p_value <= ALPHA < c.p_holm:
            yield (
                f"{c.challenger} against {c.baseline}: p = {c.p_value:.3f} alone, but {c.p_holm:.3f} after Holm's correction for"
                f" {len(tested)} comparisons; do not rest a decision on it."
            )
