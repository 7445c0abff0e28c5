"""Job: the handle on one submission, as the Python API gives it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneport.core.deployment import DeploymentRequest
from tuneport.core.errors import JobFailedError, ProviderError, TuneportError
from tuneport.core.job import Checkpoint, JobEvent, JobState
from tuneport.core.ledger import DeploymentRecord, JobRecord, Transition
from tuneport.core.provider import ChatReply, ChatRequest, OnProgress
from tuneport.core.reading import offered

if TYPE_CHECKING:
    from pathlib import Path

    from tuneport.core.engine import Engine
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Update:
    """What a look at the provider brought: the job as it is known now, the events that are new, and why it could not be read."""

    job: JobRecord
    events: tuple[JobEvent, ...] = ()
    error: TuneportError | None = None


OnUpdate = Callable[[Update], None]


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model that a job produced: its name at the provider."""

    name: str
    provider: str
    _engine: Engine
    _record: JobRecord

    def chat(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 256) -> ChatReply:
        """The answer to one conversation, with greedy decoding; the same on every provider.

        Raises ProviderError when there is no answer (``ChatReply.error`` is then its reason), and what ``answer`` raises.
        """
        reply = next(iter(self.answer([ChatRequest("1", messages, max_tokens)])))
        if reply.error:
            raise ProviderError(f"{self.call_as} at {self.provider} gave no answer: {reply.error}", fix="change the question, or try again")
        return reply

    def answer(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """Answer many requests; replies come in any order, each with its request's id, and its own error.

        Raises CredentialsError or ProviderError when the provider cannot be used at all, or offers no chat.
        """
        return offered(self._engine.provider_of(self._record), "chat").chat(self.call_as, requests)

    @property
    def call_as(self) -> str:
        """What to call: a deployment of the model where the ledger knows one that serves, else the model's own name."""
        found = self._engine.deployments.serving(self._record.id)
        return found.call_as if found is not None and found.call_as else self.name


class Job:
    """One submission and its history.

    Its attributes show what the ledger held when the handle was made or last refreshed; they cost nothing to read.
    """

    def __init__(self, engine: Engine, record: JobRecord) -> None:
        self._engine = engine
        self.record = record

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.provider} {self.record.model} {self.state.value}>"

    @property
    def id(self) -> str:
        """Short id, e.g. ``j-7f3k2a``."""
        return self.record.id

    @property
    def provider(self) -> str:
        """Name of the provider."""
        return self.record.provider

    @property
    def state(self) -> JobState:
        """The portable state; ``raw_state`` is the provider's own word for it."""
        return self.record.state

    @property
    def raw_state(self) -> str:
        """The state in the provider's own word; empty until it has spoken."""
        return self.record.raw_state

    @property
    def message(self) -> str:
        """Why the job failed, or what it is doing."""
        return self.record.message

    @property
    def progress(self) -> float | None:
        """Share done, 0..1; None when the provider does not say."""
        return self.record.progress

    @property
    def ref(self) -> str | None:
        """The provider's id of the job; None until it is created."""
        return self.record.ref

    @property
    def tuned_model(self) -> str | None:
        """The name to call the tuned model by; None until the job has succeeded."""
        return self.record.tuned_model

    @property
    def freshness(self) -> str:
        """How old the state is while the provider cannot be read, e.g. "seen 4 min ago, vendor unreachable: <why>"; else empty."""
        return self.record.freshness(self._engine.ledger.now())

    @property
    def spec(self) -> JobSpec:
        """The spec as submitted."""
        return self._engine.ledger.spec(self.id)

    @property
    def plan(self) -> Plan:
        """The plan as submitted."""
        return self._engine.ledger.plan(self.id)

    @property
    def model(self) -> TunedModel:
        """The tuned model. Raises JobFailedError when the job has not produced one (yet), or it was deleted."""
        if self.tuned_model is None or self.record.deleted_at is not None:
            raise no_model(self.record)
        return TunedModel(self.tuned_model, self.provider, self._engine, self.record)

    def refresh(self) -> Job:
        """Ask the provider once. When it cannot be read, the last good state stays and ``freshness`` says so."""
        self.record = self._engine.refresh(self.id).record
        return self

    def wait(self, on_update: OnUpdate | None = None, *, max_s: float = 30.0) -> Job:
        """Wait until the job ends; ``on_update`` is called after every look, about ``max_s`` seconds apart at most.

        Raises JobFailedError when it ends without a model or is paused, and what ``Engine.watch`` raises.
        """
        self.record = self._engine.watch(self.id, on_update, max_s=max_s).record
        if self.state is JobState.PAUSED:
            what = f"job {self.id} is paused at {self.provider} and does not move by itself"
            raise JobFailedError(what, fix=f"go on with it: tuneport resume {self.id}")
        if self.state is not JobState.SUCCEEDED:
            why = f": {self.message}" if self.message else ""
            what = f"job {self.id} at {self.provider} ended as {self.state.value}{why}"
            raise JobFailedError(what, fix=f"see: tuneport logs {self.id}")
        return self

    def events(self) -> Iterator[JobEvent]:
        """The job's events so far, oldest first, read from the provider once more where it can be reached.

        Raises ProviderError when the provider has no events at all.
        """
        return self._engine.events(self.id)

    def checkpoints(self) -> list[Checkpoint]:
        """The job's checkpoints, by step; see ``Engine.checkpoints``."""
        return self._engine.checkpoints(self.id)

    def history(self) -> list[Transition]:
        """Every change of state and everything that was asked of the provider, oldest first."""
        return self._engine.ledger.transitions(self.id)

    def logs(self) -> Iterator[str]:
        """History and events as lines of text, in order of time."""
        return self._engine.logs(self.id)

    def cancel(self) -> Job:
        """Ask the provider to stop; the job is cancelled once a later ``refresh`` says so."""
        self.record = self._engine.cancel(self.id).record
        return self

    def pause(self) -> Job:
        """Ask the provider to halt the job; see ``Engine.pause``."""
        self.record = self._engine.pause(self.id).record
        return self

    def resume(self) -> Job:
        """Go on with the job where it is paused or its submission was interrupted; see ``Engine.resume``. This spends."""
        self.record = self._engine.resume(self.id).record
        return self

    def download(self, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:
        """Bring the tuned weights into ``folder``; see ``Engine.download``."""
        return self._engine.download(self.id, folder, on_progress)

    def deploy(self, request: DeploymentRequest | None = None, *, ttl_s: float | None = None, on: str | None = None) -> DeploymentRecord:
        """Serve the tuned model and wait until it answers; ``ttl_s`` ends it, ``on`` is a deployment to share. This spends.

        To see the price first: ``tuneport.engine().deployments.plan(job.id, request)``. Raises what ``Deployments.plan``, ``deploy``
        and ``wait`` raise; BudgetError when the budget of the spec cannot be kept.
        """
        ours, wanted = self._engine.deployments, request or DeploymentRequest()
        plan = ours.plan(self.id, replace(wanted, ttl_s=ttl_s if ttl_s is not None else wanted.ttl_s), on=on)
        return ours.wait(ours.deploy(self.id, plan, ttl_s=ttl_s if ttl_s is not None else wanted.ttl_s, on=on).id)

    def undeploy(self) -> list[DeploymentRecord]:
        """Take down every deployment of the tuned model; see ``Deployments.undeploy``."""
        ours = self._engine.deployments
        return [ours.undeploy(record.id) for record in ours.latest(job_id=self.id)]

    def deletable(self) -> list[str]:
        """What ``delete`` would remove at the provider, by kind and name; asks the provider and changes nothing."""
        return self._engine.delete(self.id, dry_run=True)

    def delete(self) -> list[str]:
        """Remove what the job left at the provider; see ``Engine.delete``."""
        names = self._engine.delete(self.id)
        self.record = self._engine.job(self.id).record
        return names


def no_model(record: JobRecord) -> JobFailedError:
    """Why a job has no tuned model that could be used."""
    if record.deleted_at is not None:
        gone = f"job {record.id}'s tuned model was deleted at {record.provider} on {record.deleted_at:%Y-%m-%d}"
        return JobFailedError(gone, fix="train it again: tuneport submit")
    what = f"job {record.id} is {record.state.value} and has no tuned model"
    fix = f"see why: tuneport events {record.id}" if record.state.terminal else f"wait for it: tuneport watch {record.id}"
    return JobFailedError(what, fix=fix)
