"""The conformance kit itself: it catches careless providers, and its vendors survive their own server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from tuneport.core.job import JobState, RemoteJob
from tuneport.core.plan import Plan
from tuneport.providers.conformance.faults import rate_limit, reset, server_error
from tuneport.providers.conformance.openai_vendor import OpenAIVendor
from tuneport.providers.conformance.process import load_provider
from tuneport.providers.openai.client import OpenAIProvider
from tuneport.tests.test_conformance_openai import TestOpenAI as OpenAISuite

OpenAISuite.__test__ = False  # type: ignore[attr-defined] -- it runs in its own module


class CreatesTwice(OpenAIProvider):
    """Tries create again when the answer is lost, as the SDK would by itself."""

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        try:
            return super().create(plan, files, key)
        except Exception:  # noqa: BLE001
            return super().create(plan, files, key)


class NeverFinds(OpenAIProvider):
    """Forgets what it made."""

    def find(self, plan: Plan, key: str) -> RemoteJob | None:
        return None


class Guesses(OpenAIProvider):
    """Calls a state that it does not know "queued"."""

    def poll(self, ref: str) -> RemoteJob:
        seen = super().poll(ref)
        return replace(seen, state=JobState.QUEUED) if seen.state is JobState.UNKNOWN else seen


class Meddles(OpenAIProvider):
    """Cancels when asked how the job is."""

    def poll(self, ref: str) -> RemoteJob:
        return self.cancel(ref)


@contextmanager
def suite_of(kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    suite = type("Suite", (OpenAISuite,), {"target": f"{__name__}:{kind.__name__}"})()
    with suite.open_bench(folder) as bench:
        for name, value in bench.vendor.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("tuneport.providers.conformance.bench.load_provider", lambda target, **options: kind(**options))
        yield suite, bench


def test_a_create_that_is_tried_again_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with suite_of(CreatesTwice, tmp_path, monkeypatch) as (suite, bench), pytest.raises((AssertionError, ValueError)):
        suite.test_exactly_one_job_whatever_goes_wrong_at_any_step(bench, "create", reset(after=True))


def test_a_job_that_is_never_found_again_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with suite_of(NeverFinds, tmp_path, monkeypatch) as (suite, bench), pytest.raises((AssertionError, ValueError)):
        suite.test_exactly_one_job_whatever_goes_wrong_at_any_step(bench, "create", server_error(after=True))


def test_a_guessed_state_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with suite_of(Guesses, tmp_path, monkeypatch) as (suite, bench), pytest.raises(AssertionError):
        suite.test_every_state_of_the_vendor_and_one_that_nobody_knows(bench)


def test_a_read_that_changes_something_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with suite_of(Meddles, tmp_path, monkeypatch) as (suite, bench), pytest.raises(AssertionError):
        suite.test_reads_change_nothing_at_the_vendor(bench)


def test_a_vendor_with_a_folder_outlives_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for _ in range(2):
        with OpenAIVendor(tmp_path) as vendor:
            for name, value in vendor.environment.items():
                monkeypatch.setenv(name, value)
            provider = load_provider("tuneport.providers.openai.client:OpenAIProvider")
            if not made:
                with vendor.books() as books:
                    books["jobs"]["ftjob-1"] = {"id": "ftjob-1", "object": "fine_tuning.job", "status": "running", "model": "m"}
            made.append(provider.poll("ftjob-1").raw_state)
    assert made == ["running", "running"]


def test_faults_happen_at_the_request_that_they_are_scripted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with suite_of(OpenAIProvider, tmp_path, monkeypatch) as (_, bench):
        ref = bench.made_by_hand()
        bench.vendor.fault("poll", rate_limit(), nth=2)
        bench.provider.poll(ref)
        with pytest.raises(Exception, match="429"):
            bench.provider.poll(ref)
        bench.provider.poll(ref)
        assert [(line.status, line.fault) for line in bench.vendor.log if line.route == "poll"] == [
            (200, ""),
            (429, "429, before the vendor acted"),
            (200, ""),
        ]
