"""Packed files: the same rows as unpacked, and damage that costs only what it hides."""

from __future__ import annotations

import gzip
import json
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from tuneport.core.data.check import CheckOptions, check_data
from tuneport.core.data.json_rows import MAX_ROW_BYTES
from tuneport.core.data.readers import BadRow, Record, read_records
from tuneport.core.errors import DataError, MissingExtraError

PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}
VALUES = [{"text": f"row {number}", "n": number} for number in range(3_000)]
LINES = "".join(f"{json.dumps(value)}\n" for value in VALUES).encode()


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.jsonl", LINES), ("rows.json", json.dumps(VALUES).encode()), ("rows.json", LINES), ("rows.csv", b"text,n\na,1\nb,2\n")],
)
def test_packed_files_hold_the_same_rows(tmp_path: Path, name: str, content: bytes, ending: str) -> None:
    plain, packed = tmp_path / name, tmp_path / f"{name}{ending}"
    plain.write_bytes(content)
    packed.write_bytes(PACK[ending](content))
    assert list(read_records(str(packed))) == list(read_records(str(plain)))


@pytest.mark.parametrize("ending", PACK)
def test_a_cut_off_archive_gives_what_came_before(tmp_path: Path, ending: str) -> None:
    noise = random.Random(0)
    lines = "".join(json.dumps({"prompt": f"q{n}", "completion": noise.randbytes(40).hex()}) + "\n" for n in range(20_000))
    whole = PACK[ending](lines.encode())
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    rows = list(read_records(str(path)))
    assert len(rows) > 1_000 and all(isinstance(row, Record) for row in rows[:-1])
    last = rows[-1]
    assert isinstance(last, BadRow) and last.line == len(rows)
    assert "cut-off" in last.fault.met and "the rest of the file was not read" in last.fault.hint
    report = check_data(str(path))
    assert not report.ok and report.good_rows > 1_000
    assert any("cut-off" in finding.message for finding in report.findings)


@pytest.mark.parametrize("ending", PACK)
def test_a_cut_off_array_on_one_line_gives_what_came_before(tmp_path: Path, ending: str) -> None:
    noise = random.Random(0)
    whole = PACK[ending](json.dumps([{"prompt": f"q{n}", "completion": noise.randbytes(40).hex()} for n in range(20_000)]).encode())
    path = tmp_path / f"rows.json{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    report = check_data(str(path))
    assert not report.ok and report.good_rows > 1_000
    assert any("cut-off" in finding.message for finding in report.findings)


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"])
def test_what_is_no_archive_is_one_clear_error(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_records(str(path))
    assert str(path) in str(caught.value)


def test_names_that_lie(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(LINES))
    with pytest.raises(DataError, match=r"add \.gz to its name"):
        read_records(str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match="Parquet is compressed by itself"):
        read_records(str(tmp_path / "rows.parquet.gz"))
    (tmp_path / "rows.txt.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="no known kind"):
        read_records(str(tmp_path / "rows.txt.gz"))


def test_a_bomb_of_one_line_is_a_bad_row_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'\n{"text": "next"}\n')
    tracemalloc.start()
    report = check_data(str(path), format="text", method="cpt", options=CheckOptions(workers=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.rows, report.good_rows) == (2, 1)
    assert peak < 60 << 20 and peak < 8 * MAX_ROW_BYTES


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Zstandard is part of Python from 3.14")
def test_zstandard_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstd.compress(LINES))
    monkeypatch.setitem(sys.modules, "backports", None)
    with pytest.raises(MissingExtraError, match=r"tuneport\[zstd\]"):
        read_records(str(path))
