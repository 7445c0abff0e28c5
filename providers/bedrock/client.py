"""The Bedrock provider, on boto3.

A job's ref is its ARN, which names account and region; a job's bare name is looked for in the region of the options, or of
the environment.
The job's key travels as ``clientRequestToken`` (a repeated token makes no second job), in the names of job and model
(unique per account and region) and in the tag ``tuneport-key``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from tuneport.core.asking import CONCURRENCY
from tuneport.core.data.facts import JobData
from tuneport.core.errors import CredentialsError, ProviderError, RefusedError, TuneportError
from tuneport.core.job import Checkpoint, JobEvent, JobState, RemoteJob
from tuneport.core.plan import Plan, PlanWarning
from tuneport.core.provider import ChatReply, ChatRequest, Deployer, OnProgress, OpenRows, not_offered
from tuneport.core.spec import JobSpec
from tuneport.providers.bedrock import converse, models, storage
from tuneport.providers.bedrock.aws import TIMEOUT_S, Aws, boto, region_of
from tuneport.providers.bedrock.compile import compile_plan
from tuneport.providers.bedrock.deployments import BedrockDeployer
from tuneport.providers.bedrock.errors import code_of, translated, unreadable
from tuneport.providers.bedrock.states import PHASES, job_events, raw_state, remote_job
from tuneport.providers.bedrock.storage import Place
from tuneport.providers.exchange import filled, option, refused

KEY_TAG = "tuneport-key"
UNOFFERED: Mapping[str, str] = {
    "pause": "Bedrock's customization jobs can only be stopped",
    "resume": "Bedrock's customization jobs can only be stopped; continue from a finished model with continue_from",
    "checkpoints": "Bedrock gives no access to checkpoints",
    "download": "Bedrock gives no access to tuned weights",
}
NEEDED: Mapping[str, str] = {
    "role_arn": "the IAM role that Bedrock assumes",
    "data_s3_uri": "the S3 folder for the rows",
    "output_s3_uri": "the S3 folder for the metrics",
}
"""Options without which there is no job, and what each is."""

_TAKEN = frozenset({"ConflictException", "ResourceInUseException"})
_GONE = frozenset({"ResourceNotFoundException", "404"})


class BedrockProvider:
    """``core.provider.Provider`` for Amazon Bedrock.

    ``options`` (core.options.BedrockOptions) names the region where neither plan nor ARN does; AWS_REGION otherwise.
    ``timeout_s`` is the longest wait for one answer; ``sleep`` is for tests.
    """

    name = "bedrock"
    # Assumed; AWS gives no figure. A create repeated too early makes no second job, since its token and name are the same.
    settle_seconds = 5.0
    unoffered: Mapping[str, str] = UNOFFERED

    def __init__(self, options: Any = None, *, timeout_s: float = TIMEOUT_S, sleep: Callable[[float], None] = time.sleep) -> None:
        self._aws = Aws(timeout_s)
        self._own_region: str | None = getattr(options, "region", None)
        self._sleep = sleep

    def compile(self, spec: JobSpec, data: JobData, today: date | None = None) -> Plan:
        """The spec in Bedrock's words."""
        return compile_plan(spec, data, today)

    # Submitting

    def upload(self, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> dict[str, str]:
        """Bring the plan's files to S3, after checking what would make the job fail: options, base model, buckets' region.

        Raises RefusedError when options are missing or Bedrock takes no jobs for the model; DataError for rows or files that
        do not fit; ProviderError, CredentialsError, UsageError, MissingExtraError.
        """
        require_options(plan)
        region = self._region(plan)
        # Unknown (no right to ask, or the service lacks the call) is no refusal: create itself will tell.
        models.require_open(self._aws.client("bedrock", region), plan, region)
        s3 = self._aws.client("s3", region)
        for folder in dict.fromkeys((option(plan, "data_s3_uri"), option(plan, "output_s3_uri"))):
            storage.require_region(s3, folder, region)
        return storage.upload_all(s3, plan, option(plan, "data_s3_uri"), rows, key, on_progress)

    def create(self, plan: Plan, files: Mapping[str, str], key: str) -> RemoteJob:
        """Make the job: one request, which is never repeated. A job that this key has made already is returned.

        Raises RefusedError for missing options, ProviderError (its verdict says whether a job may have been made),
        CredentialsError, VendorClosedError, UsageError, MissingExtraError.
        """
        require_options(plan)
        body = request_body(plan, files, key)
        client = self._bedrock(plan)
        try:
            with translated():
                answer = client.create_model_customization_job(**body)
        except ProviderError as error:
            if code_of(error) not in _TAKEN:
                raise
            found = self.find(plan, key)
            if found is None:
                fix = "choose another name or options.bedrock.job_name"
                raise ProviderError(f"Bedrock has another job or model of the name {body['jobName']}", fix=fix, retry="no") from error
            return found
        if not answer.get("jobArn"):
            raise unreadable("it names no job")
        return RemoteJob(str(answer["jobArn"]), JobState.QUEUED, "", key=key)

    def find(self, plan: Plan, key: str) -> RemoteJob | None:
        """The job of this plan's name whose token, or tag, is the key."""
        client = self._bedrock(plan)
        job = self._job(client, names(plan, key)["jobName"])
        if job is None:
            return None
        found = remote_job(job)
        if job.get("clientRequestToken") is None and key not in self._tags(client, found.ref):
            return None
        return found if job.get("clientRequestToken") in (None, key) else None

    # Reading

    def poll(self, ref: str) -> RemoteJob:
        """The job's present state. Bedrock reports neither billed tokens nor a price."""
        return remote_job(self._get(ref))

    def events(self, ref: str) -> Iterator[JobEvent]:
        """The job's milestones, and the loss curves from the files that Bedrock writes to S3, oldest first.

        While the metrics may not be read, a warning says so in their place.
        """
        job = self._get(ref)
        region = self._at(region_of(str(job["jobArn"])))
        found = list(job_events(job))
        output = (job.get("outputDataConfig") or {}).get("s3Uri")
        if output and _may_have_metrics(job):
            s3, job_id = self._aws.client("s3", region), str(job["jobArn"]).rpartition("/")[2]
            try:
                found += storage.metrics(s3, output, job_id, str(job.get("jobName")))
            except (CredentialsError, ProviderError) as error:
                if isinstance(error, ProviderError) and error.retry != "no":
                    raise
                at = max((event.at for event in found), default=None)
                if at is not None:
                    found.append(JobEvent("metrics-unreadable", at, "warning", f"the metrics in {output} cannot be read: {error}"))
        yield from sorted(found, key=lambda event: event.at)

    def list_jobs(self, limit: int | None = None) -> Iterator[RemoteJob]:
        """The account's customization jobs in the region of the options or the environment, newest first."""
        client = self._aws.client("bedrock", self._at())
        token: dict[str, str] = {}
        left = limit
        while left is None or left > 0:
            with translated():
                page = client.list_model_customization_jobs(sortBy="CreationTime", sortOrder="Descending", **token)
            summaries = page.get("modelCustomizationJobSummaries")
            if summaries is None:
                raise unreadable("it holds no list of jobs")
            for summary in summaries[:left]:
                yield remote_job(summary)
            left = None if left is None else left - len(summaries)
            if not page.get("nextToken"):
                return
            token = {"nextToken": page["nextToken"]}

    def online(self, plan: Plan, files: Mapping[str, str] | None = None) -> Plan:  # noqa: ARG002
        """The plan against what AWS says today: the model's lifecycle and customizations here, the buckets' regions.

        Refusals join the outcomes of ``model``, ``options.bedrock.data_s3_uri`` and ``output_s3_uri``; what cannot be asked
        becomes a warning with the code "online". AWS has no call for the price of a job.
        """
        refusals: dict[str, str] = {}
        warnings: list[PlanWarning] = []
        try:
            region = self._region(plan)
            warnings += models.asked(self._aws.client("bedrock", region), plan, region, refusals)
            for name in ("data_s3_uri", "output_s3_uri"):
                if option(plan, name):
                    self._ask_bucket(f"options.bedrock.{name}", option(plan, name), region, refusals)
        except TuneportError as error:
            warnings.append(PlanWarning(code="online", message=f"AWS could not be asked: {error}"))
        return refused(plan, refusals).model_copy(update={"warnings": (*plan.warnings, *warnings)})

    # Stopping, removing

    def cancel(self, ref: str) -> RemoteJob:
        """Ask Bedrock to stop the job; one that is stopping or has ended stays as it is."""
        region, name = self._identified(ref)
        client = self._aws.client("bedrock", region)
        try:
            with translated():
                client.stop_model_customization_job(jobIdentifier=name)
        except ProviderError as error:
            if error.retry != "no" or code_of(error) in _GONE:
                raise
            job = self.poll(ref)
            if job.state.terminal or job.state is JobState.CANCELLING:
                return job
            raise
        return self.poll(ref)

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        """Remove the tuned model, the rows that tuneport uploaded for it and the metrics. AWS keeps the job's entry for ever.

        ``dry_run`` only looks which of them are there. Raises ProviderError for a job that has not ended, and for a model that is still
        deployed.
        """
        job = self._get(ref)
        seen = remote_job(job)
        if not seen.state.terminal:
            raise ProviderError(f"job {seen.ref} is {seen.raw_state} at Bedrock", fix="cancel it first: tuneport cancel", retry="no")
        region = self._at(region_of(seen.ref))
        removed = []
        if seen.tuned_model and models.delete(self._aws.client("bedrock", region), seen.tuned_model, dry_run=dry_run):
            removed.append(f"model {seen.tuned_model}")
        s3 = self._aws.client("s3", region)
        return removed + [f"file {place.uri}" for place in _left_behind(s3, job) if storage.remove(s3, place, dry_run=dry_run)]

    # Using

    def deployments(self) -> Deployer:
        """Serving on demand, or by provisioned throughput."""
        return BedrockDeployer(self._aws, self._at)

    def chat(self, model: str, requests: Iterable[ChatRequest], *, concurrency: int = CONCURRENCY) -> Iterator[ChatReply]:
        """Answer requests through Converse, a few at once, with a base model or with a deployment of a tuned one.

        ``model`` is a base model's id, or the ARN of a deployment, a provisioned throughput, an inference profile or a custom
        model; for the last, an active deployment of it is looked for. Raises ProviderError when there is none, and
        CredentialsError; other failures are that request's ``error``.
        """
        region = self._at(region_of(model))
        target = model
        if ":custom-model/" in model:
            target = models.deployment_of(self._aws.client("bedrock", region), model)
        client = self._aws.client("bedrock-runtime", region, connections=concurrency)
        yield from converse.replies(client, target, requests, self._sleep, concurrency)

    # Not offered

    def pause(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError: Bedrock does not offer it."""
        raise not_offered(self, "pause")

    def resume(self, ref: str) -> RemoteJob:  # noqa: ARG002
        """Raises ProviderError: Bedrock does not offer it."""
        raise not_offered(self, "resume")

    def checkpoints(self, ref: str) -> list[Checkpoint]:  # noqa: ARG002
        """Raises ProviderError: Bedrock does not offer it."""
        raise not_offered(self, "checkpoints")

    def download(self, ref: str, folder: Path, on_progress: OnProgress | None = None) -> list[Path]:  # noqa: ARG002
        """Raises ProviderError: Bedrock does not offer it."""
        raise not_offered(self, "download")

    # Inner parts

    def _at(self, named: str | None = None) -> str:
        return self._aws.region(named or self._own_region)

    def _region(self, plan: Plan) -> str:
        return self._at(option(plan, "region"))

    def _bedrock(self, plan: Plan) -> Any:
        return self._aws.client("bedrock", self._region(plan))

    def _identified(self, ref: str) -> tuple[str, str]:
        """(region, what Get and Stop take) of a job's ARN, or of its name."""
        return self._at(region_of(ref)), ref

    def _get(self, ref: str) -> dict[str, Any]:
        region, name = self._identified(ref)
        with boto():
            job: dict[str, Any] = self._aws.client("bedrock", region).get_model_customization_job(jobIdentifier=name)
        remote_job(job)
        return job

    def _job(self, client: Any, name: str) -> dict[str, Any] | None:
        try:
            with translated():
                found: dict[str, Any] = client.get_model_customization_job(jobIdentifier=name)
        except ProviderError as error:
            if code_of(error) in _GONE:
                return None
            raise
        return found

    def _tags(self, client: Any, arn: str) -> list[str]:
        with translated():
            listed = client.list_tags_for_resource(resourceARN=arn).get("tags") or ()
        return [str(tag.get("value")) for tag in listed if tag.get("key") == KEY_TAG]

    def _ask_bucket(self, path: str, uri: str, region: str, refusals: dict[str, str]) -> None:
        try:
            storage.require_region(self._aws.client("s3", region), uri, region)
        except ProviderError as error:
            if error.retry != "no":
                raise
            refusals[path] = str(error)


def require_options(plan: Plan) -> None:
    """Raises RefusedError naming every option that only submitting needs and that is not set."""
    missing = {f"options.bedrock.{name}": f"needed to submit: {what}" for name, what in NEEDED.items() if option(plan, name) is None}
    if missing:
        raise RefusedError("bedrock", missing)


def names(plan: Plan, key: str) -> dict[str, str]:
    """jobName and customModelName: AWS wants both unique, so a part of the key is appended.

    A job name that the user set (options.bedrock.job_name) is sent as it stands.
    """
    unique = key.removeprefix("tp-")
    job, model = (str(plan.payload[name]) for name in ("jobName", "customModelName"))
    return {
        "jobName": job if option(plan, "job_name") else f"{job[: 62 - len(unique)]}-{unique}",
        "customModelName": f"{model[: 62 - len(unique)]}-{unique}",
    }


def request_body(plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:
    """The input of CreateModelCustomizationJob: the plan's payload with files, unique names, token and tags in their places.

    Raises ProviderError when a file was not uploaded.
    """
    tag = {"key": KEY_TAG, "value": key}
    tags = {name: [*_tag_list(plan.payload.get(name)), tag] for name in ("jobTags", "customModelTags")}
    body: dict[str, Any] = filled(plan.payload, files, "S3")
    return body | names(plan, key) | tags | {"clientRequestToken": key}


def _tag_list(tags: Any) -> list[dict[str, str]]:
    return list(tags or ())


def _may_have_metrics(job: Mapping[str, Any]) -> bool:
    """Before training has begun there are none, and asking S3 in every round would cost."""
    details = job.get("statusDetails") or {}
    begun = (details.get(f"{PHASES[-1]}Details") or {}).get("status") not in (None, "NotStarted")
    return begun or not details or raw_state(job) in ("Completed", "Failed", "Stopped")


def _left_behind(s3: Any, job: Mapping[str, Any]) -> Iterator[Place]:
    """The job's objects in S3 that are certainly its own: uploads under its key, metrics under its id."""
    key = job.get("clientRequestToken")
    validators = (job.get("validationDataConfig") or {}).get("validators") or ()
    for uri in ((job.get("trainingDataConfig") or {}).get("s3Uri"), *(validator.get("s3Uri") for validator in validators)):
        if uri and key and str(key).startswith("tp-") and f"/{key}/" in uri:
            yield Place.of(uri)
    output = (job.get("outputDataConfig") or {}).get("s3Uri")
    if output:
        folder = Place.of(output).under(f"model-customization-job-{str(job['jobArn']).rpartition('/')[2]}")
        for found, _, _ in storage.listed(s3, Place(folder.bucket, folder.key + "/")):
            yield Place(folder.bucket, found)
