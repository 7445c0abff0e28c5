"""Chat completions with a few requests at a time, for measuring models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.core.retry import retrying
from tuneport.providers.openai.errors import translated, unreadable

if TYPE_CHECKING:
    from openai import OpenAI

WORKERS = 8
_AHEAD = 4 * WORKERS
"""Requests taken from the caller before their turn."""
_ATTEMPTS = 4


class UnknownModelError(ProviderError):
    """The model does not exist (any more), which is no fault of the request: the whole run stops."""


class Chat:
    """Answers requests with one model. Learns once which settings the model refuses, and leaves those out from then on."""

    def __init__(self, client: OpenAI, model: str, service: str, sleep: Callable[[float], None]) -> None:
        self._client, self._model, self._service, self._sleep = client, model, service, sleep
        self._settings: dict[str, Any] = {"temperature": 0}
        self._length = "max_completion_tokens"

    def answer_all(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """Replies as they come. Raises what concerns every request: the key, or a model that does not exist."""
        waiting: set[Future[ChatReply]] = set()
        source = iter(requests)
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="tuneport-chat") as pool:
            try:
                while True:
                    waiting |= {pool.submit(self._answer, request) for request in islice(source, _AHEAD - len(waiting))}
                    if not waiting:
                        return
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                for future in waiting:
                    future.cancel()

    def _answer(self, request: ChatRequest) -> ChatReply:
        try:
            return retrying(lambda: self._ask(request), attempts=_ATTEMPTS, sleep=self._sleep)
        except (CredentialsError, UnknownModelError):
            raise
        except TuneportError as error:
            return ChatReply(request.id, "", error=str(error))

    def _ask(self, request: ChatRequest) -> ChatReply:
        import openai  # noqa: PLC0415

        call = f"to answer with {self._model}"
        messages: Any = list(request.messages)
        started = time.monotonic()
        while True:
            settings = {**self._settings, self._length: request.max_tokens}
            try:
                with translated(call, self._service):
                    answer = self._client.chat.completions.create(model=self._model, messages=messages, **settings)
                return _reply(request, answer, time.monotonic() - started, call, self._service)
            except TuneportError as error:
                cause = error.__cause__
                if isinstance(cause, openai.NotFoundError) and isinstance(error, ProviderError):
                    raise UnknownModelError(error.what, fix=error.fix, retry="no") from cause
                if not (isinstance(cause, openai.BadRequestError) and self._leave_out(cause.param, settings)):
                    raise

    def _leave_out(self, param: str | None, tried: dict[str, Any]) -> bool:
        """Whether to ask again without a setting: reasoning models take no temperature, older services only max_tokens."""
        if param == "temperature" and param in tried:
            self._settings = {}
            return True
        if param == "max_completion_tokens" and param in tried:
            self._length = "max_tokens"
            return True
        return False


def _reply(request: ChatRequest, answer: Any, seconds: float, call: str, service: str) -> ChatReply:
    choices = getattr(answer, "choices", None)
    if not choices:
        raise unreadable(call, service)
    message, usage = choices[0].message, getattr(answer, "usage", None)
    refusal = getattr(message, "refusal", None)
    text = message.content or ""
    return ChatReply(
        request.id,
        text,
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
        seconds=seconds,
        error=f"the model declines: {refusal}" if refusal and not text else "",
    )
