"""Ten real steps in place of tables: the plan's time afterwards, and nothing left behind."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from typer.testing import CliRunner

from tuneport.cli import application
from tuneport.tests.local_tiny import write_model

app = application()


def test_calibration_runs_real_steps_and_leaves_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i % 5}"}]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "model": {"local": str(write_model(tmp_path / "tiny"))}, "data": {"train": "rows.jsonl"},
        "training": {"epochs": 200, "batch_size": 4}, "options": {"local": {"device": "cpu"}},
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    found = CliRunner().invoke(app, ["plan", "spec.yaml", "-p", "local", "--calibrate", "--json"])
    assert found.exit_code == 0, found.output
    time = json.loads(found.stdout)["local"]["time"]
    assert "7 timed steps on this machine" in time["basis"] and "times 1200" in time["basis"]
    assert 0 < time["seconds"]["low"] < time["seconds"]["high"]
    assert not list(tmp_path.glob("tuneport-calibrate-*")) and not (tmp_path / "jobs").exists()

    (tmp_path / "spec.yaml").write_text(json.dumps(spec | {"training": {"steps": 2, "batch_size": 4}}))
    short = CliRunner().invoke(app, ["plan", "spec.yaml", "-p", "local", "--calibrate", "--json"])
    assert short.exit_code != 0 and "too few to calibrate" in (short.output + str(short.exception))
