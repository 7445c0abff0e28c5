"""Loading a job's data: facts of each part, rows of each part, and errors that name the place."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneport.core.data.load import BadRowsError, load_job_data, open_rows
from tuneport.core.errors import DataError, SpecError
from tuneport.core.spec import JobSpec


def chat(number: int, **columns: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}], **columns}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def spec(data: dict[str, Any], method: str = "sft") -> JobSpec:
    return JobSpec.model_validate({"model": "m", "method": method, "data": data})


def test_facts_of_files(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [chat(1), chat(2)])
    test = write(tmp_path / "test.jsonl", [chat(3)])
    job = spec({"train": train, "test": test, "system_prompt": "s"})
    data = load_job_data(job)
    assert (data.train.rows, data.train.kind, data.train.path) == (2, "chat", train)
    assert data.train.sha256 == hashlib.sha256(Path(train).read_bytes()).hexdigest()
    assert data.train.features == {"system"}
    assert 0 < data.train.tokens.low < data.train.tokens.high
    assert data.validation is None
    assert data.test is not None and data.test.rows == 1
    assert [row.messages[0]["role"] for row in open_rows(job, "test")] == ["system"]
    with pytest.raises(DataError, match="no validation rows"):
        open_rows(job, "validation")


def test_features(tmp_path: Path) -> None:
    user = {"role": "user", "content": "q"}
    thought = {"role": "assistant", "content": "a", "weight": 0, "reasoning_content": "r"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    rows = [
        {"messages": [user, call], "tools": [{"type": "function"}], "weight": 2},
        {"messages": [user, thought, user, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, {"role": "assistant", "content": "a"}]},
    ]
    facts = load_job_data(spec({"train": write(tmp_path / "t.jsonl", rows)})).train
    assert facts.features == {"tools", "tool_calls", "images", "reasoning", "message_weights", "row_weights", "multi_turn"}
    assert "images not counted" in facts.tokens.tokenizer
    prompts = write(tmp_path / "p.jsonl", [{"messages": [user]}])
    assert load_job_data(spec({"train": prompts}, "rft")).train.features == {"prompt_only"}


@pytest.mark.parametrize("by", ["random", "label", "group", "time"])
def test_parts_are_a_partition_and_agree_with_the_facts(tmp_path: Path, by: str) -> None:
    rows = [chat(n, topic=f"t{n % 7}", at=f"2026-01-{n % 28 + 1:02}") for n in range(200)]
    split = {"validation": 0.1, "test": 0.2, "by": by, "column": {"time": "at"}.get(by, "topic")}
    job = spec({"train": write(tmp_path / "t.jsonl", rows), "split": split})
    data = load_job_data(job)
    parts = {part: [row.line for row in open_rows(job, part)] for part in ("train", "validation", "test")}
    assert sorted(line for lines in parts.values() for line in lines) == list(range(1, 201))
    assert [len(lines) for lines in parts.values()] == [facts.rows for facts in (data.train, data.validation, data.test) if facts]
    assert parts["train"] == [row.line for row in open_rows(job, "train")]
    assert all(lines == sorted(lines) for lines in parts.values())


def test_classification_splits_by_its_label_without_a_column(tmp_path: Path) -> None:
    rows = [{"text": f"q{n}", "label": n % 2} for n in range(40)]
    job = spec({"train": write(tmp_path / "t.jsonl", rows), "split": {"test": 0.25, "by": "label"}})
    assert sorted(str(row.label) for row in open_rows(job, "test")) == ["0"] * 5 + ["1"] * 5
    chats = spec({"train": write(tmp_path / "c.jsonl", [chat(1), chat(2)]), "split": {"test": 0.25, "by": "label"}})
    with pytest.raises(DataError, match="no label to split by"):
        load_job_data(chats)


def test_bad_rows_are_listed_with_place_and_total(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [chat(1), "{broken", *[{"messages": []}] * 7, chat(2)])
    test = write(tmp_path / "test.jsonl", [chat(1), {"prompt": "q"}])
    with pytest.raises(BadRowsError) as caught:
        load_job_data(spec({"train": train, "test": test}))
    text = str(caught.value)
    assert "9 bad rows, the first 5" in text
    assert all(f"{train}:{line}: " in text for line in range(2, 7))
    assert caught.value.faults[-1].path == f"{test}:2"
    with pytest.raises(DataError, match=r"train\.jsonl:2"):
        list(open_rows(spec({"train": train}), "train"))


def test_a_file_whose_first_rows_are_all_bad_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadRowsError, match="300 bad rows"):
        load_job_data(spec({"train": write(tmp_path / "t.jsonl", ["{"] * 300)}))


def test_rows_without_a_split_key_are_bad(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat(1, user="u"), chat(2)])
    with pytest.raises(DataError, match=r"t.jsonl:2: expected a value to split by group, met nothing in column 'user'"):
        load_job_data(spec({"train": train, "split": {"test": 0.4, "by": "group", "column": "user"}}))


@pytest.mark.parametrize(
    ("rows", "method", "match"),
    [
        ([chat(1)], "dpo", "learns from preference rows"),
        ([chat(1)], "kto", "learns from preference or unpaired_preference rows"),
        ([{"text": "q"}], "sft", r"learns from chat rows; .* a method for text rows \(cpt\)"),
        ([{"prompt": "q", "completion": "a", "label": True}], "sft", "prompt_completion"),
        ([chat(1)], "cpt", "learns from text rows"),
        ([{"question": "q"}], "sft", "has the fields question"),
        ([{"text": "q", "category": "c"}], "sft", "holds the class to label"),
        (["", ""], "sft", "holds no rows"),
    ],
)
def test_rows_that_do_not_suit_the_method(tmp_path: Path, rows: list[Any], method: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_job_data(spec({"train": write(tmp_path / "t.jsonl", rows)}, method))


def test_contradictions(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat(1), chat(2)])
    text = write(tmp_path / "x.jsonl", [{"text": "x"}])
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    judged = write(tmp_path / "j.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    with pytest.raises(SpecError, match=r"data\.split\.test"):
        load_job_data(spec({"train": train, "test": train, "split": {"test": 0.4}}))
    with pytest.raises(DataError, match="use one kind of rows"):
        load_job_data(spec({"train": pairs, "validation": judged}, "kto"))
    with pytest.raises(DataError, match="raw text"):
        load_job_data(spec({"train": text, "system_prompt": "s"}, "cpt"))


def test_an_own_validation_file_and_a_share_for_the_test(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat(n) for n in range(10)])
    job = spec({"train": train, "validation": write(tmp_path / "v.jsonl", [chat(99)]), "split": {"test": 0.2}})
    data = load_job_data(job)
    assert (data.train.rows, data.validation and data.validation.rows, data.test and data.test.rows) == (8, 1, 2)
    assert [len(list(open_rows(job, part))) for part in ("train", "validation", "test")] == [8, 1, 2]


def test_a_file_that_changes_between_passes_is_noticed(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat(n) for n in range(1000)])
    rows = open_rows(spec({"train": train, "split": {"test": 0.2}}), "train")
    write(tmp_path / "t.jsonl", [chat(n) for n in range(1200)])
    with pytest.raises(DataError, match="changed while it was read"):
        list(rows)


def test_ten_thousand_rows_load_quickly(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat(n) for n in range(10_000)])
    begin = time.process_time()
    assert load_job_data(spec({"train": train})).train.rows == 10_000
    assert time.process_time() - begin < 3  # about 0.3 s on an idle core; the margin is for crowded machines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'{"prompt": "q", "completion": "a"}', b'{"text": "x"}']), max_size=5))
def test_any_file_loads_or_raises_data_error(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        load_job_data(spec({"train": str(path), "split": {"test": 0.2}}))
    except DataError as error:
        found = str(error)
    else:
        found = str(path)
    assert str(path) in found
