"""Metrics of running text against their reference implementations and definitions; hostile answers; refusals; the general suite."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from tuneport.advisor.arm import run_arm
from tuneport.advisor.general import general_suite
from tuneport.advisor.measure import measure
from tuneport.advisor.refusals import declines
from tuneport.advisor.suite import build_suite
from tuneport.advisor.text_metrics import corpus_score, rouge_l, text_metric
from tuneport.core.errors import MissingExtraError, UsageError
from tuneport.tests.test_measure import Scripted, chat_row

NAMES = ("token_f1", "rouge_l", "bleu", "chrf", "contains", "numeric", "regex=^a", "context_precision")


@pytest.mark.parametrize(
    ("expected", "answer", "score"),  # rouge-score 0.1.2, rougeL without stemming
    [
        ("the cat sat on the mat", "the cat is on the mat", 0.8333333333333334),
        ("The quick brown fox jumps over the lazy dog.", "A quick brown dog jumps over the fox, lazily!", 0.5555555555555556),
        ("police killed the gunman", "the gunman police killed", 0.5),
        ("Order #42 was sent on May 3", "sent: order 42", 0.4),
    ],
)
def test_rouge_l_agrees_with_googles(expected: str, answer: str, score: float) -> None:
    assert rouge_l(expected, answer) == pytest.approx(score, abs=1e-12)


def test_bleu_and_chrf_are_sacrebleus_by_row_and_over_the_corpus() -> None:
    expected = ["the cat sat on the mat", "hello there general", "a b c d e"] * 10
    answers = ["the cat is on the mat", "hello there", "a b c d e"] * 10
    for name in ("bleu", "chrf"):
        row, corpus = getattr(sacrebleu, f"sentence_{name}"), getattr(sacrebleu, f"corpus_{name}")
        assert text_metric(name)(expected[0], answers[0], None) == pytest.approx(row(answers[0], [expected[0]]).score / 100)
        whole = corpus_score(name, expected, answers)
        assert whole.value == pytest.approx(corpus(answers, [expected]).score / 100)
        assert 0 < whole.low < whole.value < whole.high < 1


@pytest.mark.parametrize(
    ("name", "expected", "answer", "score"),
    [
        ("token_f1", "The cat", "a CAT!", 1),
        ("token_f1", "red green", "red blue blue", 0.4),
        ("contains", "Ana Lima", "It went to ANA  LIMA.", 1),
        ("contains", "Au", "Australia", 0),
        ("numeric", "1,250.0", "It costs 7 or rather 1250 dollars", 1),
        ("numeric", "100", "about 101", 1),
        ("numeric", "100", "about 103", 0),
        ("numeric", "100", "no idea", 0),
        ("numeric", "-3.5e2", "-350", 1),
        ("regex=^[A-Z]{2}$", "", "DE", 1),
        ("regex=^[A-Z]{2}$", "", "DEU", 0),
    ],
)
def test_scores_by_definition(name: str, expected: str, answer: str, score: float) -> None:
    assert text_metric(name, tolerance=0.02)(expected, answer, None) == pytest.approx(score)


def test_context_precision_asks_whether_words_stand_in_the_context() -> None:
    faithful = text_metric("context_precision")
    assert faithful("", "The parcel left on Monday.", "Our log: the parcel left the depot on Monday") == 1
    assert faithful("", "The parcel left on Friday.", "Our log: the parcel left the depot on Monday") == pytest.approx(4 / 5)
    assert faithful("", "anything", None) is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_every_metric_is_a_share_and_perfect_for_the_expected_answer(expected: str, answer: str) -> None:
    for name in NAMES:
        score = text_metric(name)(expected, answer, expected)
        assert score is not None and 0 <= score <= 1
    assert text_metric("token_f1")(expected, expected, None) == text_metric("rouge_l")(expected, expected, None) == 1


def test_hostile_answers_do_not_hold_up_a_run() -> None:
    for answer in ("a" * 3_000_000, "9" * 400_000, "a b " * 500_000, "\ud800", "1e999999 -1e999999"):
        for name in (*NAMES, "regex=(a|aa)+b$"):
            assert text_metric(name)("1e400", answer, "c") is not None


def test_names_and_missing_libraries_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no metric 'meteor'"):
        text_metric("meteor")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "rapidfuzz":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingExtraError, match=r"tuneport\[metrics\]"):
        text_metric("rouge_l")


def test_corpus_metrics_stand_beside_those_by_row_and_pairs_are_compared_by_row() -> None:
    rows = [chat_row(f"q {i}", f"the answer number {i} is here", i) for i in range(12)]
    suite = build_suite(rows, source="t", task="text", extras=("bleu", "rouge_l"), primary="rouge_l")
    arms = [run_arm(Scripted(lambda m, end=end: f"the answer number {m[-1]['content'][2:]} {end}"), "m", suite, name=end)
            for end in ("is here", "is gone")]  # fmt: skip
    assert list(arms[0].metrics) == ["rouge_l", "normalised_match", "exact_match", "bleu", "corpus_bleu"]
    assert [round(arm.metrics["corpus_bleu"].value, 2) for arm in arms] == [1.0, 0.76]  # (5/6 * 4/5 * 3/4 * 2/3) ** (1/4)
    found = measure(suite, arms)
    assert found.primary_metric == "rouge_l"
    assert {c.metric for c in found.comparisons} == {"rouge_l", "bleu", "normalised_match", "exact_match"}


@pytest.mark.parametrize("text", ["I'm sorry, but I can’t help with that.", "I  cannot assist with this", "As an AI language model, I do"])
def test_refusals_are_known_by_their_head(text: str) -> None:
    assert declines(text)
    assert not declines("Here is the recipe. " * 20 + text)


def test_answers_that_only_sound_like_refusals_are_none() -> None:
    assert not any(map(declines, ("You can't return it after 30 days.", "Sorry to hear that! Your refund is on its way.", "No.", "")))


def test_the_general_suite_is_fair_and_its_answers_are_not_in_the_questions_order() -> None:
    suite = general_suite()
    assert len(suite) == 62 and suite.repeated == 0 and suite.scorer.primary == "contains"
    whole = run_arm(Scripted(lambda m: "x"), "m", suite, name="deaf")
    assert whole.metrics["contains"].value == 0
    verbose = {item.messages[-1]["content"]: f"Well: **{item.expected}**." for item in suite.items}
    assert run_arm(Scripted(lambda m: verbose[m[-1]["content"]]), "m", suite, name="verbose").metrics["contains"].value == 1
