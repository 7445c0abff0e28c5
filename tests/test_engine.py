"""The job engine: normal life, reads that fail, budgets, cancelling."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tuneport.core.engine import Update
from tuneport.core.errors import (
    BudgetError,
    CredentialsError,
    JobFailedError,
    LedgerError,
    ProviderError,
    RefusedError,
    SpecError,
    UsageError,
    VendorClosedError,
)
from tuneport.core.job import JobState
from tuneport.core.ledger import Step
from tuneport.core.money import Range
from tuneport.core.plan import FieldOutcome
from tuneport.core.spec import Budget
from tuneport.tests.engine_bench import Bench
from tuneport.tests.fake_provider import make_plan, make_spec
from tuneport.tests.stores import STORES, place


@pytest.fixture(params=STORES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with place(request.param, tmp_path) as where:
        bench = Bench(tmp_path, where)
        yield bench
        bench.ledger.close()


def test_a_job_from_submission_to_its_model(bench: Bench) -> None:
    job = bench.submit()
    assert (job.state, job.raw_state, job.ref) == (JobState.QUEUED, "waiting", "ft-0")
    updates: list[Update] = []
    assert job.wait(updates.append) is job
    assert (job.state, job.tuned_model, job.progress) == (JobState.SUCCEEDED, "model-of-ft-0", 1.0)
    assert (job.record.billed_usd, job.record.billed_tokens, job.record.estimate_usd) == (0.5, 1200, Range(low=1, high=2))
    assert [event.id for update in updates for event in update.events] == ["ev-0", "ev-1", "ev-2"]
    assert [event.metrics["loss"] for event in job.events()] == [2.0, 1.9, 1.8]
    assert [change.state.value for change in job.history()] == ["submitting", "queued", "running", "succeeded"]
    assert job.model.chat([{"role": "user", "content": "hi"}]).text == "model-of-ft-0: hi"
    assert job.spec == bench.spec
    assert job.plan == bench.plan
    assert any("loss=1.9" in line for line in job.logs())
    assert len(bench.vendor.jobs) == 1


def test_the_key_at_the_vendor_holds_the_job_id(bench: Bench) -> None:
    job = bench.submit()
    assert bench.vendor.jobs[0]["key"] == job.record.key
    assert job.id.removeprefix("j-") in job.record.key


def test_submitting_twice_makes_two_jobs_and_resuming_none(bench: Bench) -> None:
    one = bench.submit()
    assert [job.id for job in bench.engine.twins(bench.spec, "fake")] == [one.id]
    two = bench.submit()
    assert one.id != two.id
    assert bench.engine.twins(make_spec(bench.folder, name="other"), "fake") == [] == bench.engine.twins(bench.spec, "elsewhere")
    assert bench.engine.resume(one.id).ref == one.ref
    assert len(bench.vendor.jobs) == 2
    assert [job.id for job in bench.engine.jobs()] == [two.id, one.id] or one.record.created_at == two.record.created_at


@pytest.mark.parametrize(
    ("limit", "usd", "says"),
    [(1.5, Range(low=1, high=2), "up to 2.00 USD"), (100, None, "unknown"), (0, None, "unknown")],
)
def test_budget_blocks_before_anything_happens(bench: Bench, limit: float, usd: Range | None, says: str) -> None:
    spec = make_spec(bench.folder, budget=Budget(max_usd=limit))
    with pytest.raises(BudgetError, match=says) as caught:
        bench.engine.submit(spec, make_plan(spec, usd))
    assert caught.value.fix
    assert bench.ledger.latest() == []
    assert bench.vendor.calls == []


def test_budget_lets_the_upper_estimate_itself_pass(bench: Bench) -> None:
    spec = make_spec(bench.folder, budget=Budget(max_usd=2))
    assert bench.engine.submit(spec, make_plan(spec)).ref == "ft-0"


def test_a_refused_plan_is_not_submitted(bench: Bench) -> None:
    outcome = FieldOutcome(path="tuning.rank", outcome="refused", value=7, note="not offered")
    with pytest.raises(RefusedError, match=r"tuning\.rank"):
        bench.engine.submit(bench.spec, bench.plan.model_copy(update={"outcomes": (outcome,)}))
    assert bench.ledger.latest() == []


def test_a_secret_in_the_spec_is_refused_and_not_stored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_API_KEY", "correct-horse-battery")
    spec = make_spec(bench.folder, tags={"note": "key correct-horse-battery"})
    with pytest.raises(SpecError, match=r"tags\.note") as caught:
        bench.engine.submit(spec, bench.plan)
    assert "correct-horse" not in str(caught.value)
    assert bench.ledger.latest() == []


def test_a_failed_read_keeps_the_last_good_state_and_shows_its_age(bench: Bench) -> None:
    job = bench.submit().refresh()
    assert job.state is JobState.RUNNING
    assert job.freshness == ""
    bench.provider.faults["poll"] = ["reset_before"] * 3
    bench.clock.at += timedelta(minutes=4)
    job.refresh()
    assert (job.state, job.raw_state, job.progress) == (JobState.RUNNING, "training", 0.5)
    assert job.freshness.startswith("seen 4 min ago, vendor unreachable: fake cannot be reached")
    assert bench.engine.job(job.id).freshness == job.freshness  # another command sees it too
    assert job.refresh().freshness == ""


def test_watch_outlives_a_long_outage_and_backs_off(bench: Bench) -> None:
    job = bench.submit()
    bench.provider.faults["poll"] = ["reset_before"] * 8
    bench.clock.slept.clear()
    assert job.wait().state is JobState.SUCCEEDED
    assert bench.clock.slept[:8] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_watch_obeys_the_vendors_rate_limit(bench: Bench) -> None:
    job = bench.submit()
    bench.provider.faults["poll"] = ["rate_limit"]
    bench.clock.slept.clear()
    job.wait()
    assert bench.clock.slept[0] == 7


@pytest.mark.parametrize(("fault", "error", "looks"), [("credentials", CredentialsError, 1), ("refuse", ProviderError, 5)])
def test_watch_ends_when_the_vendor_refuses_for_good(bench: Bench, fault: str, error: type[Exception], looks: int) -> None:
    job = bench.submit()
    bench.provider.faults["poll"] = [fault] * looks
    with pytest.raises(error):
        job.wait()
    assert bench.engine.job(job.id).state is JobState.QUEUED


def test_watch_looks_ever_more_rarely(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=["training"] * 60 + ["done"])
    bench.submit().wait()
    assert bench.clock.slept[0] == 1
    assert max(bench.clock.slept) == 30
    assert bench.clock.slept == sorted(bench.clock.slept)


def test_an_unknown_state_is_kept_raw_and_polled_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=["waiting", "defragmenting", "done"])
    job = bench.submit().refresh()
    assert (job.state, job.raw_state) == (JobState.UNKNOWN, "defragmenting")
    assert job.wait().state is JobState.SUCCEEDED


def test_a_terminal_state_sticks(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=["broken", "training"])
    job = bench.submit()
    assert job.state is JobState.FAILED
    assert job.refresh().state is JobState.FAILED
    assert "poll" not in bench.vendor.calls


def test_waiting_for_a_job_that_fails_raises(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=["waiting", "broken"])
    job = bench.submit()
    with pytest.raises(JobFailedError, match="ended as failed"):
        job.wait()
    with pytest.raises(JobFailedError, match="no tuned model"):
        _ = job.model


def test_cancelling_is_not_cancelled(bench: Bench) -> None:
    job = bench.submit().cancel()
    assert job.state is JobState.CANCELLING
    job.cancel()
    assert bench.vendor.calls.count("cancel") == 1
    assert job.refresh().state is JobState.CANCELLED
    assert job.cancel().state is JobState.CANCELLED


def test_events_are_stored_once_and_survive_an_outage(bench: Bench) -> None:
    job = bench.submit()
    assert [event.id for event in job.events()] == ["ev-0"]
    job.refresh()
    assert [event.id for event in job.events()] == ["ev-0", "ev-1"]
    bench.provider.faults["events"] = ["reset_before"] * 3
    assert [event.id for event in job.events()] == ["ev-0", "ev-1"]


def test_a_lost_reply_after_accept_is_adopted_at_once(bench: Bench) -> None:
    bench.provider.faults["create"] = ["reset_after"]
    assert bench.submit().ref == "ft-0"
    assert len(bench.vendor.jobs) == 1


def test_a_lost_reply_is_adopted_although_the_list_lags(tmp_path: Path) -> None:
    bench = Bench(tmp_path, list_lag=4)
    bench.provider.faults["create"] = ["reset_after"]
    assert bench.submit().ref == "ft-0"
    assert len(bench.vendor.jobs) == 1


def test_create_is_never_repeated_within_a_submission(bench: Bench) -> None:
    bench.provider.faults["create"] = ["reset_before"]
    with pytest.raises(ProviderError, match="did not confirm"):
        bench.submit()
    assert bench.vendor.calls.count("create") == 0
    assert sum(bench.clock.slept) >= bench.provider.settle_seconds
    record = bench.only_record()
    assert (record.state, record.step) == (JobState.SUBMITTING, Step.CREATING)
    assert [r.outcome for r in bench.engine.reconcile(resume=True)] == ["resumed"]
    assert len(bench.vendor.jobs) == 1


def test_reconcile_without_resume_spends_nothing(bench: Bench) -> None:
    bench.provider.faults["upload"] = ["reset_before"] * 5
    with pytest.raises(ProviderError):
        bench.submit()
    assert [r.outcome for r in bench.engine.reconcile()] == ["interrupted"]
    assert bench.vendor.jobs == []
    with pytest.raises(UsageError, match="interrupted before"):
        bench.engine.watch(bench.only_record().id)
    assert bench.engine.resume(bench.only_record().id).ref == "ft-0"


def test_uploads_are_retried(bench: Bench) -> None:
    bench.provider.faults["upload"] = ["reset_before", "reset_after", "rate_limit"]
    assert bench.submit().ref == "ft-0"
    assert 7 in bench.clock.slept


@pytest.mark.parametrize("call", ["upload", "create"])
@pytest.mark.parametrize(("fault", "error"), [("refuse", ProviderError), ("credentials", CredentialsError), ("closed", VendorClosedError)])
def test_a_definite_refusal_ends_the_job_as_failed(bench: Bench, call: str, fault: str, error: type[Exception]) -> None:
    bench.provider.faults[call] = [fault]
    with pytest.raises(error):
        bench.submit()
    record = bench.only_record()
    assert record.state is JobState.FAILED
    assert record.message.startswith("not created: fake")
    assert bench.engine.reconcile(resume=True) == []
    assert bench.vendor.jobs == []


def test_a_rate_limit_on_create_is_not_retried_but_resumable(bench: Bench) -> None:
    bench.provider.faults["create"] = ["rate_limit"]
    with pytest.raises(ProviderError, match="429"):
        bench.submit()
    assert bench.only_record().step is Step.UPLOADED
    assert bench.engine.resume(bench.only_record().id).ref == "ft-0"
    assert bench.vendor.calls.count("upload") == 1


def test_resume_refuses_data_that_was_changed(bench: Bench) -> None:
    bench.provider.faults["upload"] = ["reset_before"] * 5
    with pytest.raises(ProviderError):
        bench.submit()
    (bench.folder / "train.jsonl").write_text('{"text": "something else"}\n')
    record = bench.only_record()
    with pytest.raises(UsageError, match="changed or removed"):
        bench.engine.resume(record.id)
    assert [r.outcome for r in bench.engine.reconcile(resume=True)] == ["interrupted"]
    assert bench.engine.cancel(record.id).state is JobState.CANCELLED
    assert bench.vendor.jobs == []


def test_cancelling_an_interrupted_submission_means_it_is_never_made(bench: Bench) -> None:
    bench.provider.faults["create"] = ["rate_limit"]
    with pytest.raises(ProviderError):
        bench.submit()
    assert bench.engine.cancel(bench.only_record().id).state is JobState.CANCELLED
    assert bench.engine.resume(bench.only_record().id).state is JobState.CANCELLED
    assert bench.vendor.jobs == []


def test_a_cancel_during_submission_reaches_the_job(bench: Bench) -> None:
    upload, create = bench.provider.upload, bench.provider.create

    def cancel_then_create(*args):
        bench.engine.cancel(bench.only_record().id)  # as another process would: the job is claimed by the submitter
        return create(*args)

    bench.provider.create = cancel_then_create  # type: ignore[method-assign]
    assert bench.submit().state is JobState.CANCELLING
    assert bench.vendor.jobs[0]["cancelled"]

    def cancel_then_upload(*args):
        bench.engine.cancel(next(r.id for r in bench.ledger.latest() if r.state is JobState.SUBMITTING))
        return upload(*args)

    bench.provider.upload = cancel_then_upload  # type: ignore[method-assign]
    assert bench.submit().state is JobState.CANCELLED
    assert len(bench.vendor.jobs) == 1


def test_ctrl_c_at_create_loses_nothing(bench: Bench) -> None:
    create = bench.provider.create

    def interrupted(*args):
        create(*args)
        raise KeyboardInterrupt

    bench.provider.create = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.submit()
    bench.provider.create = create  # type: ignore[method-assign]
    job = bench.engine.jobs()[0]
    assert job.wait().ref == "ft-0"  # watching adopts it
    assert len(bench.vendor.jobs) == 1


def test_a_ledger_that_fails_after_create_says_that_the_job_exists(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise LedgerError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(bench.ledger, "observe", full)
        with pytest.raises(LedgerError, match=r"has made job .* as ft-0") as caught:
            bench.submit()
        assert "tuneport reconcile" in caught.value.fix
    assert [r.outcome for r in bench.engine.reconcile()] == ["adopted"]
    assert len(bench.vendor.jobs) == 1


def test_an_unreachable_vendor_does_not_block_other_submissions(bench: Bench) -> None:
    bench.provider.faults = {"create": ["reset_after"], "find": ["reset_before"] * 4}
    with pytest.raises(ProviderError, match="cannot be asked"):
        bench.submit()
    assert bench.submit().ref == "ft-1"
    assert {job.ref for job in bench.engine.jobs()} == {"ft-1", None}
    assert [r.outcome for r in bench.engine.reconcile()] == ["adopted"]
    assert {job.ref for job in bench.engine.jobs()} == {"ft-0", "ft-1"}


def test_nothing_is_recorded_for_an_unknown_job(bench: Bench) -> None:
    with pytest.raises(UsageError, match="no job 'j-nope'"):
        bench.engine.refresh("j-nope")
