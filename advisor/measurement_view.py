"""How a measurement appears in a terminal."""

from __future__ import annotations

from tuneport.advisor.measurement import Arm, Comparison, Duel, Estimate, Judge, Measurement, Spread
from tuneport.core import terminal
from tuneport.core.money import Range
from tuneport.core.terminal import escape

_SHOWN_FAILURES = 4


def show_measurement(result: Measurement) -> None:
    """The table of metrics and calls, comparisons on the primary metric, judges, failures, and what to beware of."""
    console = terminal.console()
    metrics = list(dict.fromkeys(m for arm in result.arms for m in arm.metrics))
    listing = terminal.table(f"{len(result.arms[0].answers)} {result.part} rows", *(escape(arm.name) for arm in result.arms))
    for metric in metrics:
        listing.add_row(escape(metric), *(_share(arm.metrics.get(metric)) for arm in result.arms))
    calls = [arm.calls for arm in result.arms]
    for title, cells in (
        ("p50 / p95 / p99", [_times(c.latency if c else None) for c in calls]),
        ("first token", [_times(c.first_token if c else None) for c in calls]),
        ("tokens per call", [_count(c.tokens_per_call if c else None) for c in calls]),
        ("tokens per accepted", [_count(c.tokens_per_accepted if c else None) for c in calls]),
        ("USD per call", [_usd(c.usd_per_call if c else None) for c in calls]),
        ("USD per accepted", [_usd(c.usd_per_accepted if c else None) for c in calls]),
    ):
        if any(cell != "–" for cell in cells):
            listing.add_row(title, *cells)
    console.print(listing)
    lines = [_compared(c) for c in result.comparisons if c.metric == result.primary_metric]
    lines += [*map(_duel, result.duels), *(_agreement(judge) for judge in result.judges if judge.agreement is not None)]
    if result.general is not None:
        general = next((c for c in result.general.comparisons if c.metric == result.general.primary_metric), None)
        lines += [f"general suite, {_compared(general)} on {general.difference.n} rows"] if general else []
    lines += [_failures(arm) for arm in result.arms if arm.failures]
    for line in lines:
        console.print(line, highlight=False)
    told = f"; these test rows were looked at {len(result.looks)} times" if len(result.looks) > 1 else ""
    console.print(f"[dim]{escape(result.power.statement)}{told}[/]", highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)


def _share(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:.0%} [dim]{found.low:.0%}–{found.high:.0%}[/]"


def _compared(c: Comparison) -> str:
    d = c.difference
    p = f", p = {c.p_value:.2g}" if c.p_value is not None else ""
    corrected = f" ({c.p_holm:.2g} after Holm)" if c.p_holm is not None and c.p_holm != c.p_value else ""
    worse = f", worse by at most {100 * (c.margin or 0):.3g} points: {'shown' if c.non_inferior else 'not shown'}"
    worse = "" if c.non_inferior is None else worse
    points = f"{d.value * 100:+.1f} points ({d.low * 100:+.1f} to {d.high * 100:+.1f})"
    return f"{escape(c.challenger)} – {escape(c.baseline)}: {points}{p}{corrected}{worse}"


def _duel(duel: Duel) -> str:
    rate = "no verdict" if duel.win_rate is None else f"wins {duel.win_rate.value:.0%} ({duel.win_rate.low:.0%}–{duel.win_rate.high:.0%})"
    counts = f"{duel.wins} to {duel.losses}, {duel.ties} ties ({duel.swayed} by order alone), {duel.unreadable} unreadable"
    return f"{escape(duel.challenger)} – {escape(duel.baseline)} ({escape(duel.rubric)}): {rate}, {counts}"


def _agreement(judge: Judge) -> str:
    found = judge.agreement
    told = "" if found is None else f"kappa {found.value:.2f} ({found.low:.2f}–{found.high:.2f})"
    return f"judge and people ({escape(judge.rubric)}): {told}, {judge.agreement_rows} answers"


def _failures(arm: Arm) -> str:
    kinds = "; ".join(f"{escape(group.kind)} ({group.count})" for group in arm.failures[:_SHOWN_FAILURES])
    return f"[dim]{escape(arm.name)} fails by: {kinds}{'; ...' if len(arm.failures) > _SHOWN_FAILURES else ''}[/]"


def _times(spread: Spread | None) -> str:
    return "–" if spread is None else f"{spread.p50:.2f} / {spread.p95:.2f} / {spread.p99:.2f} s"


def _count(tokens: float | None) -> str:
    return "–" if tokens is None else f"{tokens:,.0f}"


def _usd(amount: Range | None) -> str:
    if amount is None:
        return "–"
    return f"{amount.low:.3g}" if amount.low == amount.high else f"{amount.low:.3g}–{amount.high:.3g}"
