"""Fireworks' answers, and what stands between, as errors of ours: one sentence, a remedy, and the right verdict."""

from __future__ import annotations

import json
import re
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.errors import CredentialsError, MissingExtraError, ProviderError, TuneportError, UsageError, VendorClosedError
from tuneport.core.retry import verdict
from tuneport.providers.fireworks.client import FireworksProvider
from tuneport.providers.fireworks.errors import mapped

fireworks = pytest.importorskip("fireworks")
httpx = pytest.importorskip("httpx")


def answered(status: int, body: Any = None, **headers: str) -> Exception:
    """What the SDK raises for an answer."""
    content = body if isinstance(body, str) else json.dumps(body)
    request = httpx.Request("POST", "http://127.0.0.1/v1")
    response = httpx.Response(status, request=request, content=content, headers=headers)
    client = fireworks.Fireworks(api_key="k", account_id="acme")
    return client._make_status_error_from_response(response)


def said(message: str) -> dict[str, Any]:
    return {"code": 3, "message": message, "details": []}


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: answered(401, said("key was revoked")), CredentialsError, "FIREWORKS_API_KEY .*revoked.*unrevoked"),
        (lambda: answered(403, said("no access")), CredentialsError, "FIREWORKS_ACCOUNT_ID"),
        (lambda: answered(412, said("Account acme is suspended")), VendorClosedError, "tuneport plan --provider all"),
        (lambda: answered(403, {"error": {"code": "training_not_available", "message": "no"}}), VendorClosedError, "takes no jobs"),
        (lambda: answered(413, said("150 MB")), ProviderError, "too large"),
        (lambda: answered(400, said("model x is not tunable")), ProviderError, "tuneport models"),
        (lambda: answered(400, said("model is deployed")), ProviderError, "undeploy"),
        (lambda: answered(400, said("request time too far in the past, clock skew")), ProviderError, "clock right"),
        (lambda: answered(400, "plain text"), ProviderError, "plain text"),
        (lambda: answered(400, ""), ProviderError, "no reason given"),
        (lambda: answered(403, "<!doctype html><b>Sign in</b>"), ProviderError, "proxy"),
        (lambda: answered(429, said("GPU quota exceeded")), ProviderError, "quota"),
    ],
)
def test_an_answer_says_what_is_wrong_and_what_to_do(make: Callable[[], Exception], kind: type[TuneportError], text: str) -> None:
    error = mapped(make())
    assert type(error) is kind
    assert error.fix
    assert re.search(text, str(error))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:30 GMT", "date": "Sun, 22 Nov 2026 12:00:00 GMT"}, 30),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    found = verdict(mapped(answered(429, said("slow down"), **headers)))
    assert (found.kind, found.after) == ("rate_limit", seconds)


@pytest.mark.parametrize(("reason", "way_out"), [("certificate is not yet valid", "clock"), ("self-signed certificate", "SSL_CERT_FILE")])
def test_a_certificate_that_is_not_accepted_points_at_clock_and_proxy(reason: str, way_out: str) -> None:
    try:
        raise fireworks.APIConnectionError(request=httpx.Request("GET", "http://127.0.0.1")) from ssl.SSLCertVerificationError(1, reason)
    except fireworks.APIConnectionError as error:
        found = mapped(error)
    assert way_out in found.fix
    assert verdict(found).kind == "no"


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fireworks", None)
    with pytest.raises(MissingExtraError, match=r"tuneport\[fireworks\]"):
        FireworksProvider().download("accounts/acme/dpoJobs/j-1", tmp_path)


@pytest.mark.parametrize("address", ["https://api.fireworks.ai", "https://api.fireworks.ai/inference/v1"])
def test_an_address_that_the_sdk_would_misread_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name, value in (("FIREWORKS_API_KEY", "fw_0123456789abcdef0"), ("FIREWORKS_ACCOUNT_ID", "acme"), ("FIREWORKS_BASE_URL", address)):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="FIREWORKS_BASE_URL"):
        FireworksProvider().poll("accounts/acme/dpoJobs/j-1")
