"""Converting: a round trip through every pair of formats and kinds of file loses nothing that the target says it can carry."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneport.core.data.convert import OWN_FORMAT, InexpressibleError, plain_value, records_of
from tuneport.core.data.normalise import KIND_OF, Normaliser, RowFormat
from tuneport.core.data.readers import Record, read_records
from tuneport.core.data.rows import Row
from tuneport.core.data.writers import open_writer
from tuneport.core.errors import UsageError
from tuneport.core.spec import Method

FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
KINDS = ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz", "rows.csv.zst"]
METHODS: dict[str, Method] = {"chat": "sft", "preference": "dpo", "unpaired_preference": "kto", "text": "cpt"}

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
call = st.just({"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}})
tools = st.sampled_from([(), ({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}},)])
numbers = st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False)
values = words | numbers | st.booleans() | st.lists(words, max_size=2)
columns = st.dictionaries(st.sampled_from(["id", "group", "score", "note with space", "é"]), values, max_size=2)


@st.composite
def turns(draw: st.DrawFn) -> tuple[dict[str, Any], ...]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append({"role": "user", "content": draw(words)})
        if draw(st.integers(0, 4)) == 0:
            messages.append({"role": "assistant", "content": None, "tool_calls": [draw(call)]})
            messages.append({"role": "tool", "content": draw(words), "tool_call_id": "c1"})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(words)}
        if draw(st.integers(0, 3)) == 0:
            answer["weight"] = draw(st.sampled_from([0, 1]))
        if draw(st.integers(0, 4)) == 0:
            answer["reasoning_content"] = draw(words)
        messages.append(answer)
    return tuple(messages)


@st.composite
def any_row(draw: st.DrawFn) -> Row:
    kind = draw(st.sampled_from(["chat", "chat", "simple", "preference", "unpaired_preference", "text"]))
    extra = {"columns": draw(columns)}
    if kind == "text":
        return Row("text", "f", 1, text=draw(words), **extra)
    if kind == "simple":
        question, answer = draw(words), draw(words)
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        return Row("chat", "f", 1, messages, label=answer if draw(st.booleans()) else None, **extra)
    messages = draw(turns())
    if kind == "chat":
        if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
            messages = (*messages[:-1], {**messages[-1], "weight": 1})
        return Row("chat", "f", 1, messages, tools=draw(tools), weight=draw(st.sampled_from([None, 0.5, 2.0])), **extra)
    unweighted = tuple({key: value for key, value in message.items() if key != "weight"} for message in messages)
    if kind == "preference":
        other = {"role": "assistant", "content": draw(words)}
        return Row("preference", "f", 1, unweighted[:-1], chosen=unweighted[-1], rejected=other, tools=draw(tools), **extra)
    return Row("unpaired_preference", "f", 1, unweighted, desirable=draw(st.booleans()), tools=draw(tools), **extra)


def method_of(format: RowFormat) -> Method:
    return METHODS[KIND_OF[format]]


def read_back(path: Path, format: RowFormat) -> list[Row]:
    rows = []
    normaliser = Normaliser(str(path), format, method_of(format))
    for record in read_records(str(path)):
        assert isinstance(record, Record), record
        row = normaliser.row(record)
        assert isinstance(row, Row), row
        rows.append(row)
    return rows


def essence(row: Row) -> dict[str, Any]:
    """What a row teaches. A weight of 1 is the meaning of none, and the label of a class is its answer."""
    messages = [{key: value for key, value in message.items() if not (key == "weight" and value == 1)} for message in row.messages]
    return {
        "kind": row.kind,
        "messages": messages,
        "chosen": row.chosen,
        "rejected": row.rejected,
        "desirable": row.desirable,
        "text": row.text,
        "tools": row.tools,
        "weight": row.weight,
    }


def unweighted_prompt(row: Row) -> Row:
    """The row as a prompt-and-completion format reads it: earlier answers carry no loss."""
    if row.kind != "chat":
        return row
    *earlier, last = row.messages
    return replace(row, messages=(*({**m, "weight": 0} if m["role"] == "assistant" else m for m in earlier), last))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_row(), st.sampled_from(FORMATS))
def test_every_format_carries_a_row_whole_or_says_why_not(row: Row, format: RowFormat) -> None:
    try:
        records = records_of(row, format)
    except InexpressibleError:
        assert format != OWN_FORMAT[row.kind]  # its own format always carries a row
        return
    normaliser = Normaliser("f", format, method_of(format))
    back = [normaliser.row(Record(1, record)) for record in records]
    if row.kind == "preference" and format == "unpaired_preference":
        good, bad = back
        assert isinstance(good, Row) and isinstance(bad, Row)
        assert (good.messages, good.desirable) == ((*row.messages, row.chosen), True)
        assert (bad.messages, bad.desirable) == ((*row.messages, row.rejected), False)
        return
    (found,) = back
    assert isinstance(found, Row), found
    expected = unweighted_prompt(row) if format == "prompt_completion" else row
    assert essence(found) == essence(expected)
    label = {"label": row.label} if row.label is not None else {}
    if format == "classification":
        label = {"label": row.messages[-1]["content"]}
    kept = dict(found.columns) | ({"label": found.label} if found.label is not None else {})
    assert kept == {**row.columns, **label}


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(any_row(), min_size=1, max_size=4), st.sampled_from(KINDS), st.sampled_from(FORMATS))
def test_every_kind_of_file_gives_back_what_it_took(rows: list[Row], name: str, format: RowFormat) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        taken: list[tuple[Row, dict[str, Any]]] = []
        with open_writer(path) as writer:
            for row in rows:
                if KIND_OF[format] != row.kind:
                    continue
                try:
                    (record,) = records_of(row, format)
                    writer.write(record)
                except InexpressibleError:
                    continue
                taken.append((row, record))
        assert writer.rows == len(taken)
        if not taken:
            return
        back = read_back(path, format)
        assert len(back) == len(taken)
        for (row, _), found in zip(taken, back, strict=True):
            expected = unweighted_prompt(row) if format == "prompt_completion" else row
            assert essence(found) == essence(expected)
            for name_, value in row.columns.items():
                if found.columns.get(name_) != value:  # only where the writer said so
                    assert any(repr(name_) in note for note in writer.notes), (name_, value, found.columns, writer.notes)
        again = Path(folder) / f"again-{name}"
        with open_writer(again) as second:
            for _, record in taken:
                second.write(record)
        assert (again.read_bytes(), second.sha256) == (path.read_bytes(), writer.sha256)


QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        (Row("text", "f", 1, text="x"), "chat", "is a text row"),
        (Row("chat", "f", 1, (QUESTION, ANSWER), weight=2.0), "instruction", "has a weight"),
        (Row("chat", "f", 1, (QUESTION, ANSWER), tools=({"a": 1},)), "instruction", "has tools"),
        (Row("chat", "f", 1, (SYSTEM, QUESTION, ANSWER)), "classification", "turns system"),
        (Row("chat", "f", 1, (QUESTION, ANSWER, QUESTION, ANSWER)), "prompt_completion", "learns from several answers"),
        (Row("chat", "f", 1, (QUESTION, ANSWER), columns={"messages": 1}), "chat", "column named 'messages'"),
        (Row("preference", "f", 1, (QUESTION,), ANSWER, ANSWER), "chat", "is a preference row"),
        (Row("text", "f", 1, text="x", weight=1.0), "text", "has a weight"),
    ],
)
def test_refusals_name_what_is_lacking(row: Row, format: RowFormat, reason: str) -> None:
    with pytest.raises(InexpressibleError, match=reason):
        records_of(row, format)


def test_values_beyond_json() -> None:
    notes: list[str] = []
    value = {"at": datetime(2026, 1, 2, 3), "day": date(2026, 1, 2), "price": Decimal("1.10"), "deep": [(1, {"x": None})]}
    expected = {"at": "2026-01-02T03:00:00", "day": "2026-01-02", "price": "1.10", "deep": [[1, {"x": None}]]}
    assert plain_value(value, notes.append) == expected
    assert len(notes) == 3
    with pytest.raises(InexpressibleError, match="bytes"):
        plain_value({"image": b"x"}, notes.append)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    with pytest.raises(InexpressibleError), open_writer(path) as writer:
        writer.write({"text": "x" * (9 << 20)})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError):
        writer.write({"text": "late"})
    for name in ("rows.txt", "rows.parquet.gz"):
        with pytest.raises(UsageError, match="no kind"), open_writer(tmp_path / name):
            pass
