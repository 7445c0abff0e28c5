"""An AWS account of one region around a fake service: S3, and what ``tuneport doctor bedrock`` asks of STS, IAM and Service Quotas.

Shapes: botocore's service models s3 2006-03-01, sts, iam, service-quotas. Each service writes its errors in its own way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote
from xml.sax.saxutils import escape

from tuneport.providers.conformance.aws_wire import check_signature, query_error, query_result, xml_error
from tuneport.providers.conformance.server import FakeVendor, route
from tuneport.providers.conformance.wire import Reply, Request, VendorError

ACCOUNT = "123456789012"
REGION = "us-east-1"
KEY_ID = "AKIACONFORMANCE00001"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/tuning"
USER = f"arn:aws:iam::{ACCOUNT}:user/conformance"
XML = {"Content-Type": "application/xml"}
_BY_STATUS = {
    400: "ValidationException", 401: "UnrecognizedClientException", 403: "AccessDeniedException", 404: "ResourceNotFoundException",
    413: "RequestEntityTooLargeException", 422: "ValidationException", 429: "ThrottlingException", 503: "ServiceUnavailableException",
}
_OTHER_VENDORS = frozenset({"invalid_request_error", "invalid_api_key", "not_found", "rate_limit_exceeded", "training_not_available"})
"""Codes that scripted faults carry for vendors of another manner; AWS's own stand in their place."""


class AwsAccount(FakeVendor):
    """The account. Requests are signed (Signature Version 4) and dated, and both are checked."""

    secret = "conformance/Secret+Access0Key0123456789x"  # noqa: S105 -- of a fake

    def __init__(self, folder: Path | None = None) -> None:
        self._serving = threading.local()
        super().__init__(folder)
        self.buckets = {"acme-tuning": REGION, "acme-west": "us-west-2"}
        self.denied: set[tuple[str, str]] = set()  # (principal's ARN, action) that IAM's simulation denies
        self.trust: dict[str, Any] | None = _trust()  # of the role; None: there is no such role
        self.quotas = {"Customization jobs": 2.0}  # Service Quotas of bedrock by name

    @property
    def environment(self) -> dict[str, str]:
        """Addresses and keys; the machine's own AWS configuration is shut out."""
        own = {f"AWS_ENDPOINT_URL_{name.upper()}": f"{self.url}/{name}" for name in ("s3", "sts", "iam", "service_quotas")}
        return own | {
            "AWS_ENDPOINT_URL_BEDROCK": self.url,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def answer(self, request: Request) -> tuple[Any, Reply | None]:
        """Remembers which service is asked, since each writes its errors in its own way."""
        self._serving.path = request.path
        return super().answer(request)

    def error(self, status: int, message: str, code: str | None) -> Any:
        """An error as the service that was asked writes it."""
        own = code if code and code not in _OTHER_VENDORS else _BY_STATUS.get(status, "InternalServerException")
        path = getattr(self._serving, "path", "")
        if path.startswith("/s3/"):
            return xml_error(message, own.removesuffix("Exception") if own == "AccessDeniedException" else own)
        if path.startswith(("/iam", "/sts")):
            return query_error(message, own)
        return {"__type": own, "message": message}

    def authorise(self, request: Request) -> None:
        """Signature Version 4, by the vendor's own clock."""
        region = check_signature(request, key_id=KEY_ID, secret=self.secret, now=self.now())
        if region not in (REGION, "aws-global") and not request.path.startswith("/s3/"):
            raise VendorError(403, f"Credential should be scoped to a valid region, not {region}", "InvalidSignatureException")

    # S3

    @route("HEAD", "/s3/{bucket}", "head")
    def head_bucket(self, request: Request) -> Reply:
        """HeadBucket."""
        return Reply(b"", headers={"x-amz-bucket-region": self._bucket(request)})

    @route("HEAD", "/s3/{bucket}/{key...}", "head")
    def head_object(self, request: Request) -> Reply:
        """HeadObject."""
        file = self._object(request)
        size = str(len(file["content"].encode()))
        return Reply(b"", headers={"Content-Length": size, "Last-Modified": _http_date(file["at"])})

    @route("PUT", "/s3/{bucket}/{key...}", "upload")
    def put_object(self, request: Request) -> Reply:
        """PutObject; a stated SHA-256 is checked."""
        self._bucket(request)
        stated = request.headers.get("x-amz-checksum-sha256")
        if stated and base64.b64encode(hashlib.sha256(request.body).digest()).decode() != stated:
            raise VendorError(400, "The SHA256 you specified did not match the calculated checksum.", "BadDigest")
        with self.books() as books:
            books["files"][_uri(request)] = {"content": request.body.decode(), "at": 1_795_000_000}
        return Reply(b"", headers={"ETag": f'"{hashlib.md5(request.body, usedforsecurity=False).hexdigest()}"'})

    @route("GET", "/s3/{bucket}/{key...}", "events")
    def get_object(self, request: Request) -> Reply:
        """GetObject."""
        file = self._object(request)
        return Reply(file["content"].encode(), headers={"Last-Modified": _http_date(file["at"]), "Content-Type": "text/csv"})

    @route("DELETE", "/s3/{bucket}/{key...}", "delete_file")
    def delete_object(self, request: Request) -> Reply:
        """DeleteObject."""
        with self.books() as books:
            books["files"].pop(_uri(request), None)
        return Reply(b"", 204)

    @route("GET", "/s3/{bucket}", "events")
    def list_objects(self, request: Request) -> Reply:
        """ListObjectsV2, one object to a page."""
        self._bucket(request)
        begin = f"s3://{request.params['bucket']}/{request.query.get('prefix', '')}"
        found = sorted(uri for uri in self._books["files"] if uri.startswith(begin))
        start = int(request.query.get("continuation-token") or 0)
        entries = "".join(self._entry(uri) for uri in found[start : start + 1])
        more = f"<NextContinuationToken>{start + 1}</NextContinuationToken>" if start + 1 < len(found) else ""
        inner = f"{entries}<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}"
        return Reply(f"<ListBucketResult>{inner}</ListBucketResult>".encode(), headers=XML)

    # What doctor asks

    @route("POST", "/sts", "sts")
    def sts(self, request: Request) -> Reply:  # noqa: ARG002
        """GetCallerIdentity."""
        inner = f"<Arn>{USER}</Arn><UserId>AIDACONFORMANCE</UserId><Account>{ACCOUNT}</Account>"
        return Reply(query_result("GetCallerIdentity", inner), headers=XML)

    @route("POST", "/iam", "iam")
    def iam(self, request: Request) -> Reply:
        """GetRole and SimulatePrincipalPolicy."""
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if form["Action"] == "GetRole":
            if self.trust is None or form["RoleName"] != "tuning":
                raise VendorError(404, f"The role with name {form['RoleName']} cannot be found.", "NoSuchEntity")
            policy = quote(json.dumps(self.trust))
            inner = f"<Role><Path>/</Path><RoleName>tuning</RoleName><RoleId>AROACONFORMANCE000000</RoleId><Arn>{ROLE}</Arn>"
            inner += f"<CreateDate>2026-01-01T00:00:00Z</CreateDate><AssumeRolePolicyDocument>{policy}</AssumeRolePolicyDocument></Role>"
            return Reply(query_result("GetRole", inner), headers=XML)
        actions = [value for name, value in form.items() if name.startswith("ActionNames.member.")]
        results = "".join(
            f"<member><EvalActionName>{action}</EvalActionName><EvalResourceName>*</EvalResourceName>"
            f"<EvalDecision>{'implicitDeny' if (form['PolicySourceArn'], action) in self.denied else 'allowed'}</EvalDecision></member>"
            for action in actions
        )
        inner = f"<EvaluationResults>{results}</EvaluationResults><IsTruncated>false</IsTruncated>"
        return Reply(query_result("SimulatePrincipalPolicy", inner), headers=XML)

    @route("POST", "/service_quotas", "quotas")
    def list_quotas(self, request: Request) -> dict[str, Any]:  # noqa: ARG002
        """ListServiceQuotas."""
        return {"Quotas": [{"ServiceCode": "bedrock", "QuotaName": name, "Value": value} for name, value in self.quotas.items()]}

    # Inner parts

    def _bucket(self, request: Request) -> str:
        region = self.buckets.get(request.params["bucket"])
        if region is None:
            raise VendorError(404, "The specified bucket does not exist", "NoSuchBucket")
        return region

    def _object(self, request: Request) -> dict[str, Any]:
        self._bucket(request)
        found: dict[str, Any] | None = self._books["files"].get(_uri(request))
        if found is None:
            raise VendorError(404, "The specified key does not exist.", "NoSuchKey")
        return found

    def _entry(self, uri: str) -> str:
        file = self._books["files"][uri]
        key, at = uri.removeprefix("s3://").partition("/")[2], datetime.fromtimestamp(file["at"], UTC)
        size = len(file["content"].encode())
        return f"<Contents><Key>{escape(key)}</Key><LastModified>{at:%Y-%m-%dT%H:%M:%SZ}</LastModified><Size>{size}</Size></Contents>"


def _http_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


def _uri(request: Request) -> str:
    return f"s3://{request.params['bucket']}/{request.params['key']}"


def _trust() -> dict[str, Any]:
    condition = {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    allow = {"Effect": "Allow", "Principal": {"Service": "bedrock.amazonaws.com"}, "Action": "sts:AssumeRole", "Condition": condition}
    return {"Version": "2012-10-17", "Statement": [allow]}
