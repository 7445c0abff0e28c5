"""Job: the handle on one submission, as the Python API gives it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneport.core.errors import JobFailedError
from tuneport.core.job import JobEvent, JobState
from tuneport.core.ledger import JobRecord, Transition
from tuneport.core.provider import ChatReply, ChatRequest

if TYPE_CHECKING:
    from tuneport.core.engine import Engine
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Update:
    """What a look at the provider brought: the job as it is known now, and the events that are new."""

    job: JobRecord
    events: tuple[JobEvent, ...] = ()


OnUpdate = Callable[[Update], None]


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model that a job produced: its name at the provider."""

    name: str
    provider: str
    _engine: Engine

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """Answer the requests with greedy decoding; replies come in any order, each with its request's id.

        Raises CredentialsError or ProviderError when the provider cannot be used at all.
        """
        return self._engine.provider(self.provider).chat(self.name, requests)


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
        """How old the state is while the provider cannot be read, e.g. "seen 4 min ago; <why>"; otherwise empty."""
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
        """The tuned model. Raises JobFailedError when the job has not produced one (yet)."""
        if self.tuned_model is None:
            what = f"job {self.id} is {self.state.value} and has no tuned model"
            raise JobFailedError(what, fix=f"wait for it: tuneport watch {self.id}")
        return TunedModel(self.tuned_model, self.provider, self._engine)

    def refresh(self) -> Job:
        """Ask the provider once. When it cannot be read, the last good state stays and ``freshness`` says so."""
        self.record = self._engine.refresh(self.id).record
        return self

    def wait(self, on_update: OnUpdate | None = None, *, max_s: float = 30.0) -> Job:
        """Wait until the job ends; ``on_update`` is called after every look, at most ``max_s`` seconds apart.

        Raises JobFailedError when it ends without a model, and what ``Engine.watch`` raises.
        """
        self.record = self._engine.watch(self.id, on_update, max_s=max_s).record
        if self.state is not JobState.SUCCEEDED:
            why = f": {self.message}" if self.message else ""
            what = f"job {self.id} at {self.provider} ended as {self.state.value}{why}"
            raise JobFailedError(what, fix=f"see: tuneport events {self.id}")
        return self

    def events(self) -> Iterator[JobEvent]:
        """The job's events so far, oldest first, read from the provider once more where it can be reached."""
        return self._engine.events(self.id)

    def history(self) -> list[Transition]:
        """Every change of state, oldest first."""
        return self._engine.ledger.transitions(self.id)

    def logs(self) -> Iterator[str]:
        """History and events as lines of text, in order of time."""
        return self._engine.logs(self.id)

    def cancel(self) -> Job:
        """Ask the provider to stop; the job is cancelled once a later ``refresh`` says so."""
        self.record = self._engine.cancel(self.id).record
        return self
