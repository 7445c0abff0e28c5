"""Together's errors as ours: every exception of the SDK together 3.1.1 (and of the httpx under it) has one meaning here.

| what Together or the way to it says                       | becomes                            | retry      |
| --------------------------------------------------------- | ---------------------------------- | ---------- |
| 401; 403                                                  | CredentialsError                   | no         |
| any status with ``training_not_available``                | VendorClosedError                  | no         |
| FileTypeError: the SDK's own check of a file              | DataError                          | no         |
| 429                                                       | ProviderError                      | rate_limit |
| other 4xx; 407 or a web page with 4xx (a proxy refused)   | ProviderError                      | no         |
| 408, 5xx, 3xx; a web page or broken JSON in a good answer | ProviderError                      | transient  |
| no connection, reset, timeout                             | ProviderError                      | transient  |
| the service's certificate is not valid (clock, proxy)     | ProviderError                      | no         |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import CredentialsError, DataError, ProviderError, TuneportError, VendorClosedError
from tuneport.providers.answers import CLOCK_FIX, brief, is_page, retry_after, unreachable

if TYPE_CHECKING:
    import together

KEY_VARIABLE = "TOGETHER_API_KEY"
KEY_FIX = f"set {KEY_VARIABLE} to a key of the account that is meant (api.together.ai, Settings, API keys)"
CLOSED_CODE = "training_not_available"
CLOSED_FIX = "move the job: tuneport plan --provider all shows who takes it, and at what price"
PROXY_FIX = "sign in to the network, or check HTTPS_PROXY and TOGETHER_BASE_URL"
LATER_FIX = "try again later; status.together.ai shows disturbances"

_NOT_TUNABLE = re.compile(r"model.{0,120}\b(?:not|isn't|no longer)\b.{0,40}\b(?:support|avail|tunable|fine-?tun|exist|found)", re.I | re.S)
_FILE_GONE = re.compile(r"\bfile.{0,80}\b(?:not found|does not exist|doesn't exist|expired|deleted|no such)", re.I | re.S)
_TOO_LARGE = re.compile(r"\b(?:too large|exceeds? the (?:maximum|max|limit)|file size)\b", re.I)
_CLOCK = re.compile(r"\b(?:clock|skew(?:ed)?|request timestamp|not yet valid)\b", re.I)
_REVOKED = re.compile(r"\b(?:revoked|expired|disabled|deactivated)\b", re.I)
_NO_ENDPOINT = re.compile(r"non-serverless|dedicated endpoint|model_not_available|no (?:running )?(?:endpoint|deployment)", re.I)


@contextmanager
def translated(*also: type[Exception]) -> Iterator[None]:
    """Raises what the SDK raises inside the block as an error of ours; ``also`` names what it raises beside its own classes.

    The original stays in ``__context__`` but is not printed with it: it may quote headers and signed addresses.
    """
    import httpx  # noqa: PLC0415 -- comes with the SDK

    kinds: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError, *also)
    try:
        yield
    except TuneportError:
        raise
    except Exception as error:
        if not isinstance(error, kinds) and type(error).__module__.partition(".")[0] != "together":
            raise
        raise mapped(error) from None


def mapped(error: BaseException) -> TuneportError:
    """The error of ours that an exception of the SDK means; one of ours is returned as it is."""
    import httpx  # noqa: PLC0415 -- comes with the SDK
    import together  # noqa: PLC0415
    from together.lib.resources.files import FileAlreadyExistsError  # noqa: PLC0415

    if isinstance(error, TuneportError):
        return error
    if isinstance(error, together.APIStatusError):
        return _by_status(error)
    if isinstance(error, (together.APITimeoutError, httpx.TimeoutException)):
        return ProviderError("Together did not answer in time", fix=LATER_FIX)
    if isinstance(error, (together.APIConnectionError, httpx.HTTPError)):
        return unreachable(error, "Together", "TOGETHER_BASE_URL")
    if isinstance(error, httpx.InvalidURL):
        return ProviderError(f"Together's address is not valid ({brief(error)})", fix="check TOGETHER_BASE_URL", retry="no")
    if isinstance(error, together.FileTypeError):
        return DataError(f"Together does not take the file ({brief(error)})", fix="train on fewer or shorter rows")
    if isinstance(error, FileAlreadyExistsError):
        return ProviderError(f"Together already holds this file as {error.file_id}", fix="submit again; the file is then used", retry="no")
    if isinstance(error, together.APIResponseValidationError):
        return unreadable(error.response.headers.get("content-type", ""), str(error.body))
    if isinstance(error, together.TogetherError) and "api_key" in str(error):
        return CredentialsError(f"{KEY_VARIABLE} is not set", fix=KEY_FIX)
    if isinstance(error, ValueError):  # JSON that is cut off
        return unreadable("application/json", str(error))
    return ProviderError(f"Together's SDK failed ({type(error).__name__}: {brief(error)})", fix=LATER_FIX)


def unreadable(content_type: str, text: str) -> ProviderError:
    """The error for an answer that is no JSON. Transient: it does not say whether the request took effect."""
    if is_page(content_type, text):
        return ProviderError("something between here and Together answered with a web page in its place", fix=PROXY_FIX)
    return ProviderError(f"Together's answer cannot be read ({brief(text) or 'it is empty'})", fix=LATER_FIX)


def lacks_endpoint(error: BaseException) -> bool:
    """Whether a chat call failed because nothing serves the model."""
    import together  # noqa: PLC0415

    if not isinstance(error, together.APIStatusError) or error.status_code not in (400, 403, 404, 422):
        return False
    message, code = _said(error)
    return error.status_code == 404 or bool(_NO_ENDPOINT.search(f"{code} {message}"))


def _by_status(error: together.APIStatusError) -> TuneportError:
    status = error.status_code
    message, code = _said(error)
    said = f"{status}: {message}" if message else str(status)
    if status == 407 or is_page(error.response.headers.get("content-type", ""), _text(error)):
        what = f"something between here and Together answered with a web page in its place (status {status})"
        return ProviderError(what, fix=PROXY_FIX, retry="no" if 400 <= status < 500 and status not in (408, 429) else "transient")
    if CLOSED_CODE in (code, message) or CLOSED_CODE in message:
        return VendorClosedError(f"Together takes no fine-tuning jobs from this account ({said})", fix=CLOSED_FIX)
    if _CLOCK.search(message) and 400 <= status < 500:
        return ProviderError(f"Together finds this machine's clock wrong ({said})", fix=CLOCK_FIX, retry="no")
    match status:
        case 401:
            how = "was revoked or has expired" if _REVOKED.search(message) else "is not a key of Together's"
            return CredentialsError(f"the key in {KEY_VARIABLE} {how} ({said})", fix=KEY_FIX)
        case 402:
            fix = "add credit in the account's settings at api.together.ai"
            return ProviderError(f"Together wants credit on the account first ({said})", fix=fix, retry="no")
        case 403:
            return CredentialsError(f"the key in {KEY_VARIABLE} has no right to this at Together ({said})", fix=KEY_FIX)
        case 413:
            return ProviderError(f"the file is too large for Together ({said})", fix="train on fewer or shorter rows", retry="no")
        case 429:
            fix, pause = "wait, or ask Together for a higher rate", retry_after(error.response.headers)
            return ProviderError(f"Together asks to slow down ({said})", fix=fix, retry="rate_limit", retry_after=pause)
        case 408:
            return ProviderError(f"Together gave up waiting for the request ({said})", fix=LATER_FIX)
    if 400 <= status < 500:
        return _refusal(status, message, said)
    if status >= 500:
        return ProviderError(f"Together failed ({said})", fix=LATER_FIX)
    return ProviderError(f"Together's answer is not the one expected ({said})", fix=PROXY_FIX)


def _refusal(status: int, message: str, said: str) -> ProviderError:
    if _FILE_GONE.search(message):
        what, fix = "no longer holds a file of this job", "submit again; its files are uploaded anew"
    elif _NOT_TUNABLE.search(message):
        what, fix = "does not tune this model", "choose another: tuneport models --provider together"
    elif status != 404 and _TOO_LARGE.search(message):
        what, fix = "finds the data too large", "train on fewer or shorter rows"
    elif status == 404:
        what, fix = "knows no such thing", f"check that {KEY_VARIABLE} belongs to the account that made it, and that it was not deleted"
    elif status == 409:
        what, fix = "finds the request in conflict with what it holds", "look at the job's state first: tuneport status"
    else:
        what, fix = "refuses the request", "change what the message names, then submit again"
    return ProviderError(f"Together {what} ({said})", fix=fix, retry="no")


def _said(error: together.APIStatusError) -> tuple[str, str]:
    """(message, code) of an error body, in either form that Together uses: {"error": {...}} or {"message": ...}."""
    body: Any = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping):
            return brief(inner.get("message") or ""), str(inner.get("code") or inner.get("type") or "")
        return brief(inner), str(body.get("code") or "")
    return brief(body or ""), ""


def _text(error: together.APIStatusError) -> str:
    return error.body if isinstance(error.body, str) else ""
