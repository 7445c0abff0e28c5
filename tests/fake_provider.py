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
    "die_before", "die_after"     stand-ins for a kill within one process: raise ``Died``, which no code of tuneport may catch
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
from typing import Any, ClassVar

from tuneport.core.data.facts import JobData
from tuneport.core.data.rows import Row
from tuneport.core.deployment import DeploymentRequest, DeploymentState, RemoteDeployment, Tuned
from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.errors import CredentialsError, ProviderError, RefusedError, VendorClosedError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.money import Cost, CostLine, Duration, Range
from tuneport.core.plan import Plan, Upload
from tuneport.core.provider import ChatReply, ChatRequest, OnProgress, OpenRows, not_offered
from tuneport.core.spec import Data, JobSpec

STATES = {
    "waiting": JobState.QUEUED,
    "training": JobState.RUNNING,
    "stopping": JobState.CANCELLING,
    "halted": JobState.PAUSED,
    "done": JobState.SUCCEEDED,
    "broken": JobState.FAILED,
    "stopped": JobState.CANCELLED,
}
EPOCH = datetime(2026, 11, 22, tzinfo=UTC)


class Died(BaseException):
    """Stands for a kill."""


class Clock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.at

    def seconds(self) -> float:
        """Since noon, never running backwards: what ``time.monotonic`` is for an engine."""
        return (self.at - EPOCH).total_seconds() - 43_200

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds)


class FakeVendor:
    """The vendor's side: jobs and files in one JSON file, every call atomic across processes. Without a path they are in memory."""

    def __init__(self, path: Path | None, script: Iterable[str] = ("waiting", "training", "done"), list_lag: int = 0) -> None:
        self.path = path
        self._books: dict[str, Any] = {"jobs": [], "files": {}, "calls": [], "deployments": []}
        self.script = list(script)  # the states that polls go through; the last one stays
        self.deployment_word = "starting"  # the state of a deployment that does not serve yet
        self.list_lag = list_lag  # so many lookups do not show a new job yet

    @contextmanager
    def open(self) -> Iterator[dict[str, Any]]:
        """The vendor's books; changes are kept."""
        if self.path is None:
            yield self._books
            return
        with self.path.open("a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            books = json.loads(handle.read() or '{"jobs": [], "files": {}, "calls": [], "deployments": []}')
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
    def deployments(self) -> list[dict[str, Any]]:
        """Every deployment ever made."""
        with self.open() as books:
            deployments: list[dict[str, Any]] = books["deployments"]
            return deployments

    @property
    def calls(self) -> list[str]:
        """The names of all calls that reached the vendor."""
        with self.open() as books:
            calls: list[str] = books["calls"]
            return calls


class FakeProvider:
    """The provider named "fake"."""

    name = "fake"
    reads_per_minute = 600_000.0

    def __init__(
        self,
        vendor: FakeVendor,
        faults: Mapping[str, list[str]] | None = None,
        settle_seconds: float = 60,
        unoffered: Mapping[str, str] | None = None,
    ) -> None:
        self.vendor = vendor
        self.unoffered = dict(unoffered or {})
        self.faults = {call: list(script) for call, script in (faults or {}).items()}
        self.settle_seconds = settle_seconds

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        return make_plan(spec)

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:
        with self._call("upload") as books:
            books["files"][key] = [row.text for row in rows("train")]
            if on_progress is not None:
                on_progress(plan.uploads[0].filename, 18, 18)
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
            if not job.get("halted"):
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

    def pause(self, ref: str) -> RemoteJob:
        return self._halt("pause", ref, halted=True)

    def resume(self, ref: str) -> RemoteJob:
        return self._halt("resume", ref, halted=False)

    def checkpoints(self, ref: str) -> list[Checkpoint]:
        with self._call("checkpoints") as books:
            reached = self._job(books, ref)["at"]
        return [Checkpoint(10 * step, f"{ref}:{step}", {"loss": 2.0 - step / 10}) for step in range(1, reached + 1)]

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:
        with self._call("list_jobs") as books:
            yield from [self._seen(job) for job in reversed(books["jobs"])][:limit]

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:
        with self._call("download") as books:
            self._job(books, ref)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter.safetensors").write_text(ref)
        if on_progress is not None:
            on_progress("adapter.safetensors", len(ref), len(ref))
        return [folder / "adapter.safetensors"]

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        with self._call("delete") as books:
            job = self._job(books, ref)
            there = job["key"] in books["files"]
            if not dry_run:
                books["files"].pop(job["key"], None)
            return [f"model model-of-{ref}", *([f"file file-{job['key']}"] if there else [])]

    def online(self, plan: Plan, files: Mapping[str, str] | None = None) -> Plan:
        return plan

    def deployments(self) -> FakeDeployer:
        if "deployments" in self.unoffered:
            raise not_offered(self, "deployments")
        return FakeDeployer(self)

    def chat(self, model: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        for request in requests:
            yield ChatReply(request.id, f"{model}: {request.messages[-1]['content']}")

    def _halt(self, call: str, ref: str, *, halted: bool) -> RemoteJob:
        with self._call(call) as books:
            job = self._job(books, ref)
            if bool(job.get("halted")) is halted:
                raise ProviderError(f"fake cannot {call} job {ref} as it is (409)", retry="no")
            job["halted"] = halted
            return self._seen(job)

    @contextmanager
    def _call(self, call: str) -> Iterator[dict[str, Any]]:
        if call in self.unoffered:
            raise not_offered(self, call)
        script = self.faults.get(call, [])
        fault = script.pop(0) if script else "ok"
        match fault:
            case "kill_before":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die_before":
                raise Died
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
            case "die_after":
                raise Died
            case "reset_after":
                raise ProviderError("fake cannot be reached (connection reset)")

    def _job(self, books: dict[str, Any], ref: str) -> dict[str, Any]:
        for job in books["jobs"]:
            if job["ref"] == ref:
                found: dict[str, Any] = job
                return found
        raise ProviderError(f"fake knows no job {ref} (404)", retry="no")

    def _seen(self, job: dict[str, Any]) -> RemoteJob:
        raw = "stopped" if job["cancelled"] else "halted" if job.get("halted") else self.vendor.script[job["at"]]
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


class FakeDeployer:
    """Deployments at the vendor "fake": two looks until they serve, two calls until they are gone; its calls take faults too."""

    modes: ClassVar[Mapping[str, str]] = {"dedicated": "a GPU", "free": "nothing by the hour"}

    def __init__(self, provider: FakeProvider) -> None:
        self._provider = provider
        self.settle_seconds = provider.settle_seconds

    def plan(self, tuned: Tuned, request: DeploymentRequest, stands_on: str | None = None) -> DeploymentPlan:
        if request.hardware:
            raise RefusedError("fake", {"--hardware": "fake has one kind of GPU"})
        mode = request.mode or "dedicated"
        return DeploymentPlan(
            provider="fake", model=tuned.model, mode=mode, operation="POST /deployments", payload={"model": tuned.model},
            usd_per_hour=Range(low=4, high=6) if mode == "dedicated" else Range(low=0, high=0), price="test", stands_on=stands_on,
        )  # fmt: skip

    def create(self, plan: DeploymentPlan, key: str) -> RemoteDeployment:
        with self._provider._call("deploy") as books:
            made = {"ref": f"dep-{len(books['deployments'])}", "key": key, "model": plan.model, "looks": 0, "removals": 0, "hidden": 0}
            books["deployments"].append(made | {"hidden": self._provider.vendor.list_lag})
        return self._seen(made)

    def find(self, plan: DeploymentPlan, key: str) -> RemoteDeployment | None:
        with self._provider._call("find_deployment") as books:
            for made in books["deployments"]:
                if made["key"] == key:
                    made["hidden"] -= 1
                    if made["hidden"] < 0:
                        return self._seen(made)
        return None

    def poll(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        with self._provider._call("poll_deployment") as books:
            made = self._made(books, ref)
            made["looks"] += 1
            return self._seen(made)

    def finish(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        with self._provider._call("finish_deployment") as books:
            made = self._made(books, ref)
            made["finished"] = True
            return self._seen(made)

    def remove(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        with self._provider._call("remove_deployment") as books:
            made = self._made(books, ref)
            made["removals"] += 1
            return self._seen(made)

    def list_deployments(self) -> Iterator[RemoteDeployment]:
        with self._provider._call("list_deployments") as books:
            yield from [self._seen(made) for made in books["deployments"] if made["removals"] < 2]

    def _made(self, books: dict[str, Any], ref: str) -> dict[str, Any]:
        return next(made for made in books["deployments"] if made["ref"] == ref)

    def _seen(self, made: dict[str, Any]) -> RemoteDeployment:
        ref, removals = made["ref"], made["removals"]
        if removals:
            state = DeploymentState.UNDEPLOYED if removals > 1 else DeploymentState.UNDEPLOYING
            return RemoteDeployment(ref, state, "gone" if removals > 1 else "going")
        if made["looks"] < 2 or not made.get("finished"):
            raw = self._provider.vendor.deployment_word
            state = DeploymentState.FAILED if raw == "broken" else DeploymentState.DEPLOYING
            return RemoteDeployment(ref, state, raw, unfinished=made["looks"] >= 2)
        return RemoteDeployment(ref, DeploymentState.READY, "up", call_as=f"{made['model']}#{ref}")


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
