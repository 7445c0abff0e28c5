"""Together's SDK as tuneport uses it: keys from the environment, no retries of its own, answers as plain JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import CredentialsError, MissingExtraError, ProviderError
from tuneport.core.plan import Plan
from tuneport.providers.together.errors import KEY_FIX, KEY_VARIABLE, translated, unreadable

if TYPE_CHECKING:
    import together

TIMEOUT_S = 60.0
"""Longest wait for one answer, in seconds: what the SDK itself waits (together 3.1.1, ``_constants.py``)."""
CONNECT_S = 10.0


@contextmanager
def session(address: str | None = None, *, timeout_s: float = TIMEOUT_S) -> Iterator[together.Together]:
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
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
    # Never retried by the SDK: create would be paid twice, and for the rest core.retry is the one policy.
    with translated(), together.Together(api_key=key, base_url=address, timeout=timeout, max_retries=0) as client:
        yield client


def address_of(plan: Plan) -> str | None:
    """The service's address that the spec names (options.together.base_url); None means the environment's."""
    named = (o.value for o in plan.outcomes if o.path == "options.together.base_url" and o.value is not None)
    return next((str(address).rstrip("/") for address in named), None)


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


def filled(value: Any, files: Mapping[str, str]) -> Any:
    """A payload with its references carried out: ``${upload:role}`` from ``files``, ``${env:NAME}`` from the environment.

    Raises CredentialsError for a variable that is not set, ProviderError for a file that was not uploaded.
    """
    if isinstance(value, dict):
        return {name: filled(entry, files) for name, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry, files) for entry in value]
    if not isinstance(value, str) or not (value.startswith("${") and value.endswith("}")):
        return value
    kind, _, name = value[2:-1].partition(":")
    if kind == "upload":
        if name not in files:
            raise ProviderError(f"the job's {name} file was not uploaded to Together", fix="submit the job again", retry="no")
        return files[name]
    if kind == "env":
        found = os.environ.get(name, "").strip()
        if not found:
            raise CredentialsError(f"{name} is not set, and the job hands it on to Together", fix=f"set {name}, or remove what needs it")
        return found
    return value


def require_secrets(plan: Plan) -> None:
    """Raises CredentialsError when the payload needs a variable that is not set: before anything is uploaded."""
    filled({name: value for name, value in plan.payload.items() if isinstance(value, str) and value.startswith("${env:")}, {})
