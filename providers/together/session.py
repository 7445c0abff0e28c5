"""Together's SDK as tuneport uses it: keys from the environment, no retries of its own, answers as plain JSON."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import CredentialsError, MissingExtraError, ProviderError, UsageError
from tuneport.providers.exchange import mask_logs
from tuneport.providers.together.errors import KEY_FIX, KEY_VARIABLE, translated, unreadable

if TYPE_CHECKING:
    import together

TITLE = "Together"
TIMEOUT_S = 60.0
"""Longest wait for one answer, in seconds: what the SDK itself waits (together 3.1.1, ``_constants.py``)."""
CONNECT_S = 10.0
CONNECTIONS = 100
"""Connections that are kept open, at least (httpx's own default is 20)."""
_LOGGERS = ("together._base_client", "together.lib.resources.files", "httpx", "httpcore.http11", "httpcore.connection")
_TLS_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@contextmanager
def session(address: str | None = None, *, timeout_s: float = TIMEOUT_S, connections: int = CONNECTIONS) -> Iterator[together.Together]:
    """The SDK's client at ``address`` (without /v1), or where TOGETHER_BASE_URL points, or at Together's own address.

    Errors of the SDK come out as ours. Raises MissingExtraError without the SDK and CredentialsError without a key.
    """
    try:
        import httpx  # noqa: PLC0415 -- comes with the SDK
        import together  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("Together's SDK is not installed", "together") from error
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise CredentialsError(f"{KEY_VARIABLE} is not set, and Together wants a key", fix=KEY_FIX)
    if not (key.isascii() and key.isprintable()):
        raise CredentialsError(f"{KEY_VARIABLE} holds characters that no key has", fix=KEY_FIX)
    mask_logs(*_LOGGERS)
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
    kept = max(CONNECTIONS, connections)
    limits = httpx.Limits(max_connections=kept, max_keepalive_connections=kept)
    transport = together.DefaultHttpxClient(verify=_tls(*map(os.environ.get, _TLS_VARIABLES)), timeout=timeout, limits=limits)
    # Never retried by the SDK: create would be paid twice, and for the rest core.retry is the one policy.
    with translated(), together.Together(api_key=key, base_url=address, timeout=timeout, max_retries=0, http_client=transport) as client:
        yield client


@lru_cache(maxsize=4)
def _tls(*_variables: str | None) -> ssl.SSLContext:
    """The certificates that are trusted. Kept, because reading them takes 0.05 s, longer than most answers."""
    import httpx  # noqa: PLC0415

    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise UsageError(f"SSL_CERT_FILE or SSL_CERT_DIR names no certificates ({error.strerror})", fix="correct or unset it") from error


def document(answer: Any) -> dict[str, Any]:
    """The JSON object in an answer of the SDK's ``with_raw_response``, or in a bare httpx response.

    Raises ProviderError (transient) when it is none: the SDK would hand on a proxy's web page as text.
    """
    response = getattr(answer, "http_response", answer)
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise unreadable(response.headers.get("content-type", ""), response.text)
    return body


def listed(answer: Any, name: str = "data") -> list[dict[str, Any]]:
    """The list of objects under ``name`` in an answer; an absent list, or null, is empty only where the answer is an object."""
    found = document(answer).get(name)
    if found is not None and not isinstance(found, list):
        raise ProviderError(f"Together's answer has no list under {name!r}", fix="look again later")
    return [entry for entry in found or () if isinstance(entry, dict)]


def gone(call: Callable[[], object]) -> bool:
    """Make a call; True when Together answers that the thing does not exist (404)."""
    import together  # noqa: PLC0415

    try:
        call()
    except together.NotFoundError:
        return True
    return False
