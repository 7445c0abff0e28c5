"""Hugging Face datasets: the objects themselves are checked and prepared."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from tuneport.core.data.check import check_data, check_files
from tuneport.core.data.hub_rows import parts_of, source_name
from tuneport.core.data.prepare import PrepareOptions, prepare
from tuneport.core.data.readers import Record, read_records
from tuneport.core.errors import DataError

datasets = pytest.importorskip("datasets")


def test_a_dataset_is_checked_like_a_file() -> None:
    rows = datasets.Dataset.from_list([{"prompt": f"q{n}", "completion": "a" if n else ""} for n in range(300)])
    report = check_data(rows)
    assert (report.rows, report.good_rows, report.format) == (300, 299, "prompt_completion")
    assert {finding.code for finding in report.findings} >= {"empty_turn", "too_few_rows"}
    assert report.file.startswith("dataset:")


def test_formatted_and_streamed_datasets_give_python_values() -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    expected = [Record(1, {"text": "a", "n": 1}), Record(2, {"text": "b", "n": 2})]
    assert list(read_records(rows.with_format("numpy"))) == expected
    assert list(read_records(rows.to_iterable_dataset())) == expected


def test_values_that_no_file_could_hold_are_bad_rows() -> None:
    class Rows:
        features = None
        split = "train"

        def with_format(self, type: object) -> list[object]:
            odd = {"text": "x", "image": object()}
            good = {"text": "x", "at": datetime(2026, 1, 1), "n": float("nan")}
            return [odd, {"text": "x", "n": float("inf")}, {"text": "\ud800"}, 7, good]

        def __iter__(self) -> object:
            return iter(())

    found = list(read_records(Rows()))  # type: ignore[arg-type]
    assert [isinstance(row, Record) for row in found] == [False, False, False, False, True]
    assert found[4] == Record(5, {"text": "x", "at": datetime(2026, 1, 1), "n": None})
    assert source_name(Rows()) == "dataset:Rows[train]"  # type: ignore[arg-type]


def test_the_splits_of_a_dataset_dict() -> None:
    train = datasets.Dataset.from_list([{"prompt": f"question number {n}", "completion": "a"} for n in range(20)])
    both = datasets.DatasetDict({"train": train, "dev": train.select([3])})
    reports = check_files(**parts_of(both))
    assert {finding.code for finding in reports["validation"].findings} >= {"overlap_train"}
    with pytest.raises(DataError, match="splits are"):
        parts_of(datasets.DatasetDict({"all": train}))
    with pytest.raises(DataError, match="several splits"):
        check_data(both)


def test_a_dataset_is_prepared(tmp_path: Path) -> None:
    turns = [[{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a"}] for n in range(9)]
    rows = datasets.Dataset.from_list([{"conversations": conversation} for conversation in turns])
    card = prepare(rows, tmp_path / "out", PrepareOptions())
    assert card.inputs[0].sha256 == "" and card.parts[0].rows == 9
    assert '"role":"user"' in (tmp_path / "out" / "train.jsonl").read_text()
