"""Commands on jobs, in process, over an engine with a fake vendor and a fake clock."""

from __future__ import annotations

from pathlib import Path

import pytest

import tuneport
from tuneport.core.errors import JobFailedError, UsageError
from tuneport.core.job import JobState, RemoteJob
from tuneport.providers import job_commands
from tuneport.providers.commands import as_billed
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import FakeProvider, FakeVendor, make_plan


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(tuneport, "engine", lambda **_: made.engine)
    return made


def test_watch_all_follows_every_job_and_fails_for_those_without_a_model(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.providers["broken"] = FakeProvider(FakeVendor(None, script=["waiting", "broken"]))
    good = [bench.submit().id for _ in range(2)]
    bad = bench.engine.submit(bench.spec, make_plan(bench.spec).model_copy(update={"provider": "broken"})).id
    with pytest.raises(JobFailedError, match=f"no model from {bad} failed"):
        job_commands.watch(None, everything=True)
    shown = capsys.readouterr().out
    assert "2 of 3 jobs have a model" in shown
    for job_id in good:
        assert f"{job_id} fake succeeded" in shown
    job_commands.watch(None, everything=True)
    assert "no job is under way" in capsys.readouterr().out
    job_commands.watch(good)
    assert "2 of 2 jobs have a model" in capsys.readouterr().out


@pytest.mark.parametrize(("jobs", "everything"), [(None, False), (["last"], True)])
def test_watch_wants_jobs_or_all_of_them(bench: Bench, jobs: list[str] | None, everything: bool) -> None:
    with pytest.raises(UsageError, match="not clear"):
        job_commands.watch(jobs, everything=everything)


def test_a_plan_is_shown_as_earlier_bills_correct_it(bench: Bench) -> None:
    assert as_billed({"fake": bench.plan})["fake"] == bench.plan
    usd = bench.plan.cost.usd
    assert usd is not None
    for _ in range(9):
        job = bench.submit()
        ended = RemoteJob(ref=job.ref or "", state=JobState.SUCCEEDED, raw_state="done", billed_usd=3 * (usd.low + usd.high) / 2)
        bench.ledger.observe(job.id, ended)
    shown = as_billed({"fake": bench.plan})["fake"].cost.usd
    assert shown is not None
    assert (shown.low, shown.high) == pytest.approx((1.5 * (usd.low + usd.high),) * 2)
