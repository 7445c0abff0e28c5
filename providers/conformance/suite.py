"""The tests that every provider must pass, against a fake vendor that speaks the real wire format.

    pytest.register_assert_rewrite("tuneport.providers.conformance.suite")

    class TestAcme(ProviderConformance):
        target = "acme_tuneport.client:AcmeProvider"
        vendor_class = AcmeVendor
        states = STATES
        records = RECORDS
        sdk_modules = ("acme",)
        key_variable = "ACME_API_KEY"

        def specs(self, train, held): ...
        def map_error(self, error): return mapped(error)

Needs pytest, and the vendor's SDK. docs/conformance.md explains the parts.
"""
# ruff: noqa: S101 -- these are tests

from __future__ import annotations

import inspect
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tuneport.core.data.load import load_job_data, open_rows
from tuneport.core.data.rows import Row
from tuneport.core.engine import Engine, Job
from tuneport.core.errors import CredentialsError, ProviderError, TuneportError, VendorClosedError
from tuneport.core.job import JobState
from tuneport.core.ledger import Ledger
from tuneport.core.plan import Plan, compile_for
from tuneport.core.provider import ChatRequest, Provider
from tuneport.core.retry import verdict
from tuneport.core.spec import JobSpec
from tuneport.providers.conformance.faults import Fault, html, kill, lost_replies, rate_limit, refusal, server_error, slow, unheard_requests
from tuneport.providers.conformance.process import LEDGER, load_provider, start
from tuneport.providers.conformance.server import FakeVendor

CALLS: Mapping[str, tuple[Any, ...]] = {
    "pause": ("ref",),
    "resume": ("ref",),
    "checkpoints": ("ref",),
    "events": ("ref",),
    "cancel": ("ref",),
    "list_jobs": (),
    "download": ("ref", Path("weights")),
    "delete": ("ref",),
    "chat": ("model", ()),
}
"""The calls of the protocol that a vendor may lack, with arguments that are good enough to be refused."""

SEQUENCES = 12
"""Random sequences of faults; each is a handful of real requests."""


class Bench:
    """A vendor, a ledger and an engine in one folder, and one spec compiled for the provider."""

    def __init__(self, suite: ProviderConformance, vendor: FakeVendor, folder: Path, spec: JobSpec) -> None:
        self.suite, self.vendor, self.folder, self.spec = suite, vendor, folder, spec
        self.options: dict[str, Any] = dict(suite.provider_options)
        self.plan = suite.compile(spec)
        self.slept: list[float] = []
        self.on_sleep: Callable[[], object] = lambda: None
        self._ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        """The ledger of this folder."""
        self._ledger = self._ledger or Ledger.open(self.folder / LEDGER)
        return self._ledger

    @property
    def engine(self) -> Engine:
        """An engine over the folder's ledger. It does not really sleep."""
        return Engine(self.ledger, lambda _name: self.provider, lambda spec: partial(open_rows, spec), sleep=self._sleep)

    @property
    def provider(self) -> Provider:
        """A fresh provider."""
        return load_provider(self.suite.target, **self.options)

    def rows(self, part: Any) -> Iterator[Row]:
        """The rows of the spec, as ``Provider.upload`` takes them."""
        return open_rows(self.spec, part)

    def submit(self) -> Job:
        """Submit the spec."""
        return self.engine.submit(self.spec, self.plan)

    def made_by_hand(self, key: str = "tp-7f3k2a-x9k3m2qa") -> str:
        """Make a job without the engine; returns its ref."""
        provider = self.provider
        return provider.create(self.plan, provider.upload(self.plan, self.rows, key), key).ref

    def assert_one_job(self) -> None:
        """Exactly one job was made, and the ledger knows it."""
        (made,) = self.vendor.made
        (record,) = self.ledger.latest()
        assert (record.ref, record.key) == (self.suite.ref_of(made.ref), made.key or record.key)

    def stored_bytes(self) -> bytes:
        """Everything that the ledger keeps on disk."""
        return b"".join(path.read_bytes() for path in self.folder.glob(LEDGER + "*"))

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger:
            self._ledger.close()

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep()


class ProviderConformance(ABC):
    """Subclass it in a test module under a name that begins with Test."""

    target: ClassVar[str]
    """The provider's class, "package.module:Class"."""
    vendor_class: ClassVar[type[FakeVendor]]
    """The fake of its vendor."""
    states: ClassVar[Mapping[str, JobState]]
    """Every word of the vendor for a job's state."""
    records: ClassVar[Mapping[str, Callable[[Row], dict[str, Any]]]]
    """The record shapes that the plans' uploads name."""
    sdk_modules: ClassVar[tuple[str, ...]]
    """Modules of the SDK; every exception class in them must be mapped."""
    key_variable: ClassVar[str]
    """The environment variable of the key, which an error about a missing key must name."""
    provider_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the provider's class in all tests."""
    hasty_options: ClassVar[Mapping[str, Any]] = {"timeout_s": 0.4}
    """Arguments that make the provider give up waiting for an answer after less than a second."""
    skews: ClassVar[Sequence[timedelta]] = (timedelta(days=-3), timedelta(days=3))
    """How wrong this machine's clock may be without a job being lost."""
    today: ClassVar[date] = date(2026, 11, 22)
    """The day for which the specs are compiled."""

    # What a provider's test supplies

    @abstractmethod
    def specs(self, train: str, held: str) -> list[JobSpec]:
        """Specs that the vendor takes, the simplest first (sft). ``train`` and ``held`` are files of chat rows."""

    @abstractmethod
    def map_error(self, error: Exception) -> TuneportError:
        """The provider's translation of an error of the SDK."""

    def expected_body(self, plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:  # noqa: ARG002
        """The body of the create request: the plan's payload with file ids in their places; override it to add the ``key``."""
        body: dict[str, Any] = substituted(plan.payload, files)
        return body

    def ref_of(self, made: str) -> str:
        """The provider's ref of a job that the vendor made under this id."""
        return made

    def sample_error(self, kind: type[Exception]) -> Exception:
        """An instance of one of the SDK's exception classes; the default knows the classes that Stainless generates."""
        return sample_error(kind)

    def compile(self, spec: JobSpec) -> Plan:
        """The plan of a spec, which must have no refusals."""
        plan = compile_for(load_provider(self.target, **self.provider_options), spec, load_job_data(spec), self.today)
        assert plan.refusals == {}
        return plan

    # Fixtures

    @pytest.fixture
    def bench(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
        """A bench with the first spec."""
        train, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
        for path, count in ((train, 40), (held, 12)):
            path.write_text("".join(json.dumps({"messages": chat_messages(path.stem, n)}) + "\n" for n in range(count)))
        with self.vendor_class() as vendor:
            for name, value in vendor.environment.items():
                monkeypatch.setenv(name, value)
            bench = Bench(self, vendor, tmp_path, self.specs(str(train), str(held))[0])
            yield bench
            bench.close()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every fault at every step of a submission; a kill before and after every step."""
        routes = self.vendor_class.submission_routes
        if "fault" in metafunc.fixturenames and "step" in metafunc.fixturenames:
            cases = [(route, fault) for route in (*routes, "list") for fault in (*lost_replies(), *unheard_requests())]
            metafunc.parametrize(("step", "fault"), cases, ids=[f"{step}: {fault}" for step, fault in cases])
        elif "after" in metafunc.fixturenames:
            metafunc.parametrize(("step", "after"), [(route, after) for route in routes for after in (False, True)])

    # The protocol

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
                _drain(getattr(provider, call)(*CALLS[call]))
            assert reason in str(refused.value)
            assert verdict(refused.value).kind == "no"
        assert bench.vendor.log == []

    # One job

    def test_a_job_from_submission_to_its_model(self, bench: Bench) -> None:
        job = bench.submit()
        ref = bench.vendor.made[0].ref
        seen = [job.state]
        bench.on_sleep = lambda: bench.vendor.advance(ref)
        job.wait(lambda update: seen.append(update.job.state))
        assert job.state is JobState.SUCCEEDED
        order = [self.states[raw] for raw in bench.vendor.script]
        assert [order.index(state) for state in seen] == sorted(order.index(state) for state in seen)
        assert job.record.billed_tokens is not None or job.record.billed_usd is not None
        assert job.tuned_model
        bench.assert_one_job()
        if "chat" not in bench.provider.unoffered:
            asked = [ChatRequest(str(n), [{"role": "user", "content": f"ticket {n}"}], max_tokens=16) for n in range(20)]
            replies = {reply.id: reply for reply in job.model.chat(asked)}
            assert sorted(replies, key=int) == [request.id for request in asked]
            for request in asked:
                reply = replies[request.id]
                assert reply.error == ""
                assert request.messages[0]["content"] in reply.text, "the fake vendors answer with the question in the answer"
                assert reply.prompt_tokens and reply.completion_tokens and reply.seconds

    def test_one_failed_question_does_not_spoil_the_others(self, bench: Bench) -> None:
        if "chat" in bench.provider.unoffered:
            pytest.skip(bench.provider.unoffered["chat"])
        job = bench.submit()
        bench.vendor.set_state(bench.vendor.made[0].ref, bench.vendor.script[-1])
        bench.vendor.fault("chat", refusal(400, "This question breaks a rule"), nth=2)
        asked = [ChatRequest(str(n), [{"role": "user", "content": "ticket"}]) for n in range(4)]
        replies = list(job.refresh().model.chat(asked))
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

    # Exactly once

    def test_exactly_one_job_whatever_goes_wrong_at_any_step(self, bench: Bench, step: str, fault: Fault) -> None:
        bench.vendor.fault(step, fault)
        if step == "list":  # it is used when an answer was lost
            bench.vendor.fault("create", lost_replies()[0])
        with suppress(TuneportError):
            bench.submit()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()
        assert bench.engine.reconcile(resume=True) == []

    def test_a_timeout_after_the_vendor_accepted_makes_no_second_job(self, bench: Bench) -> None:
        bench.options |= self.hasty_options
        bench.vendor.fault("create", slow(2.0))
        with suppress(TuneportError):
            bench.submit()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()

    def test_kill_9_between_any_two_steps_then_reconcile(self, bench: Bench, step: str, after: bool) -> None:
        client: list[Any] = []
        bench.vendor.fault(step, kill(lambda: client[0].kill(), after=after))  # noqa: PLW0108 -- it is not started yet
        client.append(start(self.target, bench.folder, bench.spec, bench.plan, bench.vendor.environment))
        _, printed = client[0].communicate(timeout=60)
        reached = any("kill -9" in line.fault for line in bench.vendor.log)
        assert client[0].returncode == (-9 if reached else 0), printed
        bench.vendor.calm()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()
        assert self.vendor_class.secret.encode() not in bench.stored_bytes()

    def test_a_job_that_the_list_shows_late_is_adopted_not_repeated(self, bench: Bench) -> None:
        bench.vendor.list_lag = 4
        bench.vendor.fault("create", lost_replies()[0])
        with pytest.raises(ProviderError):
            bench.submit()
        bench.engine.reconcile(resume=True)
        bench.assert_one_job()

    def test_a_wrong_clock_loses_no_job(self, bench: Bench) -> None:
        for number, skew in enumerate(self.skews, start=1):
            bench.vendor.skew_seconds = skew.total_seconds()
            bench.vendor.fault("create", lost_replies()[0])
            bench.submit()  # adopted at once, since the list shows it
            assert len(bench.vendor.made) == number
            assert {self.ref_of(made.ref) for made in bench.vendor.made} == {record.ref for record in bench.ledger.latest()}

    def test_jobs_of_others_are_never_adopted(self, bench: Bench) -> None:
        bench.made_by_hand("tp-aaaaaa-aaaaaaaa")
        provider = bench.provider
        assert provider.find(bench.plan, "tp-aaaaaa-aaaaaaab") is None
        found = provider.find(bench.plan, "tp-aaaaaa-aaaaaaaa")
        assert found is not None and found.ref == self.ref_of(bench.vendor.made[0].ref)

    def test_random_faults_leave_no_duplicate_and_no_orphan(self, bench: Bench) -> None:
        random, faults = Random(20261122), (*lost_replies(), *unheard_requests())  # noqa: S311 -- a reproducible choice
        for number in range(1, SEQUENCES + 1):
            for nth in range(1, 13):
                if random.random() < 0.4:
                    bench.vendor.fault("*", random.choice(faults), nth)
            with suppress(TuneportError):
                bench.submit()
            if random.random() < 0.5:
                bench.engine.reconcile(resume=True)
            bench.vendor.calm()
            bench.engine.reconcile(resume=True)
            made, recorded = bench.vendor.made, bench.ledger.latest(limit=None)
            assert len(made) == number == len({entry.body and entry.ref for entry in made}), "a job was made twice, or lost"
            assert {self.ref_of(entry.ref) for entry in made} == {record.ref for record in recorded}, "an orphan"

    # Refusals

    def test_a_vendor_that_is_closed_to_the_account_says_the_way_out(self, bench: Bench) -> None:
        bench.vendor.closed = True
        with pytest.raises(VendorClosedError, match="tuneport plan --provider all"):
            bench.submit()
        assert bench.vendor.made == []
        assert bench.ledger.latest()[0].state is JobState.FAILED
        assert bench.engine.reconcile(resume=True) == []

    def test_a_file_that_expired_before_create_is_a_definite_refusal(self, bench: Bench) -> None:
        provider, key = bench.provider, "tp-7f3k2a-x9k3m2qa"
        files = provider.upload(bench.plan, bench.rows, key)
        bench.vendor.expire_files()
        with pytest.raises(ProviderError) as refused:
            provider.create(bench.plan, files, key)
        assert verdict(refused.value).kind == "no"
        assert bench.vendor.made == []
        again = provider.upload(bench.plan, bench.rows, key)
        assert provider.create(bench.plan, again, key).ref == self.ref_of(bench.vendor.made[0].ref)

    def test_rows_that_the_vendor_rejects_fail_the_job_with_its_reason(self, bench: Bench) -> None:
        job = bench.submit()
        failed = next(raw for raw, state in self.states.items() if state is JobState.FAILED)
        bench.vendor.set_state(bench.vendor.made[0].ref, failed)
        assert job.refresh().state is JobState.FAILED
        assert "line 3" in job.message

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            (refusal(400, "bad field", "invalid_request_error"), "no"),
            (refusal(404, "no such thing", "not_found"), "no"),
            (refusal(413, "too large"), "no"),
            (refusal(422, "unfit"), "no"),
            (server_error(), "transient"),
            (server_error(status=503), "transient"),
            (html(), "transient"),
            (html(status=502), "transient"),
            (rate_limit(7), "rate_limit"),
        ],
        ids=str,
    )
    def test_each_answer_is_one_sentence_with_the_right_verdict(self, bench: Bench, fault: Fault, kind: str) -> None:
        ref = bench.made_by_hand()
        bench.vendor.fault("poll", fault)
        with pytest.raises(ProviderError) as failed:
            bench.provider.poll(ref)
        found = verdict(failed.value)
        assert (found.kind, found.after) == (kind, 7 if kind == "rate_limit" else None)
        assert_one_sentence(failed.value)
        assert bench.vendor.calls("poll") == 1, "the SDK's own retries are on"

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_key_that_is_wrong_or_lacks_a_right(self, bench: Bench, status: int) -> None:
        ref = bench.made_by_hand()
        bench.vendor.fault("poll", refusal(status, f"Incorrect API key provided: {self.vendor_class.secret}", "invalid_api_key"))
        with pytest.raises(CredentialsError) as failed:
            bench.provider.poll(ref)
        assert_one_sentence(failed.value)
        assert self.vendor_class.secret not in str(failed.value)

    def test_a_missing_key_is_named(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(self.key_variable)
        with pytest.raises(CredentialsError, match=self.key_variable):
            bench.provider.poll(self.ref_of("some-job"))

    def test_every_exception_class_of_the_sdk_is_mapped(self) -> None:
        classes = sdk_errors(self.sdk_modules)
        assert classes
        for kind in classes:
            error = self.map_error(self.sample_error(kind))
            assert isinstance(error, TuneportError), kind
            assert_one_sentence(error)

    # Reading

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
                    _drain(getattr(provider, call)(ref))
            if "list_jobs" not in provider.unoffered:
                _drain(provider.list_jobs(10))
            assert bench.vendor.snapshot() == before

    def test_a_job_that_disappears_keeps_its_last_state(self, bench: Bench) -> None:
        job = bench.submit()
        bench.vendor.advance(bench.vendor.made[0].ref)
        before = job.refresh().state
        bench.vendor.forget(bench.vendor.made[0].ref)
        assert job.refresh().state is before
        assert job.freshness

    def test_events_are_ordered_unique_and_the_same_when_read_again(self, bench: Bench) -> None:
        if "events" in bench.provider.unoffered:
            pytest.skip(bench.provider.unoffered["events"])
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

    def test_checkpoints_are_ordered_by_step(self, bench: Bench) -> None:
        if "checkpoints" in bench.provider.unoffered:
            pytest.skip(bench.provider.unoffered["checkpoints"])
        ref = bench.made_by_hand()
        bench.vendor.set_state(bench.vendor.made[0].ref, bench.vendor.script[-1])
        checkpoints = bench.provider.checkpoints(ref)
        assert len(checkpoints) > 1
        assert [c.step for c in checkpoints] == sorted({c.step for c in checkpoints})
        assert all(c.model for c in checkpoints)
        assert bench.provider.checkpoints(ref) == checkpoints

    def test_the_list_shows_the_newest_jobs_first(self, bench: Bench) -> None:
        if "list_jobs" in bench.provider.unoffered:
            pytest.skip(bench.provider.unoffered["list_jobs"])
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

    # Cancelling, pausing, deleting

    def test_cancelling_twice_and_after_the_end_is_harmless(self, bench: Bench) -> None:
        if "cancel" in bench.provider.unoffered:
            pytest.skip(bench.provider.unoffered["cancel"])
        ref = bench.made_by_hand()
        for _ in range(2):
            assert bench.provider.cancel(ref).state in (JobState.CANCELLING, JobState.CANCELLED)
        other = bench.made_by_hand("tp-bbbbbb-bbbbbbbb")
        bench.vendor.set_state(bench.vendor.made[1].ref, bench.vendor.script[-1])
        assert bench.provider.cancel(other).state is JobState.SUCCEEDED

    def test_pausing_and_going_on(self, bench: Bench) -> None:
        if "pause" in bench.provider.unoffered:
            pytest.skip(bench.provider.unoffered["pause"])
        ref = bench.made_by_hand()
        bench.vendor.set_state(bench.vendor.made[0].ref, next(raw for raw, s in self.states.items() if s is JobState.RUNNING))
        assert bench.provider.pause(ref).state in (JobState.PAUSED, JobState.UNKNOWN)
        assert bench.provider.resume(ref).state in (JobState.QUEUED, JobState.RUNNING)
        assert len(bench.vendor.made) == 1

    def test_deleting_names_what_it_removed_and_twice_is_harmless(self, bench: Bench) -> None:
        if "delete" in bench.provider.unoffered:
            pytest.skip(bench.provider.unoffered["delete"])
        ref = bench.made_by_hand()
        bench.vendor.set_state(bench.vendor.made[0].ref, bench.vendor.script[-1])
        removed = bench.provider.delete(ref)
        assert removed
        assert all(len(name.split()) == 2 for name in removed), "kind and name"
        assert bench.provider.delete(ref) == []

    # Secrets

    def test_secrets_stay_out_of_ledger_logs_and_errors(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        secret, told = self.vendor_class.secret, []
        for step in self.vendor_class.submission_routes:
            for fault in (refusal(401, f"Incorrect API key provided: {secret}"), refusal(400, f"Bearer {secret} was not expected")):
                bench.vendor.fault(step, fault)
                try:
                    bench.submit()
                except TuneportError as error:
                    told.append(f"{error!r} {error}")
                bench.vendor.calm()
        job = bench.submit()
        bench.vendor.fault("poll", refusal(401, f"Incorrect API key provided: {secret}"))
        told += [job.refresh().freshness, *job.logs()]
        assert any("[secret]" in text for text in told)
        assert secret not in " ".join(told)
        assert secret.encode() not in bench.stored_bytes()
        assert secret not in caplog.text


def substituted(document: Any, files: Mapping[str, str]) -> Any:
    """A plan's payload as it is sent: ``${upload:role}`` replaced by the file's id."""
    if isinstance(document, dict):
        return {key: substituted(value, files) for key, value in document.items()}
    if isinstance(document, list):
        return [substituted(value, files) for value in document]
    if isinstance(document, str) and document.startswith("${upload:") and document.endswith("}"):
        return files[document[len("${upload:") : -1]]
    return document


def chat_messages(name: str, number: int) -> list[dict[str, str]]:
    """One conversation with its answer."""
    return [
        {"role": "system", "content": "Sort the ticket."},
        {"role": "user", "content": f"{name} {number}: my card is lost – was nun?"},
        {"role": "assistant", "content": f"cards/{number % 3}"},
    ]


def assert_one_sentence(error: TuneportError) -> None:
    """What a person gets to read: something, on one line, without markup, with a remedy."""
    text = str(error)
    assert 15 < len(text) < 700, text
    assert "\n" not in text and "<" not in text, text
    assert error.fix, f"{text}: says no remedy"


def sdk_errors(modules: Sequence[str]) -> list[type[Exception]]:
    """Every exception class that these modules define or give out, subclasses included."""
    found: dict[str, type[Exception]] = {}
    roots = {module.partition(".")[0] for module in modules}
    queue = [value for module in modules for value in vars(import_module(module)).values() if inspect.isclass(value)]
    while queue:
        kind = queue.pop()
        name = f"{kind.__module__}.{kind.__qualname__}"
        if issubclass(kind, Exception) and kind.__module__.partition(".")[0] in roots and name not in found:
            found[name] = kind
            queue += kind.__subclasses__()
    return [found[name] for name in sorted(found)]


def sample_error(kind: type[Exception]) -> Exception:
    """An instance of an exception class of a Stainless SDK, made from the names of its arguments."""
    sdk = import_module(kind.__module__.partition(".")[0])
    client = _transport_of(sdk)
    request = client.Request("POST", "http://127.0.0.1/v1/jobs")
    status = getattr(kind, "status_code", 500)
    response = client.Response(status if isinstance(status, int) else 500, request=request, json={"error": {"message": "no", "code": "x"}})
    values: dict[str, Any] = {
        "message": "something went wrong",
        "request": request,
        "response": response,
        "body": {"message": "no", "code": "x"},
        "completion": SimpleNamespace(usage=None),
        "unsent_messages": [],
        "file_id": "file-1",
    }
    parameters = inspect.signature(kind).parameters.values()
    required = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and (p.default is p.empty or p.name in values)]
    if not required:
        return kind()
    positional = [values.get(p.name, "value") for p in required if p.kind is not p.KEYWORD_ONLY]
    return kind(*positional, **{p.name: values.get(p.name) for p in required if p.kind is p.KEYWORD_ONLY})


def _transport_of(sdk: Any) -> Any:
    """The HTTP library of an SDK: the one whose Timeout it gives out."""
    return import_module(sdk.Timeout.__module__.partition(".")[0])


def _drain(result: Any) -> None:
    if isinstance(result, Iterator):
        for _ in result:
            pass
