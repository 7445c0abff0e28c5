"""Answers of models, kept on disk by a hash of all that decides them: asked once, paid once.

One small file per answer, written whole and then renamed, so that a kill leaves an answer or none, and processes may
share a folder. Files are readable by their owner only: prompts are not kept, but answers may repeat private data.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneport.core.errors import TuneportError, UsageError
from tuneport.core.provider import ChatReply

VERSION = 1  # part of every key: raising it forgets all kept answers


def answer_key(
    *, provider: str, model: str, job: str, scope: str, messages: Sequence[Mapping[str, Any]], max_tokens: int, repeat: int = 0
) -> str:
    """SHA-256 over what decides an answer (decoding is greedy, so nothing else does). ``repeat`` tells askings of one question apart."""
    parts = [VERSION, provider, model, job, scope, [dict(m) for m in messages], max_tokens, *([repeat] if repeat else [])]
    content = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """A folder of answers. Raises UsageError when the folder cannot be made or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: set[Path] = set()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(f"cannot keep answers in {folder} ({error.strerror})", fix="choose a folder that can be written") from error

    def get(self, key: str) -> ChatReply | None:
        """The kept answer; None when there is none, or its file is damaged (it is then asked again)."""
        try:
            kept = json.loads(self._path(key).read_text(encoding="utf-8"))
            return ChatReply(
                id=key,
                text=_typed(kept["text"], str),
                prompt_tokens=_typed(kept["prompt_tokens"], int, type(None)),
                completion_tokens=_typed(kept["completion_tokens"], int, type(None)),
                seconds=_typed(kept["seconds"], float, int, type(None)),
                first_token_seconds=_typed(kept.get("first_token_seconds"), float, int, type(None)),
                batched=_typed(kept.get("batched", False), bool),
                declined=_typed(kept.get("declined", False), bool),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, reply: ChatReply) -> None:
        """Keep an answer under its id. Raises TuneportError when the disk refuses; earlier answers stay."""
        path = self._path(reply.id)
        content = {
            "text": reply.text,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "seconds": reply.seconds,
            "first_token_seconds": reply.first_token_seconds,
            "batched": reply.batched,
            "declined": reply.declined,
        }
        temporary = path.with_name(f".{reply.id}.{os.getpid()}.part")
        try:
            if path.parent not in self._made:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                self._made.add(path.parent)
            try:
                _write(temporary, json.dumps(content).encode())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise TuneportError(
                f"cannot keep an answer in {self._folder} ({error.strerror})", fix="make room and run again; only what is missing is asked"
            ) from error

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def _write(path: Path, content: bytes) -> None:
    """By bare system calls: a file object makes seven, after each of which the asking threads hold Python's lock."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        while content:
            content = content[os.write(handle, content) :]
    finally:
        os.close(handle)


def _typed(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value
