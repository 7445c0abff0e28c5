"""Sweeps over a vendor that is a file: levels, exactly one job for each run, going on after a break, the winner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.errors import SpecError, UsageError
from tuneport.core.job import JobEvent
from tuneport.core.spec import JobSpec, Training
from tuneport.providers.sweep import Level, Sweep, best_document, levels
from tuneport.providers.sweep_commands import _values
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import EPOCH, make_plan, make_spec

OVER = {"training.learning_rate": [1e-5, 1e-4, 1e-3, 1e-2], "tuning.rank": [8, 64]}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A vendor whose validation loss is lowest at a rate of 1e-3 and rank 8, and falls with the length of the run."""
    made = Bench(tmp_path)

    def events(ref: str) -> Iterator[JobEvent]:
        spec = next(job.spec for job in made.engine.jobs(limit=None) if job.ref == ref)
        rate, rank, epochs = spec.training.learning_rate, spec.tuning.rank, spec.training.epochs
        assert rate and rank and epochs
        loss = 1 + abs(math.log10(rate) + 3) + rank / 100 + 1 / epochs
        yield JobEvent("ev-0", EPOCH, "info", "", {"eval_loss": loss + 1})
        yield JobEvent("ev-1", EPOCH, "info", "", {"eval_loss": loss})

    monkeypatch.setattr(made.provider, "events", events)
    yield made
    made.ledger.close()


def spec_in(folder: Path) -> JobSpec:
    return make_spec(folder, training=Training(epochs=9), name="mine")


def run(bench: Bench, sweep: Sweep, told: list[str]) -> Any:
    return sweep.run(bench.engine, "fake", make_plan, told.append)


def test_levels_keep_a_third_and_end_with_the_whole_run() -> None:
    assert levels(8) == [Level(8, pytest.approx(1 / 9)), Level(2, pytest.approx(1 / 3)), Level(1, 1.0)]
    assert levels(1) == levels(1, halving=False) == [Level(1, 1.0)]
    assert levels(8, halving=False) == [Level(8, 1.0)]


def test_the_better_settings_get_longer_runs_and_the_best_wins(bench: Bench, tmp_path: Path) -> None:
    told: list[str] = []
    spec = spec_in(tmp_path)
    best = run(bench, Sweep(spec, OVER), told)
    assert best.changes == {"training.learning_rate": 1e-3, "tuning.rank": 8}
    jobs = bench.engine.jobs(limit=None)
    assert sorted(job.spec.training.epochs or 0 for job in jobs) == [pytest.approx(1)] * 8 + [pytest.approx(3)] * 2 + [9]
    assert len(told) == 11 and "validation loss" in told[0] and best.jobs[-1] in told[-1]
    document = best_document(spec, best)
    assert (document["name"], document["training"]) == ("mine", {"epochs": 9.0, "learning_rate": 1e-3})


def test_a_broken_off_sweep_goes_on_and_makes_no_job_twice(bench: Bench, tmp_path: Path) -> None:
    class _BrokenOff(Exception):
        pass

    def break_off(_: str) -> None:
        if len(bench.vendor.jobs) == 5:
            raise _BrokenOff

    sweep = Sweep(spec_in(tmp_path), OVER)
    with pytest.raises(_BrokenOff):
        sweep.run(bench.engine, "fake", make_plan, break_off)
    best = run(bench, Sweep(spec_in(tmp_path), OVER), [])
    assert best.changes["training.learning_rate"] == 1e-3
    assert len(bench.vendor.jobs) == 11
    assert run(bench, Sweep(spec_in(tmp_path), OVER), []).jobs == best.jobs  # all there already
    assert len(bench.vendor.jobs) == 11


def test_failed_jobs_drop_out_and_a_sweep_without_losses_says_what_it_lacks(bench: Bench, tmp_path: Path) -> None:
    bench.vendor.script = ["broken"]
    told: list[str] = []
    with pytest.raises(UsageError, match="validation rows"):
        run(bench, Sweep(spec_in(tmp_path), OVER), told)
    assert len(told) == 8 and all("no validation loss" in line for line in told)


def test_what_cannot_be_swept_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"training\.rate is no field"):
        Sweep(spec_in(tmp_path), {"training.rate": [1]})
    with pytest.raises(UsageError, match=r"training\.epochs or training\.steps"):
        Sweep(make_spec(tmp_path), OVER)
    assert Sweep(make_spec(tmp_path), OVER, halving=False).levels == [Level(8, 1.0)]
    sweep = Sweep(spec_in(tmp_path), {"tuning.rank": [0]})
    with pytest.raises(SpecError, match=r"tuning\.rank"):
        sweep.spec_of(sweep.trials[0], 0)
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        _values("training.learning_rate")
    assert _values("training.learning_rate=1e-4, 3e-4") == ("training.learning_rate", [1e-4, 3e-4])
    assert _values("tuning.kind=lora,dora") == ("tuning.kind", ["lora", "dora"])
