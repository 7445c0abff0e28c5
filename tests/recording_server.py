"""A loopback HTTP server that answers canned JSON and keeps what it was sent: what a vendor's SDK really puts on the wire."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

Answer = Callable[[str, str], dict[str, Any]]
"""(HTTP method, path with query) -> the JSON to answer with."""


@dataclass
class Recorder:
    """Address of the server and the requests so far, as (HTTP method, path with query, parsed body)."""

    url: str
    requests: list[tuple[str, str, Any]] = field(default_factory=list)

    def body(self, path: str) -> Any:
        """The body of the only POST whose path, without its query, ends so."""
        found = [body for method, target, body in self.requests if method == "POST" and target.partition("?")[0].endswith(path)]
        assert len(found) == 1, [target for _, target, _ in self.requests]
        return found[0]


@contextmanager
def recording_server(answer: Answer) -> Iterator[Recorder]:
    """Serve on a free port of 127.0.0.1 until the block ends; a request over 1 MB is refused."""
    recorder = Recorder("")

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            assert length < 1_000_000
            raw = self.rfile.read(length)
            recorder.requests.append((self.command, self.path, json.loads(raw) if raw else None))
            content = json.dumps(answer(self.command, self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        recorder.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join(timeout=5)
