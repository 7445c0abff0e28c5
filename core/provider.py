"""The protocol that every provider implements, and how the engine uses it.

Planning needs no credentials and no SDK: ``compile`` is pure. The other calls talk to the vendor;
the engine asks ``unoffered`` before it makes one.
Reads (``find``, ``poll``, ``events``, ``checkpoints``, ``list_jobs``, ``online``, ``download``) never spend and never change
the vendor's side. Every call raises only errors of ``tuneport.core.errors``; one that the vendor does not offer raises
``not_offered(self, name)``.
A ``ref``, and the name of a tuned model, are all that is needed to reach a job again: they carry the service's address
where that is not the one of the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from tuneport.core.data.facts import JobData
from tuneport.core.data.rows import Row
from tuneport.core.deployment import DeploymentRequest, RemoteDeployment, Tuned
from tuneport.core.errors import ProviderError
from tuneport.core.job import Checkpoint, JobEvent, RemoteJob

if TYPE_CHECKING:
    from tuneport.core.deployment_plan import DeploymentPlan
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec

OpenRows = Callable[[Literal["train", "validation"]], Iterator[Row]]
"""Streams the rows of one part of the job's data, as often as it is called."""

OnProgress = Callable[[str, int, int | None], None]
"""Called as a file moves: (its name, bytes done, bytes in all or None where nobody knows)."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One conversation to answer, with greedy decoding. ``id`` comes back with the reply.

    ``stream`` asks for the time to the first token; a provider that cannot stream answers without it.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int = 256
    stream: bool = False


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The answer to one ChatRequest. ``error`` is set, and ``text`` empty, when there is none.

    ``seconds`` runs from sending the last try to the whole answer; with ``batched`` it is a share of a batch, no latency.
    ``declined``: the vendor itself marks the text as a refusal.
    """

    id: str
    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    error: str = ""
    first_token_seconds: float | None = None
    batched: bool = False
    declined: bool = False


@runtime_checkable
class Deployer(Protocol):
    """Deployments at one provider: what ``Provider.deployments`` gives where the vendor has them.

    ``plan``, ``find``, ``poll`` and ``list_deployments`` read; only ``create`` makes something that bills. A ref, like that of a
    job, carries the service's address or account where that is not the one of the environment.
    """

    modes: Mapping[str, str]  # ways of serving, by name, each with what it means; the first is the default
    settle_seconds: float  # how long ``find`` may miss a deployment that was just made

    def plan(self, tuned: Tuned, request: DeploymentRequest, stands_on: str | None = None) -> DeploymentPlan:
        """How this tuned model would be served, and its price. ``stands_on`` is the ref of a deployment to share.

        Raises RefusedError naming every part of the request that the provider cannot carry out (keys are the command line's
        options), and ProviderError where the vendor says today that it does not serve this model.
        """
        ...

    def create(self, plan: DeploymentPlan, key: str) -> RemoteDeployment:
        """Make it. The only call that spends; never retried by itself; ``key`` travels with it. Does not wait until it serves.

        After a definite refusal (verdict "no") nothing is left at the vendor that bills.
        """
        ...

    def find(self, plan: DeploymentPlan, key: str) -> RemoteDeployment | None:
        """The deployment that an earlier ``create`` with this key made, or None when there is none."""
        ...

    def poll(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Its present state; *undeployed* when the vendor has no such deployment (any more)."""
        ...

    def finish(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Do what could only be done once it runs (load the adapter, route requests), which costs nothing. Twice is harmless."""
        ...

    def remove(self, plan: DeploymentPlan, ref: str) -> RemoteDeployment:
        """Take it down as far as the vendor allows at this moment; call again until it is *undeployed*. Twice is harmless."""
        ...

    def list_deployments(self) -> Iterator[RemoteDeployment]:
        """Every deployment of the account that stands, whoever made it."""
        ...


@runtime_checkable
class Provider(Protocol):
    """A place that can train. One instance per use; cheap to make: SDK and keys are looked for when first needed."""

    name: str
    settle_seconds: float  # how long ``find`` may miss a job that was just made; 0 when it is exact
    unoffered: Mapping[str, str]  # calls below that the vendor does not offer, by name, each with the reason

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        """The spec in this provider's words. Pure: no network; ``today`` (default: the clock's) decides lifetimes and price ages."""
        ...

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:
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

    def pause(self, ref: str) -> RemoteJob:
        """Ask the provider to halt the job so that ``resume`` can go on from there."""
        ...

    def resume(self, ref: str) -> RemoteJob:
        """Go on with a paused or interrupted job from where it stood."""
        ...

    def checkpoints(self, ref: str) -> list[Checkpoint]:
        """The job's checkpoints so far, by step."""
        ...

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:
        """The account's fine-tuning jobs, whoever made them, newest first; all of them when ``limit`` is None."""
        ...

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:
        """Bring the tuned weights into ``folder``; goes on where an earlier call broke off, and verifies what the vendor lets it."""
        ...

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        """Remove what the job left at the vendor; returns its names ("model ft:...", "file file-..."). Twice is harmless.

        With ``dry_run`` nothing is removed: it returns what would be.
        """
        ...

    def online(self, plan: Plan, files: Mapping[str, str] | None = None) -> Plan:
        """The plan after asking the vendor for what it knows today: adds warnings and refusals, removes none; tells its own price.

        ``files`` ({role: file id}) are the plan's files, where an earlier job has uploaded them: some vendors price nothing else.
        What cannot be asked (no key, no network) becomes a warning with the code "online".
        """
        ...

    def deployments(self) -> Deployer:
        """How this provider serves tuned models. In ``unoffered`` where a tuned model answers without being deployed."""
        ...

    def chat(self, model: str, requests: Iterable[ChatRequest], *, concurrency: int = 8) -> Iterator[ChatReply]:
        """Answer requests with a base or tuned model; replies come in any order.

        At most ``concurrency`` requests are on their way at once, and they are taken from the iterator no earlier: a caller
        who stops giving requests stops spending (``core.asking``). A provider that works in batches may take all at once.
        """
        ...


@runtime_checkable
class HoldsWeights(Protocol):
    """A provider whose models are files within reach, and so may change under one name."""

    def fingerprint(self, model: str) -> str:
        """Changes when what answers under this name does: weights, adapter, chat template, precision."""
        ...


def not_offered(provider: Provider, call: str) -> ProviderError:
    """The error that a call in ``provider.unoffered`` raises: its reason, in one sentence."""
    return ProviderError(f"{provider.name} offers no {call} ({provider.unoffered[call]})", retry="no")
