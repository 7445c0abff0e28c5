"""``tuneport check`` and ``tuneport prepare`` on the terminal, run in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import tuneport as tp
from tuneport import cli
from tuneport.core import terminal
from tuneport.core.spec import DataFormat, Method


def chat(question: str, answer: str = "It is on the way to you.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = [json.dumps(chat(f"Where is the order {n} that I have asked you about?")) for n in range(38)]
    rows += ['{"messages": [{"role": "user" "content": "x"}]}', json.dumps(chat("Where is it?", ""))]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    return tmp_path


@pytest.fixture
def tuneport(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuneport", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        shown = capsys.readouterr()
        return int(code or 0), shown.out, shown.err

    return run


def test_a_check_reads_well_at_100_columns(folder: Path, tuneport: Any) -> None:
    code, out, _ = tuneport("check", "train.jsonl")
    assert code == 4
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  error"))
    assert all(line.startswith(("  error  ", "  warning ", "  info   ", " " * 10)) for line in lines[first:-2])
    assert "40 rows, 38 of them good" in lines[0]
    assert "expected valid JSON, met no ',' at character 31" in out
    assert lines[-2].startswith("S0 to S4: ")
    assert lines[-1] == "2 of 40 rows have faults of 2 kinds: mend before training."
    assert "several languages" not in out


def test_a_page_that_cannot_be_written_costs_no_result(folder: Path, tuneport: Any) -> None:
    code, out, error = tuneport("check", "train.jsonl", "--html", "none/page.html")
    assert (code, "2 of 40 rows" in out) == (1, True)
    assert "the folder none does not exist" in error and not (folder / "none").exists()


def test_prepare_says_in_short_what_it_did(folder: Path, tuneport: Any) -> None:
    code, out, error = tuneport("prepare", "train.jsonl", "-o", "out", "--split", "80/10/10", "--for", "openai-chat")
    assert code == 0, error
    lines = [line.rstrip() for line in out.splitlines()]
    assert len(lines) < 15 and lines[0] == "read     train.jsonl: 40 rows"
    assert lines[1:4] == ["rejected 1 × empty turn", "         1 × malformed row", "         rejected.jsonl says where and why"]
    assert any(line.startswith("written  train.jsonl: ") for line in lines)
    code, out, error = tuneport("prepare", "train.jsonl", "-o", "out2", "--file-type", "xml")
    assert code == 2 and error.startswith("tuneport: --file-type 'xml' is not known; choose one of jsonl, ")
    code, out, error = tuneport("prepare", "train.jsonl", "-o", "out2", "--for", "openai-dpo")
    assert code == 4 and "none of the 38 rows" in error


def test_help_lists_the_values(tuneport: Any) -> None:
    assert terminal.ROW_FORMATS.split(", ") == list(get_args(DataFormat))[1:]
    assert terminal.METHODS_HELP.split(": ")[1].rstrip(".").split(", ") == list(get_args(Method))
    for command, count in (("check", 1), ("prepare", 2)):
        code, out, _ = tuneport(command, "--help")
        assert code == 0 and " ".join(out.split()).count("unpaired_preference, text.") == count


def test_check_and_prepare_from_python(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (folder / "spec.yaml").write_text("model: llama-3.1-8b-instruct\ndata: {train: train.jsonl}\n")
    by_spec = tp.check(folder / "spec.yaml")["train"]
    assert by_spec.vendors_asked and by_spec.rows == tp.check(tp.load_spec("spec.yaml"))["train"].rows == 40
    train = datasets.Dataset.from_list([chat(f"Where is the order {n} that I have asked you about?") for n in range(60)])
    reports = tp.check(datasets.DatasetDict({"train": train, "test": train.select([3])}))
    assert "overlap_train" in {finding.code for finding in reports["test"].findings}
    assert tp.check(train, test=Path("train.jsonl"))["test"].rows == 40
    with pytest.raises(tp.TuneportError, match="names its own parts"):
        tp.check(folder / "spec.yaml", test="train.jsonl")

    card = tp.prepare(train, folder / "out", {"test": 0.2, "by": "hard", "review": 5, "shapes": ("openai-chat",)})
    assert isinstance(card, tp.DataCard) and card == tp.prepare(train, folder / "again", tp.PrepareOptions(**{**card.options, "mix": None}))
    assert (folder / "out" / "review.csv").read_text().count("order") == 5
    with pytest.raises(tp.TuneportError, match="`dedupe` 'x' is not known"):
        tp.prepare(train, folder / "other", {"dedupe": "x"})
