"""Builds intakes, measurements and plans for the advisor's tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from scipy.stats import binomtest

from tuneport.advisor.intake import Intake
from tuneport.advisor.measurement import Answer, Arm, Comparison, Measurement, Power
from tuneport.advisor.statistics import newcombe_paired, wilson
from tuneport.core.money import Cost, CostLine, Duration, Range
from tuneport.core.plan import FieldOutcome, Plan, Upload

TODAY = date(2026, 11, 22)


def intake(**changes: Any) -> Intake:
    """A complete intake; ``changes`` replace top-level fields, or parts of them when both are mappings."""
    document: dict[str, Any] = {
        "title": "Tickets",
        "problem": "Records are wrong.",
        "wanted": "Right records.",
        "gap": "behaviour",
        "quality": {"metric": "exact_match", "bar": 0.7, "rejected_answer_usd": [0.3, 0.6]},
        "incumbent": {"provider": "local", "model": "smollm2-135m-instruct", "arm": "few-shot"},
        "volume_per_month": [8000, 12000],
        "tokens": {"static": 2000, "static_tuned": 0, "fresh": 300, "output": 150},
        "cache_hit_share": 0,
        "horizon_months": 24,
        "discount_rate": 0.05,
        "costs": {"data_usd": 500, "labelling_usd": 500, "engineering_usd": [2000, 4000], "evaluation_usd": 500},
        "privacy": {"data_may_leave": True},
        "facts": {"fresh_or_private": False, "change": "yearly"},
        "self_hosting": {"usd_per_hour": 1.0, "requests_per_hour": 2000, "always_on": False},
    }
    for name, value in changes.items():
        old = document.get(name)
        document[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return Intake.model_validate(document)


def arm(name: str, right: Sequence[bool], *, kind: Any = "prompted", provider: str = "local", model: str = "smollm2-135m-instruct") -> Arm:
    """An arm with one right-or-wrong score per row."""
    answers = tuple(
        Answer(row=i, text="{}", scores={"exact_match": float(ok)}, prompt_tokens=500, completion_tokens=40, seconds=0.5)
        for i, ok in enumerate(right)
    )
    return Arm(
        name=name, kind=kind, provider=provider, model=model, metrics={"exact_match": wilson(sum(right), len(right))}, answers=answers
    )


def comparison(before: Arm, after: Arm) -> Comparison:
    """The exact-match comparison of two arms, paired by row."""
    pairs = [(b.scores["exact_match"] == 1, a.scores["exact_match"] == 1) for b, a in zip(before.answers, after.answers, strict=True)]
    both, only_before, only_after, neither = (pairs.count(p) for p in ((True, True), (True, False), (False, True), (False, False)))
    discordant = only_before + only_after
    return Comparison(
        baseline=before.name,
        challenger=after.name,
        metric="exact_match",
        difference=newcombe_paired(both, only_before, only_after, neither),
        only_baseline=only_before,
        only_challenger=only_after,
        p_value=binomtest(only_before, discordant).pvalue if discordant else 1.0,
    )


def measurement(*arms: Arm, warnings: tuple[str, ...] = ()) -> Measurement:
    """A measurement of these arms, with every prompted arm compared to every tuned one."""
    n = len(arms[0].answers)
    pairs = [comparison(a, b) for a in arms for b in arms if a.kind == "prompted" and b.kind == "tuned"]
    return Measurement(
        suite="test.jsonl",
        suite_sha256="0" * 64,
        task="json",
        primary_metric="exact_match",
        arms=arms,
        comparisons=tuple(pairs),
        power=Power(n=n, discordant=0.2, discordant_source="assumed", detectable=0.09, statement=f"{n} rows can detect about 9 points"),
        warnings=warnings,
    )


def share(n: int, right: int) -> list[bool]:
    """``n`` rows of which the first ``right`` are right."""
    return [i < right for i in range(n)]


def clear_gain(n: int = 300) -> Measurement:
    """A prompt at 20 % and a tuned model at 85 %."""
    return measurement(arm("few-shot", share(n, n // 5)), arm("tuned", share(n, n * 85 // 100), kind="tuned", model="job-1"))


def plan(
    provider: str = "local",
    model: str = "smollm2-135m-instruct",
    *,
    usd: tuple[float, float] | None = (1.0, 2.0),
    rows: int = 1200,
    refused: dict[str, str] | None = None,
) -> Plan:
    """A plan with a known training cost; ``usd`` None: unknown."""
    outcomes = [
        FieldOutcome(path="method", outcome="mapped", value="sft"),
        FieldOutcome(path="tuning.kind", outcome="mapped", value="lora"),
        *(FieldOutcome(path=path, outcome="refused", note=why) for path, why in (refused or {}).items()),
    ]
    line = CostLine(item="training", usd=Range(low=usd[0], high=usd[1]) if usd else None, basis="1M tokens x a price")
    return Plan(
        provider=provider,
        model=model,
        vendor_model=model,
        operation="POST /jobs",
        payload={},
        uploads=(Upload(role="train", source="train.jsonl", record="chat", filename="train.jsonl", rows=rows),),
        outcomes=tuple(outcomes),
        cost=Cost(lines=(line,)),
        time=Duration(seconds=None, basis="unknown"),
    )
