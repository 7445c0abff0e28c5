"""Whether a tuned model may pass, for continuous integration (``tuneport evaluate --gate``)."""

from __future__ import annotations

from tuneport.advisor.measurement import Arm, Comparison, Measurement
from tuneport.core.errors import GateError, UsageError

GENERAL_LOSS = 0.05
"""A larger loss on a general suite is never accepted (field-guide section 7, S4)."""
WORTH_A_LOSS = 0.10
"""A smaller loss is accepted when the gain on the task is at least this (S4)."""


def rival(measurement: Measurement, against: str | None = None) -> Arm:
    """The arm that the tuned one is held against: the one named, else the best prompted one. Raises UsageError without one."""
    names = ", ".join(arm.name for arm in measurement.arms)
    if against is not None:
        found = next((arm for arm in measurement.arms if arm.name == against), None)
        if found is None:
            raise UsageError(f"there is no arm {against!r} in the measurement", fix=f"choose one of: {names}")
        return found
    prompted = [arm for arm in measurement.arms if arm.kind == "prompted" and measurement.primary_metric in arm.metrics]
    if not prompted:
        raise UsageError("nothing stands beside the tuned model", fix="measure a prompted arm first: tuneport baseline")
    return max(prompted, key=lambda arm: arm.metrics[measurement.primary_metric].value)


def hold(measurement: Measurement, tuned: str, against: str | None = None) -> Comparison:
    """The comparison that lets the tuned arm pass. Raises GateError with every reason that shuts the gate, UsageError without a rival.

    The gate is open when the tuned arm is shown to be no worse than its rival by more than the margin (the 95 % interval of the difference
    lies above it), and the general suite, where this model was measured on it, shows no loss beyond what S4 accepts. A suite too small to
    show either way keeps it shut: no evidence is not good evidence.
    """
    other = rival(measurement, against)
    deciding = _pair(measurement, other.name, tuned)
    difference, margin = deciding.difference, deciding.margin or 0.0
    reasons = []
    if difference.low <= -margin:
        said = f"{difference.value * 100:+.1f} points ({difference.low * 100:+.1f} to {difference.high * 100:+.1f})"
        if difference.high < 0:
            why = f"is worse than {other.name}: {said}"
        else:
            why = f"is not shown to be within {margin * 100:g} points of {other.name}: {said} on {difference.n} rows"
        reasons.append(f"{tuned} {why} in {deciding.metric}")
    reasons += _general(measurement.elsewhere(measurement.arm(tuned)), gain=difference.value)
    if reasons:
        raise GateError("; ".join(reasons), fix="look at the failures (--html), or measure more rows; the measurement is written")
    return deciding


def _pair(measurement: Measurement, baseline: str, challenger: str) -> Comparison:
    for c in measurement.comparisons:
        if c.metric == measurement.primary_metric and {c.baseline, c.challenger} == {baseline, challenger}:
            if c.challenger == challenger:
                return c
            d = c.difference
            turned = d.model_copy(update={"value": -d.value, "low": -d.high, "high": -d.low})
            return c.model_copy(update={"baseline": baseline, "challenger": challenger, "difference": turned})
    raise UsageError(f"{challenger!r} and {baseline!r} are not compared in this measurement", fix="choose two different arms of it")


def _general(lost: Comparison | None, *, gain: float) -> list[str]:
    if lost is None or lost.difference.high >= 0:  # no loss is shown
        return []
    loss = -lost.difference.value
    if loss <= GENERAL_LOSS and gain >= WORTH_A_LOSS:
        return []
    return [f"the general suite shows a loss of {loss * 100:.1f} points ({lost.difference.n} rows)"]
