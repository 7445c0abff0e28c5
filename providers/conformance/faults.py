"""What can go wrong with one request. Each is scripted for the n-th request of a route (``FakeVendor.fault``).

``after=True`` means that the vendor first does what it is asked, and then the answer is lost or spoilt: the case in
which a careless client pays twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. What is set happens, in this order: ``call``, a pause, then a broken connection, ``raw`` or ``status``."""

    name: str
    after: bool = False  # the vendor does what is asked before it goes wrong
    status: int | None = None  # answer with this status and an error in the vendor's format
    message: str = ""
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: tuple[str, bytes] | None = None  # answer with this content type and body instead, status 200 unless set
    reset: bool = False  # break the connection without an answer
    seconds: float = 0.0  # wait so long before the answer
    call: Callable[[], object] | None = None  # e.g. kill the client

    def __str__(self) -> str:
        return f"{self.name}, {'after' if self.after else 'before'} the vendor acted"


def rate_limit(retry_after: float | None = 7) -> Fault:
    """429, with a Retry-After header unless None. Nothing takes effect."""
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    return Fault("429", status=429, message="Rate limit reached for requests", code="rate_limit_exceeded", headers=headers)


def server_error(*, after: bool = False, status: int = 500) -> Fault:
    """A 5xx answer."""
    return Fault(str(status), after=after, status=status, message="The server had an error while processing your request")


def reset(*, after: bool = False) -> Fault:
    """The connection breaks (TCP reset)."""
    return Fault("connection reset", after=after, reset=True)


def slow(seconds: float) -> Fault:
    """The vendor acts and answers so many seconds later; when the client does not wait, it is a timeout after the act."""
    return Fault(f"answer {seconds:g} s late", after=True, seconds=seconds)


def malformed(*, after: bool = False) -> Fault:
    """Status 200 and JSON that is cut off."""
    return Fault("malformed JSON", after=after, raw=("application/json", b'{"id": "cut-o'))


def html(*, after: bool = False, status: int = 200) -> Fault:
    """A proxy's page in place of the vendor's answer."""
    page = b"<!DOCTYPE html><html><head><title>Sign in to the network</title></head><body>Corporate proxy</body></html>"
    return Fault(f"HTML {status}", after=after, status=status, raw=("text/html; charset=utf-8", page))


def refusal(status: int, message: str, code: str | None = None) -> Fault:
    """A definite error in the vendor's own format; nothing takes effect."""
    return Fault(str(status), status=status, message=message, code=code)


def kill(client: Callable[[], object], *, after: bool = False) -> Fault:
    """``client()`` kills the client's process, before or after the vendor acts; no answer is sent."""
    return Fault("kill -9", after=after, call=client, reset=True)


def lost_replies() -> tuple[Fault, ...]:
    """Every way in which the vendor acts and the client does not hear of it (timeouts excepted, which take their time)."""
    return (reset(after=True), server_error(after=True), server_error(after=True, status=503), malformed(after=True), html(after=True))


def unheard_requests() -> tuple[Fault, ...]:
    """Every way in which the vendor does not act."""
    return (reset(), server_error(), rate_limit(), html(status=502), malformed())
