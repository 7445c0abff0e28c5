"""The protocol that every provider implements, and how the engine uses it.

Planning needs no credentials and no SDK: ``compile`` is pure. The other calls talk to the vendor.
Reads (``find``, ``poll``, ``events``, ``chat``'s model lookup) never spend and never change the vendor's side.
Every call raises only errors of ``tuneport.core.errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from tuneport.core.data.facts import JobData
from tuneport.core.data.rows import Row
from tuneport.core.job import JobEvent, RemoteJob
from tuneport.core.plan import Plan
from tuneport.core.spec import JobSpec

OpenRows = Callable[[Literal["train", "validation"]], Iterator[Row]]
"""Streams the rows of one part of the job's data, as often as it is called."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One conversation to answer, with greedy decoding. ``id`` comes back with the reply."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int = 256


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The answer to one ChatRequest. ``error`` is set, and ``text`` empty, when there is none."""

    id: str
    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    error: str = ""


@runtime_checkable
class Provider(Protocol):
    """A place that can train. One instance per use; cheap to make."""

    name: str

    def compile(self, spec: JobSpec, data: JobData) -> Plan:
        """The spec in this provider's words. Pure: no network, no clock but today's date for lifetimes."""
        ...

    def upload(self, plan: Plan, rows: OpenRows, key: str) -> dict[str, str]:
        """Convert and bring the plan's files to the provider; returns {role: file id}. Twice with one key is harmless."""
        ...

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        """Make the job. The only call that spends. Never retried by itself; ``key`` travels with the job."""
        ...

    def find(self, plan: Plan, key: str) -> RemoteJob | None:
        """The job that an earlier ``create`` with this key made, or None when there is none."""
        ...

    def poll(self, ref: str) -> RemoteJob:
        """The job's present state."""
        ...

    def events(self, ref: str) -> Iterator[JobEvent]:
        """The job's events, oldest first."""
        ...

    def cancel(self, ref: str) -> RemoteJob:
        """Ask the provider to stop the job; cancelling is not yet cancelled. Cancelling twice is harmless."""
        ...

    def chat(self, model: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """Answer requests with a base or tuned model; replies come in any order."""
        ...
