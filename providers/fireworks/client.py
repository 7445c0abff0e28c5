"""Fireworks AI through its own SDK: datasets, the three families of jobs, metrics, weights and answers.

A job's id at Fireworks is ours to choose, and it is the job's key. So ``find`` is a look at one id, exact at once, and a
second create with the same key meets a conflict instead of making a second paid job.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from tuneport.core.asking import CONCURRENCY
from tuneport.core.data.facts import JobData
from tuneport.core.errors import ProviderError, TuneportError
from tuneport.core.job import Checkpoint, JobEvent, RemoteJob
from tuneport.core.options import FireworksOptions
from tuneport.core.plan import Plan
from tuneport.core.provider import ChatReply, ChatRequest, Deployer, OnProgress, OpenRows, not_offered
from tuneport.core.spec import JobSpec
from tuneport.providers.exchange import filled, split
from tuneport.providers.fireworks import datasets, inference, online, signed
from tuneport.providers.fireworks.compile import compile_plan
from tuneport.providers.fireworks.deployments import FireworksDeployer
from tuneport.providers.fireworks.session import (
    CONNECTIONS,
    FAMILIES,
    PAGE,
    TIMEOUT_S,
    Api,
    Ref,
    exists_already,
    model_parts,
    session,
    status_of,
)
from tuneport.providers.fireworks.states import STATES, metric_events, model_name, remote_job

TITLE = "Fireworks"
UNOFFERED: Mapping[str, str] = {
    "pause": "Fireworks pauses jobs itself, and its API can only resume them",
    "checkpoints": "Fireworks' managed jobs have no call that lists checkpoints; what evaluation.checkpoints asks for is saved there",
}


class FireworksProvider:
    """Implements ``core.provider.Provider``. ``timeout_s`` bounds the wait for one answer; ``sleep`` is for tests.

    The key comes from FIREWORKS_API_KEY; account and address of the service from the plan or ref, else from ``options`` (those of
    the spec), else from FIREWORKS_ACCOUNT_ID and FIREWORKS_BASE_URL.
    """

    name = "fireworks"
    settle_seconds = 0.0  # a job is found by its id
    unoffered: Mapping[str, str] = UNOFFERED

    def __init__(
        self, options: FireworksOptions | None = None, *, timeout_s: float = TIMEOUT_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._account = options.account_id if options else None
        self._address = options.base_url.rstrip("/") if options and options.base_url else None
        self._timeout_s, self._sleep = timeout_s, sleep

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        """The spec in Fireworks' words."""
        return compile_plan(spec, data, today)

    # Making a job

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:
        """{role: name of a dataset} of the plan's rows, each ready. Twice with one key finds the datasets that are there."""
        with self._session(Ref.planned(plan, key)) as api:
            # A key that the payload needs must be there before anything is sent.
            filled(plan.payload, {upload.role: "" for upload in plan.uploads}, TITLE)
            return datasets.upload_all(api, plan, rows, key, on_progress, self._sleep)

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        """Make the job under the id ``key``. Where that id is taken, the job is the one that an earlier create made."""
        ref = Ref.planned(plan, key)
        family = FAMILIES[ref.family]
        with self._session(ref) as api:
            body = filled(plan.payload, files, TITLE)
            # The SDK wants these as arguments; everything else, also what its types lack, travels as the plan has it.
            required = {name: body.pop(name) for name in ("dataset", "evaluator") if name in body}
            try:
                made = api.ask(api.jobs(ref.family).create, **required, **{family.id_parameter: key}, extra_body=body)
            except ProviderError as error:
                found = self._existing(api, ref) if exists_already(error) else None
                if found is None:  # the conflict is about something else, e.g. the name of the output model
                    raise
                return found
            return self._seen(api, ref, made)

    def find(self, plan: Plan, key: str) -> RemoteJob | None:
        """The job whose id is ``key``; None when there is none."""
        ref = Ref.planned(plan, key)
        with self._session(ref) as api:
            return self._existing(api, ref)

    # Reading

    def poll(self, ref: str) -> RemoteJob:
        """The job's present state."""
        place = Ref.parse(ref)
        with self._session(place) as api:
            return self._seen(api, place, self._document(api, place))

    def events(self, ref: str) -> Iterator[JobEvent]:
        """The lines of the job's metrics file (loss by step), oldest first.

        Fireworks has no call for events; changes of state stand in the ledger. Reinforcement jobs have no such file.
        """
        place = Ref.parse(ref)
        with self._session(place) as api:
            job = self._document(api, place)
            url = self._metrics_address(api, place, job)
            text = signed.read_text(api, url) if url else None
            begun = job.get("createTime")
        yield from metric_events(text or "", begun)

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:
        """The account's jobs of all three families, newest first."""
        with self._session() as api:
            size = PAGE if limit is None else max(1, min(limit, PAGE))
            lists = (self._listed(api, family, size) for family in FAMILIES)
            earliest = datetime.min.replace(tzinfo=UTC)
            merged = heapq.merge(*lists, key=lambda job: job.created_at or earliest, reverse=True)
            for number, job in enumerate(merged):
                if limit is not None and number >= limit:
                    return
                yield job

    def online(self, plan: Plan, files: Mapping[str, str] | None = None) -> Plan:  # noqa: ARG002
        """The plan after asking whether the model may be tuned today and the account is in order."""
        try:
            ref = Ref.planned(plan, "not-made")
            with self._session(ref) as api:
                return online.asked(api, plan, ref.family)
        except TuneportError as error:
            return online.could_not_ask(plan, error)

    # Changing a job

    def cancel(self, ref: str) -> RemoteJob:
        """Ask Fireworks to stop the job. On a job that has ended, or is being cancelled, nothing happens."""
        place = Ref.parse(ref)
        with self._session(place) as api:
            before = self._seen(api, place, self._document(api, place))
            if not before.state.terminal:
                try:
                    api.ask(api.jobs(place.family).cancel, place.id, body={})
                except ProviderError as error:
                    after = self._seen(api, place, self._document(api, place))
                    if error.retry == "no" and (after.state.terminal or after.raw_state == "JOB_STATE_CANCELLING"):
                        return after  # it ended while we asked
                    raise
            return self._seen(api, place, self._document(api, place))

    def pause(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError: see ``unoffered``."""
        raise not_offered(self, "pause")

    def resume(self, ref: str) -> RemoteJob:
        """Go on with a job that Fireworks has paused, or that has failed, from where it stood. It may bill again from here."""
        place = Ref.parse(ref)
        with self._session(place) as api:
            api.ask(api.jobs(place.family).resume, place.id, body={})
            return self._seen(api, place, self._document(api, place))

    def checkpoints(self, ref: str) -> list[Checkpoint]:  # noqa: ARG002
        """Raises ProviderError: see ``unoffered``."""
        raise not_offered(self, "checkpoints")

    # After training

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:
        """Bring the files of the tuned model into ``folder``, each whole and with the checksum that Fireworks tells (if it tells one)."""
        place = Ref.parse(ref)
        with self._session(place) as api:
            account, ident = self._model(api, place, self._document(api, place))
            return signed.bring_all(api, ident, account, folder, on_progress, self._sleep)

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        """Remove the tuned model and the datasets that tuneport uploaded for the job; the record of the job stays.

        ``dry_run`` only looks which of them are there.
        """
        place = Ref.parse(ref)
        with self._session(place) as api:
            job = self._document(api, place)
            state = STATES.get(str(job.get("state")))
            if state is None or not state.terminal:
                what = f"job {place.id} at Fireworks has not ended, and what it uses cannot be deleted"
                raise ProviderError(what, fix="cancel it first: tuneport cancel", retry="no")
            removed = []
            name = model_name((job.get("trainingConfig") or job).get("outputModel") or place.id, api.account)
            account, ident = model_parts(name)
            models = api.client.models.with_raw_response
            if account == api.account and datasets.there(api, models.get if dry_run else models.delete, ident):
                removed.append(f"model {name}")
            return removed + datasets.remove(api, job, place.id, dry_run=dry_run)

    def deployments(self) -> Deployer:
        """Deployments on GPUs, with the adapter merged in or beside others."""
        return FireworksDeployer(self._open)

    def chat(self, model: str, requests: Iterable[ChatRequest], *, concurrency: int = CONCURRENCY) -> Iterator[ChatReply]:
        """Answer requests on the deployment that the model stands on.

        Raises ProviderError when it stands on none: Fireworks serves tuned models on deployments only.
        """
        name, address = split(model)
        account = name.split("/")[1] if name.startswith("accounts/") and not name.startswith("accounts/fireworks/") else None
        with self._open(account, address, connections=concurrency) as api:
            yield from inference.answers(api, name, requests, self._sleep, concurrency)

    # Inner parts

    def _session(self, ref: Ref | None = None) -> AbstractContextManager[Api]:
        return self._open(*((ref.account, ref.address) if ref else (None, None)))

    def _open(self, account: str | None, address: str | None, *, connections: int = CONNECTIONS) -> AbstractContextManager[Api]:
        return session(account or self._account, address or self._address, timeout_s=self._timeout_s, connections=connections)

    @staticmethod
    def _document(api: Api, ref: Ref) -> dict[str, Any]:
        return api.ask(api.jobs(ref.family).get, ref.id)

    def _existing(self, api: Api, ref: Ref) -> RemoteJob | None:
        try:
            return self._seen(api, ref, self._document(api, ref))
        except ProviderError as error:
            if status_of(error) == 404 and error.retry == "no":
                return None
            raise

    @staticmethod
    def _seen(api: Api, ref: Ref, job: Mapping[str, Any]) -> RemoteJob:
        # An answer without a name would be a job that nobody could find again.
        named = {"name": f"accounts/{api.account}/{ref.family}/{ref.id}"} | {key: value for key, value in job.items() if value}
        return remote_job(named, account=api.account, at=api.at)

    def _listed(self, api: Api, family: str, size: int) -> Iterator[RemoteJob]:
        for job in api.pages(api.jobs(family).list, family, page_size=size, order_by="create_time desc"):
            if job.get("name"):
                yield remote_job(job, account=api.account, at=api.at)

    @staticmethod
    def _metrics_address(api: Api, ref: Ref, job: Mapping[str, Any]) -> str | None:
        if ref.family == "supervisedFineTuningJobs":
            return job.get("metricsFileSignedUrl")
        if ref.family != "dpoJobs":
            return None
        try:
            return api.ask(api.jobs(ref.family).get_metrics_file_endpoint, ref.id).get("signedUrl")
        except ProviderError as error:
            if status_of(error) in (400, 404) and error.retry == "no":
                return None  # there is no file yet
            raise

    def _model(self, api: Api, ref: Ref, job: Mapping[str, Any]) -> tuple[str, str]:
        seen = self._seen(api, ref, job)
        if seen.tuned_model is None:
            what = f"job {ref.id} at Fireworks is {seen.state.value} and has no model"
            raise ProviderError(what, fix="wait until it has succeeded: tuneport watch", retry="no")
        return model_parts(split(seen.tuned_model)[0])
