"""The learning curve read from the ledger: which runs belong together, what each point rests on, and what is never mixed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tuneport
from tuneport.advisor.measurement import Arm, Measurement
from tuneport.advisor.report.model import Report
from tuneport.advisor.report.render import render_html, render_markdown
from tuneport.advisor.runs import find_runs
from tuneport.core.job import JobEvent, JobState, RemoteJob
from tuneport.core.ledger import Ledger
from tuneport.core.spec import JobSpec
from tuneport.core.submission import source_facts
from tuneport.providers.sweep import Sweep
from tuneport.tests.advice_cases import TODAY, arm, intake, measurement, plan, share

ROWS = 400


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
    made = Ledger.open()
    yield made
    made.close()


def rows_file(folder: Path, name: str, rows: range) -> str:
    path = folder / name
    lines = ({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]} for i in rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def spec_on(train: str, **changes: Any) -> JobSpec:
    document = {"model": "smollm2-135m-instruct", "data": {"train": train, "split": {"validation": 0.1}}, "tuning": {"kind": "lora"}}
    return JobSpec.model_validate(document | changes)


def ran(ledger: Ledger, job: str, spec: JobSpec, rows: int, loss: float | None = None, provider: str = "local") -> str:
    """A job that succeeded."""
    ledger.add(job, spec, plan(provider, rows=rows), source_facts(spec))
    ledger.observe(job, RemoteJob(ref=f"ref-{job}", state=JobState.SUCCEEDED, raw_state="done", tuned_model=f"model-{job}"))
    if loss is not None:
        points = [(0, loss + 1), (1, loss), (2, loss + 0.1)]
        ledger.add_events(job, [JobEvent(f"{job}-{k}", datetime.now(UTC), "info", "", {"eval_loss": x}) for k, x in points])
    return job


def swept(ledger: Ledger, folder: Path, losses: tuple[float | None, ...] = (1.2, 1.1, 1.05), **changes: Any) -> JobSpec:
    """What a sweep over the share leaves behind, and one job of another learning rate."""
    spec = spec_on(rows_file(folder, "train.jsonl", range(ROWS)), **changes)
    sweep = Sweep(spec, {"options.local.train_share": [0.25, 0.5, 1.0]}, halving=False)
    for trial, loss in zip(sweep.trials, losses, strict=True):
        ran(ledger, f"j-{100 * trial.changes['options.local.train_share']:.0f}", sweep.spec_of(trial, 0), ROWS, loss)
    ran(ledger, "j-other", spec_on(spec.data.train, training={"learning_rate": 1e-3}), ROWS, 0.1)
    return spec


def tuned(job: str, right: int) -> Arm:
    order = np.random.default_rng(0).permutation(ROWS)  # easy rows first
    return arm(f"tuned {job}", [bool(k < right) for k in order], kind="tuned").model_copy(update={"job": job})


def report_of(spec: JobSpec, *arms: Arm, **changes: Any) -> Report:
    measured: Measurement | None = measurement(arm("few-shot", share(ROWS, 40)), *arms) if arms else None
    return tuneport.advise(intake(**changes), spec=spec, measurement=measured, today=TODAY)


def test_a_sweep_over_the_share_is_a_learning_curve_once_its_jobs_are_measured(ledger: Ledger, tmp_path: Path) -> None:
    spec = swept(ledger, tmp_path)
    report = report_of(spec, tuned("j-25", 200), tuned("j-50", 260), tuned("j-100", 300))
    curve = report.curve
    assert curve is not None
    assert (curve.measured_by, curve.provider) == ("quality", "local")
    assert [(r.job, r.rows) for r in curve.runs] == [("j-25", 100), ("j-50", 200), ("j-100", 400)]
    assert [r.quality.value for r in curve.runs if r.quality] == [200 / ROWS, 260 / ROWS, 300 / ROWS]
    assert curve.more_is_worth is True
    assert "options.local.train_share 0.25 of 400 training rows of train.jsonl" in curve.runs[0].origin
    for rendered in (render_html(report), render_markdown(report)):
        assert all(told in rendered for told in ("j-50", "0.25 of 400 training rows", "1.0500"))
    unlike = report_of(spec_on(spec.data.train, training={"epochs": 5}), tuned("j-25", 200), tuned("j-50", 260), tuned("j-100", 300))
    assert unlike.curve is None


def test_a_ledger_that_cannot_be_read_costs_the_curve_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database, but something" * 100)
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
    report = report_of(spec_on(rows_file(tmp_path, "train.jsonl", range(ROWS))))
    assert report.curve is None
    assert any("the ledger cannot be read" in warning for warning in report.warnings)


def test_the_decision_files_own_list_overrules_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    spec = swept(ledger, tmp_path)
    arms = [tuned(job, right) for job, right in (("j-25", 200), ("j-50", 260), ("j-100", 300))]
    points = [{"arm": a.name, "rows": 1000 * 2**k} for k, a in enumerate(arms)]
    curve = report_of(spec, *arms, learning_curve=points).curve
    assert curve is not None
    assert [r.rows for r in curve.runs] == [1000, 2000, 4000]
    assert all("decision file" in r.origin and not r.job for r in curve.runs)


def test_validation_loss_is_a_proxy_that_buys_nothing_and_is_never_mixed_with_quality(ledger: Ledger, tmp_path: Path) -> None:
    spec = swept(ledger, tmp_path)
    report = report_of(spec, tuned("j-25", 200), tuned("j-100", 300))  # two measured sizes make no curve of quality
    curve = report.curve
    assert curve is not None
    assert curve.measured_by == "validation loss"
    assert [(r.loss, r.quality) for r in curve.runs] == [(1.2, None), (1.1, None), (1.05, None)]
    assert curve.gain is not None
    assert 0 < curve.gain.low <= curve.gain.value <= curve.gain.high
    assert curve.gain.value == pytest.approx(0.025, abs=0.002)  # 1.0 + 0.2 * (n / 100) ** -1: the fall from 400 to 800 rows
    assert curve.more_is_worth is None
    assert "tuneport evaluate YOUR-SPEC.yaml --job j-50" in curve.says
    assert "--job j-25" not in curve.says
    assert "proxy" in curve.says


def test_without_losses_and_measurements_the_report_says_what_is_missing(ledger: Ledger, tmp_path: Path) -> None:
    curve = report_of(swept(ledger, tmp_path, losses=(None, None, None))).curve
    assert curve is not None
    assert curve.gain is None
    assert "runs of 3 sizes, 0 of them measured" in curve.says


def test_files_are_shares_of_one_another_only_where_their_rows_are(ledger: Ledger, tmp_path: Path) -> None:
    validation = rows_file(tmp_path, "validation.jsonl", range(1000, 1050))
    data = {"validation": validation}
    parts = {"all.jsonl": range(400), "half.jsonl": range(200), "some.jsonl": range(50, 150)}
    names = [rows_file(tmp_path, name, rows) for name, rows in parts.items()]
    specs = [spec_on(name, data={"train": name, **data}) for name in names]
    for number, (spec, count) in enumerate(zip(specs, (400, 200, 100), strict=True)):
        ran(ledger, f"j-{number}", spec, count, 1.0 + number / 10, provider="together")
    foreign = rows_file(tmp_path, "foreign.jsonl", range(5000, 5300))
    ran(ledger, "j-foreign", spec_on(foreign, data={"train": foreign, **data}), 300, 9.0, provider="together")
    (family,) = find_runs(ledger, specs[0])
    assert [(run.job, run.rows, run.loss) for run in family.runs] == [("j-2", 100, 1.2), ("j-1", 200, 1.1), ("j-0", 400, 1.0)]
    assert "all of them in all.jsonl" in family.runs[0].origin
    (named,) = find_runs(ledger, None, {"j-0"})  # without a spec: the jobs that were measured
    assert named.runs == family.runs
    os.utime(names[1], ns=(1, 1))  # half.jsonl is no longer what was trained on
    (family,) = find_runs(ledger, specs[0])
    assert [run.job for run in family.runs] == ["j-2", "j-0"]
    assert any("j-1" in note and "cannot be compared" in note for note in family.notes)


def test_losses_on_different_rows_are_not_compared(ledger: Ledger, tmp_path: Path) -> None:
    train = rows_file(tmp_path, "train.jsonl", range(ROWS))
    for number, part in enumerate((0.5, 1.0)):
        validation = rows_file(tmp_path, "validation.jsonl", range(1000, 1050 + number))  # mended between the runs
        spec = spec_on(train, data={"train": train, "validation": validation}, options={"local": {"train_share": part}})
        ran(ledger, f"j-{number}", spec, ROWS, 1.0)
    (family,) = find_runs(ledger, spec)
    assert [(run.rows, run.loss) for run in family.runs] == [(200, None), (400, None)]
    assert any("validated on different rows" in note for note in family.notes)
