"""A provider that plans but does not submit (yet): every call that would talk to the vendor says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import ClassVar, NoReturn

from tuneport.core.data.facts import JobData
from tuneport.core.errors import ProviderError
from tuneport.core.job import Checkpoint, JobEvent, RemoteJob
from tuneport.core.plan import Plan, PlanWarning
from tuneport.core.provider import ChatReply, ChatRequest, Deployer, OnProgress, OpenRows
from tuneport.core.spec import JobSpec

Compile = Callable[[JobSpec, JobData, date | None], Plan]


class PlanOnly:
    """Implements ``core.provider.Provider`` around a compiler; nothing is ever sent."""

    settle_seconds = 0.0
    unoffered: ClassVar[Mapping[str, str]] = {}

    def __init__(self, name: str, compile_plan: Compile) -> None:
        self.name = name
        self._compile = compile_plan

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        """The spec in this provider's words."""
        return self._compile(spec, data, today)

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:  # noqa: ARG002
        """Raises ProviderError: this version does not submit to this provider."""
        self._refuse()

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def find(self, plan: Plan, key: str) -> RemoteJob | None:  # noqa: ARG002
        """None: nothing was ever made here."""
        return None

    def poll(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def events(self, ref: str) -> Iterator[JobEvent]:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def cancel(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def pause(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def resume(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def checkpoints(self, ref: str) -> list[Checkpoint]:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def online(self, plan: Plan) -> Plan:
        """The plan with a warning that this vendor was not asked."""
        message = f"this version of tuneport does not ask {self.name} for its limits and prices; those of the catalogue hold"
        return plan.model_copy(update={"warnings": (*plan.warnings, PlanWarning(code="online", message=message))})

    def deployments(self) -> Deployer:
        """Raises ProviderError."""
        self._refuse()

    def chat(self, model: str, requests: Iterable[ChatRequest], *, concurrency: int = 8) -> Iterator[ChatReply]:  # noqa: ARG002
        """Raises ProviderError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ProviderError(
            f"this version of tuneport plans jobs for {self.name} but does not submit them",
            fix="take the exact payload from `tuneport plan --json` to the vendor, or train with --provider local",
            retry="no",
        )
