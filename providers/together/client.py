"""The Together provider, on Together's own SDK.

The plan's payload goes to ``POST /v1/fine-tunes`` as it stands: the SDK's ``fine_tuning.create`` would apply its own defaults.
The job's key travels in ``suffix``; a second sign is the training file, whose name begins with the key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.core.asking import CONCURRENCY, ask_all
from tuneport.core.data.facts import JobData
from tuneport.core.errors import CredentialsError, DataError, ProviderError, TuneportError, VendorClosedError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.options import TogetherOptions
from tuneport.core.plan import Plan
from tuneport.core.provider import ChatReply, ChatRequest, Deployer, OnProgress, OpenRows, not_offered
from tuneport.core.spec import JobSpec
from tuneport.providers.completions import streamed
from tuneport.providers.exchange import at, filled, option, split
from tuneport.providers.together import online
from tuneport.providers.together.compile import compile_plan
from tuneport.providers.together.deployments import TogetherDeployer
from tuneport.providers.together.errors import lacks_endpoint, mapped, translated
from tuneport.providers.together.files import belongs, upload_all
from tuneport.providers.together.session import TIMEOUT_S, TITLE, document, gone, listed, session
from tuneport.providers.together.states import KEY, TRAINING_BEGUN, hub_export, job_events, metric_at, moment, remote_job
from tuneport.providers.together.weights import Kind, archive

if TYPE_CHECKING:
    import together

CONTINUE = "Together's jobs do not halt; continue a finished or cancelled one from its last checkpoint with continue_from: ft-...[:step]"
UNOFFERED: Mapping[str, str] = {"pause": CONTINUE, "resume": CONTINUE}

WINDOW = timedelta(days=14)
"""How old a job may be, by either clock, for its training file to count as a sign; generous, because clocks may be wrong."""

_EPOCH = datetime.fromtimestamp(0, UTC)


class TogetherProvider:
    """``core.provider.Provider`` for Together AI.

    ``options`` say where the service is; a plan, a ref or a model's name that says so itself goes first. ``timeout_s`` is the
    longest wait for one answer; ``sleep`` is for tests.
    """

    name = "together"
    settle_seconds = 60.0  # assumed; Together does not say how soon its list shows a new job
    unoffered: Mapping[str, str] = UNOFFERED

    def __init__(
        self, options: TogetherOptions | None = None, *, timeout_s: float = TIMEOUT_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._address = options.base_url if options else None
        self._timeout_s, self._sleep = timeout_s, sleep

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        """The spec in Together's words."""
        return compile_plan(spec, data, today)

    # Submitting

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:
        """Send the plan's files and wait for Together's check of them; content that Together holds is not sent again.

        Raises DataError for rows that Together cannot take, each with its place; and what ``create`` raises.
        """
        with self._session(self._address_of(plan)) as client:
            # A key that the payload needs must be there before anything is sent.
            filled(plan.payload, {upload.role: "" for upload in plan.uploads}, TITLE)
            return upload_all(client, plan, rows, key, on_progress, self._sleep)

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        """Make the job: one request, which is never repeated.

        Raises ProviderError (its verdict says whether a job may have been made), CredentialsError, VendorClosedError,
        MissingExtraError.
        """
        import httpx  # noqa: PLC0415 -- comes with the SDK, which session() asks for

        address = self._address_of(plan)
        with self._session(address) as client:
            body = filled(plan.payload, files, TITLE) | {"suffix": suffix(plan, key)}
            return remote_job(document(client.post("/v1/fine-tunes", body=body, cast_to=httpx.Response)), address)

    def find(self, plan: Plan, key: str) -> RemoteJob | None:
        """The job whose suffix or model name holds the key.

        A job of the last two weeks that shows no key, and no suffix or one that was cut short, counts when the name of its
        training file begins with the key. Raises ProviderError when several such jobs exist, for then nobody can say which it is.
        """
        address = self._address_of(plan)
        with self._session(address) as client:
            jobs, sent = listed(client.fine_tuning.with_raw_response.list()), suffix(plan, key)
            ours = [job for job in jobs if key in _names(job)]
            if not ours:
                ours = [job for job in jobs if _nameless(job, sent) and belongs(client, str(job["training_file"]), key)]
                if len(ours) > 1:
                    several = ", ".join(str(job.get("id")) for job in ours)
                    what = f"Together shows several jobs with the file of {key} and no suffix ({several})"
                    raise ProviderError(what, fix="cancel all but one of them at Together, then run: tuneport reconcile", retry="no")
            return remote_job(min(ours, key=_made), address) if ours else None

    # Reading

    def poll(self, ref: str) -> RemoteJob:
        """The job's present state. ``total_price`` and ``token_count`` become the bill once the job has ended."""
        ident, address = self._split(ref)
        with self._session(address) as client:
            return remote_job(self._job(client, ident), address)

    def events(self, ref: str) -> Iterator[JobEvent]:
        """The job's events and the points of its loss curve, oldest first."""
        ident, address = self._split(ref)
        with self._session(address) as client:
            events = listed(client.fine_tuning.with_raw_response.list_events(ident))
            begun = any(str(event.get("type")).lower() in TRAINING_BEGUN for event in events)
            metrics = self._metrics(client, ident) if begun else []
        yield from job_events(events, metrics)

    def checkpoints(self, ref: str) -> list[Checkpoint]:
        """The job's checkpoints by step. Each ``model`` fits ``continue_from`` and ``download``."""
        ident, address = self._split(ref)
        with self._session(address) as client:
            found = listed(client.fine_tuning.with_raw_response.list_checkpoints(ident))
            metrics = self._metrics(client, ident) if found else []
        steps = sorted({int(entry["step"]) for entry in found if isinstance(entry.get("step"), (int, float))})
        return [Checkpoint(step, at(f"{ident}:{step}", address), metric_at(metrics, step)) for step in steps]

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:
        """The account's jobs, newest first."""
        with self._session(self._address) as client:
            jobs = listed(client.fine_tuning.with_raw_response.list())
        for job in sorted(jobs, key=_made, reverse=True)[:limit]:
            yield remote_job(job, self._address)

    def hub_export(self, ref: str) -> str:
        """How far the export to Hugging Face (``export.hub_repo``) is: "" (nothing said yet), uploading, done or failed."""
        ident, address = self._split(ref)
        with self._session(address) as client:
            return hub_export(listed(client.fine_tuning.with_raw_response.list_events(ident)))

    def online(self, plan: Plan, files: Mapping[str, str] | None = None) -> Plan:
        """The plan against the model's limits of today, and with Together's own price when ``files`` are uploaded already.

        What cannot be asked becomes a warning with the code "online".
        """
        try:
            with self._session(self._address_of(plan)) as client:
                return online.asked(client, plan, files or {}, date.today())
        except TuneportError as error:
            return online.could_not_ask(plan, error)

    # Stopping, fetching, removing

    def cancel(self, ref: str) -> RemoteJob:
        """Ask Together to stop the job; one that has ended stays as it is."""
        ident, address = self._split(ref)
        with self._session(address) as client:
            try:
                with translated():
                    return remote_job(document(client.fine_tuning.with_raw_response.cancel(ident)), address)
            except (CredentialsError, VendorClosedError):
                raise
            except ProviderError as error:
                if error.retry != "no":
                    raise
                job = remote_job(self._job(client, ident), address)
                if job.state.terminal or job.state is JobState.CANCELLING:
                    return job
                raise

    def pause(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError: Together does not offer it."""
        raise not_offered(self, "pause")

    def resume(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError: Together does not offer it."""
        raise not_offered(self, "resume")

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None, *, kind: Kind | None = None) -> list[Path]:
        """The archive (.tar.zst) of the job's weights, or of one checkpoint (``ref`` = "ft-...:step"), in ``folder``.

        ``kind`` chooses between a LoRA job's adapter (the default) and the merged model. Goes on where an earlier call broke
        off. Its SHA-256 is written beside it. Raises ProviderError when there are no weights (yet).
        """
        name, address = self._split(ref)
        ident, _, step = name.partition(":")
        with self._session(address) as client:
            job = self._job(client, ident)
            state = remote_job(job).state
            if state is not JobState.SUCCEEDED and not step:
                what = f"job {ident} is {state.value} ({job.get('status')}) and has no final weights"
                raise ProviderError(what, fix="wait until it has succeeded, or download a checkpoint", retry="no")
            return [
                archive(
                    client, job, folder, kind=kind, step=int(step) if step else None, on_progress=on_progress, sleep=self._sleep
                )
            ]

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        """Delete the job with its model, and its files as far as tuneport made them and no other job uses them.

        ``dry_run`` only looks which of them are there. Raises ProviderError for a job that has not ended.
        """
        ident, address = self._split(ref)
        with self._session(address) as client:
            jobs = listed(client.fine_tuning.with_raw_response.list())
            job = next((job for job in jobs if job.get("id") == ident), None)
            if job is None:
                return []
            seen = remote_job(job)
            if not seen.state.terminal:
                raise ProviderError(f"job {ident} is {seen.state.value} at Together", fix="cancel it first: tuneport cancel", retry="no")
            others = {other.get(name) for other in jobs if other is not job for name in ("training_file", "validation_file")}
            removed = [
                f"file {file}"
                for file in dict.fromkeys(job.get(name) for name in ("training_file", "validation_file"))
                if isinstance(file, str) and file and file not in others and self._delete_file(client, file, dry_run)
            ]
            if not dry_run and gone(lambda: client.fine_tuning.with_raw_response.delete(ident)):
                return removed
            return [*removed, f"job {ident}", *([f"model {seen.tuned_model}"] if seen.tuned_model else [])]

    # Using

    def deployments(self) -> Deployer:
        """Dedicated endpoints."""
        return TogetherDeployer(self._session, self._address)

    def chat(self, model: str, requests: Iterable[ChatRequest], *, concurrency: int = CONCURRENCY) -> Iterator[ChatReply]:
        """Answer requests with greedy decoding, a few at once. A tuned model answers only while an endpoint serves it.

        Raises ProviderError when nothing serves the model, and CredentialsError; other failures are that request's ``error``.
        """
        name, address = self._split(model)
        with session(address, timeout_s=self._timeout_s, connections=concurrency) as client:
            yield from ask_all(
                requests, lambda request: _reply(client, name, request), concurrency=concurrency, fatal=(_Unserved,), sleep=self._sleep
            )

    # Inner parts

    def _address_of(self, plan: Plan) -> str | None:
        return option(plan, "base_url") or self._address

    def _split(self, marked: str) -> tuple[str, str | None]:
        name, address = split(marked)
        return name, address or self._address

    def _session(self, address: str | None) -> AbstractContextManager[together.Together]:
        return session(address, timeout_s=self._timeout_s)

    def _job(self, client: together.Together, ident: str) -> dict[str, Any]:
        return document(client.fine_tuning.with_raw_response.retrieve(ident))

    def _metrics(self, client: together.Together, ident: str) -> list[dict[str, Any]]:
        return listed(client.fine_tuning.with_raw_response.list_metrics(ident), "metrics")

    def _delete_file(self, client: together.Together, ident: str, dry_run: bool) -> bool:
        """Delete a file that tuneport has uploaded; False when it is gone, or somebody else's with the same content."""
        with translated():
            found: list[dict[str, Any]] = []
            if gone(lambda: found.append(document(client.files.with_raw_response.retrieve(ident)))):
                return False
            if not KEY.match(str(found[0].get("filename") or "")):
                return False
            return dry_run or not gone(lambda: client.files.with_raw_response.delete(ident))


def _reply(client: together.Together, model: str, request: ChatRequest) -> ChatReply:
    """One answer. Raises _Unserved, DataError for a question that no request can carry, and what ``translated`` raises."""
    import together  # noqa: PLC0415

    messages: Any = [dict(message) for message in request.messages]
    settings: Any = {"model": model, "messages": messages, "max_tokens": request.max_tokens, "temperature": 0}
    began = time.monotonic()
    with translated():
        try:
            if request.stream:
                return streamed(request, client.chat.completions.create(stream=True, **settings), began)
            answer = document(client.chat.completions.with_raw_response.create(**settings))
        except together.APIStatusError as error:
            if lacks_endpoint(error):
                raise _Unserved(model, mapped(error)) from None
            raise
        except UnicodeEncodeError:
            what = "the question holds half a character (a lone surrogate), which no request can carry"
            raise DataError(what, fix="correct the row") from None
    seconds = time.monotonic() - began
    choices = answer.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        return ChatReply(request.id, "", error="Together's answer holds no text")
    told = answer.get("usage")
    usage = told if isinstance(told, dict) else {}
    return ChatReply(request.id, text, usage.get("prompt_tokens"), usage.get("completion_tokens"), seconds)


class _Unserved(ProviderError):
    """No endpoint serves the model."""

    def __init__(self, model: str, error: TuneportError) -> None:
        fix = "deploy it first, which bills by the hour: tuneport deploy"
        super().__init__(f"nothing at Together serves {model} ({error.what})", fix=fix, retry="no")


def suffix(plan: Plan, key: str) -> str:
    """What is sent as ``suffix``: the job's name, when it has one, and the key."""
    name = plan.payload.get("suffix")
    return f"{name}-{key}" if name else key


def _names(job: Mapping[str, Any]) -> str:
    return " ".join(str(job.get(name) or "") for name in ("suffix", "model_output_name", "adapter_output_name"))


def _nameless(job: Mapping[str, Any], sent: str) -> bool:
    """Whether the job, by what it shows, may be the one with the suffix ``sent``: none is shown, or one that was cut short."""
    shown = str(job.get("suffix") or "")
    recent = abs(datetime.now(UTC) - _made(job)) <= WINDOW
    return sent.startswith(shown) and not KEY.search(_names(job)) and bool(job.get("training_file")) and recent


def _made(job: Mapping[str, Any]) -> datetime:
    return moment(job.get("created_at")) or _EPOCH
