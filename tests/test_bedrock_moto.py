"""Bedrock against a real moto server: S3 with multipart uploads, and the customization jobs as far as moto knows them.

moto has no foundation models, finds jobs by name only, ignores the client's token and leaves jobs InProgress; what needs more
is tested against the conformance fake.
"""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

from tuneport.core.data.load import load_job_data, open_rows  # noqa: E402
from tuneport.core.engine import Engine  # noqa: E402
from tuneport.core.errors import ProviderError, TuneportError  # noqa: E402
from tuneport.core.job import JobState  # noqa: E402
from tuneport.core.ledger import Ledger  # noqa: E402
from tuneport.core.plan import compile_for  # noqa: E402
from tuneport.core.provider import Provider  # noqa: E402
from tuneport.core.spec import JobSpec  # noqa: E402
from tuneport.providers.bedrock import storage  # noqa: E402
from tuneport.providers.bedrock.aws import Aws  # noqa: E402
from tuneport.providers.bedrock.client import BedrockProvider  # noqa: E402

KEY = "tp-7f3k2a-x9k3m2qa"
ROLE = "arn:aws:iam::123456789012:role/tuning"
REGION = "us-east-1"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def aws(server: str, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """A clean account with a bucket here and one elsewhere."""
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"), timeout=10).close()
    settings = {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "AKIAMOTO000000000001", "AWS_SECRET_ACCESS_KEY": "moto-secret-0123456789",
        "AWS_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    made = Aws()
    made.client("s3", REGION).create_bucket(Bucket="acme-tuning")
    west = made.client("s3", "us-west-2")
    west.create_bucket(Bucket="acme-west", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    return made


@pytest.fixture
def train(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    turns = [[{"role": "user", "content": f"ticket {n} {'x' * 90}"}, {"role": "assistant", "content": "cards"}] for n in range(200)]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return str(path)


def spec(train: str, **options: Any) -> JobSpec:
    account = {"role_arn": ROLE, "data_s3_uri": "s3://acme-tuning/data", "output_s3_uri": "s3://acme-tuning/out"} | options
    model = {"bedrock": "amazon.nova-micro-v1:0:128k"}
    return JobSpec.model_validate({"name": "tickets", "model": model, "data": {"train": train}, "options": {"bedrock": account}})


class Ready:
    """A compiled job with its provider."""

    def __init__(self, job: JobSpec) -> None:
        self.job, self.provider = job, BedrockProvider(sleep=lambda _: None)
        self.plan = compile_for(self.provider, job, load_job_data(job), date(2026, 11, 22))

    def upload(self, key: str = KEY, moved: list[tuple[str, int, int | None]] | None = None) -> dict[str, str]:
        tell = None if moved is None else lambda *progress: moved.append(progress)
        return self.provider.upload(self.plan, partial(open_rows, self.job), key, tell)


def test_a_submission_through_the_engine(aws: Aws, train: str, tmp_path: Path) -> None:
    ready = Ready(spec(train))

    def provider(_name: str, _options: Any = None) -> Provider:
        return ready.provider

    engine = Engine(Ledger.open(tmp_path / "ledger.db"), provider, lambda job: partial(open_rows, job), sleep=lambda _: None)
    job = engine.submit(ready.job, ready.plan)
    key = job.record.key
    name = f"tickets-{key.removeprefix('tp-')}"
    assert job.ref == f"arn:aws:bedrock:{REGION}:123456789012:model-customization-job/{name}"
    bedrock = aws.client("bedrock", REGION)
    held = bedrock.get_model_customization_job(jobIdentifier=name)
    assert held["clientRequestToken"] == key
    assert held["roleArn"] == ROLE
    assert bedrock.list_tags_for_resource(resourceARN=job.ref)["tags"] == [{"key": "tuneport-key", "value": key}]
    place = storage.Place.of(held["trainingDataConfig"]["s3Uri"])
    assert place.key.startswith(f"data/{key}/")
    body = aws.client("s3", REGION).get_object(Bucket=place.bucket, Key=place.key)["Body"].read()
    assert [json.loads(line)["messages"][0]["content"][0]["text"][:8] for line in body.splitlines()[:2]] == ["ticket 0", "ticket 1"]
    assert engine.submit(ready.job, ready.plan).ref != job.ref
    engine.ledger.close()


def test_found_by_name_listed_and_stopped(aws: Aws, train: str) -> None:
    ready = Ready(spec(train))
    refs = [ready.provider.create(ready.plan, ready.upload(key), key).ref for key in (KEY, "tp-aaaaaa-aaaaaaaa", "tp-bbbbbb-bbbbbbbb")]
    found = ready.provider.find(ready.plan, KEY)
    assert found is not None
    assert (found.ref, found.state, found.key) == (refs[0], JobState.RUNNING, KEY)
    assert ready.provider.find(ready.plan, "tp-cccccc-cccccccc") is None
    assert {job.ref for job in ready.provider.list_jobs()} == set(refs)
    assert len(list(ready.provider.list_jobs(2))) == 2
    name = refs[0].rpartition("/")[2]
    assert ready.provider.poll(name).raw_state == "InProgress"
    assert [event.id for event in ready.provider.events(name)] == ["created"]
    for _ in range(2):
        assert ready.provider.cancel(name).state is JobState.CANCELLED
    assert ready.provider.delete(name) == [f"file {found_file(aws, name)}"]
    assert ready.provider.delete(name) == []


def found_file(aws: Aws, name: str) -> str:
    """Where moto's job has its rows."""
    uri: str = aws.client("bedrock", REGION).get_model_customization_job(jobIdentifier=name)["trainingDataConfig"]["s3Uri"]
    return uri


def test_a_create_that_is_repeated_gives_the_job_that_exists(aws: Aws, train: str) -> None:
    ready = Ready(spec(train))
    files = ready.upload()
    first = ready.provider.create(ready.plan, files, KEY)
    assert ready.provider.create(ready.plan, files, KEY).ref == first.ref  # moto answers ResourceInUse
    assert len(list(ready.provider.list_jobs())) == 1


def test_the_same_content_is_sent_once(aws: Aws, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Ready(spec(train))
    moved: list[tuple[str, int, int | None]] = []
    files = ready.upload(moved=moved)
    assert moved[-1][1] == moved[-1][2]
    s3 = aws.client("s3", REGION)
    place = storage.Place.of(files["train"])
    before = s3.head_object(Bucket=place.bucket, Key=place.key, ChecksumMode="ENABLED")
    assert before["ChecksumSHA256"]
    assert ready.upload() == files
    assert s3.head_object(Bucket=place.bucket, Key=place.key)["LastModified"] == before["LastModified"]
    assert ready.upload("tp-aaaaaa-aaaaaaaa") != files


def test_large_files_go_up_in_parts_and_orphaned_parts_are_dropped(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MULTIPART_BYTES", 5 * 1024 * 1024)  # the smallest part that S3 takes
    path = tmp_path / "large.jsonl"
    turn = [{"role": "user", "content": "x" * 30_000}, {"role": "assistant", "content": "cards"}]
    path.write_text((json.dumps({"messages": turn}) + "\n") * 400)
    ready = Ready(spec(str(path)))
    s3 = aws.client("s3", REGION)
    place = storage.Place.of(ready.upload()["train"])
    assert s3.head_object(Bucket=place.bucket, Key=place.key)["ETag"].strip('"').endswith("-3")
    s3.delete_object(Bucket=place.bucket, Key=place.key)
    for key in (place.key, "somebody/else"):
        s3.create_multipart_upload(Bucket=place.bucket, Key=key)
    moved: list[tuple[str, int, int | None]] = []
    ready.upload(moved=moved)
    assert moved[-1][1] == moved[-1][2] == s3.head_object(Bucket=place.bucket, Key=place.key)["ContentLength"]
    assert [done for _, done, _ in moved] == sorted(done for _, done, _ in moved)
    assert [upload["Key"] for upload in s3.list_multipart_uploads(Bucket=place.bucket)["Uploads"]] == ["somebody/else"]


@pytest.mark.parametrize(("bucket", "words"), [("acme-west", "in us-west-2, and the job runs in us-east-1"), ("acme-none", "no S3 bucket")])
def test_a_bucket_elsewhere_or_nowhere(aws: Aws, train: str, bucket: str, words: str) -> None:
    with pytest.raises(ProviderError, match=words):
        Ready(spec(train, data_s3_uri=f"s3://{bucket}/data")).upload()


def test_what_moto_lacks_is_unknown_not_wrong(aws: Aws, train: str) -> None:
    ready = Ready(spec(train))
    asked = ready.provider.online(ready.plan)
    assert asked.refusals == {}
    assert any(w.code == "online" and "is unknown" in w.message for w in asked.warnings)


def test_a_server_that_is_gone_is_one_sentence(aws: Aws, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK", "http://127.0.0.1:9")
    with pytest.raises(TuneportError, match="AWS cannot be reached"):
        BedrockProvider().poll("tickets")
