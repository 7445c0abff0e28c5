"""A chat-completions service on loopback, for measuring the measurer: an event loop of its own process, so that it shares no GIL.

    python tests/chat_server.py DELAY_S FAILING_SHARE MOST LOG      prints its port, then serves until stdin closes

Each question is answered DELAY_S seconds after it came, with its own last word. FAILING_SHARE of the questions fail at first, by a
hash of the question: once with 429 and Retry-After, or once with 500, or with both in turn. With MOST above 0, a request beyond so
many at once gets 429. Every answer given is a line of LOG.
A model named "broken" answers everything with "?", one named "half" about half of it.
With ``"stream": true`` the answer comes as server-sent events, its first token after half the delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ChatServer:
    """A running server: where it is, and what it has answered so far."""

    url: str
    log: Path

    def answered(self) -> list[str]:
        """The questions that were answered with 200, in order; one that was answered twice stands there twice."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def chat_server(folder: Path, *, delay: float = 0.0, failing: float = 0.0, most: int = 0) -> Iterator[ChatServer]:
    """Serve in a process of its own until the block ends."""
    log = folder / "answered.jsonl"
    log.touch()
    command = [sys.executable, __file__, str(delay), str(failing), str(most), str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield ChatServer(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
        finally:
            process.stdin.close()
            process.wait(timeout=10)
            process.stdout.close()


class _Service:
    def __init__(self, delay: float, failing: float, most: int, log: Path) -> None:
        self.delay, self.failing, self.most, self.running = delay, failing, most, 0
        self.log = log.open("a", encoding="utf-8")
        self.met: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                await self._answer(json.loads(await reader.readexactly(length)), writer)
        writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.most and self.running >= self.most:
            writer.write(_response(b"429 No", json.dumps({"error": {"message": "too many at once"}}).encode(), b"retry-after-ms: 20\r\n"))
            return
        self.running += 1
        try:
            await self._admitted(body, writer)
        finally:
            self.running -= 1

    async def _admitted(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        question = body["messages"][-1]["content"]
        self.met[question] += 1
        await asyncio.sleep(self.delay / 2)
        fault = self._fault(question)
        if fault:
            await asyncio.sleep(self.delay / 2)
            after = b"retry-after-ms: 20\r\n" if fault == 429 else b""
            writer.write(_response(f"{fault} No".encode(), json.dumps({"error": {"message": "injected"}}).encode(), after))
            return
        if not body.get("stream"):
            await asyncio.sleep(self.delay / 2)
        self.log.write(json.dumps(question) + "\n")
        self.log.flush()
        wrong = body["model"] == "broken" or (body["model"] == "half" and _share(question) < 0.5)
        text, usage = "?" if wrong else question.split()[-1], {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        shared = {"id": "c", "created": 1, "model": body["model"]}
        if body.get("stream"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in (text[:1], text[1:]):
                delta = {"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}
                writer.write(_event({**shared, "object": "chat.completion.chunk", "choices": [delta]}))
                await asyncio.sleep(self.delay / 4)
            writer.write(_event({**shared, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        else:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            whole = {**shared, "object": "chat.completion", "choices": [choice], "usage": usage}
            writer.write(_response(b"200 OK", json.dumps(whole).encode()))

    def _fault(self, question: str) -> int | None:
        drawn = _share(question)
        if drawn >= self.failing:
            return None
        script = ([429], [500], [429, 500])[int(drawn * 1e6) % 3]
        seen = self.met[question]
        return script[seen - 1] if seen <= len(script) else None


def _share(question: str) -> float:
    return int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) / 2**32


def _response(status: bytes, content: bytes, extra: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (status, len(content), extra) + content


def _event(value: dict[str, Any]) -> bytes:
    return _chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


async def _main(delay: str, failing: str, most: str, log: str) -> None:
    service = _Service(float(delay), float(failing), int(most), Path(log))
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # the parent is done, or gone
    os._exit(0)  # connections that are still open need no farewell


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
