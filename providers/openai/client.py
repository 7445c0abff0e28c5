"""The OpenAI provider, on the openai SDK, for OpenAI and for services that speak its fine-tuning protocol.

The job's key stands in the job's metadata (``tuneport_key``) and in the names of its files, and is looked for in both.
No step compares this machine's clock with OpenAI's, except to say how long a job will still run, by OpenAI's clock.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.core.asking import CONCURRENCY, ask_all
from tuneport.core.catalogue import Offering, base_of, load_catalogue
from tuneport.core.catalogue import closed as closed_on
from tuneport.core.data.facts import JobData
from tuneport.core.errors import CredentialsError, MissingExtraError, ProviderError, TuneportError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.options import OpenAIOptions
from tuneport.core.plan import Plan
from tuneport.core.provider import ChatReply, ChatRequest, Deployer, OnProgress, OpenRows, not_offered
from tuneport.core.spec import JobSpec
from tuneport.providers.exchange import filled, refused, warned
from tuneport.providers.openai.address import Address, split
from tuneport.providers.openai.chat import Chat, UnknownModelError
from tuneport.providers.openai.compile import compile_plan
from tuneport.providers.openai.errors import KEY_VARIABLE, WHO_MAY, closed, no_key, parsed, translated, unreadable
from tuneport.providers.openai.files import PART_BYTES, FileStore, pages
from tuneport.providers.openai.states import LEVELS, STATES

if TYPE_CHECKING:
    from openai import OpenAI

METADATA_KEY = "tuneport_key"
"""Where the job's key stands among the metadata; ``compile`` keeps one of the 16 places free for it."""
UNOFFERED: Mapping[str, str] = {
    "download": "OpenAI gives no access to tuned weights",
    "deployments": "there is nothing to deploy: a tuned model answers under its own name at once, billed per token",
}
CONNECT_S = 10.0
TIMEOUT_S = 60.0
UPLOAD_S = 600.0
CHAT_S = 300.0
POOL = 8
"""Connections that share a pool when many questions are asked at once: for each request a pool looks through all that it has."""
_PAGE = 100  # entries of a list, the most that OpenAI gives
_SCANNED_PAGES = 10
"""Pages of jobs, newest first, in which ``find`` looks for the key when the filter shows nothing."""


def _transport() -> Any:
    """An HTTP client of the SDK's kind, with a pool of its own."""
    import openai  # noqa: PLC0415 -- as in ``_client``

    return openai.DefaultHttpxClient(verify=_ssl_context(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR"))))


class OpenAIProvider:
    """OpenAI. ``options.base_url`` is the service for everything that does not name its own.

    ``timeout_s``: patience for one answer (chat and uploads have their own); ``part_bytes``: a larger file goes up in parts.

    ``today`` and ``sleep`` are for tests.
    """

    name = "openai"
    settle_seconds = 60.0  # no source says how soon the list shows a new job
    unoffered: Mapping[str, str] = UNOFFERED

    def __init__(
        self,
        options: OpenAIOptions | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        upload_timeout_s: float = UPLOAD_S,
        part_bytes: int = PART_BYTES,
        today: Callable[[], date] = date.today,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = Address(options.base_url if options else None)
        self._key_variable = (options.key_variable if options else None) or KEY_VARIABLE
        self._timeout_s, self._upload_timeout_s = timeout_s, upload_timeout_s
        self._part_bytes, self._today, self._sleep = part_bytes, today, sleep

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        """The body of POST /fine_tuning/jobs. Pure."""
        return compile_plan(spec, data, today)

    # Making a job

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:
        """Convert and upload the plan's files; a file that an earlier try with this key left there is used again.

        Raises VendorClosedError once OpenAI has stopped taking jobs, DataError when the rows changed since the plan.
        """
        address = Address.of_plan(plan)
        self._check_open(plan, address)
        with self._client(address, self._upload_timeout_s) as client:
            files = FileStore(client, address.service, self._part_bytes, self._sleep)
            return {upload.role: files.send(upload, rows, key, on_progress) for upload in plan.uploads}

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        """POST /fine_tuning/jobs, sent once: the SDK's own retries are off."""
        address = Address.of_plan(plan)
        self._check_open(plan, address)
        body: dict[str, Any] = filled(plan.payload, files, "OpenAI")
        body["metadata"] = {**(body.get("metadata") or {}), METADATA_KEY: key}
        with self._client(address) as client, translated("to create the job", address.service):
            return self._seen(client.fine_tuning.jobs.with_raw_response.create(**body), address)

    def find(self, plan: Plan, key: str) -> RemoteJob | None:
        """The job with this key: by OpenAI's filter on metadata, then among the newest thousand jobs.

        A service that drops metadata shows the job by its training file, whose name begins with the key.
        """
        address = Address.of_plan(plan)
        with self._client(address) as client:
            try:
                for job in self._jobs(client, address, 1, metadata={METADATA_KEY: key}):
                    if _key_of(job) == key:
                        return self._read(job, address)
            except ProviderError as error:
                if error.retry != "no":  # a service that does not know the filter refuses it; its whole list still helps
                    raise
            own_files: set[str] | None = None
            for job in self._jobs(client, address, _SCANNED_PAGES):
                if _key_of(job) == key:
                    return self._read(job, address)
                if not getattr(job, "metadata", None):
                    if own_files is None:
                        own_files = {entry.id for entry in FileStore(client, address.service).named(f"{key}-")}
                    if getattr(job, "training_file", None) in own_files:
                        return self._read(job, address)
        return None

    # Reading a job

    def poll(self, ref: str) -> RemoteJob:
        """The job's present state."""
        job_id, address = self._split(ref)
        with self._client(address) as client, translated(f"to show job {job_id}", address.service):
            return self._seen(client.fine_tuning.jobs.with_raw_response.retrieve(job_id), address)

    def events(self, ref: str) -> Iterator[JobEvent]:
        """The job's events, oldest first; numbers in their data become metrics."""
        job_id, address = self._split(ref)
        with self._client(address) as client:
            jobs = client.fine_tuning.jobs.with_raw_response
            newest_first = list(
                pages(lambda after: jobs.list_events(job_id, limit=_PAGE, **after), f"to show events of {job_id}", address.service)
            )
        events = [_event(entry) for entry in reversed(newest_first)]
        yield from sorted({event.id: event for event in events}.values(), key=lambda event: event.at)

    def checkpoints(self, ref: str) -> list[Checkpoint]:
        """The job's checkpoints, each a model that can be called."""
        job_id, address = self._split(ref)
        with self._client(address) as client:
            listed = client.fine_tuning.jobs.checkpoints.with_raw_response
            found = list(
                pages(lambda after: listed.list(job_id, limit=_PAGE, **after), f"to show checkpoints of {job_id}", address.service)
            )
        made = (Checkpoint(c.step_number, address.mark(c.fine_tuned_model_checkpoint), _numbers(c.metrics.model_dump())) for c in found)
        return sorted(made, key=lambda checkpoint: checkpoint.step)

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:
        """The jobs of the account (of the service in the environment), newest first."""
        address = self._address
        with self._client(address) as client:
            for count, job in enumerate(self._jobs(client, address, None)):
                if count == limit:
                    return
                yield self._read(job, address)

    def online(self, plan: Plan, files: Mapping[str, str] | None = None) -> Plan:  # noqa: ARG002
        """Ask whether the account sees the model and has tuned before. OpenAI tells neither prices nor limits."""
        address = Address.of_plan(plan)
        try:
            self._check_open(plan, address)
            with self._client(address) as client:
                return self._checked(plan, client, address)
        except TuneportError as error:
            return warned(plan, "online", f"{address.service} could not be asked: {error}")

    # Steering a job

    def cancel(self, ref: str) -> RemoteJob:
        """Stop the job; harmless when it has ended."""
        return self._steer(ref, "cancel", lambda job: job.state.terminal or job.state is JobState.CANCELLING)

    def pause(self, ref: str) -> RemoteJob:
        """Halt the job; harmless when it is halted."""
        return self._steer(ref, "pause", lambda job: job.state is JobState.PAUSED)

    def resume(self, ref: str) -> RemoteJob:
        """Go on with a paused job; harmless when it goes on already."""
        return self._steer(ref, "resume", lambda job: job.state in (JobState.QUEUED, JobState.RUNNING))

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        """Remove the tuned model, its checkpoints, the result files and the files that were uploaded for this job.

        ``dry_run`` only looks which of them are there. Raises ProviderError while the job still runs.
        """
        job_id, address = self._split(ref)
        with self._client(address) as client, translated(f"to delete what job {job_id} left", address.service):
            raw = client.fine_tuning.jobs.with_raw_response.retrieve(job_id)
            if not self._seen(raw, address).state.terminal:
                raise ProviderError(f"job {job_id} has not ended, so nothing of it was deleted", fix="cancel it first", retry="no")
            job = raw.parse()
            models = [job.fine_tuned_model, *(split(c.model)[0] for c in self.checkpoints(ref))] if job.fine_tuned_model else []
            remove_model = client.models.retrieve if dry_run else client.models.delete
            remove_file = client.files.retrieve if dry_run else client.files.delete
            removed = [f"model {name}" for name in dict.fromkeys(models) if _there(remove_model, name)]
            for file_id in self._own_files(client, job, address):
                if _there(remove_file, file_id):
                    removed.append(f"file {file_id}")
        return removed

    def chat(self, model: str, requests: Iterable[ChatRequest], *, concurrency: int = CONCURRENCY) -> Iterator[ChatReply]:
        """Answer with a base or tuned model, a few requests at a time; a request that fails becomes a reply with its error.

        Raises CredentialsError for the key, ProviderError when the model does not exist (any more).
        """
        name, address = self._split(model)
        with self._client(address, CHAT_S) as client, ExitStack() as more:
            pools = -(-concurrency // POOL)
            others = [more.enter_context(client.copy(http_client=_transport())) for _ in range(pools - 1)]
            chat = Chat([client, *others], name, address.service)
            yield from ask_all(requests, chat.ask, concurrency=concurrency, fatal=(UnknownModelError,), sleep=self._sleep)

    def deployments(self) -> Deployer:
        """Raises ProviderError: there is nothing to deploy at OpenAI."""
        raise not_offered(self, "deployments")

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:  # noqa: ARG002
        """Raises ProviderError: OpenAI gives no access to tuned weights."""
        raise not_offered(self, "download")

    # Inner parts

    def _split(self, marked: str) -> tuple[str, Address]:
        name, address = split(marked)
        return name, address if address.base_url else self._address

    @contextmanager
    def _client(self, address: Address, timeout_s: float | None = None) -> Iterator[OpenAI]:
        try:
            import openai  # noqa: PLC0415 -- the SDK is an extra, loaded when something is sent
        except ImportError:
            raise MissingExtraError("the openai package is not installed", "openai") from None
        key = os.environ.get(self._key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise no_key(self._key_variable)
        timeout = openai.Timeout(timeout_s or self._timeout_s, connect=min(CONNECT_S, self._timeout_s))
        with translated("to take a connection", address.service):
            client = openai.OpenAI(api_key=key, base_url=address.base_url, max_retries=0, timeout=timeout, http_client=_transport())
        with client:
            try:
                yield client
            except CredentialsError as error:  # whose remedy names the usual variable
                raise CredentialsError(error.what, fix=error.fix.replace(KEY_VARIABLE, self._key_variable)) from error

    def _jobs(self, client: OpenAI, address: Address, most_pages: int | None, **filters: Any) -> Iterator[Any]:
        jobs = client.fine_tuning.jobs.with_raw_response
        return pages(lambda after: jobs.list(limit=_PAGE, **after, **filters), "to list jobs", address.service, most_pages)

    def _steer(self, ref: str, verb: str, done: Callable[[RemoteJob], bool]) -> RemoteJob:
        """Call a verb of the job; when OpenAI refuses because it is done already, the present state is the answer."""
        job_id, address = self._split(ref)
        with self._client(address) as client:
            try:
                with translated(f"to {verb} job {job_id}", address.service):
                    return self._seen(getattr(client.fine_tuning.jobs.with_raw_response, verb)(job_id), address)
            except ProviderError as error:
                if error.retry != "no":
                    raise
                job = self.poll(ref)
                if done(job):
                    return job
                raise

    def _seen(self, raw: Any, address: Address) -> RemoteJob:
        sent = raw.headers.get("date")
        try:
            now = parsedate_to_datetime(sent).timestamp() if sent else None
        except ValueError:
            now = None
        return self._read(parsed(raw, "to show a job", address.service), address, now)

    def _read(self, job: Any, address: Address, now: float | None = None) -> RemoteJob:
        """A job of the SDK as ours; ``now`` by the vendor's clock. Raises ProviderError when it is no job at all."""
        job_id, raw = getattr(job, "id", None), getattr(job, "status", None)
        if not isinstance(job_id, str) or not isinstance(raw, str):
            raise unreadable("to show a job", address.service)
        state = STATES.get(raw, JobState.UNKNOWN)
        tuned = getattr(job, "fine_tuned_model", None)
        finish, created, base = (getattr(job, name, None) for name in ("estimated_finish", "created_at", "model"))
        return RemoteJob(
            ref=address.mark(job_id),
            state=state,
            raw_state=raw,
            message=_failure(job) if state is JobState.FAILED else lifetime(base) if address.is_openai else "",
            seconds_left=max(0.0, finish - now) if finish and now is not None and not state.terminal else None,
            billed_tokens=getattr(job, "trained_tokens", None),
            tuned_model=address.mark(tuned) if tuned and state is JobState.SUCCEEDED else None,
            base_model=base,
            created_at=datetime.fromtimestamp(created, UTC) if created else None,
            key=_key_of(job),
        )

    def _check_open(self, plan: Plan, address: Address) -> None:
        """Raises VendorClosedError after the last day for new jobs, by this machine's date; a plan may be older than that."""
        offering = _offering(plan.model) if address.is_openai else None
        reason = closed_on(offering, self._today()) if offering else ""
        if reason:
            raise closed(f"OpenAI takes no more jobs on {plan.model} ({reason}, and today is {self._today()})")

    def _checked(self, plan: Plan, client: OpenAI, address: Address) -> Plan:
        import openai  # noqa: PLC0415

        try:
            with translated(f"to show the model {plan.vendor_model}", address.service):
                client.models.retrieve(plan.vendor_model)
        except ProviderError as error:
            if not isinstance(error.__cause__, openai.NotFoundError):
                raise
            plan = refused(plan, {"model": f"{address.service} shows no model {plan.vendor_model} to this account"})
        if address.is_openai and next(self._jobs(client, address, 1), None) is None:
            plan = warned(plan, "account", f"this account shows no earlier fine-tuning job, so OpenAI will likely refuse: {WHO_MAY}")
        return warned(plan, "online", f"{address.service} has no call that tells prices or limits; those of the catalogue hold")

    def _own_files(self, client: OpenAI, job: Any, address: Address) -> Iterator[str]:
        """The result files, and the training files whose names say that they were uploaded for this job alone."""
        yield from getattr(job, "result_files", None) or []
        key = _key_of(job)
        if key:
            used = {job.training_file, getattr(job, "validation_file", None)}
            for entry in FileStore(client, address.service).named(f"{key}-"):
                if entry.id in used:
                    yield entry.id


@lru_cache(maxsize=2)
def _ssl_context(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    """The certificates that the SDK trusts, read once: they take 50 ms. The arguments are what it reads from the environment."""
    import httpx2  # noqa: PLC0415 -- the transport of the SDK

    return httpx2.create_ssl_context()


def lifetime(base_model: str | None) -> str:
    """Until when a model tuned from this base answers, as far as the catalogue knows; else ""."""
    offering = _offering(base_model or "")
    if offering is None or offering.lifetime.inference_ends is None:
        return ""
    return f"the tuned model answers until {offering.lifetime.inference_ends} only ({offering.source}); see: tuneport plan --provider all"


def _offering(model: str) -> Offering | None:
    """OpenAI's offering of a catalogue name, a base id, or the base inside ft:<base>:..."""
    catalogue = load_catalogue()
    name = catalogue.name_of(base_of(model))
    return next((offering for offering in catalogue.models() if offering.provider == "openai" and offering.model == name), None)


def _key_of(job: Any) -> str | None:
    metadata = getattr(job, "metadata", None)
    found = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) else None


def _failure(job: Any) -> str:
    error = getattr(job, "error", None)
    if error is None or not getattr(error, "message", None):
        return "OpenAI gives no reason"
    at = f" (at {error.param})" if getattr(error, "param", None) else ""
    return f"{getattr(error, 'code', '') or 'error'}: {error.message}{at}"


def _event(entry: Any) -> JobEvent:
    data = entry.data if isinstance(entry.data, Mapping) else {}
    at = datetime.fromtimestamp(entry.created_at, UTC)
    return JobEvent(entry.id, at, LEVELS.get(entry.level, "info"), entry.message, _numbers(data))


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in data.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _there(call: Callable[[str], Any], name: str) -> bool:
    """Retrieve or delete; False when there was nothing (any more)."""
    import openai  # noqa: PLC0415

    try:
        call(name)
    except openai.NotFoundError:
        return False
    return True
