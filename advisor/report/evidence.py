"""What was measured, as the report shows it: without the answers, with every warning."""

from __future__ import annotations

from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Measurement
from tuneport.advisor.pricing import mean_seconds
from tuneport.advisor.report.model import ArmResult, Evidence


def evidence_of(intake: Intake, measurement: Measurement | None) -> Evidence | None:
    """The measurement as the report shows it; None when nothing was measured."""
    if measurement is None:
        return None
    warnings = list(measurement.warnings)
    if intake.incumbent.arm and intake.incumbent.arm not in {a.name for a in measurement.arms}:
        warnings.append(f"the decision file names {intake.incumbent.arm!r} as the arm in use, but no such arm was measured")
    if measurement.clusters and not measurement.row_clusters:
        warnings.append(
            "rows hang together, but the measurement does not say which (an earlier version wrote it), so the money takes them as if each "
            "stood alone and its ranges are too narrow; measure again, answers that are kept cost nothing"
        )
    if intake.quality.metric != measurement.primary_metric:
        warnings.append(f"the decision rests on {intake.quality.metric}; the measurement's primary metric is {measurement.primary_metric}")
    silent = [
        f"{a.name}: {n} of {len(a.answers)} rows went unanswered" for a in measurement.arms if (n := sum(bool(x.error) for x in a.answers))
    ]
    warnings += [line for line in silent if not any(line.split(":")[0] in w and "answer" in w for w in measurement.warnings)]
    arms = tuple(
        ArmResult(
            name=a.name, kind=a.kind, provider=a.provider, model=a.model, shots=a.shots, metrics=a.metrics,
            failed=sum(bool(answer.error) for answer in a.answers), prompt_tokens=a.mean_prompt_tokens,
            completion_tokens=a.mean_completion_tokens, seconds=mean_seconds(a), prompt=a.prompt, calls=a.calls, failures=a.failures,
            confusion=a.confusion,
        )
        for a in measurement.arms
    )  # fmt: skip
    other = measurement.general
    return Evidence(
        suite=measurement.suite, suite_sha256=measurement.suite_sha256, rows=len(measurement.arms[0].answers),
        clusters=measurement.clusters, metric=intake.quality.metric,
        bar=intake.quality.bar, arms=arms, comparisons=measurement.comparisons, power=measurement.power, warnings=tuple(warnings),
        looks=measurement.looks, judges=measurement.judges, duels=measurement.duels,
        general_suite=other.suite if other else "",
        general=tuple(c for c in other.comparisons if c.metric == other.primary_metric) if other else (),
    )  # fmt: skip
