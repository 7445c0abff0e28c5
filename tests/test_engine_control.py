"""Pausing, going on, checkpoints, downloads, deleting; what a provider does not offer; where a job is reached."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tuneport.core.engine import Update
from tuneport.core.errors import CredentialsError, JobFailedError, ProviderError, UsageError
from tuneport.core.job import JobState, RemoteJob
from tuneport.core.options import OpenAIOptions
from tuneport.core.provider import ChatRequest
from tuneport.core.retry import verdict
from tuneport.providers import registry
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import Died, FakeProvider, make_plan, make_spec
from tuneport.tests.stores import STORES, place


@pytest.fixture(params=STORES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with place(request.param, tmp_path) as where:
        bench = Bench(tmp_path, where)
        yield bench
        bench.ledger.close()


@pytest.fixture
def file_bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def notes(bench: Bench, job_id: str) -> list[str]:
    return [change.note for change in bench.ledger.transitions(job_id)]


def test_a_paused_job_goes_on_where_it_stood(bench: Bench) -> None:
    job = bench.submit().refresh()
    assert job.pause().state is JobState.PAUSED
    assert job.pause().state is JobState.PAUSED  # once more is harmless, and asks nobody
    assert bench.vendor.calls.count("pause") == 1
    assert job.refresh().state is JobState.PAUSED
    assert job.resume().state is JobState.RUNNING
    assert job.resume().state is JobState.SUCCEEDED  # it looked, and had nothing to resume
    assert bench.vendor.calls.count("resume") == 1
    story = [(change.state.value, change.note) for change in job.history()]
    assert ("running", "pause asked for") in story
    assert ("paused", "resume asked for") in story
    assert any("pause asked for" in line for line in job.logs())


def test_a_job_that_was_made_paused_and_never_recorded_goes_on_at_once(bench: Bench) -> None:
    bench.provider.faults["create"] = ["die_after"]
    with pytest.raises(Died):
        bench.submit()
    record = bench.only_record()
    assert record.ref is None
    bench.provider.pause("ft-0")
    assert bench.engine.resume(record.id).state is not JobState.PAUSED
    assert bench.vendor.calls.count("resume") == 1 and len(bench.vendor.jobs) == 1


def test_watching_ends_at_a_pause_and_says_how_to_go_on(file_bench: Bench) -> None:
    job = file_bench.submit()
    seen: list[JobState] = []

    def pause_soon(update: Update) -> None:
        seen.append(update.job.state)
        if len(seen) == 1:
            file_bench.engine.pause(job.id)

    with pytest.raises(JobFailedError, match="is paused at fake") as caught:
        job.wait(pause_soon)
    assert caught.value.fix == f"go on with it: tuneport resume {job.id}"
    assert seen[-1] is JobState.PAUSED
    assert job.state is JobState.PAUSED
    assert file_bench.engine.watch(job.id).state is JobState.PAUSED
    assert job.resume().wait().state is JobState.SUCCEEDED


def test_watching_waits_for_a_vendor_that_is_slow_to_go_on(file_bench: Bench) -> None:
    job = file_bench.submit().pause()
    file_bench.clock.at += timedelta(hours=1)
    resume = file_bench.provider.resume

    def slow(ref: str) -> RemoteJob:
        resume(ref)
        return RemoteJob(ref, JobState.PAUSED, "halted")

    file_bench.provider.resume = slow  # type: ignore[method-assign]
    assert job.resume().state is JobState.PAUSED
    assert job.wait().state is JobState.SUCCEEDED


def test_a_vendor_without_a_word_for_paused_is_still_told_to_go_on(file_bench: Bench) -> None:
    job = file_bench.submit()
    poll = file_bench.provider.poll
    file_bench.provider.poll = lambda ref: RemoteJob(ref, JobState.UNKNOWN, "resting")  # type: ignore[method-assign]
    file_bench.provider.pause = lambda ref: RemoteJob(ref, JobState.UNKNOWN, "resting")  # type: ignore[method-assign]
    assert job.pause().raw_state == "resting"
    with file_bench.vendor.open() as books:
        books["jobs"][0]["halted"] = True
    job.resume()
    file_bench.provider.poll = poll  # type: ignore[method-assign]
    assert file_bench.vendor.calls.count("resume") == 1
    assert job.wait().state is JobState.SUCCEEDED


@pytest.mark.parametrize("call", ["pause", "resume"])
def test_a_lost_answer_is_no_refusal(file_bench: Bench, call: str) -> None:
    job = file_bench.submit()
    if call == "resume":
        job.pause()
    file_bench.provider.faults[call] = ["reset_after"]  # the second try is refused: it is paused already, or goes on already
    state = getattr(job, call)().state
    assert (state is JobState.PAUSED) is (call == "pause")


@pytest.mark.parametrize(("fault", "error"), [("refuse", ProviderError), ("credentials", CredentialsError)])
def test_a_refused_pause_is_an_error_and_changes_nothing(file_bench: Bench, fault: str, error: type[Exception]) -> None:
    job = file_bench.submit()
    file_bench.provider.faults["pause"] = [fault]
    with pytest.raises(error):
        job.pause()
    assert file_bench.engine.job(job.id).state is JobState.QUEUED
    assert "pause asked for" in notes(file_bench, job.id)


def test_there_is_nothing_to_pause_in_a_job_that_is_over(file_bench: Bench) -> None:
    job = file_bench.submit().wait()
    with pytest.raises(UsageError, match="is succeeded, so there is nothing to pause"):
        job.pause()


def test_an_unreachable_vendor_cannot_resume(file_bench: Bench) -> None:
    job = file_bench.submit().pause()
    file_bench.provider.faults["poll"] = ["reset_before"] * 3
    with pytest.raises(ProviderError, match="cannot be reached"):
        job.resume()
    assert file_bench.engine.job(job.id).freshness.startswith("seen ")


def test_checkpoints_outlive_an_outage(bench: Bench) -> None:
    job = bench.submit().refresh()
    assert [(c.step, c.model, c.metrics) for c in job.checkpoints()] == [(10, "ft-0:1", {"loss": 1.9})]
    job.refresh()
    bench.provider.faults["checkpoints"] = ["reset_before"] * 3
    assert [c.step for c in job.checkpoints()] == [10]
    assert [c.step for c in job.checkpoints()] == [10, 20]


def test_a_download_is_tried_again_and_written_down(file_bench: Bench) -> None:
    job = file_bench.submit()
    with pytest.raises(JobFailedError, match="has no tuned model"):
        job.download(file_bench.folder / "weights")
    job.wait()
    file_bench.provider.faults["download"] = ["reset_after"]
    moved: list[tuple[str, int, int | None]] = []
    (path,) = job.download(file_bench.folder / "weights", lambda *step: moved.append(step))
    assert path.read_text() == "ft-0"
    assert moved[-1] == ("adapter.safetensors", 4, 4)
    assert notes(file_bench, job.id)[-1].startswith("1 files downloaded into ")


def test_an_export_replaces_no_file_but_its_own(file_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = file_bench.submit().wait(), file_bench.submit().wait()
    mine = file_bench.folder / "project"
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    one.download(file_bench.folder / "weights")
    monkeypatch.setattr(file_bench.provider, "download", lambda *_: pytest.fail("nothing is asked for"))
    for job, folder in ((one, mine), (other, file_bench.folder / "weights"), (one, mine / "README.md")):
        with pytest.raises(UsageError, match="--out"):
            job.download(folder)
    assert [path.name for path in mine.iterdir()] == ["README.md"] and (mine / "README.md").read_text() == "mine"
    monkeypatch.undo()
    (file_bench.folder / "weights" / "adapter.safetensors").unlink()
    (path,) = one.download(file_bench.folder / "weights")  # its own folder: goes on
    assert path.read_text() == one.ref


def test_deleting_removes_what_is_at_the_vendor_and_keeps_the_story(bench: Bench) -> None:
    job = bench.submit()
    with pytest.raises(UsageError, match="is queued, so it cannot be deleted"):
        job.delete()
    job.wait()
    assert job.delete() == ["model model-of-ft-0", f"file file-{job.record.key}"]
    assert job.delete() == ["model model-of-ft-0"]
    assert "deleted at fake: model model-of-ft-0, file file-" in notes(bench, job.id)[-3]
    for use in (lambda: job.model, lambda: job.download(bench.folder)):
        with pytest.raises(JobFailedError, match="was deleted at fake on 2026-11-22"):
            use()
    calls = len(bench.vendor.calls)
    assert job.refresh().state is JobState.SUCCEEDED
    assert [event.id for event in job.events()] == ["ev-0", "ev-1", "ev-2"]
    assert len(bench.vendor.calls) == calls  # a job that is gone is not asked for


def test_what_was_never_made_cannot_be_deleted(file_bench: Bench) -> None:
    file_bench.provider.faults["create"] = ["refuse"]
    with pytest.raises(ProviderError):
        file_bench.submit()
    record = file_bench.only_record()
    with pytest.raises(UsageError, match="was never made") as caught:
        file_bench.engine.delete(record.id)
    assert f"file-{record.key}" in caught.value.fix


def test_what_the_provider_does_not_offer_is_refused_with_its_reason_and_without_a_call(file_bench: Bench) -> None:
    running, done = file_bench.submit().refresh(), file_bench.submit().wait()
    paused = file_bench.submit().pause()
    reason = "the fake vendor never thought of it"
    calls = ("pause", "resume", "checkpoints", "download", "delete", "events", "cancel", "chat")
    file_bench.provider.unoffered = dict.fromkeys(calls, reason)
    before = len(file_bench.vendor.calls)
    for call in (
        running.pause,
        running.cancel,
        running.checkpoints,
        lambda: list(running.events()),
        done.delete,
        lambda: done.download(file_bench.folder),
        lambda: list(done.model.answer([ChatRequest("1", [])])),
        paused.resume,
    ):
        with pytest.raises(ProviderError, match="the fake vendor never thought of it") as caught:
            call()
        assert verdict(caught.value).kind == "no"
    assert file_bench.vendor.calls[before:] == ["poll"]  # whether the paused job still is
    assert file_bench.engine.job(running.id).freshness == ""
    assert running.wait().state is JobState.SUCCEEDED  # no events are no reason not to watch


def test_a_job_is_reached_where_it_was_sent(bench: Bench) -> None:
    spec = make_spec(bench.folder, options={"fake": {"base_url": "https://one.example"}})
    job = bench.engine.submit(spec, make_plan(spec), on_progress=lambda *_: None)
    job.refresh()
    list(job.events())
    job.checkpoints()
    bench.engine.reconcile()
    job.wait()
    job.model.chat([{"role": "user", "content": "hi"}])
    job.download(bench.folder / "weights")
    job.delete()
    assert bench.reached_by
    assert all(options == {"base_url": "https://one.example"} for options in bench.reached_by)
    bench.reached_by.clear()
    bench.submit().refresh()
    assert set(map(str, bench.reached_by)) == {"None"}


def test_watching_reaches_every_job_where_it_was_sent_and_makes_one_client_for_each_place(file_bench: Bench) -> None:
    jobs = []
    for zone in (1, 2, 1, 2):
        spec = make_spec(file_bench.folder, options={"fake": {"zone": zone}})
        jobs.append(file_bench.engine.submit(spec, make_plan(spec)).id)
    file_bench.reached_by.clear()
    file_bench.engine.watch_many(jobs)
    assert file_bench.reached_by == [{"zone": 1}, {"zone": 2}]


def test_the_progress_of_an_upload_is_shown(file_bench: Bench) -> None:
    moved: list[tuple[str, int, int | None]] = []
    file_bench.engine.submit(file_bench.spec, file_bench.plan, on_progress=lambda *step: moved.append(step))
    assert moved == [("train.jsonl", 18, 18)]


class WithOptions(FakeProvider):
    def __init__(self, options: OpenAIOptions | None = None) -> None:
        self.options = options


class WithoutOptions(FakeProvider):
    def __init__(self) -> None:
        pass


def test_the_registry_hands_options_to_a_class_that_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        name: registry.Entry(name, name, f"{__name__}:{kind.__name__}", "", "", ())
        for name, kind in (("with", WithOptions), ("without", WithoutOptions))
    }
    monkeypatch.setattr(registry, "entries", lambda: entries)
    options = OpenAIOptions(base_url="https://one.example/v1")
    assert registry.get("with", options).options is options  # type: ignore[attr-defined]
    assert registry.get("with").options is None  # type: ignore[attr-defined]
    assert isinstance(registry.get("without", options), WithoutOptions)
