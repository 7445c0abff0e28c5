"""A provider whose vendor is a file on disk, so that its side outlives a killed process. First class: any test may use it.

Faults are scripted: ``faults[call]`` is a list that each call of that name takes one entry from:

    "ok"            no fault
    "reset_before"  the connection breaks before the vendor sees the call
    "reset_after"   the vendor does what is asked, then the connection breaks
    "rate_limit"    429 with Retry-After 7
    "refuse"        a definite 4xx
    "credentials"   401
    "closed"        the vendor takes no jobs from this account
    "kill_before", "kill_after"   the process kills itself (SIGKILL) before or after the vendor acts
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from tuneport.core.data.facts import JobData
from tuneport.core.data.rows import Row
from tuneport.core.errors import CredentialsError, ProviderError, VendorClosedError
from tuneport.core.job import JobEvent, JobState, RemoteJob
from tuneport.core.money import Cost, CostLine, Duration, Range
from tuneport.core.plan import Plan, Upload
from tuneport.core.provider import ChatReply, ChatRequest, OpenRows
from tuneport.core.spec import Data, JobSpec

STATES = {
    "waiting": JobState.QUEUED,
    "training": JobState.RUNNING,
    "stopping": JobState.CANCELLING,
    "done": JobState.SUCCEEDED,
    "broken": JobState.FAILED,
    "stopped": JobState.CANCELLED,
}
EPOCH = datetime(2026, 11, 22, tzinfo=UTC)


class Clock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds)


class FakeVendor:
    """The vendor's side: jobs and files in one JSON file, every call atomic across processes."""

    def __init__(self, path: Path, script: Iterable[str] = ("waiting", "training", "done"), list_lag: int = 0) -> None:
        self.path = path
        self.script = list(script)  # the states that polls go through; the last one stays
        self.list_lag = list_lag  # so many lookups do not show a new job yet

    @contextmanager
    def open(self) -> Iterator[dict[str, Any]]:
        """The vendor's books; changes are kept."""
        with self.path.open("a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            books = json.loads(handle.read() or '{"jobs": [], "files": {}, "calls": []}')
            yield books
            handle.seek(0)
            handle.truncate()
            handle.write(json.dumps(books))

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Every job ever made."""
        with self.open() as books:
            jobs: list[dict[str, Any]] = books["jobs"]
            return jobs

    @property
    def calls(self) -> list[str]:
        """The names of all calls that reached the vendor."""
        with self.open() as books:
            calls: list[str] = books["calls"]
            return calls


class FakeProvider:
    """The provider named "fake"."""

    name = "fake"

    def __init__(self, vendor: FakeVendor, faults: Mapping[str, list[str]] | None = None, settle_seconds: float = 60) -> None:
        self.vendor = vendor
        self.faults = {call: list(script) for call, script in (faults or {}).items()}
        self.settle_seconds = settle_seconds

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        return make_plan(spec)

    def upload(self, plan: Plan, rows: OpenRows, key: str) -> dict[str, str]:
        with self._call("upload") as books:
            books["files"][key] = [row.text for row in rows("train")]
        return {"train": f"file-{key}"}

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        with self._call("create") as books:
            assert files["train"].removeprefix("file-") in books["files"], "created without its file"
            job = {"ref": f"ft-{len(books['jobs'])}", "key": key, "at": 0, "hidden": self.vendor.list_lag, "cancelled": False}
            books["jobs"].append(job)
        return self._seen(job)

    def find(self, plan: Plan, key: str) -> RemoteJob | None:
        with self._call("find") as books:
            for job in books["jobs"]:
                if job["key"] == key:
                    job["hidden"] -= 1
                    if job["hidden"] < 0:
                        return self._seen(job)
        return None

    def poll(self, ref: str) -> RemoteJob:
        with self._call("poll") as books:
            job = self._job(books, ref)
            job["at"] = min(job["at"] + 1, len(self.vendor.script) - 1)
            return self._seen(job)

    def events(self, ref: str) -> Iterator[JobEvent]:
        with self._call("events") as books:
            reached = self._job(books, ref)["at"]
        for step in range(reached + 1):
            yield JobEvent(f"ev-{step}", EPOCH + timedelta(minutes=step), "info", f"step {step}", {"loss": 2.0 - step / 10})

    def cancel(self, ref: str) -> RemoteJob:
        with self._call("cancel") as books:
            job = self._job(books, ref)
            job["cancelled"] = True
            return RemoteJob(ref, JobState.CANCELLING, "stopping")

    def chat(self, model: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        for request in requests:
            yield ChatReply(request.id, f"{model}: {request.messages[-1]['content']}")

    @contextmanager
    def _call(self, call: str) -> Iterator[dict[str, Any]]:
        script = self.faults.get(call, [])
        fault = script.pop(0) if script else "ok"
        match fault:
            case "kill_before":
                os.kill(os.getpid(), signal.SIGKILL)
            case "reset_before":
                raise ProviderError("fake cannot be reached (connection reset)")
            case "rate_limit":
                raise ProviderError("fake asks to slow down (429)", retry="rate_limit", retry_after=7)
            case "refuse":
                raise ProviderError("fake refuses: bad request", retry="no")
            case "credentials":
                raise CredentialsError("fake does not accept the key", fix="set FAKE_API_KEY")
            case "closed":
                raise VendorClosedError("fake takes no jobs from this account")
        with self.vendor.open() as books:
            books["calls"].append(call)
            yield books
        match fault:
            case "kill_after":
                os.kill(os.getpid(), signal.SIGKILL)
            case "reset_after":
                raise ProviderError("fake cannot be reached (connection reset)")

    def _job(self, books: dict[str, Any], ref: str) -> dict[str, Any]:
        for job in books["jobs"]:
            if job["ref"] == ref:
                found: dict[str, Any] = job
                return found
        raise ProviderError(f"fake knows no job {ref} (404)", retry="no")

    def _seen(self, job: dict[str, Any]) -> RemoteJob:
        raw = "stopped" if job["cancelled"] else self.vendor.script[job["at"]]
        state = STATES.get(raw, JobState.UNKNOWN)
        done = state is JobState.SUCCEEDED
        return RemoteJob(
            job["ref"],
            state,
            raw,
            progress=job["at"] / max(len(self.vendor.script) - 1, 1),
            billed_tokens=1200 if done else None,
            billed_usd=0.5 if done else None,
            tuned_model=f"model-of-{job['ref']}" if done else None,
        )


def make_spec(folder: Path, **fields: Any) -> JobSpec:
    """A spec whose data file exists in ``folder``."""
    train = folder / "train.jsonl"
    if not train.exists():
        train.write_text('{"text": "hello"}\n')
    return JobSpec(model="tiny", method="cpt", data=Data(train=str(train)), **fields)


PRICE = Range(low=1, high=2)


def make_plan(spec: JobSpec, usd: Range | None = PRICE) -> Plan:
    """A plan at the fake provider that costs ``usd`` (None: unknown)."""
    return Plan(
        provider="fake",
        model="tiny",
        vendor_model="fake/tiny",
        operation="POST /jobs",
        payload={"model": "fake/tiny", "training_file": "${upload:train}", "wandb_key": "${env:WANDB_API_KEY}"},
        uploads=(Upload(role="train", source=spec.data.train, record="text", filename="train.jsonl", rows=1),),
        outcomes=(),
        cost=Cost(lines=(CostLine(item="training", usd=usd, basis="test"),)),
        time=Duration(seconds=None, basis="test"),
    )


def open_rows(spec: JobSpec) -> OpenRows:
    """The rows of a spec made by ``make_spec``."""

    def rows(part: str) -> Iterator[Row]:
        for number, line in enumerate(Path(spec.data.train).read_text().splitlines(), start=1):
            yield Row("text", spec.data.train, number, text=json.loads(line)["text"])

    return rows
