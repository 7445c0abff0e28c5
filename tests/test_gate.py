"""The gate of an evaluation: open on shown non-inferiority only, shut on a loss elsewhere, with its reasons."""

from __future__ import annotations

import json

import pytest

from tuneport.advisor.arm import run_arm
from tuneport.advisor.gate import hold, rival
from tuneport.advisor.general import general_suite
from tuneport.advisor.measure import measure
from tuneport.advisor.measurement import Arm, Measurement
from tuneport.core.errors import GateError, UsageError
from tuneport.tests.test_measure import Scripted, right_for, tickets


def arm(right: int, name: str, kind: str = "prompted", rows: int = 200) -> Arm:
    return run_arm(Scripted(right_for(lambda i: i < right)), "m", tickets(rows), name=name, kind=kind)  # type: ignore[arg-type]


def against(base: int, tuned: int, rows: int = 200, margin: float = 0.05, general: Measurement | None = None) -> Measurement:
    arms = [arm(base, "base", rows=rows), arm(tuned, "tuned", "tuned", rows)]
    return measure(tickets(rows), arms, margin=margin, general=general)


def elsewhere(lost: int, model: str = "m") -> Measurement:
    suite = general_suite()
    answers = {item.messages[-1]["content"]: item.expected for item in suite.items}
    gone = set(list(answers)[:lost])
    base = run_arm(Scripted(lambda m: answers[m[-1]["content"]]), "m", suite, name="base, general")
    tuned = run_arm(Scripted(lambda m: "?" if m[-1]["content"] in gone else answers[m[-1]["content"]]), model, suite,
                    name="tuned, general", kind="tuned")  # fmt: skip
    return measure(suite, [base, tuned])


def test_open_when_shown_to_be_no_worse() -> None:
    held = hold(against(100, 160), "tuned")
    assert (held.challenger, held.non_inferior, held.margin) == ("tuned", True, 0.05)
    assert hold(against(100, 100), "tuned").difference.value == 0


def test_shut_when_worse_and_when_too_few_rows_show_nothing() -> None:
    with pytest.raises(GateError, match=r"tuned is worse than base: -30.0 points .* in exact_match"):
        hold(against(160, 100), "tuned")
    with pytest.raises(GateError, match=r"not shown to be within 5 points of base: \+0.0 points .* on 10 rows"):
        hold(against(5, 5, rows=10), "tuned")
    assert GateError.exit_code == 13


def test_a_loss_elsewhere_shuts_it_unless_it_is_small_and_the_gain_large() -> None:
    assert hold(against(100, 160, general=elsewhere(0)), "tuned")
    with pytest.raises(GateError, match=r"general suite shows a loss of 19.4 points \(62 rows\)"):
        hold(against(100, 160, general=elsewhere(12)), "tuned")
    assert hold(against(100, 160, general=elsewhere(2)), "tuned"), "2 of 62 rows show no loss yet"
    small = measure(tickets(400), [arm(400, "base, general", rows=400), arm(386, "tuned, general", "tuned", 400)])
    assert hold(against(100, 160, general=small), "tuned"), "a loss of 3.5 points, shown, for a gain of 30"
    with pytest.raises(GateError, match=r"general suite shows a loss of 3\.5 points"):
        hold(against(100, 115, general=small), "tuned")
    assert hold(against(100, 160, general=elsewhere(12, "another model")), "tuned"), "what another model lost is not held against it"


def test_the_rival_is_the_best_prompted_arm_or_the_one_named() -> None:
    found = measure(tickets(200), [arm(50, "zero"), arm(90, "few"), arm(120, "old", "tuned"), arm(110, "tuned", "tuned")], margin=0.02)
    assert rival(found).name == "few"
    assert hold(found, "tuned").baseline == "few"
    with pytest.raises(GateError, match="tuned is worse than old"):
        hold(found, "tuned", "old")
    assert hold(found, "old", "tuned").difference.value == pytest.approx(0.05), "the other way round"
    for name, says in (("nobody", "no arm 'nobody'"), ("tuned", "not compared")):
        with pytest.raises(UsageError, match=says):
            hold(found, "tuned", name)
    with pytest.raises(UsageError, match="nothing stands beside"):
        hold(measure(tickets(200), [arm(9, "tuned", "tuned")]), "tuned")


def test_failures_are_grouped_by_kind_with_examples() -> None:
    texts = ["", '```json\n{"category": "returns"}\n```', "I'm sorry, but I can't help.", 'Sure: {"a": 1}', "hm", '{"category": "billing"}',
             '{"category": "billing", "order": "?"}']  # fmt: skip

    def answer(messages: object) -> str:
        i = int(messages[-1]["content"].split()[1])  # type: ignore[index]
        return texts[i] if i < len(texts) else json.dumps({"category": "other", "order": f"A-{i}"})

    failures = {g.kind: (g.count, g.rows) for g in run_arm(Scripted(answer), "m", tickets(20), name="a").failures}
    assert failures["wrong category"] == (13, (7, 8, 9, 10, 11))
    assert failures["empty answer"] == (1, (0,)) and failures["JSON inside a code fence"] == (1, (1,))
    assert failures["declined"] == (1, (2,)) and failures["text around the JSON"] == (1, (3,)) and failures["no JSON"] == (1, (4,))
    assert failures["fields: lacks order"] == (1, (5,)) and failures["wrong order"] == (1, (6,))
