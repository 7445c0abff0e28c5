"""Scoring: what counts as right for each task, task detection, schemas, and hostile answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneport.advisor.metrics import MISSING, Scorer, load_schema, make_scorer, normalise, parse_json, same_json
from tuneport.core.errors import DataError

TICKETS = [
    '{"category": "billing", "urgent": true, "order": "A-1"}',
    '{"category": "shipping", "urgent": false, "order": "A-2"}',
    '{"category": "billing", "urgent": false, "order": "A-3"}',
    '{"category": "shipping", "urgent": true, "order": "A-4"}',
]
SCHEMA = {
    "type": "object",
    "required": ["category"],
    "properties": {"category": {"enum": ["billing", "shipping"]}, "urgent": {"type": "boolean"}},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
HOSTILE = [
    "",
    " ",
    "\x00",
    "null",
    "NaN",
    '{"category": NaN}',
    '{"category": Infinity}',
    '{"category": 1e999}',
    '{"category": "billing", "category": "shipping"}',
    "[" * 100_000,
    "[" * 5_000 + "]" * 5_000,
    '{"a":' * 500 + "1" + "}" * 500,
    '{"order": ' + "9" * 10_000 + "}",
    "x" * 2_000_000,
    '"\\ud800"',
    '{"category": "\\ud800"}',
    "\ud800",
    '{"category": []}',
    '{"category": {"category": {}}}',
    "```json\n{}\n```\n```json\n{}\n```",
    "```" * 1_000,
    "```\n" + " " * 900_000,
    "```\n" + "\n \t" * 200_000,
    "<script>alert(1)</script>",
]


def test_json_task_scores_fields_and_schema() -> None:
    scorer = make_scorer(TICKETS, schema=SCHEMA)
    assert (scorer.task, scorer.primary, scorer.label_field) == ("json", "exact_match", "category")
    assert scorer.fields == ("category", "urgent", "order")
    right = scorer.score(TICKETS[0], ' {"order":"A-1","urgent":true,"category":"billing"}\n')
    assert set(right.values()) == {1.0}
    assert tuple(right) == scorer.metrics
    partly = scorer.score(TICKETS[0], '{"category": "Billing", "urgent": 1, "order": "A-1"}')
    assert partly == {
        "exact_match": 0, "normalised_match": 0, "json_valid": 1, "schema_valid": 0,
        "field.category": 0, "field.urgent": 0, "field.order": 1, "field_accuracy": pytest.approx(1 / 3),
    }  # fmt: skip


def test_normalised_match_forgives_case_and_spaces_in_strings_only() -> None:
    scorer = make_scorer(TICKETS)
    scores = scorer.score(TICKETS[0], '{"category": " BILLING. ", "urgent": true, "order": "a-1"}')
    assert (scores["exact_match"], scores["normalised_match"]) == (0, 1)
    assert scorer.score(TICKETS[0], '{"CATEGORY": "billing", "urgent": true, "order": "A-1"}')["normalised_match"] == 0


def test_an_added_field_is_not_an_exact_match_and_a_missing_one_is_wrong() -> None:
    scorer = make_scorer(TICKETS)
    added = scorer.score(TICKETS[0], '{"category": "billing", "urgent": true, "order": "A-1", "why": "x"}')
    assert (added["exact_match"], added["field_accuracy"]) == (0, 1)
    assert scorer.score(TICKETS[0], '{"category": "billing", "urgent": true}')["field.order"] == 0


def test_a_field_that_is_rightly_absent_counts_as_right() -> None:
    scorer = make_scorer(['{"a": 1, "b": 2}', '{"a": 1}'])
    assert scorer.score('{"a": 1}', '{"a": 1}')["field.b"] == 1
    assert scorer.score('{"a": 1}', '{"a": 1, "b": null}')["field.b"] == 0
    assert scorer.score('{"a": 1}', "not json")["field.b"] == 0


def test_fenced_json_counts_only_when_asked() -> None:
    answer = f"Here it is:\n```json\n{TICKETS[0]}\n```"
    assert make_scorer(TICKETS).score(TICKETS[0], answer)["json_valid"] == 0
    assert make_scorer(TICKETS, fenced=True).score(TICKETS[0], answer)["exact_match"] == 1


def test_tolerance_applies_to_numbers_but_not_to_exact_match() -> None:
    scorer = make_scorer(['{"total": 100.0}'], tolerance=0.01)
    scores = scorer.score('{"total": 100.0}', '{"total": 100.5}')
    assert (scores["exact_match"], scores["normalised_match"], scores["field.total"]) == (0, 1, 1)
    assert make_scorer(["12.5"], task="text", tolerance=0.01).score("12.5", "12.50001")["normalised_match"] == 1
    assert make_scorer(["12.5"], task="text").score("12.5", "12.50001")["normalised_match"] == 0


def test_label_task_forgives_case_and_punctuation() -> None:
    scorer = make_scorer(["Card Lost", "Refund"] * 3)
    assert scorer.task == "label"
    assert scorer.score("Card Lost", "card lost.") == {"accuracy": 1, "exact_match": 0}
    assert scorer.label("  CARD   lost ") == scorer.label("Card Lost")
    assert scorer.score("Card Lost", "It is about a lost card")["accuracy"] == 0


@pytest.mark.parametrize(("one", "other", "same"), [
    ("Yes", '"YES."', True), ("ﬁne", "fine", True), ("a  b\n", "A b", True), (".5", "5", False), ("-5", "5", False), ("...", "!!!", False),
])  # fmt: skip
def test_normalising(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_task_detection() -> None:
    assert make_scorer(["The parcel left on Monday.", "Yes.", "Please restart the router."]).task == "text"
    assert make_scorer(["a", "b", "c"], labelled=True).task == "label"
    assert make_scorer(['{"a": 1}', "[1]"]).task == "json"
    assert make_scorer(["1", "2", "1", "2"]).task == "label"
    assert make_scorer(['{"a": 1}'], task="text").task == "text"


def test_json_labels_compare_by_value() -> None:
    scorer = make_scorer(TICKETS, label_field="urgent")
    assert scorer.label(TICKETS[0]) == scorer.label('{"urgent":true}')
    assert scorer.label('{"urgent": 1}') != scorer.label(TICKETS[0])
    assert scorer.label("{}") is None
    assert scorer.label("rubbish") is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_scorer(["{}", "nope"], task="json"), "1 of 2 expected answers are not JSON"),
        (lambda: make_scorer(TICKETS, label_field="colour"), "choose one of: category, urgent, order"),
        (lambda: Scorer(task="json", schema={"type": "objekt"}), "no valid JSON Schema"),
        (lambda: Scorer(task="json", schema={"$ref": "https://example.invalid/s.json"}), "another document"),
        (lambda: Scorer(task="json", schema={"$ref": "#/$defs/none"}), "does not hold"),
    ],
)
def test_faulty_setups_are_data_errors(make: object, words: str) -> None:
    with pytest.raises(DataError, match=words.replace("$", r"\$")):
        make()  # type: ignore[operator]


def test_load_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    assert load_schema(path) == SCHEMA
    for content in ("{", "[1]", '{"type": 3}'):
        path.write_text(content)
        with pytest.raises(DataError, match="JSON Schema"):
            load_schema(path)
    with pytest.raises(DataError, match="cannot read"):
        load_schema(tmp_path / "none.json")


def test_a_schema_that_recurses_without_end_scores_zero() -> None:
    scorer = Scorer(task="json", schema={"$ref": "#"})
    assert scorer.score("{}", "{}")["schema_valid"] == 0


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: ascii(text[:20]))
@pytest.mark.parametrize("task", ["json", "label", "text"])
def test_hostile_answers_score_zero(task: str, answer: str) -> None:
    scorer = make_scorer(TICKETS, task=task, schema=SCHEMA, fenced=True)  # type: ignore[arg-type]
    scores = scorer.score(TICKETS[0], answer)
    assert tuple(scores) == scorer.metrics
    assert scores[scorer.primary] == 0
    scorer.label(answer)


def test_free_keys_do_not_become_metrics_without_end() -> None:
    rows = [json.dumps({"id": i, f"key{i}": i}) for i in range(200)]
    scorer = make_scorer(rows)
    assert len(scorer.fields) == 40
    assert "id" in scorer.fields


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["json", "label", "text"]))
def test_any_text_is_scored(answer: str, task: str) -> None:
    scorer = make_scorer(TICKETS, task=task, schema=SCHEMA, fenced=True, tolerance=0.01)  # type: ignore[arg-type]
    scores = scorer.score(TICKETS[0], answer)
    assert all(0 <= value <= 1 for value in scores.values())


@settings(max_examples=80, deadline=None)
@given(JSON, JSON)
def test_json_equality_is_reflexive_and_symmetric(one: object, other: object) -> None:
    again = parse_json(json.dumps(one))
    assert again is not MISSING and same_json(one, again) and same_json(one, again, normalised=True, tolerance=0.1)
    assert same_json(one, other) == same_json(other, one)
