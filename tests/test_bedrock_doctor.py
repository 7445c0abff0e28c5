"""``diagnose`` says exactly which setting, right or role is missing: over the conformance fake, and over moto for what it has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("boto3")

from tuneport.core.options import BedrockOptions
from tuneport.providers.bedrock.aws import Aws
from tuneport.providers.bedrock.doctor import CALLER_ACTIONS, ROLE_ACTIONS, Finding, diagnose
from tuneport.providers.conformance.aws_account import ACCOUNT, ROLE, USER
from tuneport.providers.conformance.bedrock_vendor import BedrockVendor
from tuneport.providers.conformance.faults import refusal, reset

NOVA = "amazon.nova-micro-v1:0:128k"
WHOLE = BedrockOptions(role_arn=ROLE, data_s3_uri="s3://acme-tuning/data", output_s3_uri="s3://acme-tuning/out")


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[BedrockVendor]:
    with BedrockVendor() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        assert isinstance(running, BedrockVendor)
        yield running


def found(options: BedrockOptions = WHOLE, model: str | None = NOVA) -> list[Finding]:
    return diagnose(options, os.environ, model=model)


def faults(findings: list[Finding]) -> list[Finding]:
    """What is not ok; each says how to mend it."""
    wrong = [finding for finding in findings if finding.state != "ok"]
    assert all(finding.fix for finding in wrong)
    return wrong


def one(findings: list[Finding]) -> Finding:
    (finding,) = faults(findings)
    return finding


def test_nothing_missing(vendor: BedrockVendor) -> None:
    before = vendor.snapshot()
    findings = found()
    assert faults(findings) == []
    assert {"region", "credentials", "model", "role: trust", "role: rights", "caller: rights", "quota"} <= {f.check for f in findings}
    assert vendor.snapshot() == before
    assert {line.request.method for line in vendor.log if not line.request.path.startswith(("/iam", "/sts", "/service"))} == {"GET", "HEAD"}


def test_options_that_are_not_set(vendor: BedrockVendor) -> None:
    missing = faults(found(BedrockOptions()))
    assert [f.check for f in missing] == ["options.bedrock.role_arn", "options.bedrock.data_s3_uri", "options.bedrock.output_s3_uri"]


@pytest.mark.parametrize("action", sorted({action for actions in CALLER_ACTIONS.values() for action in actions}))
def test_each_right_that_the_caller_lacks_is_named(vendor: BedrockVendor, action: str) -> None:
    vendor.denied.add((USER, action))
    missing = faults(found())
    assert {f.check for f in missing} == {f"caller: {action}"}
    assert all(USER in f.fix and action in f.fix for f in missing)
    assert action != "iam:PassRole" or ROLE in missing[0].fix


@pytest.mark.parametrize("action", sorted({action for actions in ROLE_ACTIONS.values() for action in actions}))
def test_each_right_that_the_role_lacks_is_named(vendor: BedrockVendor, action: str) -> None:
    more = {
        "kms_key_id": "alias/tuning", "subnet_ids": ("subnet-1",), "security_group_ids": ("sg-1",),
        "reward_lambda_arn": f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:grade",
    }  # fmt: skip
    vendor.denied.add((ROLE, action))
    missing = faults(found(WHOLE.model_copy(update=more)))
    assert {f.check for f in missing} == {f"role: {action}"}
    assert all(ROLE in f.fix for f in missing)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Principal": {"Service": "sagemaker.amazonaws.com"}}, "does not trust bedrock.amazonaws.com"),
        ({"Effect": "Deny"}, "does not trust"),
        ({"Condition": {"StringEquals": {"aws:SourceAccount": ["999999999999"]}}}, "aws:SourceAccount is 999999999999"),
        ({"Condition": {"ArnLike": {"aws:SourceArn": "arn:aws:bedrock:eu-west-1:*:model-customization-job/*"}}}, "aws:SourceArn"),
    ],
)
def test_a_role_that_does_not_trust_bedrock(vendor: BedrockVendor, change: dict[str, Any], words: str) -> None:
    assert vendor.trust is not None
    vendor.trust["Statement"][0] |= change
    assert words in one(found()).message


def test_conditions_that_jobs_meet_are_no_fault(vendor: BedrockVendor) -> None:
    assert vendor.trust is not None
    arn = f"arn:aws:bedrock:us-east-1:{ACCOUNT}:model-customization-job/*"
    vendor.trust["Statement"] = vendor.trust["Statement"][0] | {"Condition": {"ArnEquals": {"aws:SourceArn": arn}}}
    assert faults(found()) == []


def test_a_role_that_is_missing_or_of_another_account(vendor: BedrockVendor) -> None:
    vendor.trust = None
    assert one(found()).message == f"there is no role {ROLE}"
    other = WHOLE.model_copy(update={"role_arn": "arn:aws:iam::999999999999:role/tuning"})
    assert any("belongs to account 999999999999" in f.message for f in faults(found(other)))


@pytest.mark.parametrize(("bucket", "words"), [("acme-west", "is in us-west-2"), ("acme-none", "no S3 bucket acme-none")])
def test_buckets(vendor: BedrockVendor, bucket: str, words: str) -> None:
    finding = one(found(WHOLE.model_copy(update={"data_s3_uri": f"s3://{bucket}/data"})))
    assert finding.check == "options.bedrock.data_s3_uri"
    assert words in finding.message


def test_a_bucket_that_is_closed(vendor: BedrockVendor) -> None:
    vendor.fault("head", refusal(403, "no", "AccessDenied"))
    assert "s3:ListBucket on arn:aws:s3:::acme-tuning" in one(found()).fix


def test_the_model(vendor: BedrockVendor) -> None:
    vendor.models[NOVA]["modelLifecycle"]["status"] = "LEGACY"
    assert "Legacy" in one(found()).message
    assert "no base model" in one(found(model="acme.none-v1:0")).message
    assert faults(found(model=None)) == []
    vendor.models.clear()
    assert "tunes no active base model" in one(found(model=None)).message


def test_a_quota_of_zero(vendor: BedrockVendor) -> None:
    vendor.quotas["Scheduled customization jobs"] = 0.0
    assert "the quota is 0 for: Scheduled customization jobs" in one(found()).message
    vendor.quotas.clear()
    assert one(found()).state == "unknown"


def test_what_may_not_be_asked_is_unknown(vendor: BedrockVendor) -> None:
    vendor.fault("iam", refusal(403, "not for you", "AccessDenied"))
    vendor.fault("iam", refusal(403, "not for you", "AccessDenied"), nth=2)
    vendor.fault("quotas", refusal(403, "not for you", "AccessDeniedException"))
    unknown = faults(found())
    assert [(f.check, f.state) for f in unknown] == [("caller", "unknown"), ("role", "unknown"), ("quota", "unknown")]


def test_without_region_key_or_network(vendor: BedrockVendor, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor.fault("sts", reset())
    assert [(f.check, f.state) for f in faults(found())] == [("credentials", "unknown")]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret-altogether")
    assert [(f.check, f.state) for f in faults(found())] == [("credentials", "missing")]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "AWS_ACCESS_KEY_ID" in one(found()).message
    monkeypatch.delenv("AWS_REGION")
    assert [(f.check, f.state) for f in found()] == [("region", "missing")]


def test_over_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3, STS and roles are moto's own; the simulator, models and quotas it lacks come out as unknown."""
    moto_server = pytest.importorskip("moto.server")
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "AKIAMOTO000000000001", "AWS_SECRET_ACCESS_KEY": "moto-secret-01",
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }  # fmt: skip
    try:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        aws = Aws()
        aws.client("s3", "us-east-1").create_bucket(Bucket="acme-doctor")
        trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
        role = aws.client("iam", "us-east-1").create_role(RoleName="doctor", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
        options = BedrockOptions(role_arn=role, data_s3_uri="s3://acme-doctor/data", output_s3_uri="s3://acme-none/out")
        states = {f.check: f.state for f in diagnose(options, os.environ, model=NOVA)}
    finally:
        running.stop()
    assert states["credentials"] == states["options.bedrock.data_s3_uri"] == "ok"
    assert states["options.bedrock.output_s3_uri"] == states["role: trust"] == "missing"
    assert states["model"] == states["role"] == states["quota"] == "unknown"
