"""The decision: what it may never say, and what it says in each plain case."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneport.advisor.advise import advise
from tuneport.advisor.intake import Intake, load_intake
from tuneport.advisor.measurement import Measurement
from tuneport.advisor.report.model import Report
from tuneport.advisor.rules import load_rules
from tuneport.core.errors import SpecError
from tuneport.tests.advice_cases import TODAY, arm, clear_gain, intake, measurement, plan, share


def decided(asked: Intake, measured: Measurement | None, *plans: Any, today: date = TODAY) -> Report:
    return advise(asked, measured, plans or (plan(),), today=today)


def fired(report: Report) -> set[str]:
    return {line.rule for line in report.decision.trace if line.fired}


def test_a_clear_gain_at_an_open_offer_is_fine_tuned() -> None:
    report = decided(intake(), clear_gain())
    decision = report.decision
    assert decision.verdict == "fine_tune"
    assert decision.confidence == "high"
    assert decision.offer == report.savings.offer == "local · smollm2-135m-instruct · sft lora · local"
    assert {"gain-shown", "tuned-meets-bar", "saves-money"} <= fired(report)
    assert "65 points" in decision.sentence
    assert decision.kill_criteria
    assert decision.next_steps


def test_nothing_measured_means_measure_first() -> None:
    report = decided(intake(), None)
    assert report.decision.verdict == "measure"
    assert report.evidence is None


def test_without_a_tuned_arm_only_a_pilot_can_be_recommended() -> None:
    report = decided(intake(), measurement(arm("few-shot", share(300, 60))), plan("openai", "gpt-4.1-mini"), plan())
    assert report.decision.verdict == "pilot"
    assert report.decision.offer is not None
    assert report.decision.offer.startswith("local")  # the other base model ends before a pilot could pay


def test_a_baseline_that_meets_the_bar_stops_everything() -> None:
    both = measurement(arm("few-shot", share(300, 240)), arm("tuned", share(300, 299), kind="tuned"))
    report = decided(intake(), both)
    assert report.decision.verdict == "do_nothing"
    assert "gain-shown" in fired(report)  # even so
    assert any("bar above 80 %" in change for change in report.decision.would_change)


def test_a_better_prompt_that_meets_the_bar_is_the_answer() -> None:
    arms = measurement(arm("zero-shot", share(300, 30)), arm("few-shot", share(300, 240)))
    report = decided(intake(incumbent={"arm": "zero-shot"}), arms)
    assert report.decision.verdict == "better_prompt"
    assert "few-shot" in report.decision.sentence


def test_a_gain_whose_interval_includes_zero_is_no_gain() -> None:
    before = share(100, 50)
    after = [*before[:45], *([False] * 5), *([True] * 8), *before[58:]]
    report = decided(intake(quality={"bar": 0.52}), measurement(arm("few-shot", before), arm("tuned", after, kind="tuned")))
    assert report.decision.verdict == "better_prompt"
    assert "gain-not-shown" in fired(report)


def test_a_tuned_model_below_the_bar_is_not_shipped() -> None:
    both = measurement(arm("few-shot", share(300, 30)), arm("tuned", share(300, 150), kind="tuned"))
    assert decided(intake(), both).decision.verdict == "pilot"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"gap": "knowledge", "facts": {"fresh_or_private": True}}, "retrieval"),
        ({"gap": "both", "facts": {"fresh_or_private": True, "change": "weekly"}}, "retrieval"),
        ({"facts": {"change": "monthly"}}, "better_prompt"),
    ],
)
def test_facts_that_move_are_not_learnt(changes: dict[str, Any], verdict: str) -> None:
    assert decided(intake(**changes), clear_gain()).decision.verdict == verdict


def test_knowledge_and_behaviour_together_want_retrieval_beside_tuning() -> None:
    report = decided(intake(gap="both", facts={"fresh_or_private": True}), clear_gain())
    assert report.decision.verdict == "fine_tune"
    assert "retrieval" in report.decision.sentence


def test_too_few_rows_without_a_tuned_arm_means_work_on_the_prompt() -> None:
    report = decided(intake(), measurement(arm("few-shot", share(300, 60))), plan(rows=150))
    assert report.decision.verdict == "better_prompt"


def test_a_model_that_was_never_compared_with_todays_is_not_recommended() -> None:
    asked = intake(incumbent={"provider": "openai", "model": "gpt-4.1-mini", "arm": None})
    report = decided(asked, clear_gain())
    assert report.decision.verdict == "measure"
    assert "gpt-4.1-mini" in report.decision.sentence
    assert "incumbent-ends" in fired(report)  # 2027-01-14
    assert any("2027-01-14" in step for step in report.decision.next_steps)


def test_privacy_closes_every_vendor() -> None:
    report = decided(intake(privacy={"data_may_leave": False}), clear_gain(), plan("together", "qwen3-8b"), plan())
    by_provider = {o.provider: o for o in report.offers}
    assert by_provider["together"].status == "closed"
    assert "may not leave" in by_provider["together"].reasons[0]
    assert report.decision.verdict == "fine_tune"
    alone = decided(
        intake(privacy={"data_may_leave": False}), measurement(arm("few-shot", share(300, 60))), plan("together", "qwen3-8b")
    )
    assert alone.decision.verdict == "do_nothing"


def test_when_quality_is_priced_a_gain_that_costs_more_is_declined() -> None:
    dear = intake(quality={"rejected_answer_usd": 0.0001}, costs={"engineering_usd": 50_000})
    report = decided(dear, clear_gain())
    assert report.decision.verdict == "do_nothing"
    assert report.savings.economics is not None
    assert report.savings.economics.p_saves < 0.5


def test_a_gain_without_a_priced_place_to_run_it_needs_an_offer_first() -> None:
    report = decided(intake(), clear_gain(), plan(usd=None))
    offer = report.offers[0]
    assert offer.status == "unpriced"
    assert offer.training_usd is None
    assert offer.economics is None
    assert report.decision.verdict == "find_offer"


def test_a_closed_model_carries_its_reason_and_is_never_chosen() -> None:
    report = decided(intake(), clear_gain(), plan("openai", "gpt-4.1-nano"), plan())
    closed = next(o for o in report.offers if o.provider == "openai")
    assert closed.status == "closed"
    assert any("2026-10-23" in reason for reason in closed.reasons)
    assert closed.economics is None


def test_an_ending_model_is_capped_at_its_remaining_life() -> None:
    report = decided(intake(), clear_gain(), plan("openai", "gpt-4.1-mini"), plan())
    ending = next(o for o in report.offers if o.provider == "openai")
    assert ending.economics is not None
    assert ending.economics.months == pytest.approx(53 * 12 / 365.25)
    assert ending.economics.p_pays_back < 0.5
    assert any("53 days" in reason for reason in ending.reasons)
    assert any("does not pay back" in reason for reason in ending.reasons)


def test_a_refused_plan_is_a_closed_offer() -> None:
    report = decided(intake(), clear_gain(), plan(refused={"training.packing": "not offered"}))
    assert report.offers[0].status == "closed"
    assert "training.packing: not offered" in report.offers[0].reasons[0]


def test_a_dedicated_endpoint_is_paid_by_the_hour() -> None:
    report = decided(intake(), clear_gain(), plan("fireworks", "qwen3-8b"))
    offer = report.offers[0]
    assert offer.serving == "dedicated"
    assert offer.quality == "not measured"
    assert offer.economics is not None
    assert offer.economics.quality_assumed
    assert offer.economics.fixed_per_month.p50 == pytest.approx(5840, rel=0.15)  # 730 h at 8 USD, one H100


def test_every_rule_is_in_the_trace_with_a_source() -> None:
    report = decided(intake(), clear_gain())
    book = load_rules()
    assert [line.rule for line in report.decision.trace] == [rule.id for rule in book.rules]
    assert all(line.sources for line in (*report.decision.trace, *report.decision.doubts))
    known = {rule.id for rule in book.rules}
    assert all(set(row.all) | set(row.none) <= known for row in book.verdicts)
    assert "{" not in " ".join(line.evidence for line in report.decision.trace)


@settings(max_examples=25)
@given(
    n=st.integers(5, 120),
    data=st.data(),
    bar=st.floats(0.05, 1.0),
    gap=st.sampled_from(["behaviour", "unknown"]),
    rejected=st.sampled_from([None, 0.0, 0.5]),
    dear=st.booleans(),
)
def test_fine_tune_needs_a_shown_gain_and_a_prompt_below_the_bar_or_the_same_quality_for_less(
    n: int, data: st.DataObject, bar: float, gap: str, rejected: float | None, dear: bool
) -> None:
    rows = st.lists(st.booleans(), min_size=n, max_size=n)
    measured = measurement(arm("few-shot", data.draw(rows)), arm("tuned", data.draw(rows), kind="tuned"))
    symptoms = ["too_dear"] if dear else []
    report = decided(intake(gap=gap, symptoms=symptoms, quality={"bar": bar, "rejected_answer_usd": rejected}), measured)
    difference, before, after = measured.comparisons[0].difference, *(a.metrics["exact_match"].value for a in measured.arms)
    if report.decision.verdict == "fine_tune":
        money = report.savings.economics
        assert before < bar <= after or (dear and before >= bar and money is not None and money.p_saves >= 0.9)
        assert difference.low > (0 if before < bar else -0.02)
        assert after >= bar
        assert report.decision.offer is not None
    elif before >= bar:
        assert report.decision.verdict in ("do_nothing", "better_prompt") if n >= 30 else report.decision.verdict == "measure"


# -- the decision file -------------------------------------------------------------------------------------------------


def test_the_example_decision_file_is_valid() -> None:
    example = Path(__file__).parents[1] / "examples" / "tickets" / "decision.yaml"
    assert load_intake(example).incumbent.provider == "local"


def test_every_fault_of_a_decision_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "decision.yaml"
    path.write_text(
        "title: x\nproblem: p\nwanted: w\nquality: {metric: exact_match, barr: 0.9}\nvolume_per_month: [20, 10]\n"
        "cache_hit_share: 1.4\nhorizon_months: 0\n"
    )
    with pytest.raises(SpecError) as caught:
        load_intake(path)
    told = {fault.path.split(" ")[0] for fault in caught.value.faults}
    assert {"quality.bar", "quality.barr", "volume_per_month", "cache_hit_share", "horizon_months", "incumbent", "tokens"} <= told
    assert "did you mean `bar`" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"seasonality": [1, 2, 3]},
        {"seasonality": [0] * 12},
        {"volume_growth_per_year": -1},
        {"open_hours_per_month": 800},
        {"symptoms": ["sad"]},
        {"volume_per_month": 0},
        {"volume_per_month": True},
        {"cache_hit_share": [0.2, 1.2]},
        {"costs": {"data_usd": -1}},
        {"volume_per_month": [1, 2, 3]},
        {"volume_per_month": float("inf")},
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        intake(**changes)


@pytest.mark.parametrize("value", [12, [12, 12], {"low": 12, "high": 12}])
def test_an_amount_may_be_written_in_three_ways(value: Any) -> None:
    amount = intake(volume_per_month=value).volume_per_month
    assert (amount.low, amount.high) == (12, 12)


def test_an_arm_in_use_that_was_not_measured_is_said() -> None:
    report = decided(intake(incumbent={"arm": "five-shot"}), clear_gain())
    assert report.evidence is not None
    assert any("five-shot" in warning for warning in report.evidence.warnings)


def test_a_metric_that_was_not_measured_is_said() -> None:
    report = decided(intake(quality={"metric": "schema_valid"}), clear_gain())
    assert report.decision.verdict == "measure"
    assert "metric-missing" in fired(report)
