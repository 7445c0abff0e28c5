"""``tuneport check``: what it finds, how it grades it, and that it never changes its codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.data.check import CheckReport, Finding, check_data, check_files
from tuneport.core.errors import DataError, UsageError


def chat(question: str, answer: str = "a", system: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *messages]}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def by_code(report: CheckReport) -> dict[str, Finding]:
    return {finding.code: finding for finding in report.findings}


def test_a_clean_file(tmp_path: Path) -> None:
    report = check_data(write(tmp_path / "t.jsonl", [chat(f"q{n}", f'{{"a": {n}}}', "s") for n in range(600)]))
    assert report.ok
    assert report.findings == ()
    assert (report.rows, report.good_rows, report.format, report.detected) == (600, 600, "chat", True)
    assert report.features == ("system",)
    assert report.answers is not None and (report.answers.distinct, report.answers.json_answers) == (600, 600)
    assert report.tokens is not None and report.tokens.low > 0
    assert CheckReport.model_validate_json(report.model_dump_json()) == report


def test_bad_rows_are_findings_with_lines_and_errors_come_first(tmp_path: Path) -> None:
    user, answer = chat("q")["messages"]
    rows = [
        chat("q1"),
        "{broken",
        {"messages": [{**user, "content": ""}, answer]},
        {"messages": [answer]},
        {"messages": [user]},
        {"other": 1},
        *[{"messages": [{**user, "role": "human"}, answer]}] * 7,
    ]
    report = check_data(write(tmp_path / "t.jsonl", rows))
    found = by_code(report)
    assert not report.ok
    assert (report.rows, report.good_rows) == (13, 1)
    lines = {code: finding.lines for code, finding in found.items() if finding.severity == "error"}
    assert lines == {
        "malformed_row": (2,),
        "empty_turn": (3,),
        "role_order": (4,),
        "last_turn": (5,),
        "wrong_shape": (6,),
        "unknown_role": (7, 8, 9, 10, 11),
    }
    assert found["unknown_role"].count == 7
    assert "write 'user'" in found["unknown_role"].message
    assert [finding.severity for finding in report.findings] == sorted(
        (finding.severity for finding in report.findings), key=["error", "warning", "info"].index
    )


def test_system_prompts(tmp_path: Path) -> None:
    mixed = check_data(write(tmp_path / "m.jsonl", [chat("q1", system="s"), chat("q2", system="t"), chat("q3")]))
    assert by_code(mixed)["missing_system_prompt"].lines == (3,)
    assert by_code(mixed)["varying_system_prompt"].count == 2
    bare = write(tmp_path / "n.jsonl", [chat("q1"), chat("q2")])
    assert by_code(check_data(bare))["no_system_prompt"].severity == "info"
    assert not {"no_system_prompt", "missing_system_prompt"} & by_code(check_data(bare, system_prompt="s")).keys()


def test_duplicates_and_outputs(tmp_path: Path) -> None:
    rows = [chat("q1", '{"a": 1}'), chat("q2", '{"b": 1}'), chat("q1", '{"a": 1}'), chat("q3", "plain")]
    found = by_code(check_data(write(tmp_path / "t.jsonl", rows)))
    assert found["duplicate_rows"].lines == (3,)
    assert found["inconsistent_output"].lines == (4,)
    assert found["varying_json_fields"].severity == "info"


def test_answers_against_a_schema(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [chat("q1", '{"a": 1}'), chat("q2", '{"a": "x"}'), chat("q3", "plain"), chat("q4", '{"a": NaN}')])
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    finding = by_code(check_data(path, json_schema=schema))["schema_mismatch"]
    assert (finding.severity, finding.count, finding.lines) == ("error", 3, (2, 3, 4))
    assert "$.a" in finding.message
    with pytest.raises(UsageError):
        check_data(path, json_schema={"type": "nonsense"})


def test_overlap_between_files(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat("q1"), chat("q2")])
    validation = write(tmp_path / "v.jsonl", [chat("q2", "another answer"), chat("q3")])
    test = write(tmp_path / "x.jsonl", [chat("q1", system="other prompt"), chat("q3"), chat("q9")])
    reports = check_files(train, validation, test)
    assert list(reports) == ["train", "validation", "test"]
    found = by_code(reports["validation"])["overlap_train"]
    assert (found.severity, found.lines) == ("warning", (1,))
    assert by_code(reports["test"])["overlap_train"].lines == (1,)
    assert by_code(reports["test"])["overlap_validation"].lines == (2,)
    assert not reports["test"].ok
    assert by_code(reports["test"])["small_test_set"].count == 3


@pytest.mark.parametrize(
    ("rows", "method", "finding"),
    [
        (150, "sft", ("too_few_rows", "warning")),
        (300, "sft", ("too_few_rows", "info")),
        (10_001, "sft", ("many_rows", "info")),
        (600, "dpo", ("too_few_rows", "warning")),
        (600, "kto", ("too_few_rows", "warning")),
        (600, "cpt", ("too_few_tokens", "warning")),
    ],
)
def test_amounts(tmp_path: Path, rows: int, method: Any, finding: tuple[str, str]) -> None:
    make = {
        "sft": lambda n: {"prompt": f"q{n}", "completion": "a"},
        "dpo": lambda n: {"prompt": f"q{n}", "chosen": "a", "rejected": "b"},
        "kto": lambda n: {"prompt": f"q{n}", "completion": "a", "label": True},
        "cpt": lambda n: {"text": f"text {n}"},
    }[method]
    found = by_code(check_data(write(tmp_path / "t.jsonl", [make(n) for n in range(rows)]), method=method))
    assert finding in {(code, item.severity) for code, item in found.items()}
    assert "(S" in found[finding[0]].message or "S1" in found[finding[0]].message


def test_classes(tmp_path: Path) -> None:
    rows = [{"text": f"q{n}", "label": "rare" if n < 10 else "common"} for n in range(600)]
    report = check_data(write(tmp_path / "t.jsonl", rows))
    assert report.answers is not None and report.answers.labels == {"common": 590, "rare": 10}
    assert by_code(report)["small_class"].count == 1
    assert "'common' has 590" in by_code(report)["unbalanced_classes"].message


def test_equal_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}])
    assert by_code(check_data(path, method="dpo"))["identical_pair"].lines == (1,)


def test_files_of_the_wrong_kind_and_format(tmp_path: Path) -> None:
    assert "wrong_kind" in by_code(check_data(write(tmp_path / "a.jsonl", [chat("q")]), method="dpo"))
    unknown = check_data(write(tmp_path / "b.jsonl", [{"question": "q"}]))
    assert (unknown.format, unknown.good_rows, unknown.tokens, unknown.answers) == (None, 0, None, None)
    assert "unknown_format" in by_code(unknown)
    broken = check_data(write(tmp_path / "c.jsonl", ["{"] * 3))
    assert by_code(broken)["malformed_row"].count == 3
    named = check_data(write(tmp_path / "d.jsonl", [{"text": "x", "url": "u"}]), format="text")
    assert (named.detected, named.good_rows) == (False, 1)
    with pytest.raises(DataError):
        check_data(str(tmp_path / "none.jsonl"))
