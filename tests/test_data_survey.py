"""The survey: the quick way and the long way see the same, and so do one process and several, whatever the file holds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneport.core.data import batches, survey
from tuneport.core.data.batches import RangeBatch, RecordBatch
from tuneport.core.data.check import CheckOptions, CheckReport, check_data
from tuneport.core.data.deep import DeepOptions
from tuneport.core.data.json_rows import MAX_ROW_BYTES
from tuneport.core.data.normalise import Normaliser
from tuneport.core.data.readers import read_records
from tuneport.core.data.survey import SurveyJob
from tuneport.core.data.workers import run_in_order
from tuneport.core.errors import DataError
from tuneport.tests import worker_calls

roles = st.sampled_from(["system", "user", "assistant", "assistant", "user", "tool", "human", "developer", 3, None])
contents = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "  ", '{"a": 1}', "[1]", '{"a":', "yes.", "yes", "role", "messages", '"role"', "8.8.8.8"]),
    st.sampled_from(["é\u200b", "\ufffd", "Ã©", "\x7f", "\x08x", "a\\b", '"', "\\"]),
    st.none(),
    st.just([{"type": "text", "text": "part"}]),
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": roles, "content": contents}),
        st.fixed_dictionaries({"role": roles, "content": contents, "weight": st.sampled_from([0, 1, 2])}),
    ),
    max_size=5,
)
good = st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=2).map(
    lambda texts: [turn for text in texts for turn in ({"role": "user", "content": text}, {"role": "assistant", "content": text * 2})]
)
extras = {"tools": st.just([]), "id": st.integers(0, 3)}
rows = st.one_of(
    st.fixed_dictionaries({"messages": good | messages}, optional=extras).map(json.dumps),
    st.fixed_dictionaries({"messages": good | messages}).map(lambda row: json.dumps(row, ensure_ascii=False, separators=(",", ":"))),
    st.sampled_from(
        [
            '{"messages": [{"role": "user", "role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            '{"messages": [], "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            '{"messages": [{"r\\u006fle": "user", "role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "b"}]}',
            '{"messages": [{"role": "user", "content": NaN}]}',
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\u0000"}]}',
            "",
            "   ",
            "{",
            "[1]",
            '{"messages": ' + "[" * 5_000,
        ]
    ),
)


def both_ways(path: Path, system_prompt: str | None) -> tuple[Any, Any]:
    """The survey of one file by byte range (quick where it can be) and by records (always the long way)."""
    name = str(path)
    job = SurveyJob(name, Normaliser(name, "chat", "sft", system_prompt), deep=DeepOptions(near=False))
    quick = job(RangeBatch(name, 0, path.stat().st_size))
    long = job(RecordBatch(list(read_records(name)), 0))
    return quick, long


def shown(found: Any) -> dict[str, Any]:
    """A survey as comparable values."""
    tally = dict(vars(found.tally))
    tally.pop("_schema")
    tally.pop("languages")  # of a sample, which falls on other rows when there are blank lines

    def plain(value: Any) -> Any:
        if hasattr(value, "lines"):
            return value.count, value.lines, value.examples
        return {key: plain(held) for key, held in value.items()} if isinstance(value, dict) else value

    names = ("lines", "whole", "asked", "answered", "likeness", "low", "high", "longest")
    arrays = {name: getattr(found.deep.arrays, name).tolist() for name in names}
    return {name: plain(value) for name, value in tally.items()} | arrays | {"personal": plain(found.deep.personal)}


@settings(max_examples=200, deadline=None)
@given(st.lists(rows, min_size=1, max_size=8), st.sampled_from([None, "be brief"]), st.sampled_from(["\n", "\r\n"]))
def test_the_quick_way_sees_what_the_long_way_sees(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], prompt: str | None, end: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes((end.join(lines) + end).encode())
    quick, long = both_ways(path, prompt)
    assert shown(quick) == shown(long)


def test_most_plain_rows_take_the_quick_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"role": "assistant", "content": "a\nb"}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"q é {n}"}, answer]}) for n in range(50)))
    monkeypatch.setattr(survey, "parse_object", lambda text: pytest.fail("took the long way"))
    job = SurveyJob(str(path), Normaliser(str(path), "chat"))
    assert job(RangeBatch(str(path), 0, path.stat().st_size)).tally.good == 50


def noisy(path: Path, count: int) -> None:
    draw = random.Random(5)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = " ".join(f"w{draw.randint(0, 3000)}" for _ in range(draw.randint(3, 60)))
            answer = draw.choice(["yes", "no", "no.", f"mail a{number}@corp.com", words])
            turns = [{"role": "user", "content": words}, {"role": draw.choice(["assistant"] * 9 + ["bot"]), "content": answer}]
            file.write(draw.choice(["", "", "", "\n", "{broken\n"]) + json.dumps({"messages": turns}) + "\n")
            if number % 7 == 0:
                file.write(json.dumps({"messages": turns}) + "\n")


def without_name(report: CheckReport) -> dict[str, Any]:
    return json.loads(report.model_dump_json().replace(report.file, "FILE"))


def test_ranges_and_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    noisy(path, 1_500)
    whole = check_data(str(path))
    monkeypatch.setattr(batches, "RANGE_BYTES", 20_000)
    assert path.stat().st_size > 100_000
    one = check_data(str(path), options=CheckOptions(workers=1))
    two = check_data(str(path), options=CheckOptions(workers=2))
    assert one == two
    assert without_name(one.model_copy(update={"languages": {}, "findings": ()})) == without_name(
        whole.model_copy(update={"languages": {}, "findings": ()})
    )
    assert [f for f in one.findings if f.code != "mixed_languages"] == [f for f in whole.findings if f.code != "mixed_languages"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=12), st.integers(1, 40))
def test_every_line_is_in_exactly_one_range(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], size: int) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    read = b""
    for start in range(0, len(content), size):
        block, overlong = batches.read_range(RangeBatch(str(path), start, min(start + size, len(content))))
        assert not overlong and (not read or read.endswith(b"\n") or not block)
        read += block
    assert read == (content[3:] if content.startswith(b"\xef\xbb\xbf") else content)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_a_line_of_100_mb(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    around = {"rows.jsonl": (b'{"text": "a"}\n', b'\n{"text": "b"}\n'), "rows.csv": (b"text\na\n", b"\nb\n"), "rows.json": (b"[", b"]")}
    before, after = around[name]
    with path.open("wb") as file:
        file.write(before)
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(after)
    report = check_data(str(path), format="text", method="cpt", options=CheckOptions(workers=1))
    assert report.good_rows == (0 if name == "rows.json" else 2)
    assert not report.ok
    if name == "rows.jsonl":
        assert next(finding for finding in report.findings if finding.code == "malformed_row").lines == (2,)
        assert f"at most {MAX_ROW_BYTES >> 20} MiB" in report.findings[0].message


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": ' + b"[" * 100_000,
        b'{"text": "\xff\xfe"}',
        b'{"text": "a\x00b"}',
        b'{"text": "a", "text": "b"}',
        b'{"text": NaN}',
        b'{"text": "\\ud800"}',
        b'{"text": 1e999}',
        b"\xef\xbb\xbf{",
        b'{"text": ' + b"9" * 5_000 + b"}",
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_hostile_rows_are_findings(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    good = b'{"text": "good"}'
    path.write_bytes(good + b"\n" + content + b"\n" + good if name.endswith("l") else b"[" + good + b"," + content + b"," + good + b"]")
    report = check_data(str(path), method="cpt")
    assert not report.ok
    # A byte that is not UTF-8 hides its whole 64 KiB of a JSON array, because rows have no ends of their own there.
    assert report.good_rows >= (2 if name.endswith("l") else 0 if b"\xff" in content else 1)


def test_workers_answer_in_order_and_pass_errors_on() -> None:
    assert [answer for _, answer in run_in_order(worker_calls.double, range(20), 3)] == list(range(0, 40, 2))
    with pytest.raises(DataError, match="three is bad; leave it out"):
        list(run_in_order(worker_calls.fail, range(9), 2))
    with pytest.raises(DataError, match="worker process"):
        list(run_in_order(worker_calls.die, range(9), 2))
    taken = run_in_order(worker_calls.double, iter(range(10**9)), 2)  # items are drawn as results are taken
    assert next(taken) == (0, 0)
    taken.close()
