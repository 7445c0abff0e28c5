"""One job from submission to its model, and what its life brings."""
# ruff: noqa: S101 -- these are tests

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.errors import ProviderError
from tuneport.core.job import JobState
from tuneport.core.provider import ChatRequest, Provider
from tuneport.core.retry import verdict
from tuneport.providers.conformance.bench import Bench, Conformance, drain, needs
from tuneport.providers.conformance.faults import refusal

CALLS: Mapping[str, tuple[Any, ...]] = {
    "pause": ("ref",),
    "resume": ("ref",),
    "checkpoints": ("ref",),
    "events": ("ref",),
    "cancel": ("ref",),
    "list_jobs": (),
    "download": ("ref", Path("weights")),
    "delete": ("ref",),
    "deployments": (),
    "chat": ("model", ()),
}
"""The calls of the protocol that a vendor may lack, with arguments that are good enough to be refused."""

class Lifecycle(Conformance):
    """Payload, states, events, steering, deleting."""

    def test_it_implements_the_protocol(self, bench: Bench) -> None:
        provider = bench.provider
        assert isinstance(provider, Provider)
        assert provider.settle_seconds >= 0
        assert set(provider.unoffered) <= CALLS.keys()
        assert all(len(reason) > 10 for reason in provider.unoffered.values())

    def test_what_the_vendor_does_not_offer_is_refused_with_the_reason(self, bench: Bench) -> None:
        provider = bench.provider
        for call, reason in provider.unoffered.items():
            with pytest.raises(ProviderError) as refused:
                drain(getattr(provider, call)(*CALLS[call]))
            assert reason in str(refused.value)
            assert verdict(refused.value).kind == "no"
        assert bench.vendor.log == []

    def test_a_job_from_submission_to_its_model(self, bench: Bench) -> None:
        job = bench.submit()
        ref = bench.vendor.made[0].ref
        seen = [job.state]
        bench.on_sleep = lambda: bench.vendor.advance(ref)
        job.wait(lambda update: seen.append(update.job.state))
        assert job.state is JobState.SUCCEEDED
        order = [self.states[raw] for raw in bench.vendor.script]
        assert [order.index(state) for state in seen] == sorted(order.index(state) for state in seen)
        assert self.unbilled or job.record.billed_tokens is not None or job.record.billed_usd is not None
        assert job.tuned_model
        bench.assert_one_job()
        if "chat" not in bench.provider.unoffered:
            asked = [ChatRequest(str(n), [{"role": "user", "content": f"ticket {n}"}], max_tokens=16) for n in range(20)]
            replies = {reply.id: reply for reply in job.model.answer(asked)}
            assert sorted(replies, key=int) == [request.id for request in asked]
            for request in asked:
                reply = replies[request.id]
                assert reply.error == ""
                assert request.messages[0]["content"] in reply.text, "the fake vendors answer with the question in the answer"
                assert reply.prompt_tokens and reply.completion_tokens and reply.seconds

    @needs("chat")
    def test_one_failed_question_does_not_spoil_the_others(self, bench: Bench) -> None:
        job = bench.submit()
        bench.vendor.set_state(bench.vendor.made[0].ref, bench.vendor.script[-1])
        bench.vendor.fault("chat", refusal(400, "This question breaks a rule"), nth=2)
        asked = [ChatRequest(str(n), [{"role": "user", "content": "ticket"}]) for n in range(4)]
        replies = list(job.refresh().model.answer(asked))
        assert sorted(reply.id for reply in replies) == ["0", "1", "2", "3"]
        assert ["breaks a rule" in reply.error and not reply.text for reply in replies if reply.error] == [True]

    def test_the_vendor_receives_exactly_the_plan(self, bench: Bench) -> None:
        specs = self.specs(str(bench.folder / "train.jsonl"), str(bench.folder / "held.jsonl"))
        for number, spec in enumerate(specs):
            bench.spec, bench.plan, key = spec, self.compile(spec), f"tp-{number:06d}-x9k3m2qa"
            provider = bench.provider
            files = provider.upload(bench.plan, bench.rows, key)
            assert files.keys() == {upload.role for upload in bench.plan.uploads}
            for upload in bench.plan.uploads:
                sent = [json.loads(line) for line in bench.vendor.file(files[upload.role]).splitlines()]
                assert sent == [json.loads(json.dumps(self.records[upload.record](row))) for row in bench.rows(upload.role)]
            provider.create(bench.plan, files, key)
            assert bench.vendor.made[-1].body == self.expected_body(bench.plan, files, key)
            assert bench.vendor.made[-1].key in (key, None)

    def test_an_upload_repeated_with_one_key_is_one_upload(self, bench: Bench) -> None:
        moved: list[tuple[str, int, int | None]] = []
        once = bench.provider.upload(bench.plan, bench.rows, "tp-7f3k2a-x9k3m2qa", lambda *progress: moved.append(progress))
        books = bench.vendor.snapshot()["files"]
        assert bench.provider.upload(bench.plan, bench.rows, "tp-7f3k2a-x9k3m2qa") == once
        assert bench.vendor.snapshot()["files"] == books
        assert moved[-1][1] == moved[-1][2]

    def test_every_state_of_the_vendor_and_one_that_nobody_knows(self, bench: Bench) -> None:
        ref = bench.made_by_hand()
        made = bench.vendor.made[0].ref
        for raw, state in self.states.items():
            bench.vendor.set_state(made, raw)
            seen = bench.provider.poll(ref)
            assert (seen.ref, seen.state, seen.raw_state) == (ref, state, raw)
            assert (seen.tuned_model is not None) == (state is JobState.SUCCEEDED), raw
            assert seen.message or state is not JobState.FAILED
        bench.vendor.set_state(made, "frobnicating")
        seen = bench.provider.poll(ref)
        assert (seen.state, seen.raw_state) == (JobState.UNKNOWN, "frobnicating")

    def test_reads_change_nothing_at_the_vendor(self, bench: Bench) -> None:
        ref = bench.made_by_hand("tp-7f3k2a-x9k3m2qa")
        for raw in bench.vendor.script:
            bench.vendor.set_state(bench.vendor.made[0].ref, raw)
            before, provider = bench.vendor.snapshot(), bench.provider
            provider.poll(ref)
            provider.find(bench.plan, "tp-7f3k2a-x9k3m2qa")
            provider.online(bench.plan)
            for call in ("events", "checkpoints"):
                if call not in provider.unoffered:
                    drain(getattr(provider, call)(ref))
            if "list_jobs" not in provider.unoffered:
                drain(provider.list_jobs(10))
            assert bench.vendor.snapshot() == before

    def test_a_job_that_disappears_keeps_its_last_state(self, bench: Bench) -> None:
        job = bench.submit()
        bench.vendor.advance(bench.vendor.made[0].ref)
        before = job.refresh().state
        bench.vendor.forget(bench.vendor.made[0].ref)
        assert job.refresh().state is before
        assert job.freshness

    @needs("events")
    def test_events_are_ordered_unique_and_the_same_when_read_again(self, bench: Bench) -> None:
        job = bench.submit()
        known: list[str] = []
        for raw in bench.vendor.script:
            bench.vendor.set_state(bench.vendor.made[0].ref, raw)
            events = list(bench.provider.events(job.ref or ""))
            assert [event.at for event in events] == sorted(event.at for event in events)
            ids = [event.id for event in events]
            assert len(ids) == len(set(ids)) and ids[: len(known)] == known
            assert all(event.at.tzinfo is not None and event.level in ("info", "warning", "error") for event in events)
            assert [event.id for event in job.events()] == ids == [event.id for event in job.events()]
            known = ids
        assert known
        assert any(event.metrics for event in job.events())

    @needs("checkpoints")
    def test_checkpoints_are_ordered_by_step(self, bench: Bench) -> None:
        ref = bench.made_by_hand()
        bench.vendor.set_state(bench.vendor.made[0].ref, bench.vendor.script[-1])
        checkpoints = bench.provider.checkpoints(ref)
        assert len(checkpoints) > 1
        assert [c.step for c in checkpoints] == sorted({c.step for c in checkpoints})
        assert all(c.model for c in checkpoints)
        assert bench.provider.checkpoints(ref) == checkpoints

    @needs("list_jobs")
    def test_the_list_shows_the_newest_jobs_first(self, bench: Bench) -> None:
        refs = [bench.made_by_hand(f"tp-{n:06d}-x9k3m2qa") for n in range(5)]
        assert [job.ref for job in bench.provider.list_jobs()] == refs[::-1]
        assert [job.ref for job in bench.provider.list_jobs(2)] == refs[:2:-1]

    def test_asking_the_vendor_about_a_plan_only_adds(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = bench.provider.online(bench.plan)
        assert (asked.payload, asked.uploads) == (bench.plan.payload, bench.plan.uploads)
        assert set(bench.plan.warnings) <= set(asked.warnings)
        assert set(bench.plan.refusals) <= set(asked.refusals)
        monkeypatch.delenv(self.key_variable)
        assert "online" in {warning.code for warning in bench.provider.online(bench.plan).warnings}

    @needs("cancel")
    def test_cancelling_twice_and_after_the_end_is_harmless(self, bench: Bench) -> None:
        ref = bench.made_by_hand()
        for _ in range(2):
            assert bench.provider.cancel(ref).state in (JobState.CANCELLING, JobState.CANCELLED)
        other = bench.made_by_hand("tp-bbbbbb-bbbbbbbb")
        bench.vendor.set_state(bench.vendor.made[1].ref, bench.vendor.script[-1])
        assert bench.provider.cancel(other).state is JobState.SUCCEEDED

    @needs("pause")
    def test_pausing_and_going_on(self, bench: Bench) -> None:
        ref = bench.made_by_hand()
        bench.vendor.set_state(bench.vendor.made[0].ref, next(raw for raw, s in self.states.items() if s is JobState.RUNNING))
        assert bench.provider.pause(ref).state in (JobState.PAUSED, JobState.UNKNOWN)
        assert bench.provider.resume(ref).state in (JobState.QUEUED, JobState.RUNNING)
        assert len(bench.vendor.made) == 1

    @needs("delete")
    def test_deleting_names_what_it_removed_and_twice_is_harmless(self, bench: Bench) -> None:
        ref = bench.made_by_hand()
        bench.vendor.set_state(bench.vendor.made[0].ref, bench.vendor.script[-1])
        before = bench.vendor.snapshot()
        announced = bench.provider.delete(ref, dry_run=True)
        assert bench.vendor.snapshot() == before
        removed = bench.provider.delete(ref)
        assert removed == announced != []
        assert all(len(name.split()) == 2 for name in removed), "kind and name"
        assert bench.provider.delete(ref) == []
