"""AWS's way of signing requests and of writing errors, for fakes of its services.

Signature Version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from urllib.parse import quote
from xml.sax.saxutils import escape

from tuneport.providers.conformance.wire import Request, VendorError

CLOCK_TOLERANCE_S = 300
"""AWS takes requests whose time is at most five minutes off (S3: fifteen)."""

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<id>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, ?"
    r"SignedHeaders=(?P<signed>[^,]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


def check_signature(request: Request, *, key_id: str, secret: str, now: float) -> str:
    """The region that a request is signed for. Raises VendorError (403) for a wrong key, signature or time."""
    found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        raise VendorError(403, "Missing Authentication Token", "MissingAuthenticationTokenException")
    s3 = found["service"] == "s3"
    if found["id"] != key_id:
        code = "InvalidAccessKeyId" if s3 else "UnrecognizedClientException"
        raise VendorError(403, "The security token included in the request is invalid.", code)
    stamp = request.headers.get("x-amz-date", "")
    at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if abs(at - now) > CLOCK_TOLERANCE_S * (3 if s3 else 1):
        if s3:
            raise VendorError(403, "The difference between the request time and the current time is too large.", "RequestTimeTooSkewed")
        there = datetime.fromtimestamp(now, UTC)
        word = "expired" if at < now else "not yet current"
        raise VendorError(403, f"Signature {word}: {stamp} against {there:%Y%m%dT%H%M%SZ}", "InvalidSignatureException")
    names = found["signed"].split(";")
    path = request.path if s3 else quote(request.path, safe="/-_.~")
    query = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(request.query.items()))
    headers = "".join(f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in names)
    content = request.headers.get("x-amz-content-sha256") or hashlib.sha256(request.body).hexdigest()
    canonical = "\n".join((request.method, path or "/", query, headers, ";".join(names), content))
    scope = f"{found['day']}/{found['region']}/{found['service']}/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, to_sign.encode(), "sha256").hex(), found["signature"]):
        code = "SignatureDoesNotMatch" if s3 else "InvalidSignatureException"
        raise VendorError(403, "The request signature we calculated does not match the signature you provided.", code)
    return found["region"]


def xml_error(message: str, code: str) -> bytes:
    """An error of S3."""
    return f"<?xml version='1.0'?><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>".encode()


def query_error(message: str, code: str) -> bytes:
    """An error of IAM and STS."""
    inner = f"<Error><Type>Sender</Type><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    return f"<ErrorResponse>{inner}<RequestId>1</RequestId></ErrorResponse>".encode()


def query_result(action: str, inner: str) -> bytes:
    """An answer of IAM and STS; ``inner`` is XML."""
    result = f"<{action}Result>{inner}</{action}Result><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>"
    return f"<{action}Response>{result}</{action}Response>".encode()
