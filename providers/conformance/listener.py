"""The HTTP server in front of a fake vendor: reads requests, sends answers, breaks connections."""

from __future__ import annotations

import json
import socket
import struct
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tuneport.providers.conformance.wire import Reply, Request

if TYPE_CHECKING:
    from tuneport.providers.conformance.server import FakeVendor

LONGEST_BODY = 64_000_000
"""A larger request is refused with 413, so that a test cannot fill the memory."""


class Listener(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1; one thread per connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, vendor: FakeVendor) -> None:
        self.vendor = vendor
        self.open_connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_close(self) -> None:
        """Close the listening socket, and every connection that a client keeps alive."""
        super().server_close()
        for connection in list(self.open_connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or has stopped waiting, is no fault of the vendor; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def setup(self) -> None:
        super().setup()
        self.server.open_connections.add(self.connection)

    def finish(self) -> None:
        self.server.open_connections.discard(self.connection)
        super().finish()

    def _handle(self) -> None:
        body = self._body()
        if body is None:
            return self._send(Reply({"error": {"message": "The request is too large."}}, 413))
        target = urlsplit(self.path)
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        _, reply = self.server.vendor.answer(Request(self.command, target.path, query, headers, body))
        return self._reset() if reply is None else self._send(reply)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts: list[bytes] = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        if length > LONGEST_BODY:
            self.close_connection = True
            return None
        return self.rfile.read(length)

    def _send(self, reply: Reply) -> None:
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | dict(reply.headers)).items():
            self.send_header(name, value)
        if "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header, by the vendor's clock."""
        return super().date_time_string(self.server.vendor.now() if timestamp is None else timestamp)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the vendor keeps its own log."""
