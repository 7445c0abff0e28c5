"""Fireworks' SDK as tuneport uses it: keys from the environment, no retries of its own, answers as plain JSON.

Answers are read as JSON documents, not as the SDK's types: these drop nothing and know no state that is newer than they are.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuneport.core.errors import CredentialsError, MissingExtraError, TuneportError, UsageError
from tuneport.core.plan import Plan
from tuneport.providers.exchange import at, mask_logs, option, split
from tuneport.providers.fireworks.errors import mapped, unreadable

if TYPE_CHECKING:
    import fireworks

TIMEOUT_S = 60.0
"""Longest wait for one answer, in seconds: what the SDK itself waits (fireworks-ai 1.2.28, ``_constants.py``)."""
CONNECT_S = 10.0
CONNECTIONS = 100
"""Connections that are kept open, at least (httpx's own default is 20)."""
OWN_HOST = "api.fireworks.ai"
PAGE = 200
"""Most entries of one page of a list (docstrings of the SDK)."""


@dataclass(frozen=True, slots=True)
class Family:
    """One of the three kinds of jobs: the SDK's resource, and its parameter for the job's id."""

    resource: str
    id_parameter: str


FAMILIES = {
    "supervisedFineTuningJobs": Family("supervised_fine_tuning_jobs", "supervised_fine_tuning_job_id"),
    "dpoJobs": Family("dpo_jobs", "dpo_job_id"),
    "reinforcementFineTuningJobs": Family("reinforcement_fine_tuning_jobs", "reinforcement_fine_tuning_job_id"),
}
"""By their name in a resource's name, which is also the name of the list in an answer."""

_REF = re.compile(rf"(?:accounts/(?P<account>[^/]+)/)?(?P<family>{'|'.join(FAMILIES)})/(?P<id>[^/]+)")
_MODEL = re.compile(r"accounts/(?P<account>[^/]+)/models/(?P<id>[^/#]+)")


@dataclass(frozen=True, slots=True)
class Ref:
    """A job's place: ``accounts/A/supervisedFineTuningJobs/J``, behind it ``@address`` where it is not the environment's."""

    family: str
    id: str
    account: str | None = None
    address: str | None = None

    @classmethod
    def parse(cls, ref: str) -> Ref:
        """Raises UsageError when the text is no ref of a Fireworks job. The account may be left out."""
        name, address = split(ref)
        found = _REF.fullmatch(name)
        if found is None:
            raise UsageError(f"{ref!r} is no Fireworks job", fix="write it as accounts/ACCOUNT/supervisedFineTuningJobs/JOB")
        return cls(found["family"], found["id"], found["account"], address)

    @classmethod
    def planned(cls, plan: Plan, key: str) -> Ref:
        """Where the job of a plan with this key stands, or would stand: the key is the job's id."""
        family = plan.operation.rpartition("/")[2]
        if family not in FAMILIES:
            raise UsageError(f"{plan.operation!r} makes no Fireworks job", fix="plan the job anew: tuneport plan")
        address = option(plan, "base_url")
        return cls(family, key, option(plan, "account_id"), address.rstrip("/") if address else None)


def model_parts(name: str) -> tuple[str, str]:
    """(account, id) of ``accounts/A/models/M``. Raises UsageError for anything else."""
    found = _MODEL.fullmatch(name)
    if found is None:
        raise UsageError(f"{name!r} is no Fireworks model", fix="write it as accounts/ACCOUNT/models/MODEL")
    return found["account"], found["id"]


class Api:
    """The open client, and the account whose resources are meant."""

    def __init__(self, client: fireworks.Fireworks, account: str, address: str | None) -> None:
        self.client, self.account, self._address = client, account, address

    def at(self, name: str) -> str:
        """A name with the service's address behind it, where that is not the one of the environment."""
        return at(name, self._address)

    @property
    def address(self) -> str:
        """Where the service really is."""
        return str(self.client.base_url)

    def jobs(self, family: str) -> Any:
        """The raw resource of a family of jobs."""
        return getattr(self.client, FAMILIES[family].resource).with_raw_response

    def ask(self, call: Callable[..., Any], *args: Any, **named: Any) -> dict[str, Any]:
        """The JSON object that a method of a ``with_raw_response`` resource brings. Raises errors of ours only."""
        with translated():
            return document(call(*args, **({"account_id": self.account} | named)))

    def pages(self, call: Callable[..., Any], name: str, **named: Any) -> Iterator[dict[str, Any]]:
        """The entries of a list, page by page as they are taken."""
        token = ""
        while True:
            page = self.ask(call, **named, **({"page_token": token} if token else {}))
            yield from (entry for entry in page.get(name) or () if isinstance(entry, dict))
            token = str(page.get("nextPageToken") or "")
            if not token:
                return


@contextmanager
def session(
    account: str | None = None, address: str | None = None, *, timeout_s: float = TIMEOUT_S, connections: int = CONNECTIONS
) -> Iterator[Api]:
    """An open client for ``account`` (else FIREWORKS_ACCOUNT_ID) at ``address`` (else FIREWORKS_BASE_URL, else Fireworks).

    Raises MissingExtraError without the SDK, CredentialsError that names every variable that is missing, and UsageError when
    the address is that of Fireworks itself: the SDK then asks for paths that only a service of one's own has.
    """
    try:
        import fireworks  # noqa: PLC0415 -- an extra, and slow to import
        import httpx  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("Fireworks' SDK is not installed", "fireworks") from error
    key = os.environ.get("FIREWORKS_API_KEY", "").strip()
    account = account or os.environ.get("FIREWORKS_ACCOUNT_ID", "").strip()
    missing = [name for name, value in (("FIREWORKS_API_KEY", key), ("FIREWORKS_ACCOUNT_ID", account)) if not value]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        fix = "set it in the environment; both stand in Fireworks' console, and training wants a key with the right to train"
        raise CredentialsError(f"{' and '.join(missing)} {verb} not set, and every call to Fireworks needs both key and account", fix=fix)
    given = address or os.environ.get("FIREWORKS_BASE_URL", "")
    if urlsplit(given).hostname == OWN_HOST:
        what = f"the address {given} is Fireworks' own, which the SDK reaches by other paths when it is given explicitly"
        raise UsageError(what, fix="remove options.fireworks.base_url and FIREWORKS_BASE_URL")
    mask_logs("fireworks._base_client", "httpx")
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
    with translated():
        kept = max(CONNECTIONS, connections)
        limits = httpx.Limits(max_connections=kept, max_keepalive_connections=kept)
        http = fireworks.DefaultHttpxClient(verify=certificates(), timeout=timeout, limits=limits)
        # Never retried by the SDK: core.retry is the one policy, and create is not retried at all.
        with fireworks.Fireworks(
            api_key=key, account_id=account, base_url=address, timeout=timeout, max_retries=0, http_client=http
        ) as client:
            yield Api(client, account, address)


@lru_cache(maxsize=1)
def certificates() -> ssl.SSLContext:
    """The authorities that are trusted, as httpx picks them. Reading them takes longer than a request."""
    import httpx  # noqa: PLC0415

    return httpx.create_ssl_context()


@contextmanager
def translated() -> Iterator[None]:
    """Raises what goes wrong inside the block as an error of ours.

    The original stays in ``__context__`` (``status_of``) but is not printed with it: it may quote a key.
    """
    try:
        yield
    except TuneportError:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever the SDK raises becomes one of ours
        raise mapped(error) from None


def status_of(error: TuneportError) -> int | None:
    """The HTTP status that an error of ours stands for; None when there was no answer with one."""
    status = getattr(error.__context__, "status_code", None)
    return status if isinstance(status, int) else None


def exists_already(error: TuneportError) -> bool:
    """Whether the vendor refused to make something because its id is taken: 409, or gRPC code 6 (ALREADY_EXISTS) in the body."""
    body = getattr(error.__context__, "body", None)
    told = body.get("code") if isinstance(body, dict) else None
    return status_of(error) == 409 or told in (6, "ALREADY_EXISTS")


def document(answer: Any) -> dict[str, Any]:
    """The JSON object in a raw answer of the SDK. Raises ProviderError (transient) for a web page, or JSON that is cut off."""
    response = answer.http_response
    try:
        found = json.loads(response.content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise unreadable(response.status_code, response.text)
    return found
