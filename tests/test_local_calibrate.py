"""Ten real steps in place of tables: the plan's time afterwards, and nothing left behind."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from typer.testing import CliRunner

from tuneport.cli import application
from tuneport.core.job import RemoteJob
from tuneport.local_backend.jobdir import JobDir
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_tiny import write_model

app = application()


def test_calibration_runs_real_steps_and_leaves_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"{i % 5}" * 250}) + "\n" for i in range(24)))
    spec = {
        "model": {"local": str(write_model(tmp_path / "tiny"))}, "data": {"train": "rows.jsonl"}, "method": "cpt",
        "training": {"epochs": 200, "batch_size": 4, "max_seq_length": 100}, "options": {"local": {"device": "cpu"}},
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    found = CliRunner().invoke(app, ["plan", "spec.yaml", "-p", "local", "--calibrate", "--json"])
    assert found.exit_code == 0, found.output
    planned = json.loads(found.stdout)["local"]["time"]
    assert "7 timed steps on this machine" in planned["basis"] and "times 3600" in planned["basis"]  # three pieces of a row
    assert 0 < planned["seconds"]["low"] < planned["seconds"]["high"]
    assert not list(tmp_path.glob("tuneport-calibrate-*")) and not (tmp_path / "jobs").exists()

    (tmp_path / "spec.yaml").write_text(json.dumps(spec | {"training": {"steps": 2, "batch_size": 4}}))
    short = CliRunner().invoke(app, ["plan", "spec.yaml", "-p", "local", "--calibrate", "--json"])
    assert short.exit_code != 0 and "too few to calibrate" in (short.output + str(short.exception))

    def fails(_: LocalProvider, ref: str) -> RemoteJob:
        worker = JobDir(Path(ref)).worker()
        assert worker is not None
        pids.append(worker[0])
        raise OSError("no such luck")

    pids: list[int] = []
    monkeypatch.setattr(LocalProvider, "poll", fails)
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    broken = CliRunner().invoke(app, ["plan", "spec.yaml", "-p", "local", "--calibrate"])
    assert isinstance(broken.exception, OSError) and not list(tmp_path.glob("tuneport-calibrate-*"))
    deadline = time.monotonic() + 60
    with suppress(ProcessLookupError):  # no worker goes on in a folder that is gone
        while True:
            os.kill(pids[0], 0)
            assert time.monotonic() < deadline
            time.sleep(0.02)
