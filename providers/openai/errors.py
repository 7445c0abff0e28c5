"""Errors of the openai SDK as ours: one sentence, a remedy, and whether to call again.

| met                                                         | becomes                       |
| ----------------------------------------------------------- | ----------------------------- |
| no connection, timeout, 408, 409, 425, 5xx                  | ProviderError, transient      |
| a certificate that is not accepted (clock, proxy)           | ProviderError, no             |
| an answer that is HTML, cut off, or not what was asked for  | ProviderError, transient      |
| 429                                                         | ProviderError, rate limit     |
| 429 because the account has no credit                       | ProviderError, no             |
| 401; 403; no or wrong organisation                          | CredentialsError              |
| code training_not_available                                 | VendorClosedError             |
| any other 4xx                                               | ProviderError, no             |
| any other error of the SDK                                  | ProviderError, no             |

409 counts as transient since the SDK itself takes it for a lock that was not had in time (openai 3.54.0, _base_client).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError, VendorClosedError
from tuneport.providers.answers import brief, is_page, retry_after, unreachable

KEY_VARIABLE = "OPENAI_API_KEY"
WAY_OUT = "move the job to a provider that is open: tuneport plan --provider all"
WHO_MAY = (
    "since 2026-05-07 only organisations that have fine-tuned before, and since 2026-07-02 only those that use a tuned model, may create"
    " jobs; the last day is 2027-01-06"
)
"""Source: OpenAI, Deprecations, section on self-serve fine-tuning (vendor survey of 2026-11-22)."""

_CLOSED = frozenset({"training_not_available"})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_NO_MODEL = frozenset({"model_not_found", "model_not_available", "model_not_supported"})
_WRONG_ACCOUNT = frozenset({"invalid_organization", "mismatched_organization", "mismatched_project", "account_deactivated"})
_AGAIN = frozenset({408, 409, 425})


@contextmanager
def translated(call: str, service: str = "OpenAI") -> Iterator[None]:
    """Whatever the SDK raises in the block leaves it as an error of ours. ``call`` says what was tried, e.g. "to read job x"."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) and type(error).__module__.partition(".")[0] != "openai":
            raise
        raise mapped(error, call, service) from error


def mapped(error: Exception, call: str = "to answer", service: str = "OpenAI") -> TuneportError:
    """An exception of the SDK (or of reading its answer) as an error of ours; see the table above."""
    import openai  # noqa: PLC0415

    match error:
        case openai.APITimeoutError():
            return ProviderError(f"{service} was asked {call} and did not answer in time", fix="try again; nothing is lost")
        case openai.APIConnectionError():
            return unreachable(error, service, "OPENAI_BASE_URL")
        case openai.APIResponseValidationError():
            return unreadable(call, service)
        case openai.APIStatusError():
            return _refused(error, call, service)
        case ValueError() if not isinstance(error, openai.InvalidWebhookSignatureError):
            return unreadable(call, service)
    what = f"{service} was asked {call}, and its SDK failed: {type(error).__name__}: {brief(str(error))}"
    return ProviderError(what, fix="update it with: pip install -U openai", retry="no")


def unreadable(call: str, service: str = "OpenAI") -> ProviderError:
    """The error for an answer that is not what the vendor's API promises."""
    return ProviderError(
        f"{service} was asked {call}, and what came back is not an answer of its API (a web page, or cut off)",
        fix="check for a proxy or sign-in page in between (HTTPS_PROXY, OPENAI_BASE_URL), then try again",
    )


def parsed(raw: Any, call: str, service: str = "OpenAI") -> Any:
    """The content of a raw response of the SDK. Raises ProviderError when it is no JSON: the SDK would hand a web page on as text."""
    if "json" not in raw.headers.get("content-type", ""):
        raise unreadable(call, service)
    return raw.parse()


def no_key(variable: str = KEY_VARIABLE) -> CredentialsError:
    """The error for a key that is not set, or that no header can carry."""
    what = f"no key for OpenAI: {variable} is not set, or holds characters that no key has"
    return CredentialsError(what, fix=f"put your key into the environment variable {variable}")


def closed(what: str) -> VendorClosedError:
    """OpenAI takes no (more) jobs; ``what`` says why."""
    return VendorClosedError(what, fix=WAY_OUT)


def _refused(error: Any, call: str, service: str) -> TuneportError:
    status, code = int(error.status_code), error.code or ""
    if is_page(error.response.headers.get("content-type", ""), error.body if isinstance(error.body, str) else ""):
        return _page(status, call, service)
    said = f"{status}{f' {code}' if code else ''}: {brief(_message(error))}"
    if code in _CLOSED:
        return closed(f"{service} takes no fine-tuning jobs from this account ({said}); {WHO_MAY}")
    if code in _NO_CREDIT:
        return ProviderError(f"the account at {service} has no credit left ({said})", fix="add credit or raise its limit", retry="no")
    if code in _WRONG_ACCOUNT:
        fix = f"check that OPENAI_ORG_ID and OPENAI_PROJECT_ID belong to the key in {KEY_VARIABLE}"
        return CredentialsError(f"{service} does not take this key for this organisation or project ({said})", fix=fix)
    if status == 401:
        fix = f"put a valid key into {KEY_VARIABLE}; it may be mistyped, revoked or of another service"
        return CredentialsError(f"{service} does not accept the key ({said})", fix=fix)
    if status == 403:
        fix = "use a key with the right for fine-tuning, models and files in this project, or another project (OPENAI_PROJECT_ID)"
        return CredentialsError(f"the key lacks the right {call} at {service} ({said})", fix=fix)
    if status == 429:
        pause = retry_after(error.response.headers)
        return ProviderError(f"{service} asks to slow down ({said})", fix="it is tried again later", retry="rate_limit", retry_after=pause)
    if status >= 500 or status in _AGAIN:
        return ProviderError(f"{service} was asked {call} and failed ({said})", fix="try again; nothing is lost")
    return ProviderError(f"{service} was asked {call} and refuses ({said})", fix=_remedy(status, code, error.param), retry="no")


def _remedy(status: int, code: str, param: str | None) -> str:
    if status == 413 or code == "file_too_large":
        return "make the file smaller: fewer or shorter rows"
    if code in _NO_MODEL or param == "model":
        return "choose a model that this account can use: tuneport models, tuneport plan --online"
    if param in ("training_file", "validation_file"):
        return "the uploaded file is gone or was refused; submit the job anew, which uploads it again"
    if status == 404:
        return "check the name, and that the key belongs to the project that owns it (OPENAI_PROJECT_ID)"
    return f"correct {param} in the spec" if param else "correct what it names, then submit again"


def _page(status: int, call: str, service: str) -> ProviderError:
    return ProviderError(
        f"{service} was asked {call}, and a web page came back (status {status}), from a proxy or gateway in between",
        fix="check HTTPS_PROXY, sign in to the network, or try again later",
    )


def _message(error: Any) -> str:
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error")
        found = inner if isinstance(inner, Mapping) else body
        return str(found.get("message") or "no reason given")
    return str(body or "no reason given")
