"""Readers: every row comes out as a record or as a fault with its place, and nothing but DataError is raised."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneport.core.data.json_rows import MAX_DEPTH, MAX_ROW_BYTES
from tuneport.core.data.readers import BadRow, Record, read_records, sha256_of
from tuneport.core.errors import DataError, MissingExtraError


def read(tmp_path: Path, name: str, content: bytes) -> list[Record | BadRow]:
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_records(str(path)))


def outline(rows: list[Record | BadRow]) -> list[tuple[int, object]]:
    """(line, value) of records, (line, what was met) of bad rows."""
    return [(row.line, row.value if isinstance(row, Record) else row.fault.met) for row in rows]


GOOD = [{"a": 1, "b": "x"}, {"a": 2, "b": "é\U0001f600"}]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("rows.jsonl", "\n".join(map(json.dumps, GOOD)), (1, 2)),
        ("rows.NDJSON", "\n\n" + "\r\n \r\n".join(map(json.dumps, GOOD)) + "\n\n", (3, 5)),
        ("rows.json", json.dumps(GOOD, indent=2), (1, 2)),
        ("rows.json", json.dumps({"name": "set", "data": GOOD, "n": [2]}), (1, 2)),
        ("rows.json", "\n".join(map(json.dumps, GOOD)), (1, 2)),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_good_rows_of_every_json_file(tmp_path: Path, name: str, content: str, lines: tuple[int, ...], mark: bytes) -> None:
    assert outline(read(tmp_path, name, mark + content.encode())) == list(zip(lines, GOOD, strict=True))


def test_csv_rows_keep_line_numbers_across_multi_line_cells(tmp_path: Path) -> None:
    rows = read(tmp_path, "rows.csv", '\ufeffa,b\r\n"x\ny","say ""hi"""\r\n\r\n1,\r\n'.encode())
    assert outline(rows) == [(2, {"a": "x\ny", "b": 'say "hi"'}), (5, {"a": "1", "b": ""})]


def test_csv_reads_a_document_longer_than_the_csv_modules_default(tmp_path: Path) -> None:
    text = "word " * 60_000
    assert outline(read(tmp_path, "rows.csv", f"text\n{text}\n".encode())) == [(2, {"text": text})]


def test_one_stray_quote_costs_one_row(tmp_path: Path) -> None:
    content = b'text,label\n"open,a\nfoo,b\n"bar",c\n"q"r,d\nlast,"open\n'
    rows = outline(read(tmp_path, "rows.csv", content))
    assert [line for line, value in rows if not isinstance(value, dict)] == [2, 5, 6]
    assert [value for _, value in rows if isinstance(value, dict)] == [{"text": "foo", "label": "b"}, {"text": "bar", "label": "c"}]


def test_csv_rows_of_the_wrong_width_are_bad(tmp_path: Path) -> None:
    assert outline(read(tmp_path, "rows.csv", b"a,b\n1,2,3\n1\n1,2\n")) == [(2, "3 cells"), (3, "1 cells"), (4, {"a": "1", "b": "2"})]


@pytest.mark.parametrize("content", [b"a,a\n1,2\n", b"\xff,b\n1,2\n", b"\n\n"])
def test_csv_without_a_usable_header_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError):
        read(tmp_path, "rows.csv", content)


BAD_LINES = [
    (b'{"a": 1, "a": 2}', "'a' twice in one object"),
    (b'{"a": NaN}', "NaN"),
    (b'{"a": [-Infinity]}', "-Infinity"),
    (b'{"a": 1e999}', "the number '1e999'"),
    (b"[1]", "an array"),
    (b"null", "null"),
    (b'"x"', "text"),
    (b'{"a": "\xe9"}', "byte 0xe9 at position 8"),
    (b'{"a": "\x00"}', "a NUL byte at position 8"),
    (b'{"a": "\\ud800"}', "half of a surrogate pair (\\ud800 to \\udfff)"),
    (b'{"a": ' + b"[" * 100_000, "deeper nesting"),
    (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "deeper nesting"),
    (b'{"a": ' + b"1" * 5_000 + b"}", "a number of thousands of digits"),
    (b'{"a": 1} x', "more after the end of the object at character 10"),
    (b'{"a": ', "no value at character 7"),
]


@pytest.mark.parametrize(("line", "met"), BAD_LINES, ids=[met[:20] for _, met in BAD_LINES])
def test_a_bad_line_is_reported_and_reading_goes_on(tmp_path: Path, line: bytes, met: str) -> None:
    rows = read(tmp_path, "rows.jsonl", b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    assert outline(rows) == [(1, {"a": 0}), (2, met), (3, {"a": 2})]
    assert isinstance(rows[1], BadRow)
    assert rows[1].fault.path == f"{tmp_path / 'rows.jsonl'}:2"


def test_a_bad_element_of_an_array_is_reported_and_reading_goes_on(tmp_path: Path) -> None:
    rows = read(tmp_path, "rows.json", b'[{"a": 1, "a": 2}, 3, {"b": NaN}, {"c": "\\ud800"}, {"d": 1}]')
    assert [row.line for row in rows] == [1, 2, 3, 4, 5]
    assert [type(row) for row in rows] == [BadRow] * 4 + [Record]


@pytest.mark.parametrize(
    "rest",
    [b'{"a": 1 "b": 2}, {"c": 3}]', b'{"a": "\xe9"}]', b"[" * 100_000, b'{"a": 1', b"]", b'{"a": 1}] {}', b'{"a": 1}; {}]'],
    ids=range(7),
)
def test_a_broken_array_says_that_the_rest_was_not_read(tmp_path: Path, rest: bytes) -> None:
    last = read(tmp_path, "rows.json", b'[{"first": 1}, ' + rest)[-1]
    assert isinstance(last, BadRow)
    assert "the rest of the file was not read" in last.fault.hint


def test_elements_larger_than_one_chunk_are_read_whole(tmp_path: Path) -> None:
    values = [{"i": i, "text": str(i) * 200_000} for i in range(1, 4)]
    assert [row.value for row in read(tmp_path, "rows.json", json.dumps(values).encode()) if isinstance(row, Record)] == values


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_a_line_of_50_mb_is_a_bad_row_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    start = {"rows.jsonl": '{"text": "', "rows.json": '[{"text": "', "rows.csv": "text\n"}[name]
    with path.open("w") as file:
        file.write(start)
        for _ in range(50):
            file.write("x" * 1_000_000)
        file.write({"rows.jsonl": '"}\n{"text": "next"}\n', "rows.json": '"}]', "rows.csv": "\nnext\n"}[name])
    tracemalloc.start()
    rows = list(read_records(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(rows[0], BadRow)
    assert len(rows) == (1 if name == "rows.json" else 2)
    assert peak < 6 * MAX_ROW_BYTES


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "utf-16", "utf-16-le", "gzip"])
def test_an_unusable_file_is_one_clear_error(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        text = '{"a": 1, "b": 2}\n' * 20
        path.write_bytes({"empty": b"", "gzip": b"\x1f\x8b\x08\x00abc"}.get(kind) if kind in ("empty", "gzip") else text.encode(kind))
    with pytest.raises(DataError) as caught:
        read_records(str(path))
    assert str(path) in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("path", ["x\0.jsonl", "/dev/null", "rows.txt"])
def test_odd_paths_are_data_errors(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(DataError):
        read_records(path)


def test_parquet_rows(tmp_path: Path) -> None:
    values = [{"messages": [{"role": "user", "content": f"q{i}"}], "score": float("nan") if i == 1 else 0.5} for i in range(600)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    rows = list(read_records(str(path)))
    assert [row.line for row in rows] == list(range(1, 601))
    assert rows[0] == Record(1, values[0])
    assert rows[1] == Record(2, {**values[1], "score": None})


def test_parquet_damage_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    with pytest.raises(DataError):
        list(read_records(str(path)))
    path.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DataError):
        list(read_records(str(path)))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"tuneport\[parquet\]"):
        list(read_records(str(path)))


def test_importing_the_data_layer_loads_no_heavy_package() -> None:
    code = "import sys, tuneport.core.data.check; print([m for m in ('pyarrow', 'jsonschema', 'bpe_openai', 'numpy') if m in sys.modules])"
    dev = str(Path(__file__).resolve().parents[1] / ".dev")
    found = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": dev}, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"abc")
    assert sha256_of(str(path)) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DataError):
        sha256_of(str(tmp_path / "none"))


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_pieces = st.one_of(
    st.binary(max_size=40),
    _json_values.map(lambda value: json.dumps(value).encode()),
    _json_values.map(lambda value: json.dumps({"a": value}, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.sampled_from([b'"', b",", b"\n", b"\r", b"[", b"]", b"{", b"}", b'{"data": [', b"a,b\n", b"\xef\xbb\xbf", b"\0", b"PAR1"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_pieces, max_size=12).map(b"".join), st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_readers_raise_nothing_but_data_error(content: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{ending}"
        path.write_bytes(content)
        try:
            rows = list(read_records(str(path)))
        except DataError:
            return
        for row in rows:
            assert row.line >= 1
            if isinstance(row, Record):
                json.dumps(row.value, allow_nan=False, ensure_ascii=False).encode()
            else:
                assert row.fault.path == f"{path}:{row.line}"
                assert row.fault.met and row.fault.expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=20) | st.integers() | st.none(), max_size=3), min_size=1, max_size=8))
def test_json_and_jsonl_give_the_same_rows(values: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines, whole = Path(folder) / "rows.jsonl", Path(folder) / "rows.json"
        lines.write_text("\n".join(map(json.dumps, values)))
        whole.write_text(json.dumps(values, indent=1))
        assert [row.value for row in read_records(str(lines)) if isinstance(row, Record)] == values
        assert [row.value for row in read_records(str(whole)) if isinstance(row, Record)] == values
