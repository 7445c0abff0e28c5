"""What stands beside the verdict: diagnosis, constraints, routing, migration, priors and the pilot, method, learning curve."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneport.advisor import advice
from tuneport.advisor.advise import advise
from tuneport.advisor.decide import VERDICT_WORDS
from tuneport.advisor.diagnosis import diagnose
from tuneport.advisor.intake import Symptom
from tuneport.advisor.measurement import Arm, Measurement
from tuneport.advisor.prior import load_priors, prior_for
from tuneport.advisor.report.model import Report
from tuneport.advisor.report.render import render_markdown
from tuneport.advisor.report.whatif import WhatIf
from tuneport.advisor.rules import load_rules
from tuneport.advisor.statistics import wilson
from tuneport.tests.advice_cases import TODAY, arm, clear_gain, intake, measurement, plan, share

OPENAI = {"provider": "openai", "model": "gpt-4.1-mini", "arm": "few-shot"}


def at_openai(n: int, right: int, name: str = "few-shot", model: str = "gpt-4.1-mini") -> Arm:
    return arm(name, share(n, right), provider="openai", model=model)


def advised(asked: Any, measured: Measurement | None, *plans: Any) -> Report:
    return advise(asked, measured, plans or (plan(),), today=TODAY)


# -- diagnosis -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "gap"),
    [
        ({"gap": "unknown", "symptoms": ["wrong_format", "wrong_labels"]}, "behaviour"),
        ({"gap": "unknown", "symptoms": ["stale_facts"]}, "knowledge"),
        ({"gap": "unknown", "symptoms": ["invented_facts", "wrong_style"]}, "both"),
        ({"gap": "unknown", "symptoms": ["too_dear"]}, "unknown"),
        ({"gap": "unknown", "facts": {"fresh_or_private": True}}, "knowledge"),
        ({"gap": "unknown", "needs": {"format": "strict"}}, "behaviour"),
    ],
)
def test_symptoms_are_diagnosed_with_their_sources(changes: dict[str, Any], gap: str) -> None:
    found = diagnose(intake(**changes))
    assert found.gap == gap
    assert all(sign.sources for sign in found.signs)
    assert not found.contradictions


def test_every_symptom_of_the_questionnaire_has_a_row() -> None:
    assert set(load_rules().symptoms) == set(Symptom.__args__)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gap": "behaviour", "facts": {"fresh_or_private": True}}, "stated as behaviour, yet: answers need fresh"),
        ({"gap": "behaviour", "symptoms": ["stale_facts"]}, "out of date"),
        ({"gap": "knowledge"}, "no answer needs fresh"),
        ({"gap": "knowledge", "facts": {"fresh_or_private": True}, "symptoms": ["wrong_format"]}, "break the required format"),
        ({"tokens": {"static_tuned": 5000}}, "said to grow"),
        ({"privacy": {"data_may_leave": False}, "incumbent": OPENAI}, "runs at openai"),
        ({"symptoms": ["stale_facts"], "facts": {"change": "never"}, "gap": "unknown"}, "never to change"),
        ({"gap": "both", "facts": {"fresh_or_private": True, "change": "monthly"}, "retraining": {"every_months": 6}}, "every 6 months"),
        ({"batch_share": 1, "needs": {"latency_p95_seconds": 2}}, "within seconds"),
        ({"data": {"labelled_rows": 100}}, "the spec trains on 1,200"),
    ],
)
def test_contradictions_are_said_and_lower_the_confidence_but_crash_nothing(changes: dict[str, Any], words: str) -> None:
    report = advised(intake(**changes), clear_gain())
    told = report.diagnosis.contradictions
    assert any(words in f"{c.statement} {c.read_as}" for c in told)
    assert any(d.rule == "contradictory-answers" and d.fired for d in report.decision.doubts)
    assert report.decision.confidence != "high"


def test_without_contradictions_there_is_no_such_doubt() -> None:
    report = advised(intake(), clear_gain())
    assert not report.diagnosis.contradictions
    assert not any(d.rule == "contradictory-answers" and d.fired for d in report.decision.doubts)


# -- constraints ---------------------------------------------------------------------------------------------------------


def test_residency_closes_what_runs_elsewhere_and_asks_where_it_is_not_known() -> None:
    plans = (plan("bedrock", "nova-micro"), plan("together", "qwen3.5-9b"), plan())
    offers = {o.provider: o for o in advised(intake(privacy={"regions": ["eu"]}), clear_gain(), *plans).offers}
    assert offers["bedrock"].status == "closed"
    assert any("us-east-1" in reason for reason in offers["bedrock"].reasons)
    assert offers["together"].status == "open"
    assert any("confirm eu" in reason for reason in offers["together"].reasons)
    assert offers["local"].status == "open"
    assert not any("confirm" in reason for reason in offers["local"].reasons)


def test_answers_that_come_too_late_are_no_reason_to_stop_and_none_to_ship() -> None:
    good = measurement(arm("few-shot", share(300, 240)), arm("tuned", share(300, 299), kind="tuned"))
    slow = intake(needs={"latency_p95_seconds": 0.1})  # the arms answer in 0.5 s
    assert advised(intake(), good).decision.verdict == "do_nothing"
    report = advised(slow, good)
    assert report.decision.verdict == "pilot"
    assert {"baseline-too-slow", "tuned-too-slow"} <= {line.rule for line in report.decision.trace if line.fired}


def test_offers_are_ranked_and_closed_ones_come_last() -> None:
    report = advised(
        intake(),
        clear_gain(),
        plan("openai", "gpt-4.1-nano"),
        plan("together", "qwen3-8b", usd=None),
        plan("fireworks", "qwen3-8b"),
        plan(),
    )
    assert [o.status for o in report.offers] == ["open", "open", "unpriced", "closed"]
    assert report.offers[0].provider == "local"


# -- routing and migration -----------------------------------------------------------------------------------------------


def test_a_smaller_prompted_model_that_meets_the_bar_is_routed_to() -> None:
    small = arm("small", share(300, 252), provider="bedrock", model="nova-micro")
    big = arm("few-shot", share(300, 255), provider="bedrock", model="nova-pro")
    today = {"provider": "bedrock", "model": "nova-pro", "arm": "few-shot"}
    assert advised(intake(incumbent=today), measurement(big, small)).decision.verdict == "do_nothing"  # its misses cost more than it saves
    report = advised(intake(incumbent=today, quality={"rejected_answer_usd": None}), measurement(big, small))
    assert report.decision.verdict == "route"
    assert "nova-micro" in report.decision.sentence
    route = report.routes[0]
    assert route.p_saves is not None
    assert route.saving_per_month is not None
    assert route.saving_per_month.p50 is not None
    assert {o.name: o.standing for o in report.decision.options}["Routing to a smaller model"] == "recommended"


def test_what_is_not_in_the_format_is_passed_on() -> None:
    small_right, valid = share(300, 180), share(300, 200)
    answers = tuple(
        a.model_copy(update={"scores": {**a.scores, "schema_valid": float(ok)}})
        for a, ok in zip(arm("small", small_right).answers, valid, strict=True)
    )
    small = arm("small", small_right, provider="openai", model="gpt-4.1-mini").model_copy(
        update={"answers": answers, "metrics": {"exact_match": wilson(180, 300), "schema_valid": wilson(200, 300)}}
    )
    big = arm("few-shot", [True] * 290 + [False] * 10, provider="openai", model="gpt-4.1")
    asked = intake(incumbent={"provider": "openai", "model": "gpt-4.1", "arm": "few-shot"}, quality={"rejected_answer_usd": None})
    routes = {r.kind: r for r in advised(asked, measurement(big, small)).routes}
    cascade = routes["cascade"]
    assert (str(cascade.ends), str(routes["direct"].ends)) == ("2027-01-14", "2027-01-14")
    assert cascade.passed_on == pytest.approx(100 / 300)
    assert cascade.quality.value == pytest.approx((180 + 90) / 300)  # its own 180, and today's model on the hundred others
    assert cascade.usd_per_request is not None
    assert routes["direct"].usd_per_request is not None
    assert cascade.usd_per_request.p50 > routes["direct"].usd_per_request.p50  # type: ignore[operator]


def test_a_route_without_a_price_is_unknown_and_never_recommended() -> None:
    other = arm("other", share(300, 299), provider="nowhere", model="unheard-of")
    report = advised(intake(), measurement(arm("few-shot", share(300, 60)), other))
    route = report.routes[0]
    assert route.p_saves is None
    assert route.usd_per_request is None
    assert "no price" in route.why_unknown
    assert report.decision.verdict != "route"


def test_an_ending_model_is_left_for_a_prompted_one_that_lasts() -> None:
    report = advised(intake(incumbent=OPENAI), measurement(at_openai(300, 270), arm("local few-shot", share(300, 240))), plan())
    assert report.decision.verdict == "migrate"
    assert "2027-01-14" in report.decision.sentence
    assert "local few-shot" in report.decision.sentence
    assert report.decision.offer is None


def test_an_ending_model_is_left_for_a_tuned_one_when_no_prompt_meets_the_bar() -> None:
    arms = (at_openai(300, 60), arm("tuned", share(300, 270), kind="tuned", model="job-1"))
    report = advised(intake(incumbent=OPENAI), measurement(*arms), plan())
    assert report.decision.verdict == "migrate"
    assert report.decision.offer is not None
    assert report.decision.offer.startswith("local")
    assert report.decision.kill_criteria


def test_nobody_is_moved_to_a_model_that_ends_with_todays() -> None:
    """gpt-4.1 and gpt-4.1-mini end on one day: tuning the one is no way out of the other."""
    today = {"provider": "openai", "model": "gpt-4.1", "arm": "few-shot"}
    prompt = at_openai(300, 60, model="gpt-4.1")
    good = arm("tuned", share(300, 270), kind="tuned", provider="openai", model="ft:gpt-4.1-mini-2025-04-14:acme::1")
    ending, lasting = plan("openai", "gpt-4.1-mini"), plan("together", "qwen3.5-9b")
    rich = intake(incumbent=today, volume_per_month=1_000_000)  # pays back within the 53 days that are left
    alone = advised(rich, measurement(prompt, good), ending)
    assert alone.offers[0].economics is not None and alone.offers[0].economics.p_pays_back > 0.9
    assert alone.decision.verdict == "find_offer"
    assert "2027-01-14" in alone.decision.sentence
    assert any("serves beyond 2027-01-14" in step for step in alone.decision.next_steps)
    beside = advised(rich, measurement(prompt, good), ending, lasting)
    assert beside.decision.verdict == "pilot"
    assert beside.decision.offer is not None and beside.decision.offer.startswith("together")
    assert "where the model lasts" in beside.decision.sentence
    untried = advised(rich, measurement(prompt), ending)
    assert untried.decision.verdict == "find_offer"
    assert advised(rich, measurement(prompt), ending, lasting).decision.offer == beside.decision.offer


def test_a_good_prompt_on_an_ending_model_is_no_reason_to_do_nothing() -> None:
    report = advised(intake(incumbent=OPENAI), measurement(at_openai(300, 270)), plan())
    assert report.decision.verdict == "measure"
    assert "successor" in report.decision.sentence


# -- before any training -------------------------------------------------------------------------------------------------


def test_priors_widen_as_rows_run_out() -> None:
    many, some, few = (prior_for("json", rows).removed for rows in (2_000, 300, 100))
    assert many.low > some.low > few.low
    assert few.low < 0  # tuning may harm
    assert all(row.source in load_priors().sources for row in load_priors().priors)
    assert prior_for("text", 2_000).removed.high < many.high
    assert prior_for(None, None).removed.low < 0


def test_the_pilot_says_what_it_costs_what_it_must_show_and_how_likely_that_is() -> None:
    report = advised(intake(), measurement(arm("few-shot", share(300, 60))), plan("openai", "gpt-4.1-mini"), plan())
    pilot = report.pilot
    assert report.decision.verdict == "pilot"
    assert pilot is not None
    assert pilot.usd is not None
    assert pilot.usd.low > 1.0  # the run, and the answers on top
    assert pilot.needed == 210  # the bar of 70 % on 300 rows; the gain is far above chance
    assert pilot.p_shows is not None
    assert 0.02 < pilot.p_shows < 0.6
    assert pilot.must_show in " ".join(report.decision.next_steps)


def test_a_gain_must_also_be_told_from_chance() -> None:
    near = advised(intake(quality={"bar": 0.72}), measurement(arm("few-shot", share(100, 71))), plan())
    assert near.pilot is not None
    assert near.pilot.needed is not None
    assert near.pilot.needed > 80  # 72 rows right would meet the bar, and show nothing


def test_rows_that_could_show_no_pilot_are_added_first() -> None:
    """39 of 40 right against a bar of 99 %: even a flawless model differs on one row."""
    report = advised(intake(quality={"bar": 0.99}), measurement(arm("few-shot", share(40, 39))))
    assert report.decision.verdict == "measure"
    assert report.pilot is not None
    more = report.pilot.rows_needed
    assert more is not None
    assert f"about {more} could" in report.decision.sentence
    assert f"to about {more}" in report.decision.next_steps[0]
    enough = advised(intake(quality={"bar": 0.99}), measurement(arm("few-shot", share(more, round(more * 0.975)))))
    assert enough.decision.verdict == "pilot"
    assert enough.pilot is not None and enough.pilot.rows_needed is None


def test_a_pilot_needs_an_open_offer_and_somebody_to_make_it() -> None:
    short = measurement(arm("few-shot", share(300, 60)))
    shut = advised(intake(), short, plan(refused={"model": "it is gone"}))
    assert (shut.decision.verdict, shut.decision.offer) == ("find_offer", None)
    assert "no offer is open (1 closed)" in shut.decision.sentence
    assert "closes the offers" in shut.decision.next_steps[0]
    alone = advised(intake(skills="prompting"), short)
    assert alone.decision.verdict == "pilot"
    assert any("skills end at prompting" in step for step in alone.decision.next_steps)
    assert any(doubt.rule == "nobody-to-do-it" and doubt.fired for doubt in alone.decision.doubts)


def test_a_pilot_that_costs_more_than_knowing_is_worth_is_declined() -> None:
    trifle = intake(volume_per_month=10, quality={"rejected_answer_usd": 0.001})
    report = advised(trifle, measurement(arm("few-shot", share(300, 60))), plan(usd=(500, 900)))
    assert report.pilot is not None
    assert report.pilot.worth_it is False
    assert report.decision.verdict == "better_prompt"


def test_a_sure_saving_is_no_reason_to_decline_the_pilot() -> None:
    """Knowing beforehand adds nothing where every draw saves; but nobody tunes without a measurement, and the pilot is that."""
    dear = {"provider": "bedrock", "model": "nova-pro", "arm": "few-shot"}
    asked = intake(incumbent=dear, volume_per_month=1e7, quality={"rejected_answer_usd": 0.000001})
    report = advised(asked, measurement(arm("few-shot", share(300, 150), provider="bedrock", model="nova-pro")))
    assert report.savings.economics is not None
    assert report.savings.economics.p_saves == 1
    assert report.pilot is not None
    assert report.pilot.worth_usd == pytest.approx(0, abs=1e-6)
    assert report.decision.verdict == "pilot"


def test_after_a_failed_pilot_another_base_model_is_tried() -> None:
    both = measurement(arm("few-shot", share(300, 30)), arm("tuned", share(300, 150), kind="tuned"))
    report = advised(intake(), both, plan("bedrock", "nova-micro"), plan())
    assert report.decision.verdict == "pilot"
    assert report.decision.offer is not None
    assert report.decision.offer.startswith("bedrock")


def test_an_unpriced_pilot_has_no_price() -> None:
    report = advised(intake(self_hosting={"usd_per_hour": None}), measurement(arm("few-shot", share(300, 60))), plan())
    assert report.pilot is None, "what it would cost is not known"


@pytest.mark.parametrize(
    ("changes", "rows", "method"),
    [
        ({}, 1200, "lora"),
        ({}, 150, "none"),
        ({"symptoms": ["wrong_style"], "data": {"preference_pairs": 3000}}, 1200, "dpo"),
        ({"symptoms": ["wrong_style"]}, 1200, "lora"),
        ({"symptoms": ["domain_terms"]}, 20_000, "full"),
        ({"symptoms": ["domain_terms"], "data": {"raw_tokens": 5e8}}, 20_000, "cpt"),
    ],
)
def test_the_method_follows_from_the_data(changes: dict[str, Any], rows: int, method: str) -> None:
    advice = advised(intake(**changes), clear_gain(), plan(rows=rows)).decision.method
    assert advice.id == method
    assert advice.sources
    assert bool(advice.differs) == (method not in ("lora",))


# -- learning curve ------------------------------------------------------------------------------------------------------


def curve_of(*right: int, n: int = 400, _plans: Any = (), **changes: Any) -> Any:
    rng = np.random.default_rng(0)
    order = rng.permutation(n)  # easy rows first: runs of more rows get the same ones right, and more
    runs = [arm(f"tuned {k}", [bool(order[i] < r) for i in range(n)], kind="tuned") for k, r in enumerate(right)]
    points = [{"arm": run.name, "rows": 300 * 2**k} for k, run in enumerate(runs)]
    asked = intake(learning_curve=points, **changes)
    return advised(asked, measurement(arm("few-shot", share(n, 40)), *runs), *_plans).curve


def test_a_curve_that_still_rises_says_that_more_rows_are_worth_their_price() -> None:
    curve = curve_of(200, 260, 300)
    assert curve.gain is not None
    assert 0 < curve.gain.low < curve.gain.value < curve.gain.high
    assert curve.ceiling > 0.75
    assert curve.more_is_worth is True
    assert "buy them" in curve.says


def test_rows_are_worth_only_what_the_model_has_left_to_earn() -> None:
    lasting = curve_of(200, 260, 300)
    ending = curve_of(200, 260, 300, _plans=[plan("openai", "gpt-4.1-mini")])  # ends in 53 days
    assert lasting.worth_usd is not None and ending.worth_usd is not None
    assert ending.worth_usd == pytest.approx(lasting.worth_usd * 53 / (365.25 / 12) / 24)
    assert "over 1.74 months" in ending.says


def test_a_flat_curve_stops_the_buying() -> None:
    curve = curve_of(300, 300, 300)
    assert curve.more_is_worth is False
    assert "do not buy" in curve.says


def test_dear_rows_are_not_bought_for_a_small_gain() -> None:
    curve = curve_of(280, 300, 310, costs={"labelling_usd": 2_000_000})
    assert curve.more_is_worth is False


def test_two_sizes_make_no_curve() -> None:
    curve = curve_of(200, 260)
    assert curve.gain is None
    assert curve.more_is_worth is None
    assert "needs 3" in curve.says


@given(a=st.floats(0.5, 0.95), b=st.floats(0.05, 0.4), c=st.sampled_from([0.25, 0.5, 1.0]))
def test_an_exact_curve_is_found_again(a: float, b: float, c: float) -> None:
    from tuneport.advisor.curve import _fit

    sizes = np.array([250.0, 500.0, 1000.0, 2000.0])
    means = a - b * (sizes / 2000) ** -c
    ceiling, exponent, gain = _fit(sizes, means[:, None])
    assert float(gain[0]) == pytest.approx(b * (1 - 2.0**-c), rel=0.05, abs=1e-6)
    assert float(exponent[0]) == pytest.approx(c, abs=0.051)
    assert float(ceiling[0]) == pytest.approx(a, abs=0.05)


# -- rows that hang together ---------------------------------------------------------------------------------------------


def test_clusters_widen_the_money_the_routes_the_pilot_and_the_curve() -> None:
    """Thirty documents of ten rows that are right or wrong as a whole tell as much as thirty rows, not as three hundred."""
    documents = np.repeat(np.arange(30), 10)
    rng = np.random.default_rng(0)
    few, small = (arm(name, [bool(x) for x in (rng.random(30) < p)[documents]], model=model) for name, p, model in (
        ("few-shot", 0.4, "smollm2-135m-instruct"), ("small", 0.5, "other")))
    sizes = [arm(f"tuned {k}", [bool(x) for x in (rng.random(30) < p)[documents]], kind="tuned") for k, p in enumerate((0.5, 0.7, 0.8))]
    asked = intake(learning_curve=[{"arm": a.name, "rows": 250 * 2**k} for k, a in enumerate(sizes)])
    alone = measurement(few, small, *sizes)
    together = alone.model_copy(update={"clusters": 30, "row_clusters": tuple(documents.tolist())})
    narrow, wide = (advised(asked, measured) for measured in (alone, together))
    for report in (narrow, wide):
        assert report.savings.economics is not None and report.curve is not None and report.curve.gain is not None

    def width(low: float | None, high: float | None) -> float:
        assert low is not None and high is not None
        return high - low

    npv = [width(r.savings.economics.npv.p10, r.savings.economics.npv.p90) for r in (narrow, wide)]  # type: ignore[union-attr]
    assert npv[1] > 1.3 * npv[0]  # the volume and the price of a miss spread both alike
    gains = [width(r.curve.gain.low, r.curve.gain.high) for r in (narrow, wide)]  # type: ignore[union-attr]
    assert gains[1] > 1.5 * gains[0]
    routes = [width(r.routes[0].quality.low, r.routes[0].quality.high) for r in (narrow, wide)]
    assert routes[1] > 2 * routes[0]
    pilots = [advised(intake(), m.model_copy(update={"arms": m.arms[:1], "comparisons": ()})).pilot for m in (alone, together)]
    assert pilots[0] and pilots[1] and pilots[0].needed and pilots[1].needed
    assert pilots[1].needed > pilots[0].needed  # of 300 rows: a gain must stand out against the documents
    old = advised(asked, alone.model_copy(update={"clusters": 30}))
    assert old.evidence is not None
    assert any("too narrow" in warning for warning in old.evidence.warnings)


# -- what would change it ------------------------------------------------------------------------------------------------


def test_the_quality_at_which_the_verdict_turns_is_named() -> None:
    report = advised(intake(), clear_gain())  # prompt 20 %, tuned 85 %, bar 70 %
    told = " ".join(report.decision.would_change)
    assert "best prompt at 70.0 % exact match or more (now 20.0 %): do not fine-tune" in told
    assert "tuned model at 69.5 % exact match or less (now 85.0 %): run a pilot" in told


def test_switching_values_say_what_becomes_of_the_decision() -> None:
    report = advised(intake(), clear_gain())
    assert report.sensitivity is not None
    within = [s for s in report.sensitivity.switches if s.at is not None]
    assert within
    assert {s.verdict for s in within if "accepted" not in s.driver} == {"do_nothing"}  # misses are priced: losing money turns the decision
    assert all("The decision: do not fine-tune." in s.statement for s in within if s.verdict == "do_nothing")
    calls_only = advised(intake(quality={"rejected_answer_usd": None}), clear_gain())
    assert calls_only.sensitivity is not None
    assert all("rests on other grounds" in s.statement for s in calls_only.sensitivity.switches if s.at is not None)


SCALED = {
    "Requests per month": ("volume_per_month",), "Cost of one answer that misses": ("quality", "rejected_answer_usd"),
    "Cost of engineering": ("costs", "engineering_usd"), "Hosting price per hour after tuning": ("self_hosting", "usd_per_hour"),
    "Cache-hit share today": ("cache_hit_share",),
}  # fmt: skip
"""Inputs that a decision file states, by their names in the report."""


def dear_today(right: int, wrong: int, **changes: Any) -> tuple[dict[str, Any], Measurement]:
    """A good prompt on a dear model, and a tuned one on a machine of one's own, with cost as the problem."""
    before = np.random.default_rng(0).random(1200) < 0.9
    after = before.copy()
    after[np.flatnonzero(~before)[:right]] = True
    after[np.flatnonzero(before)[:wrong]] = False
    today = {"provider": "bedrock", "model": "nova-pro"}
    arms = [arm("few-shot", [bool(x) for x in before], **today)]
    if right:
        arms.append(arm("tuned", [bool(x) for x in after], kind="tuned", model="job-1"))
    calls = {"incumbent": {**today, "arm": "few-shot"}, "quality": {"metric": "exact_match", "bar": 0.7}, "symptoms": ["too_dear"]}
    return {**calls, "volume_per_month": [5e5, 2e6], **changes}, measurement(*arms)


@pytest.mark.parametrize(
    ("asked", "measured", "plans", "verdicts"),
    [
        (*dear_today(6, 4), [plan()], {"do_nothing"}),  # it must save money in nine draws of ten, which is not where the money turns
        ({"volume_per_month": [8000, 12000]}, measurement(arm("few-shot", share(300, 150))), [plan()], {"better_prompt"}),  # no pilot
        ({}, clear_gain(), [plan()], {"do_nothing"}),
        (
            {"incumbent": {"provider": "bedrock", "model": "nova-pro", "arm": "few-shot"}, "cache_hit_share": 0.1,
             "quality": {"rejected_answer_usd": 0.0001}, "volume_per_month": [1e5, 1e6], "tokens": {"static": 6000}},
            measurement(
                arm("few-shot", share(300, 150), provider="bedrock", model="nova-pro"),
                arm("tuned", share(300, 255), kind="tuned", provider="bedrock", model="nova-micro"),
            ),
            [plan("bedrock", "nova-micro"), plan("together", "qwen3-8b")],
            {"do_nothing"},
        ),
    ],
    ids=["nine in ten", "before a pilot", "misses priced", "two offers"],
)  # fmt: skip
def test_at_a_switching_value_the_decision_really_changes(
    asked: dict[str, Any], measured: Measurement, plans: list[Any], verdicts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole model is run again with the input's range moved to the reported value, and halfway there."""
    report = advised(now := intake(**asked), measured, *plans)
    assert report.sensitivity is not None
    monkeypatch.setattr(WhatIf, "switches", lambda self: ())  # what is checked takes no part in the runs that check it
    monkeypatch.setattr(WhatIf, "money_at", lambda self, subject, value: {})
    checked = set()
    for switch in report.sensitivity.switches:
        if switch.at is None or switch.rival or switch.driver not in SCALED:
            continue
        *section, name = SCALED[switch.driver]
        part = getattr(now, section[0]) if section else now
        stated = getattr(part, name)

        def verdict_at(value: float) -> str:
            if switch.share:  # noqa: B023 - called in the same turn of the loop
                moved = [stated.low + value - switch.middle, stated.high + value - switch.middle]  # noqa: B023
            else:
                moved = [stated.low * value / switch.middle, stated.high * value / switch.middle]  # noqa: B023
            change = {name: moved}  # noqa: B023
            changes = {**asked, section[0]: {**asked.get(section[0], {}), **change}} if section else {**asked, **change}  # noqa: B023
            return advised(intake(**changes), measured, *plans).decision.verdict

        assert verdict_at(switch.at) == switch.verdict, switch.statement
        if switch.verdict == report.decision.verdict:
            assert "stays" in switch.statement
            continue
        checked.add(switch.verdict)
        assert verdict_at((switch.at * 0.85 + switch.middle * 0.15) if switch.share else switch.at**0.85 * switch.middle**0.15) == (
            report.decision.verdict
        ), switch.statement
    assert checked == verdicts


def test_money_joins_in_where_quality_turns_the_verdict() -> None:
    """A gain that is shown and meets the bar is declined all the same once it costs more than the misses that it spares."""
    asked = intake(costs={"engineering_usd": 55_000})
    report = advised(asked, clear_gain())  # prompt 20 %, tuned 85 %, bar 70 %
    assert report.decision.verdict == "fine_tune"
    told = next(line for line in report.decision.would_change if line.startswith("The tuned model at"))
    value = float(told.split(" at ")[1].split(" %")[0]) / 100
    assert value > 0.7
    assert told.endswith("do not fine-tune.")

    def at(quality: float) -> str:
        tuned = arm("tuned", share(300, round(300 * quality)), kind="tuned", model="job-1")
        return advised(asked, measurement(arm("few-shot", share(300, 60)), tuned)).decision.verdict

    assert at(value - 0.02) == "do_nothing"
    assert at(value + 0.02) == "fine_tune"


def test_an_arm_that_failed_half_way_is_told() -> None:
    broken = arm("few-shot", share(300, 60))
    answers = tuple(a.model_copy(update={"error": "503", "text": ""}) if a.row >= 150 else a for a in broken.answers)
    report = advised(intake(), measurement(broken.model_copy(update={"answers": answers}), arm("tuned", share(300, 255), kind="tuned")))
    assert any(d.rule == "incomplete-arm" and d.fired and "50.0 %" in d.evidence for d in report.decision.doubts)


def test_a_suite_too_small_to_decide_is_told() -> None:
    for n in (1, 2, 7, 29):
        report = advised(intake(), measurement(arm("few-shot", share(n, 0)), arm("tuned", share(n, n), kind="tuned")))
        assert report.decision.verdict == "measure"
        assert f"{n} test rows decide nothing" in report.decision.sentence


def test_a_metric_that_is_no_mean_over_rows_crashes_nothing() -> None:
    """F1 over all rows has no score per row: no money for misses, no cascade, and the report says why."""
    one, two = arm("few-shot", share(60, 20)), arm("other", share(60, 30), model="other")
    f1 = [a.model_copy(update={"metrics": {**a.metrics, "macro_f1": a.metrics["exact_match"]}}) for a in (one, two)]
    report = advised(intake(quality={"metric": "macro_f1"}), measurement(*f1))
    assert report.routes[0].quality == two.metrics["exact_match"]
    assert report.pilot is not None
    assert report.pilot.rows == 60
    assert report.offers[0].economics is not None
    assert not report.offers[0].economics.misses_counted
    assert "is no mean over rows" in render_markdown(report)


def test_rows_that_all_expect_one_answer_decide_nothing() -> None:
    equal = measurement(arm("few-shot", share(300, 299))).model_copy(update={"uniform": True})
    report = advised(intake(), equal)
    assert report.decision.verdict == "measure"
    assert "all 300 test rows expect the same answer" in report.decision.sentence


def test_all_equal_scores_do_not_crash() -> None:
    for right in (0, 50):
        report = advised(intake(), measurement(arm("few-shot", share(50, right)), arm("tuned", share(50, right), kind="tuned")))
        assert report.decision.verdict in ("better_prompt", "do_nothing")


def test_what_tuning_cost_elsewhere_can_stop_it() -> None:
    main = clear_gain()
    for kept, verdict in ((291, "fine_tune"), (240, "pilot")):  # of 300 general rows, of which the prompted model gets 294
        tuned = main.arm("tuned")
        after = arm("tuned, general", share(300, kept), kind="tuned", provider=tuned.provider, model=tuned.model)
        general = measurement(arm("base, general", share(300, 294)), after)
        report = advised(intake(), main.model_copy(update={"general": general}))
        assert report.decision.verdict == verdict
        assert report.evidence is not None
        assert report.evidence.general[0].difference.value == pytest.approx((kept - 294) / 300)
    assert "general" in report.decision.sentence


def test_a_gain_among_many_arms_is_corrected_and_many_looks_are_doubted() -> None:
    main = clear_gain()
    pairs = tuple(c.model_copy(update={"p_holm": 0.2}) for c in main.comparisons)
    report = advised(intake(), main.model_copy(update={"comparisons": pairs}))
    assert any(d.rule == "many-arms" and d.fired for d in report.decision.doubts)
    assert not any(d.rule == "many-arms" and d.fired for d in advised(intake(), main).decision.doubts)


def test_measuring_first_has_a_price() -> None:
    asked = intake(incumbent={"provider": "openai", "model": "gpt-4.1-mini"})
    step = advised(asked, None).decision.next_steps[0]
    # 2,300 tokens in at 0.40 and 150 out at 1.60 USD per million, 200 times
    assert "costs $0.23." in step
    unknown = intake(incumbent={"provider": "nowhere", "model": "x"})
    assert "a price is missing" in advised(unknown, None).decision.next_steps[0]


def test_the_volume_from_which_another_offer_is_better_is_named() -> None:
    asked = intake(
        incumbent={"provider": "openai", "model": "gpt-4.1", "arm": None},
        quality={"rejected_answer_usd": None},
        volume_per_month=1_000_000,
        self_hosting={"requests_per_hour": 50_000, "always_on": True},
    )
    report = advised(asked, None, plan("bedrock", "nova-micro"), plan())
    assert report.savings.offer is not None
    assert report.savings.offer.startswith("bedrock")  # by the token, until a machine of one's own is busy enough
    assert report.sensitivity is not None
    rivals = [s for s in report.sensitivity.switches if s.rival]
    assert rivals
    assert [s.rival[:5] for s in rivals] == ["local"]
    assert rivals[0].at is not None
    assert 1e7 < rivals[0].at < 5e7


# -- whatever is put in --------------------------------------------------------------------------------------------------


def test_where_cost_is_the_problem_the_same_quality_for_less_is_worth_tuning_once_it_is_proven() -> None:
    """A prompt that meets the bar on a dear model, beside a tuned small one on a machine of one's own."""
    today = {"provider": "bedrock", "model": "nova-pro", "arm": "few-shot"}
    right = np.random.default_rng(0).random(1200) < 0.9
    prompt = arm("few-shot", [bool(x) for x in right], provider="bedrock", model="nova-pro")

    def decided(mended: int, broken: int, volume: float = 1_000_000, **changes: Any) -> Report:
        after = right.copy()
        after[np.flatnonzero(~right)[:mended]] = True
        after[np.flatnonzero(right)[:broken]] = False
        tuned = arm("tuned", [bool(x) for x in after], kind="tuned", model="job-1")
        calls = {"incumbent": today, "volume_per_month": volume, "quality": {"rejected_answer_usd": None}, "symptoms": ["too_dear"]}
        return advised(intake(**{**calls, **changes}), measurement(prompt, tuned) if mended else measurement(prompt))

    same = decided(6, 4)
    assert same.savings.economics is not None
    assert same.savings.economics.p_saves > 0.9
    assert same.decision.verdict == "fine_tune"
    assert same.decision.offer is not None
    assert "to save money" in same.decision.sentence
    standing = {o.name: o.standing for o in same.decision.options}
    assert (standing["Fine-tune"], standing["Do nothing"]) == ("recommended", "possible")
    assert any("within 2 points of the prompt" in change for change in same.decision.would_change)
    assert decided(6, 40).decision.verdict == "do_nothing"  # not shown to be as good
    assert decided(6, 4, 500).decision.verdict == "do_nothing"  # saves nothing
    assert decided(6, 4, needs={"latency_p95_seconds": 0.1}).decision.verdict != "fine_tune"
    settled = decided(6, 4, symptoms=[])  # the problem was quality, and the prompt has it: but the chance is told
    assert settled.decision.verdict == "do_nothing"
    assert any("Cost as the problem" in change and "saves about $" in change for change in settled.decision.would_change)
    before = decided(0, 0)
    assert before.decision.verdict == "pilot"
    assert "to save money" in before.decision.sentence
    assert before.pilot is not None
    assert "above -2 points, at a lower price" in before.pilot.must_show
    assert any("below -2 points" in line for line in before.decision.kill_criteria)


def verdict_cases() -> dict[str, Report]:
    """One report for each verdict of the advisor."""
    half, good = arm("few-shot", share(300, 150)), arm("few-shot", share(300, 270))
    tuned = arm("tuned", share(300, 285), kind="tuned", model="job-1")
    big = arm("few-shot", share(300, 240), provider="bedrock", model="nova-pro")
    small = arm("small", share(300, 237), provider="bedrock", model="nova-micro")
    asked = intake()
    bedrock = intake(incumbent={"provider": "bedrock", "model": "nova-pro"}, quality={"rejected_answer_usd": None})
    return {
        "do_nothing": advised(asked, measurement(good)),
        "better_prompt": advised(intake(incumbent={"arm": "zero-shot"}), measurement(arm("zero-shot", share(300, 90)), good)),
        "retrieval": advised(intake(gap="knowledge", facts={"fresh_or_private": True}), measurement(half)),
        "route": advised(bedrock, measurement(big, small)),
        "measure": advised(asked, None),
        "pilot": advised(asked, measurement(half)),
        "find_offer": advised(asked, measurement(half, tuned), plan(usd=None)),
        "migrate": advised(intake(incumbent=OPENAI), measurement(at_openai(300, 90), arm("local", share(300, 240)))),
        "fine_tune": advised(asked, clear_gain()),
    }


def test_every_verdict_carries_its_confidence_its_trace_and_its_kill_criteria_into_the_report() -> None:
    cases = verdict_cases()
    assert {name: report.decision.verdict for name, report in cases.items()} == {name: name for name in VERDICT_WORDS}
    for report in cases.values():
        decision, text = report.decision, render_markdown(report)
        assert decision.confidence in ("high", "medium", "low")
        assert f"({decision.confidence} confidence)" in text
        fired = [line for line in decision.trace if line.fired]
        assert fired and all(line.sources and line.evidence for line in decision.trace)
        assert {line.rule for line in decision.trace} == {rule.id for rule in load_rules().rules}
        assert decision.kill_criteria and decision.next_steps and decision.because
        stop = text.partition("Stop or turn back:")[2].partition("Would change")[0]
        assert stop.count("\n* ") == len(decision.kill_criteria)


def test_every_row_of_the_decision_table_has_its_own_sentence() -> None:
    report = advised(intake(), clear_gain())
    facts: dict[str, Any] = dict.fromkeys(re.findall(r"facts\[['\"](\w+)['\"]\]", inspect.getsource(advice)))
    fallback = advice.sentence_of("measure", "", facts, None)
    for row in load_rules().verdicts:
        if row.all:
            cause = "gain-shown" if row.verdict == "migrate" and "gain-shown" in row.all else row.all[0]
            assert advice.sentence_of(row.verdict, cause, facts, None) != fallback, row
    assert report.decision.verdict in VERDICT_WORDS


QUANTITY = st.one_of(st.floats(0.001, 1e7), st.tuples(st.floats(0.001, 1e3), st.floats(1e3, 1e7)).map(list))
SHARE = st.floats(0, 1)


@settings(max_examples=25, deadline=None)
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "gap": st.sampled_from(["knowledge", "behaviour", "both", "unknown"]),
            "symptoms": st.lists(st.sampled_from(Symptom.__args__), max_size=4),
            "facts": st.fixed_dictionaries({"fresh_or_private": st.booleans(), "change": st.sampled_from(["never", "monthly", "daily"])}),
            "quality": st.fixed_dictionaries({"bar": st.floats(0.01, 1), "rejected_answer_usd": st.one_of(st.none(), QUANTITY)}),
            "incumbent": st.fixed_dictionaries(
                {
                    "provider": st.sampled_from(["openai", "local", "nowhere"]),
                    "model": st.sampled_from(["gpt-4.1-mini", "x"]),
                    "tuned": st.booleans(),
                }
            ),
            "volume_per_month": QUANTITY,
            "volume_growth_per_year": st.floats(-0.9, 5),
            "seasonality": st.lists(st.floats(0.1, 9), min_size=12, max_size=12),
            "batch_share": SHARE,
            "cache_hit_share": SHARE,
            "open_hours_per_month": st.floats(1, 730),
            "horizon_months": st.integers(1, 60),
            "needs": st.fixed_dictionaries({"format": st.sampled_from(["free", "strict"]), "latency_p95_seconds": st.floats(0.01, 100)}),
            "privacy": st.fixed_dictionaries(
                {"data_may_leave": st.booleans(), "regions": st.lists(st.sampled_from(["eu", "us-"]), max_size=2)}
            ),
            "skills": st.sampled_from(["prompting", "api", "training", "operations"]),
            "self_hosting": st.fixed_dictionaries({"usd_per_hour": st.one_of(st.none(), QUANTITY), "always_on": st.booleans()}),
            "costs": st.fixed_dictionaries({"incumbent_move_usd": st.one_of(st.none(), QUANTITY)}),
        },
    ),
    n=st.integers(1, 60),
    right=st.tuples(SHARE, SHARE),
    arms=st.sampled_from(["none", "prompted", "both", "broken"]),
)
def test_no_answer_crashes_the_report(changes: dict[str, Any], n: int, right: tuple[float, float], arms: str) -> None:
    before, after = (share(n, round(n * r)) for r in right)
    prompted, tuned = arm("few-shot", before), arm("tuned", after, kind="tuned")
    if arms == "broken":
        prompted = prompted.model_copy(
            update={"answers": tuple(a.model_copy(update={"error": "500", "text": ""}) for a in prompted.answers)}
        )
    measured = {"none": None, "prompted": measurement(prompted)}.get(arms, measurement(prompted, tuned))
    plans = [plan("openai", "gpt-4.1-mini"), plan("together", "qwen3.5-9b", usd=None), plan("bedrock", "nova-micro"), plan()]
    report = advise(intake(**changes), measured, plans, today=TODAY)
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert report.decision.kill_criteria
    assert report.decision.next_steps
    shown = render_markdown(report)
    assert report.decision.sentence.split(":")[0][:20] in shown.replace("\\", "")
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", shown.lower())
    for offer in report.offers:
        assert (offer.economics is None) >= (offer.status != "open")


def test_money_compares_with_the_model_in_use_even_when_its_arm_is_not_named() -> None:
    arms = (at_openai(300, 60), arm("other prompt", share(300, 150)), arm("tuned", share(300, 255), kind="tuned", model="job-1"))
    named, unnamed = (advised(intake(incumbent={**OPENAI, "arm": name}), measurement(*arms)) for name in ("few-shot", None))
    assert named.savings.economics is not None
    assert named.savings.economics == unnamed.savings.economics
    costs = {o.name: o.cost for o in named.decision.options}
    assert "a month, wrong answers included" in costs["Do nothing"]
    assert "once, then about" in costs["Fine-tune"]


def test_the_options_cost_what_the_money_says() -> None:
    """Today's own machine is paid for although it bills no tokens, and a wide volume counts with its median."""
    hosting = {"usd_per_hour": 2.0, "always_on": True}
    machine = intake(quality={"rejected_answer_usd": None}, self_hosting=hosting, machine_price_drift_per_year=0)
    costs = {o.name: o.cost for o in advised(machine, clear_gain()).decision.options}
    assert costs["Do nothing"].startswith("About $1,460 a month")  # 730 hours at $2
    assert "then about $1,460 a month" in costs["Fine-tune"]
    wide = advised(intake(volume_per_month=[10_000, 1_000_000]), clear_gain())
    money = wide.savings.economics
    assert money is not None
    today, tuned, saved = (value.p50 for value in (money.today_per_month, money.tuned_per_month, money.saving_per_month))
    assert today is not None and tuned is not None and saved is not None
    assert today - tuned == pytest.approx(saved, rel=0.05)
    assert today == pytest.approx(100_000 * 0.8 * np.sqrt(0.3 * 0.6), rel=0.05)  # four misses in five, each at its median price
