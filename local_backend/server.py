"""An OpenAI-compatible server on loopback: ``python -m tuneport.local_backend.server FOLDER``.

FOLDER/config.json is a ``ServerConfig``: one base model and any number of adapters on it, each called by its name. Answers
``GET /v1/models`` and ``POST /v1/chat/completions``, whole or as a stream, one at a time. It listens on 127.0.0.1 only and
takes no requests that a web page in a browser might send (``Host`` and ``Origin``). What of a request it cannot carry out it
refuses with 400; it drops nothing in silence. FOLDER/address.json says where it listens, state.json how far it is.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuneport.core.errors import DataError, ProviderError, TuneportError
from tuneport.local_backend.jobdir import JobDir, WorkerState, write_json
from tuneport.local_backend.models import (
    check_base,
    choose_device,
    load_adapter,
    load_model,
    load_tokenizer,
    locate,
    prepare,
    require_training_stack,
)

HOST = "127.0.0.1"
LONGEST_BODY = 16_000_000
"""Bytes of a request; a larger one is refused with 413."""
CLIENT_S = 600.0
"""Seconds that a client may let the server wait, for the rest of a request or for room to send."""
MOST_TOKENS = 1024
"""Tokens of an answer when the request sets no limit."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


class ServedModel(BaseModel):
    """A name to call, and the adapter that answers to it; without one the base itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    adapter: str | None = None
    chat_template: str | None = None


class ServerConfig(BaseModel):
    """What is served, where, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["bf16", "fp32"] = "bf16"
    trust_remote_code: bool = False
    models: tuple[ServedModel, ...]
    port: int = 0  # 0: any free one
    ttl_s: float | None = None  # ends by itself after so long
    idle_s: float | None = None  # ends by itself after so long without a request


def _told(given: Any) -> Any:
    """What is null was not said: clients send whole objects."""
    return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Any = None

    _plain = model_validator(mode="before")(_told)


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ChatBody(BaseModel):
    """What a request may hold. Anything else is refused, unless it is null."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)  # what torch takes
    stop: list[str] = Field(default_factory=list, max_length=4)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    n: Literal[1] = 1
    user: str | None = None  # says who asks; changes nothing

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        told = _told(given)
        return told | {"stop": [told["stop"]]} if isinstance(told, dict) and isinstance(told.get("stop"), str) else told


class Refused(Exception):
    """A request that is not carried out: status, and OpenAI's error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Models:
    """The base with its adapters in memory. One answer at a time: an adapter is switched on for the whole model."""

    def __init__(self, config: ServerConfig) -> None:
        require_training_stack()
        folder = prepare(locate(config.base))
        self._trust = config.trust_remote_code
        device = choose_device(config.device)
        self._model = load_model(folder, dtype=config.dtype, device=device, training=False, trust=self._trust)
        self._limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._lock = threading.Lock()
        self._tokenizers: dict[str | None, Any] = {}
        self._served: dict[str, tuple[str | None, Any]] = {}  # name -> (PEFT's name of the adapter, tokenizer)
        for number, one in enumerate(config.models):
            tokenizer = self._tokenizer(folder, one.chat_template)
            own = f"adapter{number}" if one.adapter else None
            if one.adapter:
                check_base(Path(one.adapter), folder)
                self._model = load_adapter(self._model, Path(one.adapter), name=f"adapter{number}")
            self._served[one.name] = (own, tokenizer)

    @property
    def names(self) -> list[str]:
        """What can be called."""
        return list(self._served)

    def answer(self, body: ChatBody, told: dict[str, int]) -> Iterator[tuple[str, str | None]]:
        """Pieces of text, each with None, and at last ("", why it ended). Counts tokens into ``told``. Raises Refused."""
        from tuneport.local_backend.chat import prompt_ids, stop_tokens  # noqa: PLC0415
        from tuneport.local_backend.stream import Sampling, Text, tokens  # noqa: PLC0415 -- imports torch

        if body.model not in self._served:
            what = f"The model '{body.model}' is not served here; there are: {', '.join(self.names)}"
            raise Refused(404, what, param="model", code="model_not_found")
        own, tokenizer = self._served[body.model]
        try:
            ids = prompt_ids(tokenizer, [_plain(message) for message in body.messages])
        except DataError as error:
            raise Refused(400, str(error), param="messages") from error
        room = self._limit - len(ids) if self._limit else MOST_TOKENS
        most = body.max_completion_tokens or body.max_tokens or min(MOST_TOKENS, max(room, 1))
        if self._limit and most > room:
            what = f"{len(ids)} prompt tokens and {most} for the answer exceed the model's {self._limit}"
            raise Refused(400, what, param="messages", code="context_length_exceeded")
        told |= {"prompt_tokens": len(ids), "completion_tokens": 0}
        sampling = Sampling(body.temperature, body.top_p, body.seed)
        text, end = Text(tokenizer, body.stop), "stop"
        with self._lock, self._switched(own) as model:
            stops = stop_tokens(tokenizer, self._model.generation_config)
            for token in tokens(model, ids, most=most, stops=stops, sampling=sampling):
                told["completion_tokens"] += 1
                if piece := text.add(token):
                    yield piece, None
                if text.stopped:
                    break
            else:
                end = "length" if told["completion_tokens"] == most else "stop"
        if piece := text.rest():
            yield piece, None
        yield "", "stop" if text.stopped else end

    @contextmanager
    def _switched(self, own: str | None) -> Iterator[Any]:
        """The model with this adapter, or with none."""
        if own is not None:
            self._model.set_adapter(own)
            yield self._model
        elif hasattr(self._model, "disable_adapter"):
            with self._model.disable_adapter():
                yield self._model.get_base_model()
        else:
            yield self._model

    def _tokenizer(self, folder: str, template: str | None) -> Any:
        if template not in self._tokenizers:
            self._tokenizers[template] = load_tokenizer(folder, Path(template) if template else None, trust=self._trust)
        return self._tokenizers[template]


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1; a thread per connection, while answers are made one at a time."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        self.models: Models | None = None
        self.last_asked = time.monotonic()
        self._in_hand, self._counting = 0, threading.Lock()
        super().__init__((HOST, port), _Handler)

    @property
    def idle_s(self) -> float:
        """Seconds since the last request was done with; 0 while one is in hand, however long its answer takes."""
        return 0.0 if self._in_hand else time.monotonic() - self.last_asked

    @contextmanager
    def asked(self) -> Iterator[None]:
        """A request in hand."""
        with self._counting:
            self._in_hand += 1
        try:
            yield
        finally:
            with self._counting:
                self._in_hand -= 1
                self.last_asked = time.monotonic()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no fault."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = CLIENT_S
    server: Server

    def do_GET(self) -> None:
        self._guarded(self._list)

    def do_POST(self) -> None:
        self._guarded(self._chat)

    def _guarded(self, carry_out: Any) -> None:
        """Carry the request out, or say why not; whatever fails is answered too, unless the answer has begun."""
        self._begun = False
        try:
            # All of it first: what a refused request leaves unread would be taken for the connection's next request.
            self._content = self._read()
            self._check_local()
            if self.server.models is None:
                raise Refused(503, "the model is still being loaded")
            with self.server.asked():
                carry_out(self.server.models)
        except Refused as refused:
            self._send(refused.status, refused.body)
        except ConnectionError:
            raise
        except Exception as error:
            self.close_connection = True
            if not self._begun:
                what = f"the answer failed with {type(error).__name__}; the server's output has the whole story"
                self._send(500, Refused(500, what).body)
            raise  # for the traceback

    def _read(self) -> bytes:
        """The request's body. Raises Refused, and ends the connection, where it cannot be told how long that is, or it is too long."""
        told = self.headers.get("Content-Length", "0")
        length = int(told) if told.isascii() and told.isdigit() else None
        if length is not None and length <= LONGEST_BODY and "Transfer-Encoding" not in self.headers:
            return self.rfile.read(length)
        self.close_connection = True
        if length is not None and length > LONGEST_BODY:
            raise Refused(413, f"the request is larger than {LONGEST_BODY:,} bytes")
        raise Refused(411, "this server takes requests that state their Content-Length in bytes")

    def _check_local(self) -> None:
        """A page in a browser could reach loopback too; it names itself as Origin, or the server by a host name of its own."""
        origin = self.headers.get("Origin")
        hosts = [self.headers.get("Host", ""), *([urlsplit(origin).netloc] if origin else [])]
        if any(host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK for host in hosts):
            raise Refused(403, "this server answers programs on this machine only")

    def _list(self, models: Models) -> None:
        path = unquote(urlsplit(self.path).path)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "tuneport"} for name in models.names]
        if path == "/v1/models":
            return self._send(200, {"object": "list", "data": data})
        found = next((entry for entry in data if path == f"/v1/models/{entry['id']}"), None)
        if found is None:
            raise Refused(404, f"there is nothing at {path}", code="not_found")
        return self._send(200, found)

    def _chat(self, models: Models) -> None:
        if urlsplit(self.path).path != "/v1/chat/completions":
            raise Refused(404, f"there is nothing at {self.path}; this server has /v1/models and /v1/chat/completions", code="not_found")
        body, told = self._body(), dict[str, int]()
        pieces = models.answer(body, told)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        if body.stream:
            return self._stream(pieces, body, head, told)
        text, end = "", None
        for piece, end in pieces:  # noqa: B007 -- the last end counts
            text += piece
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end, "logprobs": None}
        return self._send(200, {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(told)})

    def _stream(self, pieces: Iterator[tuple[str, str | None]], body: ChatBody, head: dict[str, Any], told: dict[str, int]) -> None:
        first = next(pieces)  # what is refused is refused with a status, before anything is sent
        self.send_response(200)
        for name, value in (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"), ("Transfer-Encoding", "chunked")):
            self.send_header(name, value)
        self.end_headers()
        usage = {"usage": None} if body.stream_options.include_usage else {}

        def send(delta: dict[str, Any], end: str | None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": end, "logprobs": None}
            self._chunk({**head, "object": "chat.completion.chunk", "choices": [choice], **usage})

        send({"role": "assistant", "content": ""}, None)
        for piece, end in chain((first,), pieces):
            send({"content": piece} if end is None else {}, end)
        if usage:
            self._chunk({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(told)})
        self._chunk("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: Any) -> None:
        line = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()

    def _body(self) -> ChatBody:
        try:
            return ChatBody.model_validate_json(self._content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            what = f"'{where}' is not supported by this server" if first["type"] == "extra_forbidden" else f"'{where}': {first['msg']}"
            raise Refused(400, what, param=where or None) from error

    def _send(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def send_response(self, code: int, message: str | None = None) -> None:
        """As the base class does, noting that there is no other status from here on."""
        self._begun = True
        super().send_response(code, message)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: questions are the user's own."""


def _plain(message: _Message) -> dict[str, Any]:
    """A message as the chat template takes it: parts of text become one text. Raises Refused for anything but text."""
    content = message.content
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text")) for part in content)
    if not isinstance(content, str):
        raise Refused(400, "this server takes messages of plain text only", param="messages")
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _usage(told: Mapping[str, int]) -> dict[str, int]:
    return {**told, "total_tokens": sum(told.values())}


def serve(config: ServerConfig, job: JobDir | None = None, *, on_ready: Any = None) -> None:
    """Serve until the time is up, nobody has asked for ``idle_s``, or SIGTERM or Ctrl-C. Raises TuneportError if it cannot start."""
    try:
        server = Server(config.port)
    except OSError as error:
        raise ProviderError(f"port {config.port} cannot be used ({error.strerror})", fix="choose another --port", retry="no") from error
    with server:
        port = server.server_address[1]
        if job is not None:
            write_json(job.path / "address.json", {"port": port})
            job.set_state(WorkerState("loading"))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        done = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: done.set())
        server.models = Models(config)
        if job is not None:
            job.set_state(WorkerState("ready"))
        if on_ready is not None:
            on_ready(port)
        began = server.last_asked = time.monotonic()
        while not done.wait(0.5):
            now = time.monotonic()
            if config.ttl_s is not None and now - began >= config.ttl_s:
                break
            if config.idle_s is not None and server.idle_s >= config.idle_s:
                break
        server.shutdown()


def main(folder: Path) -> int:
    """Entry point of the process that ``tuneport deploy`` starts; its lock is inherited."""
    job = JobDir(folder)
    try:
        serve(ServerConfig.model_validate_json(job.config.read_text(encoding="utf-8")), job)
    except TuneportError as error:
        job.set_state(WorkerState("failed", str(error)))
        return error.exit_code
    except Exception as error:
        job.set_state(WorkerState("failed", f"{type(error).__name__}: {error}"))
        raise
    job.set_state(WorkerState("ended"))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
