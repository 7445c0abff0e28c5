"""Bedrock passes the conformance suite, over boto3; and what is Bedrock's own, against the same fake."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from tuneport.core.data.load import load_job_data, open_rows
from tuneport.core.errors import CredentialsError, DataError, MissingExtraError, ProviderError, RefusedError, TuneportError, UsageError
from tuneport.core.options import BedrockOptions
from tuneport.core.plan import Plan, compile_for
from tuneport.core.provider import ChatRequest
from tuneport.core.retry import verdict
from tuneport.core.spec import JobSpec
from tuneport.providers.bedrock.client import BedrockProvider
from tuneport.providers.bedrock.deployments import STATES as DEPLOYMENT_STATES
from tuneport.providers.bedrock.errors import CODES, mapped, translated
from tuneport.providers.bedrock.records import RECORDS
from tuneport.providers.bedrock.states import STATES

pytest.importorskip("boto3")
pytest.register_assert_rewrite("tuneport.providers.conformance")
from tuneport.providers.conformance.aws_account import ROLE, USER  # noqa: E402
from tuneport.providers.conformance.bedrock_vendor import BedrockVendor  # noqa: E402
from tuneport.providers.conformance.faults import Fault, html, refusal, server_error  # noqa: E402
from tuneport.providers.conformance.sdk import sdk_errors  # noqa: E402
from tuneport.providers.conformance.suite import BadInput, ProviderConformance, substituted  # noqa: E402

ACCOUNT = {"role_arn": ROLE, "data_s3_uri": "s3://acme-tuning/data", "output_s3_uri": "s3://acme-tuning/out"}
NOVA = "amazon.nova-micro-v1:0:128k"


def spec(train: str, held: str | None = None, **fields: Any) -> JobSpec:
    """A job that Bedrock takes."""
    options = {"bedrock": ACCOUNT | fields.pop("bedrock", {})}
    base = {"name": "tickets", "model": {"bedrock": NOVA}, "data": {"train": train, "validation": held}, "options": options}
    return JobSpec.model_validate(base | fields)


def with_key(plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:
    """What is sent: the payload with unique names, token and tags."""
    tag = [{"key": "tuneport-key", "value": key}]
    body = substituted(plan.payload, files)
    tags = {name: [*(plan.payload.get(name) or []), *tag] for name in ("jobTags", "customModelTags")}  # type: ignore[misc]
    names = {name: f"{plan.payload[name]}-{key.removeprefix('tp-')}" for name in ("jobName", "customModelName")}
    return body | names | tags | {"clientRequestToken": key}


class TestBedrock(ProviderConformance):
    """The suite."""

    target = "tuneport.providers.bedrock.client:BedrockProvider"
    vendor_class = BedrockVendor
    states = STATES
    records = RECORDS
    deployment_states = DEPLOYMENT_STATES
    serving: ClassVar[Mapping[str, str]] = {"on-demand": "Active", "provisioned": "InService"}
    sdk_modules = ("botocore.exceptions", "botocore.parsers", "boto3.exceptions", "s3transfer.exceptions")
    key_variable = "AWS_ACCESS_KEY_ID"
    bad_input: ClassVar[Mapping[str, BadInput]] = {
        "wrong key": BadInput(
            "create", refusal(403, "The security token included in the request is invalid.", "UnrecognizedClientException"),
            CredentialsError, "does not accept these credentials",
        ),
        "revoked key": BadInput("create", refusal(403, "It has expired", "ExpiredTokenException"), CredentialsError, "aws sso login"),
        "wrong account": BadInput(
            "create", refusal(403, "User: x is not authorized to perform: iam:PassRole on resource: y", "AccessDeniedException"),
            CredentialsError, "iam:PassRole",
        ),
        "file over the limit": BadInput(
            "create", refusal(400, "The training data exceeds the maximum size", "ValidationException"), ProviderError, "fewer or shorter"
        ),
        "model not tunable": BadInput(
            "create", refusal(400, "The model identifier is invalid.", "ValidationException"), ProviderError, "region does not offer"
        ),
        "web page": BadInput("model", html(status=502), ProviderError, "web page .*proxy"),
    }
    unbilled = "GetModelCustomizationJob tells no tokens and no price; the bill is in AWS Cost Explorer"
    skews = (timedelta(minutes=-4), timedelta(minutes=4))  # AWS takes no request whose time is more than five minutes off

    def specs(self, train: str, held: str) -> list[JobSpec]:
        """Every shape of payload that fits chat rows."""
        network = {"subnet_ids": ["subnet-1"], "security_group_ids": ["sg-1"], "kms_key_id": "alias/tuning"}
        return [
            spec(train, held, training={"epochs": 2, "learning_rate": 1e-5, "warmup_steps": 10}, tags={"team": "support"}),
            spec(train, bedrock=network),
            spec(train, model={"bedrock": "amazon.nova-2-lite-v1:0:256k"}),
            spec(train, method="distill", distillation={"teacher": "amazon.nova-pro-v1:0"}, bedrock={"max_teacher_response_tokens": 500}),
        ]

    def expected_body(self, plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:
        """See ``with_key``."""
        return with_key(plan, files, key)

    def map_error(self, error: Exception) -> TuneportError:
        """Bedrock's translation."""
        with pytest.raises(TuneportError) as ours, translated():
            raise error
        return ours.value

    def sample_error(self, kind: type[Exception]) -> Exception:
        """An instance of one of botocore's, boto3's or s3transfer's classes."""
        return aws_error(kind)


def aws_error(kind: type[Exception], code: str = "ValidationException", status: int = 400, message: str = "no") -> Exception:
    """An instance of an exception class, made from the names in its message."""
    from botocore.exceptions import ClientError

    if issubclass(kind, ClientError):
        return kind({"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Op")
    names = re.findall(r"{(\w+)}", str(getattr(kind, "fmt", "")))
    if not any("__init__" in vars(base) for base in kind.__mro__ if base.__module__ != "builtins"):
        return kind("no")
    parameters = inspect.signature(kind).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    known: dict[str, Any] = {"last_exception": ValueError("no"), "last_response": {}}
    return kind(*[known.get(p.name, p.name) for p in required], **({} if required else {name: f"a {name}" for name in names}))


# -- what is Bedrock's own -----------------------------------------------------------------------------------------------

KEY = "tp-7f3k2a-x9k3m2qa"


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[BedrockVendor]:
    with BedrockVendor() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        assert isinstance(running, BedrockVendor)
        yield running


@pytest.fixture
def train(tmp_path: Path) -> str:
    rows = ({"messages": [{"role": "user", "content": f"ticket {n}"}, {"role": "assistant", "content": "cards"}]} for n in range(120))
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Ready:
    """A compiled job, and the calls of a submission."""

    def __init__(self, job: JobSpec) -> None:
        self.job = job
        self.provider = BedrockProvider(sleep=lambda _: None)
        self.plan = compile_for(self.provider, job, load_job_data(job), date(2026, 11, 22))
        assert self.plan.refusals == {}

    def upload(self, key: str = KEY) -> dict[str, str]:
        return self.provider.upload(self.plan, partial(open_rows, self.job), key)

    def create(self, key: str = KEY) -> str:
        return self.provider.create(self.plan, self.upload(key), key).ref


def test_options_that_submitting_needs_are_refused_together_before_anything_is_sent(vendor: BedrockVendor, train: str) -> None:
    job = JobSpec.model_validate({"model": {"bedrock": NOVA}, "data": {"train": train}})
    ready = Ready(job)
    for call in (ready.upload, lambda: ready.provider.create(ready.plan, {"train": "s3://acme-tuning/x"}, KEY)):
        with pytest.raises(RefusedError) as refused:
            call()
        assert set(refused.value.reasons) == {f"options.bedrock.{name}" for name in ACCOUNT}
    assert vendor.log == []


def test_a_model_in_legacy_state_is_refused_before_the_upload(vendor: BedrockVendor, train: str) -> None:
    vendor.models[NOVA]["modelLifecycle"] = {"status": "LEGACY", "endOfLifeTime": "2027-03-01T00:00:00Z"}
    ready = Ready(spec(train))
    with pytest.raises(RefusedError, match=r"Legacy.*2027-03-01"):
        ready.upload()
    assert "Legacy" in ready.provider.online(ready.plan).refusals["model"]
    assert vendor.snapshot()["files"] == {}


def test_a_region_without_the_model(vendor: BedrockVendor, train: str) -> None:
    del vendor.models[NOVA]
    with pytest.raises(RefusedError, match=f"region us-east-1 has no base model {NOVA}"):
        Ready(spec(train)).upload()


@pytest.mark.parametrize("fault", [refusal(403, "no right", "AccessDeniedException"), server_error()], ids=str)
def test_a_lifecycle_that_cannot_be_asked_is_unknown_and_no_refusal(vendor: BedrockVendor, train: str, fault: Fault) -> None:
    ready = Ready(spec(train))
    vendor.fault("model", fault)
    assert ready.upload()
    vendor.fault("model", fault)
    asked = ready.provider.online(ready.plan)
    assert asked.refusals == {}
    assert any(warning.code == "online" and "unknown" in warning.message for warning in asked.warnings)


def test_online_warns_of_a_customization_that_the_model_does_not_list_and_of_its_end(vendor: BedrockVendor, train: str) -> None:
    vendor.models[NOVA] |= {"customizationsSupported": ["DISTILLATION"]}
    vendor.models[NOVA]["modelLifecycle"]["endOfLifeTime"] = "2027-06-01T00:00:00Z"
    ready = Ready(spec(train))
    messages = " ".join(w.message for w in ready.provider.online(ready.plan).warnings)
    assert "lists DISTILLATION" in messages and "FINE_TUNING" in messages
    assert "2027-06-01" in messages


@pytest.mark.parametrize(("folder", "words"), [("s3://acme-west/x", "acme-west is in us-west-2"), ("s3://acme-none/x", "no S3 bucket")])
@pytest.mark.parametrize("name", ["data_s3_uri", "output_s3_uri"])
def test_a_bucket_in_another_region_or_missing(vendor: BedrockVendor, train: str, name: str, folder: str, words: str) -> None:
    ready = Ready(spec(train, bedrock={name: folder}))
    with pytest.raises(ProviderError, match=words) as refused:
        ready.upload()
    assert verdict(refused.value).kind == "no"
    assert words in ready.provider.online(ready.plan).refusals[f"options.bedrock.{name}"]
    assert vendor.snapshot()["files"] == {}


PASS_ROLE = f"User: {USER} is not authorized to perform: iam:PassRole on resource: {ROLE} because no identity-based policy allows it"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (refusal(403, PASS_ROLE, "AccessDeniedException"), CredentialsError, f"iam:PassRole on {ROLE}"),
        (refusal(400, "Could not assume provided IAM role.", "ValidationException"), CredentialsError, "trust bedrock.amazonaws.com"),
        (refusal(400, "You have reached the limit: quota is 0.", "ServiceQuotaExceededException"), ProviderError, "Service Quotas"),
        (refusal(400, "This model has reached the end of its life.", "ValidationException"), ProviderError, "choose another base model"),
        (refusal(400, "The provided model identifier is invalid.", "ValidationException"), ProviderError, "region does not offer"),
        (refusal(400, "The S3 bucket must be in the same region.", "ValidationException"), ProviderError, "in another region"),
        (refusal(403, "You don't have access to the model with this ID.", "AccessDeniedException"), CredentialsError, "Model access"),
        (refusal(400, "Too many tags", "TooManyTagsException"), ProviderError, "remove some of the spec's tags"),
        (refusal(400, "The key is disabled", "KMSDisabledException"), ProviderError, "KMS key"),
    ],
    ids=lambda value: value.message[:25] if isinstance(value, Fault) else "",
)
def test_a_refusal_of_create_says_what_is_missing(
    vendor: BedrockVendor, train: str, fault: Fault, kind: type[TuneportError], words: str
) -> None:
    ready = Ready(spec(train))
    files = ready.upload()
    vendor.fault("create", fault)
    with pytest.raises(kind) as refused:
        ready.provider.create(ready.plan, files, KEY)
    assert words in str(refused.value)
    assert verdict(refused.value).kind == "no"
    assert vendor.calls("create") == 1
    assert vendor.made == []


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_is_wrong_is_named(vendor: BedrockVendor, train: str, hours: int) -> None:
    ready = Ready(spec(train))
    files = ready.upload()
    vendor.skew_seconds = hours * 3600
    for call in (lambda: ready.provider.create(ready.plan, files, KEY), lambda: ready.provider.delete(vendor.made[0].ref)):
        with pytest.raises(CredentialsError, match="clock"):
            call()
        vendor.skew_seconds = 0
        vendor.set_state(ready.create(), "Completed")
        vendor.skew_seconds = hours * 3600


def test_a_wrong_secret_and_an_expired_session(vendor: BedrockVendor, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Ready(spec(train))
    vendor.fault("create", refusal(403, "The security token included in the request is expired", "ExpiredTokenException"))
    with pytest.raises(CredentialsError, match="aws sso login"):
        ready.create()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret-altogether")
    with pytest.raises(CredentialsError, match="does not accept these credentials"):
        Ready(spec(train)).upload()


def test_regions_come_from_arn_options_and_environment(vendor: BedrockVendor, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = Ready(spec(train)).create()
    monkeypatch.delenv("AWS_REGION")
    assert BedrockProvider().poll(ref).ref == ref
    with pytest.raises(UsageError, match=r"options\.bedrock\.region or AWS_REGION"):
        BedrockProvider().poll("tickets")
    name = vendor.made[0].body["jobName"]
    assert BedrockProvider(BedrockOptions(region="us-east-1")).poll(name).ref == ref
    assert Ready(spec(train, bedrock={"region": "us-east-1"})).create("tp-aaaaaa-aaaaaaaa")


def test_one_token_makes_one_job_and_a_taken_name_is_said(vendor: BedrockVendor, train: str) -> None:
    ready = Ready(spec(train))
    assert ready.create() == ready.create()
    assert len(vendor.made) == 1
    named = Ready(spec(train, bedrock={"job_name": "Tickets.1"}))
    named.create("tp-aaaaaa-aaaaaaaa")
    assert vendor.made[-1].body["jobName"] == "Tickets.1"
    assert named.provider.find(named.plan, "tp-bbbbbb-bbbbbbbb") is None
    with pytest.raises(ProviderError, match=r"another job or model of the name Tickets\.1") as taken:
        named.create("tp-bbbbbb-bbbbbbbb")
    assert verdict(taken.value).kind == "no"
    assert len(vendor.made) == 2


def test_a_job_without_its_token_is_known_by_its_tag(vendor: BedrockVendor, train: str) -> None:
    ready = Ready(spec(train))
    ref = ready.create()
    with vendor.books() as books:
        books["jobs"][ref].pop("clientRequestToken")
    found = ready.provider.find(ready.plan, KEY)
    assert found is not None and found.ref == ref
    with vendor.books() as books:
        books["jobs"][ref]["tags"] = []
    assert ready.provider.find(ready.plan, KEY) is None


def test_the_loss_curves_are_read_from_the_output_folder(vendor: BedrockVendor, train: str) -> None:
    ready = Ready(spec(train))
    ref = ready.create()
    vendor.set_state(ref, "Completed")
    with vendor.books() as books:
        folder = f"s3://acme-tuning/out/model-customization-job-{ref.rpartition('/')[2]}"
        content = "step_number,epoch_number,validation_loss,validation_perplexity\n2,1,0.9,2.5\n4,2,nan,2.2\n"
        path = f"{folder}/validation_artifacts/post_fine_tuning_validation/validation/validation_metrics.csv"
        books["files"][path] = {"content": content, "at": books["jobs"][ref]["creationTime"] + 59}
    events = list(ready.provider.events(ref))
    assert [e.metrics["loss"] for e in events if "step" in e.metrics and "loss" in e.metrics] == [2.0, 1.75, 1.5, 1.25]
    assert [e.metrics for e in events if "eval_loss" in e.metrics] == [{"step": 2.0, "epoch": 1.0, "eval_loss": 0.9}]
    assert events[-1].metrics == {"loss": 0.5}
    vendor.fault("events", refusal(403, "no right", "AccessDenied"))
    told = list(ready.provider.events(ref))
    assert any(e.level == "warning" and "cannot be read" in e.message for e in told)
    assert told[0].id == "created"


def test_chat_needs_something_that_serves_the_model(vendor: BedrockVendor, train: str) -> None:
    ready = Ready(spec(train))
    ref = ready.create()
    vendor.set_state(ref, "Completed")
    model = ready.provider.poll(ref).tuned_model or ""
    vendor.deploys = False
    question = [ChatRequest("1", [{"role": "system", "content": "Sort."}, {"role": "user", "content": "ticket"}])]
    with pytest.raises(ProviderError, match="tuneport deploy"):
        list(ready.provider.chat(model, question))
    (reply,) = ready.provider.chat(NOVA, question)
    assert reply.text == "about ticket"
    asked = vendor.log[-1].request
    assert unquote(asked.path) == "/model/amazon.nova-micro-v1:0/converse"
    assert asked.json()["system"] == [{"text": "Sort."}]
    assert asked.json()["inferenceConfig"] == {"maxTokens": 256, "temperature": 0.0}
    (reply,) = ready.provider.chat(NOVA, [ChatRequest("1", [{"role": "tool", "content": "x"}])])
    assert "role 'tool'" in reply.error


def test_delete_waits_for_the_end_and_for_deployments(vendor: BedrockVendor, train: str) -> None:
    ready = Ready(spec(train))
    ref = ready.create()
    with pytest.raises(ProviderError, match="cancel it first"):
        ready.provider.delete(ref)
    vendor.set_state(ref, "Completed")
    with vendor.books() as books:
        (model,) = books["models"].values()
        model["held"] = True
        books["files"]["s3://acme-tuning/data/mine.jsonl"] = {"content": "kept", "at": 0}
    with pytest.raises(ProviderError, match="undeploy it first"):
        ready.provider.delete(ref)
    with vendor.books() as books:
        books["models"][model["modelArn"]]["held"] = False
    removed = ready.provider.delete(ref)
    assert [name.split()[0] for name in removed] == ["model", "file", "file"]
    assert list(vendor.snapshot()["files"]) == ["s3://acme-tuning/data/mine.jsonl"]


@pytest.mark.parametrize("method", ["cpt", "rft"])
def test_text_and_prompts_reach_bedrock_as_compiled(vendor: BedrockVendor, tmp_path: Path, method: str) -> None:
    path = tmp_path / "rows.jsonl"
    if method == "cpt":
        row: dict[str, Any] = {"text": "once upon a time"}
        job = spec(str(path), method="cpt", model={"bedrock": "amazon.titan-text-express-v1:0:8k"}, training={"epochs": 1})
    else:
        row = {"messages": [{"role": "user", "content": "2 + 2"}], "answer": "4"}
        grader = {"reward_lambda_arn": "arn:aws:lambda:us-east-1:123456789012:function:grade"}
        model = {"bedrock": "amazon.nova-2-lite-v1:0:256k"}
        job = spec(str(path), method="rft", model=model, bedrock=grader, training={"epochs": 2, "batch_size": 32, "learning_rate": 1e-5})
    path.write_text((json.dumps(row) + "\n") * 40)
    ready = Ready(job)
    files = ready.upload()
    ready.provider.create(ready.plan, files, KEY)
    assert vendor.made[0].body == with_key(ready.plan, files, KEY)
    sent = [json.loads(line) for line in vendor.file(files["train"]).splitlines()]
    assert sent[0] == ({"input": "once upon a time"} if method == "cpt" else row)


def test_a_payload_that_breaks_the_service_model_is_not_sent(vendor: BedrockVendor, train: str) -> None:
    ready = Ready(spec(train))
    files = ready.upload()
    plan = ready.plan.model_copy(update={"payload": {**ready.plan.payload, "hyperParameters": {"epochCount": 2}}})
    with pytest.raises(ProviderError, match=r"breaks the AWS service model.*epochCount") as refused:
        ready.provider.create(plan, files, KEY)
    assert verdict(refused.value).kind == "no"
    assert vendor.calls("create") == 0


def test_files_above_the_models_size_and_changed_files_are_refused(
    vendor: BedrockVendor, train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"id": "acme.tiny-v1:0", "source": "s", "limits": {"max_train_mb": 0.001}}
    source = {"title": "test", "observed_on": "2026-11-22", "grade": "R"}
    catalogue = {"version": 1, "sources": {"s": source}, "models": {"tiny": {"offerings": {"bedrock": own}}}}
    (tmp_path / "catalogue.yaml").write_text(json.dumps(catalogue))
    monkeypatch.setenv("TUNEPORT_CATALOGUE", str(tmp_path / "catalogue.yaml"))
    vendor.models["acme.tiny-v1:0"] = vendor.models[NOVA]
    with pytest.raises(DataError, match=r"takes 0\.001 MB for train"):
        Ready(spec(train, model="tiny")).upload()
    ready = Ready(spec(train))
    Path(train).write_text(Path(train).read_text() * 2)
    with pytest.raises(DataError, match=r"gives 240 rows .* made for 120"):
        ready.upload()
    assert vendor.snapshot()["files"] == {}


def test_without_boto3_the_extra_is_named(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Ready(spec(train))
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tuneport\[bedrock\]'"):
        ready.upload()


# -- errors --------------------------------------------------------------------------------------------------------------

RETRIED = {408: "transient", 424: "transient", 429: "rate_limit"}


@pytest.mark.parametrize("service", ["bedrock", "bedrock-runtime", "s3", "sts", "iam"])
def test_every_error_code_of_the_services_has_its_verdict(service: str) -> None:
    import botocore.session
    from botocore.exceptions import ClientError

    shapes = botocore.session.get_session().get_service_model(service).error_shapes
    assert shapes
    for shape in shapes:
        status = int(shape.metadata.get("error", {}).get("httpStatusCode") or 400)
        code = shape.metadata.get("error", {}).get("code") or shape.name
        found = mapped(aws_error(ClientError, code, status, "it was not to be"))
        expected = RETRIED.get(status, "transient" if status >= 500 else "no")
        assert verdict(found).kind == expected, code
        if service.startswith("bedrock"):
            assert code in CODES


def test_every_exception_class_has_its_own_meaning() -> None:
    roots = {"BotoCoreError", "Boto3Error", "Error"}  # never raised themselves
    for kind in sdk_errors(TestBedrock.sdk_modules):
        if kind.__name__ in roots:
            continue
        assert "unknown to tuneport" not in str(mapped(aws_error(kind))), kind


def test_each_reason_of_a_broken_connection_is_its_own_sentence() -> None:
    from botocore.exceptions import ProxyConnectionError, SSLError

    expired = mapped(SSLError(endpoint_url="https://x", error="certificate verify failed: certificate has expired"))
    assert "clock" in str(expired) and verdict(expired).kind == "no"
    assert "AWS_CA_BUNDLE" in str(mapped(SSLError(endpoint_url="https://x", error="self-signed certificate in certificate chain")))
    assert "HTTPS_PROXY" in str(mapped(ProxyConnectionError(proxy_url="http://user:hunter22@proxy:3128")))
    assert "hunter22" not in str(mapped(ProxyConnectionError(proxy_url="http://user:hunter22@proxy:3128")))
