"""Fireworks' errors in our words.

    401 wrong or revoked key                        CredentialsError
    403 key without the right, or another account   CredentialsError
    account suspended, training closed to it        VendorClosedError
    429                                             ProviderError, rate_limit, with Retry-After where it is given
    other 4xx                                       ProviderError, no
    408, 425, 5xx, timeouts, resets                 ProviderError, transient: nobody knows whether the call took effect
    an answer that is not JSON (a proxy's page)     likewise

Sources: fireworks-ai 1.2.28, ``_exceptions.py``; fw-ai/cookbook, error reference (2026-08).
"""

from __future__ import annotations

from typing import Any

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError, VendorClosedError
from tuneport.providers.answers import brief, is_page, retry_after, unreachable

_MOVE = "see where else this job can run: tuneport plan --provider all"
_AGAIN = "try again; what was begun stands in the ledger, so nothing is lost"
_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("not tunable", "support fine-tuning", "be fine-tuned"), "choose a base model that can be tuned: tuneport models"),
    (("deployed", "in use"), "take it off its deployment first: tuneport undeploy"),
    (("quota",), "ask Fireworks for a higher quota, or wait until other jobs have ended"),
    (("150 mb", "too large", "maximum size"), "send fewer or shorter rows"),
    (("skew", "clock", "too far in the", "request has expired"), "set this machine's clock right"),
    (("dataset",), "look at the rows that the message names, or submit again so that they are uploaded anew"),
)
"""Words in a definite refusal -> how to mend it. Only the advice depends on them, never the verdict."""


def mapped(error: BaseException) -> TuneportError:
    """The error of ours for any error of the SDK, of its HTTP client, or of reading an answer.

    Errors of ours come back unchanged. What is not known becomes a ProviderError with the safe verdict, transient.
    """
    import fireworks  # noqa: PLC0415 -- an extra; whoever has its errors has it installed
    import httpx  # noqa: PLC0415
    from fireworks.lib.dataset_upload import DatasetUploadError  # noqa: PLC0415

    if isinstance(error, TuneportError):
        return error
    if isinstance(error, fireworks.APIStatusError):
        return _by_status(error.status_code, error.body, dict(error.response.headers))
    if isinstance(error, fireworks.APIResponseValidationError):
        return unreadable(error.status_code, error.body)
    if isinstance(error, httpx.HTTPStatusError):  # a signed URL, outside of the SDK's client
        return _by_status(error.response.status_code, error.response.text, dict(error.response.headers))
    if isinstance(error, (fireworks.APITimeoutError, httpx.TimeoutException)):
        return ProviderError("Fireworks did not answer in time", fix=_AGAIN)
    if isinstance(error, (fireworks.APIConnectionError, httpx.HTTPError, ConnectionError)):
        return unreachable(error, "Fireworks", "FIREWORKS_BASE_URL")
    if isinstance(error, DatasetUploadError):
        return ProviderError(f"the rows cannot be uploaded to Fireworks ({brief(error)})", fix="upload them with firectl", retry="no")
    if isinstance(error, (ValueError, httpx.StreamError)):
        return ProviderError(f"Fireworks' answer cannot be read ({brief(error)})", fix=_AGAIN)
    return ProviderError(f"the call to Fireworks failed ({type(error).__name__}: {brief(error)})", fix=_AGAIN)


def unreadable(status: int, body: object) -> ProviderError:
    """The error for an answer that is not what Fireworks sends: a proxy's HTML page, or JSON that is cut off."""
    if is_page("", str(body)):
        what = f"a web page came back in place of Fireworks' answer (status {status}); a proxy or a login page stands in between"
        return ProviderError(what, fix="check HTTPS_PROXY, FIREWORKS_BASE_URL and the network")
    return ProviderError(f"Fireworks' answer is not valid JSON (status {status})", fix=_AGAIN)


def vendor_message(body: object) -> str:
    """What Fireworks says in an error's body, in one line: ``{"code", "message"}`` or ``{"error": {"message"}}`` or text."""
    found: Any = body
    for _ in range(3):
        if not isinstance(found, dict):
            break
        found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), "")
    return brief(found or "").rstrip(". ")


def _by_status(status: int, body: object, headers: dict[str, str]) -> TuneportError:
    if is_page("", str(body)):
        return unreadable(status, body)
    message = vendor_message(body) or "no reason given"
    low = f"{message} {_code(body)}".lower()
    if status == 401:
        return CredentialsError(f"Fireworks does not accept the key in FIREWORKS_API_KEY ({message})", fix="set a valid, unrevoked key")
    if status in (402, 403, 412) and any(word in low for word in ("suspended", "training_not_available", "not available for your account")):
        return VendorClosedError(f"Fireworks takes no jobs from this account ({message})", fix=f"settle it with Fireworks, or {_MOVE}")
    if status == 403:
        fix = "use a key with the right to train, and check FIREWORKS_ACCOUNT_ID"
        return CredentialsError(f"the key in FIREWORKS_API_KEY may not do this ({message})", fix=fix)
    if status == 429:
        what = f"Fireworks asks to slow down, or the account's quota is used up ({message})"
        return ProviderError(what, fix="try again later", retry="rate_limit", retry_after=retry_after(headers))
    if status == 503 and "deployment_scaling_up" in low:
        what = "the deployment is waking up (DEPLOYMENT_SCALING_UP)"
        return ProviderError(what, fix="ask again in some minutes", retry_after=retry_after(headers))
    if status in (408, 425) or status >= 500:
        return ProviderError(f"Fireworks failed with status {status} ({message})", fix=_AGAIN, retry_after=retry_after(headers))
    if status == 413:
        return ProviderError(f"Fireworks finds the file too large ({message})", fix="send fewer or shorter rows", retry="no")
    if status == 404:
        return ProviderError(f"Fireworks does not know it ({message})", fix="check the name, and FIREWORKS_ACCOUNT_ID", retry="no")
    if status == 409:
        return ProviderError(f"Fireworks has something of that name already ({message})", fix="choose another name", retry="no")
    advice = next((fix for words, fix in _ADVICE if any(word in low for word in words)), "change what the message names")
    return ProviderError(f"Fireworks refuses this with status {status} ({message})", fix=advice, retry="no")


def _code(body: object) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str((error if isinstance(error, dict) else {}).get("code") or "")
