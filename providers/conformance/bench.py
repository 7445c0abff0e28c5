"""What one conformance test works with: a vendor, a ledger, an engine, and what a provider's test supplies."""
# ruff: noqa: S101 -- for tests

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from tuneport.core.data.load import load_job_data, open_rows
from tuneport.core.data.rows import Row
from tuneport.core.deployment import DeploymentRequest, DeploymentState
from tuneport.core.engine import Engine, Job
from tuneport.core.errors import ProviderError, TuneportError
from tuneport.core.job import JobState
from tuneport.core.ledger import DeploymentRecord, Ledger
from tuneport.core.plan import Plan, compile_for
from tuneport.core.provider import Provider
from tuneport.core.spec import JobSpec
from tuneport.providers.conformance.faults import Fault, lost_replies, unheard_requests
from tuneport.providers.conformance.process import LEDGER, Client, load_provider
from tuneport.providers.conformance.sdk import sample_error
from tuneport.providers.conformance.server import FakeVendor

BAD_INPUT = ("wrong key", "revoked key", "wrong account", "file over the limit", "model not tunable", "web page")
"""What every vendor can meet besides being closed to the account; ``Conformance.bad_input`` says how this one puts it."""


@dataclass(frozen=True, slots=True)
class BadInput:
    """How a vendor answers bad input, and what a person then reads."""

    step: str  # one of the vendor's submission_routes
    fault: Fault
    kind: type[TuneportError]
    says: str  # a regular expression that the sentence with its remedy must match


class Bench:
    """A vendor, a ledger and an engine in one folder, and one spec compiled for the provider."""

    def __init__(self, suite: Conformance, vendor: FakeVendor, folder: Path, spec: JobSpec) -> None:
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
        return Engine(self.ledger, self._get_provider, lambda spec: partial(open_rows, spec), sleep=self._sleep)

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

    def trained(self) -> Job:
        """A job that has its model."""
        job = self.submit()
        self.vendor.set_state(self.vendor.made[-1].ref, self.vendor.script[-1])
        return job.refresh()

    def deployed(self, mode: str | None = None) -> DeploymentRecord:
        """Deploy the model of the newest job, or of a new one."""
        job = next(iter(self.engine.jobs(limit=1)), None) or self.trained()
        deployments = self.engine.deployments
        return deployments.deploy(job.id, deployments.plan(job.id, DeploymentRequest(mode=mode)))

    def assert_one_deployment(self) -> None:
        """Exactly one deployment was made, and the ledger knows it."""
        (made,) = self.vendor.deployed
        (record,) = self.engine.deployments.latest()
        assert self.suite.deployment_of(record.ref or "") == made.ref and record.key == (made.key or record.key)

    def assert_one_job(self) -> None:
        """Exactly one job was made, and the ledger knows it."""
        (made,) = self.vendor.made
        (record,) = self.ledger.latest()
        assert (record.ref, record.key) == (self.suite.ref_of(made.ref), made.key or record.key)

    def stored_bytes(self) -> bytes:
        """Everything that the ledger keeps on disk."""
        return b"".join(path.read_bytes() for path in self.folder.glob(LEDGER + "*") if path.is_file())

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger:
            self._ledger.close()

    def _get_provider(self, _name: str, _options: Any = None) -> Provider:
        return self.provider

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep()


class Conformance(ABC):
    """What a provider's test supplies, and the fixtures of all tests."""

    target: ClassVar[str]
    """The provider's class, "package.module:Class"."""
    vendor_class: ClassVar[type[FakeVendor]]
    """The fake of its vendor."""
    states: ClassVar[Mapping[str, JobState]]
    """Every word of the vendor for a job's state."""
    records: ClassVar[Mapping[str, Callable[[Row], dict[str, Any]]]]
    """The record shapes that the plans' uploads name."""
    sdk_modules: ClassVar[tuple[str, ...]]
    """Modules of the SDK; every exception class in them must be mapped. The name of a package stands for all its modules."""
    key_variable: ClassVar[str]
    """The environment variable of the key, which an error about a missing key must name."""
    bad_input: ClassVar[Mapping[str, BadInput]]
    """The vendor's answer to every case of ``BAD_INPUT``."""
    provider_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the provider's class in all tests."""
    hasty_options: ClassVar[Mapping[str, Any]] = {"timeout_s": 0.4}
    """Arguments that make the provider give up waiting for an answer after less than a second."""
    skews: ClassVar[Sequence[timedelta]] = (timedelta(days=-3), timedelta(days=3))
    """How wrong this machine's clock may be without a job being lost."""
    not_implemented: ClassVar[Mapping[str, str]] = {}
    """Tests that fail because this provider lacks a part that its vendor offers: {name of the test: reason}."""
    never: ClassVar[Mapping[str, str]] = {}
    """Tests that can never pass here: {name of the test: reason}."""
    deployment_states: ClassVar[Mapping[str, DeploymentState]] = {}
    """Every word of the vendor for a deployment's state; empty where it has no deployments."""
    serving: ClassVar[Mapping[str, str]] = {}
    """{mode: the vendor's word for a deployment of this mode that serves}; every mode of the provider."""
    unbilled: ClassVar[str] = ""
    """Why the vendor's API tells neither billed tokens nor a price of a finished job; empty when it does."""
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

    @property
    def client(self) -> Client:
        """What a process of its own calls the vendor with."""
        return Client(self.target, self.sdk_modules)

    def ref_of(self, made: str) -> str:
        """The provider's ref of a job that the vendor made under this id."""
        return made

    def deployment_of(self, ref: str) -> str:
        """The vendor's id in the provider's ref of a deployment."""
        return ref

    def sample_error(self, kind: type[Exception]) -> Exception:
        """An instance of one of the SDK's exception classes; the default knows the classes that Stainless generates."""
        return sample_error(kind)

    def compile(self, spec: JobSpec) -> Plan:
        """The plan of a spec, which must have no refusals."""
        plan = compile_for(load_provider(self.target, **self.provider_options), spec, load_job_data(spec), self.today)
        assert plan.refusals == {}
        return plan

    # Fixtures

    @pytest.fixture(autouse=True)
    def _expected_failures(self, request: pytest.FixtureRequest) -> None:
        """The three honest reasons for a test to fail. Strict: a test that passes after all must lose its mark."""
        test = request.function.__name__
        call = getattr(request.function, "needs", None)
        if call is not None and (reason := load_provider(self.target, **self.provider_options).unoffered.get(call)):
            mark = pytest.mark.xfail(reason=f"not offered upstream: {reason}", raises=ProviderError, strict=True)
            request.applymarker(mark)
        for kind, reasons in (("not implemented by us", self.not_implemented), ("never", self.never)):
            if test in reasons:
                request.applymarker(pytest.mark.xfail(reason=f"{kind}: {reasons[test]}", strict=True))

    @pytest.fixture
    def bench(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
        """A bench with the first spec, in an environment that leads to its vendor."""
        with self.open_bench(tmp_path) as bench:
            for name, value in bench.vendor.environment.items():
                monkeypatch.setenv(name, value)
            yield bench

    @contextmanager
    def open_bench(self, folder: Path) -> Iterator[Bench]:
        """A running vendor and a bench in this folder."""
        train, held = folder / "train.jsonl", folder / "held.jsonl"
        for path, count in ((train, 40), (held, 12)):
            path.write_text("".join(json.dumps({"messages": chat_messages(path.stem, n)}) + "\n" for n in range(count)))
        with self.vendor_class() as vendor:
            bench = Bench(self, vendor, folder, self.specs(str(train), str(held))[0])
            yield bench
            bench.close()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every fault at every step of a submission; a kill before and after every step."""
        routes = self.vendor_class.submission_routes
        if "fault" in metafunc.fixturenames and "step" in metafunc.fixturenames:
            cases = [(route, fault) for route in (*routes, "list") for fault in (*lost_replies(), *unheard_requests())]
            metafunc.parametrize(("step", "fault"), cases, ids=[f"{step}: {fault}" for step, fault in cases])
        elif "case" in metafunc.fixturenames:
            metafunc.parametrize("case", BAD_INPUT)
        elif "mode" in metafunc.fixturenames:
            metafunc.parametrize("mode", self.serving)
        elif "deploy_fault" in metafunc.fixturenames:
            faults = (lost_replies()[0], lost_replies()[3], unheard_requests()[0], unheard_requests()[2])  # reset, cut off, reset, 429
            steps = [(step, fault) for step in self.vendor_class.deployment_routes for fault in faults]
            metafunc.parametrize(("deploy_step", "deploy_fault"), steps, ids=[f"{step}: {fault}" for step, fault in steps])
        elif "deploy_after" in metafunc.fixturenames:
            kills = [(step, after) for step in self.vendor_class.deployment_routes for after in (False, True)]
            metafunc.parametrize(("deploy_step", "deploy_after"), kills)
        elif "removal_step" in metafunc.fixturenames:
            metafunc.parametrize("removal_step", self.vendor_class.removal_routes)
        elif "after" in metafunc.fixturenames:
            metafunc.parametrize(("step", "after"), [(route, after) for route in routes for after in (False, True)])


F = TypeVar("F", bound=Callable[..., None])


def needs(call: str) -> Callable[[F], F]:
    """Marks a test of a call that a vendor may not offer; where ``unoffered`` has it, the test must fail."""

    def mark(test: F) -> F:
        test.__dict__["needs"] = call
        return test

    return mark


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


def drain(result: Any) -> None:
    """Use an iterator up, so that it makes all its requests."""
    if isinstance(result, Iterator):
        for _ in result:
            pass
