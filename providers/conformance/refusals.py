"""What the vendor refuses, how it is said, and that no secret is said with it."""
# ruff: noqa: S101 -- these are tests

from __future__ import annotations

import logging

import pytest

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError, VendorClosedError
from tuneport.core.job import JobState
from tuneport.core.retry import ATTEMPTS, verdict
from tuneport.providers.conformance.bench import Bench, Conformance, assert_one_sentence
from tuneport.providers.conformance.faults import Fault, html, rate_limit, refusal, server_error
from tuneport.providers.conformance.sdk import sdk_errors


class Refusals(Conformance):
    """Verdicts, credentials, closed vendors, every exception class of the SDK, secrets."""

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

    def test_bad_input_is_one_sentence_and_leaves_the_ledger_whole(self, bench: Bench, case: str) -> None:
        bad = self.bad_input[case]
        for nth in range(1, ATTEMPTS + 1):  # more than once, for what is worth trying again
            bench.vendor.fault(bad.step, bad.fault, nth=nth)
        with pytest.raises(bad.kind, match=bad.says) as refused:
            bench.submit()
        assert_one_sentence(refused.value)
        (record,) = bench.ledger.latest()
        assert str(refused.value) in record.message
        assert bench.vendor.made == [] and record.ref is None
        bench.vendor.calm()
        bench.engine.reconcile(resume=True)  # what is final stays; what is not is made now
        settled = bench.ledger.get(record.id)
        final = verdict(refused.value).kind == "no"
        assert settled.state is JobState.FAILED if final else settled.ref is not None
        assert len(bench.vendor.made) == (0 if final else 1)

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
