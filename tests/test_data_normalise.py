"""Normalising: each format gives the same Row however it is written, and every problem of a row is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.data.normalise import KIND_OF, Normaliser, RowFormat, detect_format
from tuneport.core.data.readers import BadRow, Record
from tuneport.core.data.rows import Row
from tuneport.core.spec import Method

U = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": ""}


def normalise(value: dict[str, Any], method: Method = "sft", system_prompt: str | None = None) -> Row | list[BadRow]:
    record = Record(7, value)
    found = detect_format([record], method)
    assert found is not None
    return Normaliser("rows.jsonl", found, method, system_prompt).row(record)


def good(value: dict[str, Any], method: Method = "sft", system_prompt: str | None = None) -> Row:
    row = normalise(value, method, system_prompt)
    assert isinstance(row, Row), row
    return row


def codes(value: dict[str, Any], method: Method = "sft") -> list[str]:
    row = normalise(value, method)
    assert isinstance(row, list), row
    assert all(problem.fault.path == "rows.jsonl:7" and problem.line == 7 for problem in row)
    return [problem.code for problem in row]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [U, A]},
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},  # a CSV cell
        {"messages": [{**U, "name": None}, {**A, "tool_calls": None, "weight": None}], "tools": None},  # Parquet pads with nulls
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "image_url": None}]}, A]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [U], "completion": [A]},
        {"prompt": "q", "completion": [A]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": " ", "output": "a"},
        {"text": "q", "label": "a"},
    ],
)
def test_ways_to_write_one_chat_row(value: dict[str, Any]) -> None:
    row = good({**value, "topic": "t"})
    assert (row.kind, row.file, row.line) == ("chat", "rows.jsonl", 7)
    assert row.messages == (U, A)
    assert row.columns == {"topic": "t"}
    assert row.label == value.get("label")


def test_chat_extras() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = good(
        {
            "messages": [{"role": "developer", "content": "s"}, U, CALL, RESULT, {**A, "weight": 1}],
            "tools": tools,
            "weight": "0.5",
            "parallel_tool_calls": False,
        }
    )
    assert row.messages == (S, U, CALL, RESULT, {**A, "weight": 1})
    assert row.tools == tuple(tools)
    assert row.weight == 0.5
    assert row.columns == {"parallel_tool_calls": False}


def test_images_stay_and_texts_are_joined() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    text = {"type": "text", "text": "x"}
    row = good({"messages": [{"role": "user", "content": [text, image]}, {"role": "assistant", "content": [text, text]}]})
    assert row.messages[0]["content"] == [text, image]
    assert row.messages[1]["content"] == "x\nx"


def test_alpaca_input_follows_the_instruction() -> None:
    assert good({"instruction": "Translate", "input": "cat", "output": "chat"}).messages[0]["content"] == "Translate\n\ncat"


@pytest.mark.parametrize(("label", "text"), [(3, "3"), (2.0, "2"), (True, "true"), ("spam", "spam")])
def test_labels_become_text(label: object, text: str) -> None:
    row = good({"text": "q", "label": label})
    assert row.label == text
    assert row.messages[-1]["content"] == text


def test_only_the_completion_is_learnt_from() -> None:
    row = good({"prompt": [U, A, U], "completion": [A]})
    assert row.messages == (U, {**A, "weight": 0}, U, A)


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [U], "chosen": [A], "rejected": [{**A, "content": "b"}]},
        {"prompt": "q", "chosen": [U, A], "rejected": [U, {**A, "content": "b"}]},
        {"chosen": [U, A], "rejected": [U, {**A, "content": "b"}]},
        {"input": {"messages": [U]}, "preferred_output": [A], "non_preferred_output": [{**A, "content": "b"}]},
        {"input": {"messages": [U]}, "preferred_completion": [A], "non_preferred_completion": [{**A, "content": "b"}]},
    ],
)
def test_ways_to_write_one_pair(value: dict[str, Any]) -> None:
    row = good(value, "dpo")
    assert (row.kind, row.messages, row.chosen, row.rejected) == ("preference", (U,), A, {**A, "content": "b"})


def test_openai_pair_keeps_tools_and_settings() -> None:
    value = {
        "input": {"messages": [U], "tools": [{"type": "function"}], "parallel_tool_calls": True},
        "preferred_output": [A],
        "non_preferred_output": [{**A, "content": "b"}],
    }
    row = good(value, "dpo")
    assert row.tools == ({"type": "function"},)
    assert row.columns == {"parallel_tool_calls": True}
    assert "tools" in value["input"]  


@pytest.mark.parametrize(("label", "desirable"), [(True, True), (False, False), ("True", True), ("false", False), (0, False), (1, True)])
def test_unpaired_preference(label: object, desirable: bool) -> None:
    row = good({"prompt": "q", "completion": "a", "label": label}, "kto")
    assert (row.kind, row.messages, row.desirable) == ("unpaired_preference", (U, A), desirable)


def test_text_rows() -> None:
    assert good({"text": "once"}, "cpt").text == "once"
    row = good({"text": "once", "label": 3}, "cpt")
    assert (row.kind, row.text, row.columns) == ("text", "once", {"label": 3})


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        ({"messages": [U], "answer": "a"}, {"answer": "a"}),
        ({"prompt": "q", "answer": "a"}, {"answer": "a"}),
        ({"prompt": "q", "completion": "a"}, {"completion": "a"}),
        ({"instruction": "q", "output": "a"}, {"output": "a"}),
        ({"text": "q", "label": "a"}, {"label": "a"}),
    ],
)
def test_rft_ends_with_the_user_and_keeps_the_reference(value: dict[str, Any], columns: dict[str, Any]) -> None:
    row = good(value, "rft")
    assert row.messages == (U,)
    assert row.columns == columns


def test_system_prompt_is_put_before_rows_that_have_none() -> None:
    assert good({"messages": [U, A]}, system_prompt="s").messages == (S, U, A)
    own = {"role": "system", "content": "own"}
    assert good({"messages": [own, U, A]}, system_prompt="s").messages == (own, U, A)
    assert good({"prompt": "q", "chosen": "a", "rejected": "b"}, "dpo", "s").messages == (S, U)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"messages": None}, ["wrong_shape"]),
        ({"messages": []}, ["wrong_shape"]),
        ({"messages": "hello"}, ["wrong_shape"]),
        ({"messages": [U, "x"]}, ["wrong_shape"]),
        ({"messages": [U, {"role": "assistant"}]}, ["empty_turn"]),
        ({"messages": [{"role": "user", "content": " \n"}, {"role": "assistant", "content": []}]}, ["empty_turn", "empty_turn"]),
        ({"messages": [{"role": "human", "content": "q"}, A]}, ["unknown_role"]),
        ({"messages": [{"role": ["user"], "content": "q"}, A]}, ["unknown_role"]),
        ({"messages": [{"role": "user", "content": 3}, A]}, ["wrong_shape", "empty_turn"]),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, A]}, ["wrong_shape", "empty_turn"]),
        ({"messages": [A]}, ["role_order"]),
        ({"messages": [U, U, A]}, ["role_order"]),
        ({"messages": [U, S, A]}, ["role_order"]),
        ({"messages": [U, CALL, A]}, ["role_order"]),
        ({"messages": [U, RESULT, A]}, ["role_order"]),
        ({"messages": [U]}, ["last_turn"]),
        ({"messages": [S]}, ["last_turn"]),
        ({"messages": [U, CALL, RESULT]}, ["last_turn"]),
        ({"messages": [{**U, "weight": 1}, A]}, ["bad_weight"]),
        ({"messages": [U, {**A, "weight": 0.5}]}, ["bad_weight"]),
        ({"messages": [U, {**A, "weight": 0}]}, ["bad_weight"]),
        ({"messages": [U, A], "weight": "heavy"}, ["bad_weight"]),
        ({"messages": [U, A], "weight": 10**400}, ["bad_weight"]),
        ({"messages": [U, A], "tools": [1]}, ["wrong_shape"]),
        ({"prompt": "", "completion": "a"}, ["empty_turn"]),
        ({"prompt": 1, "completion": "a"}, ["wrong_shape"]),
        ({"prompt": "q", "completion": None}, ["wrong_shape"]),
        ({"text": "q", "label": ""}, ["wrong_shape"]),
        ({"text": "q", "label": 0.5}, ["wrong_shape"]),
        ({"instruction": "q", "input": 1, "output": "a"}, ["wrong_shape"]),
    ],
)
def test_problems_of_chat_rows(value: dict[str, Any], expected: list[str]) -> None:
    assert codes(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"chosen": "a", "rejected": "b"},
        {"prompt": "other", "chosen": [U, A], "rejected": [U, A]},
        {"chosen": [U, A], "rejected": [{**U, "content": "p"}, A]},
        {"input": "q", "preferred_output": [A], "non_preferred_output": [A]},
        {"input": {"messages": [U]}, "preferred_output": [A, A], "non_preferred_output": [A]},
    ],
)
def test_problems_of_pairs(value: dict[str, Any]) -> None:
    assert codes(value, "dpo") == ["wrong_shape"]


def test_rft_refuses_an_answered_row() -> None:
    assert codes({"messages": [U, A]}, "rft") == ["last_turn"]


def test_share_gpt_rows_get_a_hint() -> None:
    row = Normaliser("f", "chat").row(Record(1, {"conversations": [{"from": "human", "value": "q"}]}))
    assert isinstance(row, list)
    assert "ShareGPT" in row[0].fault.hint


def test_the_format_is_what_most_first_rows_have() -> None:
    chat, pair = Record(1, {"messages": []}), Record(2, {"prompt": "q", "completion": "a"})
    assert detect_format([chat, pair, pair], "sft") == "prompt_completion"
    assert detect_format([chat, pair], "sft") == "chat"
    assert detect_format([Record(1, {"question": "q"})], "sft") is None


def test_a_text_beside_unknown_fields_is_not_taken_for_raw_text() -> None:
    assert detect_format([Record(1, {"text": "q", "category": "c"})], "sft") is None


_scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
_parts = st.dictionaries(st.sampled_from(["type", "text"]), st.sampled_from(["text", "image_url"]) | _scalars)
_message = st.dictionaries(
    st.sampled_from(["role", "content", "weight", "tool_calls"]),
    st.sampled_from(["system", "user", "assistant", "tool"]) | _scalars | st.lists(_scalars | _parts, max_size=2),
)
_field = _scalars | st.lists(_message | _scalars, max_size=4) | st.dictionaries(st.just("messages"), st.lists(_message, max_size=3))
_NAMES = ["messages", "tools", "weight", "prompt", "completion", "label", "text", "instruction", "input", "output", "chosen", "rejected"]
_NAMES += ["preferred_output", "non_preferred_output"]


@given(
    st.dictionaries(st.sampled_from(_NAMES), _field, max_size=5),
    st.sampled_from(list(KIND_OF)),
    st.sampled_from(["sft", "rft", "distill", "dpo", "kto", "cpt"]),
)
def test_any_object_is_a_row_or_named_problems(value: dict[str, Any], form: RowFormat, method: Method) -> None:
    before = repr(value)
    row = Normaliser("f", form, method, "system").row(Record(1, value))
    assert repr(value) == before
    if isinstance(row, Row):
        assert row.kind == KIND_OF[form]
        assert all(isinstance(message["role"], str) and "content" in message for message in row.messages)
    else:
        assert row
