"""A fake vendor over HTTP on 127.0.0.1. Subclass it with the vendor's routes; the vendor's own SDK is the client.

    class AcmeVendor(FakeVendor):
        secret = "acme-test-key"

        @route("POST", "/v1/jobs", "create")
        def create(self, request: Request) -> Reply: ...

    with AcmeVendor() as vendor:      # serves until the block ends
        vendor.fault("create", reset(after=True))

The vendor's state is ``books``, plain JSON. It lives in the process that serves, so it outlives clients in other
processes; with ``folder`` it is also kept on disk and outlives the server.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote

from tuneport.providers.conformance.faults import Fault
from tuneport.providers.conformance.listener import Listener
from tuneport.providers.conformance.wire import Reply, Request, VendorError

__all__ = ["FakeVendor", "Logged", "Made", "Reply", "Request", "VendorError", "route"]


@dataclass(frozen=True, slots=True)
class Logged:
    """One line of the request log. ``status`` is None when the connection was broken instead."""

    route: str
    request: Request
    status: int | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """One job that was really made: its id, the key that travelled with it, and the body that made it."""

    ref: str
    key: str | None
    body: dict[str, Any]


Handler = Callable[[Any, Request], "Reply | dict[str, Any]"]
H = TypeVar("H", bound=Handler)


def route(method: str, path: str, name: str) -> Callable[[H], H]:
    """Marks a method of a FakeVendor as the answer to ``method path``; ``{x}`` in the path becomes ``request.params["x"]``.

    Faults and the log know the route by ``name``. The suite expects "create", "list" (jobs), "poll", "events" and
    "cancel"; several routes may share a name. ``{x...}`` also matches slashes.
    """

    def mark(handler: H) -> H:
        pattern = re.sub(r"\\{(\w+)(\\\.\\\.\\\.)?\\}", lambda m: f"(?P<{m[1]}>{'.+' if m[2] else '[^/]+'})", re.escape(path))
        handler.__dict__["route"] = (method, re.compile(pattern), name)
        return handler

    return mark


class FakeVendor(ABC):
    """A vendor's side of the wire, with its books.

    What a test does to the vendor: ``fault``, ``set_state``, ``advance``, ``list_lag``, ``forget``, ``expire_files``,
    ``closed``, ``skew_seconds``. What it may look at: ``made``, ``log``, ``snapshot``, ``file``.
    """

    secret: ClassVar[str]
    """The key that a client must present; the suite checks that it turns up nowhere."""
    script: ClassVar[tuple[str, ...]]
    """The raw states that ``advance`` goes through; the last one is success."""
    submission_routes: ClassVar[tuple[str, ...]]
    """Names of the routes that a submission uses, in their order."""
    deployment_routes: ClassVar[tuple[str, ...]] = ()
    """Names of the routes that making a deployment uses, in their order; none where the vendor has no deployments."""
    removal_routes: ClassVar[tuple[str, ...]] = ()
    """Names of the routes that taking one down uses."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / "vendor.json" if folder else None
        stored = self._file.read_text() if self._file and self._file.exists() else ""
        self._books: dict[str, Any] = json.loads(stored) if stored else {"next": 1, "jobs": {}, "files": {}, "made": []}
        self._lock = threading.RLock()
        self._faults: dict[str, dict[int, Fault]] = {}
        self._calls: Counter[str] = Counter()
        self._hidden: dict[str, int] = {}
        self.log: list[Logged] = []
        self.list_lag = 0  # so many requests for the list do not show a new job yet
        self.closed = False  # the vendor takes no new jobs from this account
        self.skew_seconds = 0.0  # the vendor's clock against this machine's
        self._routes = [
            (*found, getattr(self, name)) for name in dir(type(self)) if (found := getattr(getattr(type(self), name), "route", None))
        ]
        self._server = Listener(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FakeVendor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(timeout=5)
        self._server.server_close()

    # What the vendor is

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The environment variables that bring a client here: address and key."""

    @abstractmethod
    def error(self, status: int, message: str, code: str | None) -> Any:
        """The body of an error in the vendor's format."""

    @abstractmethod
    def authorise(self, request: Request) -> None:
        """Raises VendorError (401) when the request does not carry ``secret``."""

    @abstractmethod
    def set_state(self, ref: str, raw: str) -> None:
        """Bring a job into a state, with everything that belongs to it (model and bill once it has succeeded, events)."""

    @abstractmethod
    def key_of(self, body: Mapping[str, Any]) -> str | None:
        """The key of ours that travelled in the body of a create request."""

    def set_deployment(self, ref: str, raw: str) -> None:
        """Bring a deployment into a state; "line 3"'s counterpart is "no capacity": a failure says so."""
        raise NotImplementedError(f"{type(self).__name__} has no deployments")

    @property
    def billing(self) -> list[str]:
        """The ids of the deployments that stand now, and of whatever else was made for them and not taken down again."""
        return []

    # What a test does and looks at

    @property
    def url(self) -> str:
        """Address of the server, without a path."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fault(self, route: str, fault: Fault, nth: int = 1) -> None:
        """Script a fault for the n-th request from now on that arrives on a route; "*" stands for any route."""
        with self._lock:
            self._faults.setdefault(route, {})[self._calls[route] + nth] = fault

    def calm(self) -> None:
        """Forget all scripted faults that have not happened yet."""
        with self._lock:
            self._faults.clear()

    @property
    def made(self) -> list[Made]:
        """Every job ever made, oldest first."""
        with self.books() as books:
            return [Made(**entry) for entry in copy.deepcopy(books["made"])]

    @property
    def deployed(self) -> list[Made]:
        """Every deployment ever made, oldest first."""
        with self.books() as books:
            return [Made(**entry) for entry in copy.deepcopy(books.get("deployed", []))]

    def state(self, ref: str) -> str:
        """The raw state of a job."""
        with self.books() as books:
            return str(books["jobs"][ref]["status"])

    def advance(self, ref: str) -> str:
        """Bring a job into the next state of ``script``; returns it."""
        at = self.script.index(self.state(ref)) if self.state(ref) in self.script else -1
        raw = self.script[min(at + 1, len(self.script) - 1)]
        self.set_state(ref, raw)
        return raw

    def forget(self, ref: str) -> None:
        """The job disappears from the vendor."""
        with self.books() as books:
            del books["jobs"][ref]

    def expire_files(self) -> None:
        """Every uploaded file is gone."""
        with self.books() as books:
            books["files"].clear()

    def file(self, file_id: str) -> bytes:
        """The content of an uploaded file."""
        with self.books() as books:
            return str(books["files"][file_id]["content"]).encode()

    def calls(self, route: str) -> int:
        """How many requests a route has had."""
        return self._calls[route]

    def snapshot(self) -> dict[str, Any]:
        """A copy of the vendor's whole state."""
        with self.books() as books:
            return copy.deepcopy(books)

    # What a vendor's routes use

    @contextmanager
    def books(self) -> Iterator[dict[str, Any]]:
        """The vendor's state, locked; changes are kept (on disk too, when there is a folder)."""
        with self._lock:
            yield self._books
            if self._file:
                self._file.write_text(json.dumps(self._books))

    def new_id(self, prefix: str) -> str:
        """A fresh id."""
        with self.books() as books:
            books["next"] += 1
            return f"{prefix}{books['next']:08d}"

    def now(self) -> float:
        """Seconds since the epoch by the vendor's clock."""
        return time.time() + self.skew_seconds

    def record_made(self, ref: str, body: dict[str, Any]) -> None:
        """Write down that a job was made; it stays hidden from ``list_lag`` listings."""
        with self.books() as books:
            books["made"].append({"ref": ref, "key": self.key_of(body), "body": body})
            self._hidden[ref] = self.list_lag

    def record_deployed(self, ref: str, key: str | None, body: dict[str, Any]) -> None:
        """Write down that a deployment was made; it stays hidden from ``list_lag`` look-ups (``shows``)."""
        with self.books() as books:
            books.setdefault("deployed", []).append({"ref": ref, "key": key, "body": body})
            self._hidden[ref] = self.list_lag

    def shows(self, ref: str) -> bool:
        """Whether a look-up shows this deployment now; each call counts as one look-up."""
        if self._hidden.get(ref, 0) > 0:
            self._hidden[ref] -= 1
            return False
        return True

    def listed(self) -> list[dict[str, Any]]:
        """The jobs that a listing shows now, newest first. Each call counts as one request for the list."""
        with self.books() as books:
            shown = []
            for ref, job in reversed(books["jobs"].items()):
                if self._hidden.get(ref, 0) > 0:
                    self._hidden[ref] -= 1
                else:
                    shown.append(job)
            return shown

    def job(self, ref: str) -> dict[str, Any]:
        """One job's entry in the books. Raises VendorError (404)."""
        found: dict[str, Any] | None = self._books["jobs"].get(ref)
        if found is None:
            raise VendorError(404, f"Could not find fine tune: {ref}")
        return found

    # Serving

    def answer(self, request: Request) -> tuple[Logged, Reply | None]:
        """Carry a request out, with the fault that is scripted for it; no Reply means a broken connection."""
        name, handler, request = self._match(request)
        fault = self._next_fault(name)
        reply: Reply | None = None
        if fault is None or fault.after:
            reply = self._carry_out(handler, request)
        if fault is not None:
            if fault.call:
                fault.call()
            time.sleep(fault.seconds)
            if fault.reset:
                reply = None
            elif fault.raw:
                reply = Reply(fault.raw[1], fault.status or 200, {**fault.headers, "Content-Type": fault.raw[0]})
            elif fault.status:
                reply = Reply(self.error(fault.status, fault.message, fault.code), fault.status, fault.headers)
        logged = Logged(name, request, reply.status if reply else None, str(fault) if fault else "")
        with self._lock:
            self.log.append(logged)
        return logged, reply

    def _carry_out(self, handler: Callable[[Request], Reply | dict[str, Any]] | None, request: Request) -> Reply:
        try:
            self.authorise(request)
            if handler is None:
                raise VendorError(404, f"Unknown request URL: {request.method} {request.path}")
            with self.books():
                answer = handler(request)
        except VendorError as error:
            return Reply(self.error(error.status, error.message, error.code), error.status)
        return answer if isinstance(answer, Reply) else Reply(copy.deepcopy(answer))

    def _match(self, request: Request) -> tuple[str, Callable[[Request], Reply | dict[str, Any]] | None, Request]:
        for method, pattern, name, handler in self._routes:
            found = pattern.fullmatch(request.path)
            if found and method == request.method:
                params = {key: unquote(value) for key, value in found.groupdict().items()}
                return name, handler, Request(request.method, request.path, request.query, request.headers, request.body, params)
        return "unknown", None, request

    def _next_fault(self, name: str) -> Fault | None:
        with self._lock:
            found = None
            for route_name in ("*", name):
                self._calls[route_name] += 1
                found = self._faults.get(route_name, {}).pop(self._calls[route_name], None) or found
            return found
