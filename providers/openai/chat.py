"""Chat completions, for measuring models."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, cast

from tuneport.core.errors import ProviderError, TuneportError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.providers.completions import streamed
from tuneport.providers.openai.errors import translated, unreadable

if TYPE_CHECKING:
    from openai import OpenAI


class UnknownModelError(ProviderError):
    """The model does not exist (any more), which is no fault of the request: the whole run stops."""


class Chat:
    """Answers requests with one model. Learns once which settings the model refuses, and leaves those out from then on."""

    def __init__(self, clients: Sequence[OpenAI], model: str, service: str) -> None:
        self._clients, self._own, self._model, self._service = cycle(clients), threading.local(), model, service
        self._settings: dict[str, Any] = {"temperature": 0}
        self._length = "max_completion_tokens"

    def ask(self, request: ChatRequest) -> ChatReply:
        """One answer, in one call or a few while settings are learnt. Raises UnknownModelError and what ``translated`` raises."""
        import openai  # noqa: PLC0415

        call = f"to answer with {self._model}"
        while True:
            settings = {**self._settings, self._length: request.max_tokens}
            started = time.monotonic()
            try:
                with translated(call, self._service):
                    return self._sent(request, settings, started, call)
            except TuneportError as error:
                cause = error.__cause__
                if isinstance(cause, openai.NotFoundError) and isinstance(error, ProviderError):
                    raise UnknownModelError(error.what, fix=error.fix, retry="no") from cause
                if not (isinstance(cause, openai.BadRequestError) and self._leave_out(cause.param, settings)):
                    raise

    def _sent(self, request: ChatRequest, settings: dict[str, Any], started: float, call: str) -> ChatReply:
        messages: Any = list(request.messages)
        client = self._client()
        if request.stream:
            usage: Any = {"include_usage": True}
            create = client.chat.completions.create
            with create(model=self._model, messages=messages, stream=True, stream_options=usage, **settings) as events:
                return streamed(request, events, started)
        # The same request by the SDK's own post: checking plain dictionaries against its types would be a third of the client's work.
        body = {"model": self._model, "messages": messages, **settings}
        answer = client.post("/chat/completions", body=body, cast_to=object)
        return _reply(request, answer, time.monotonic() - started, call, self._service)

    def _client(self) -> OpenAI:
        """This thread's one of the clients."""
        if not hasattr(self._own, "client"):
            self._own.client = next(self._clients)
        return cast("OpenAI", self._own.client)

    def _leave_out(self, param: str | None, tried: dict[str, Any]) -> bool:
        """Whether to ask again without a setting: reasoning models take no temperature, older services only max_tokens."""
        if param == "temperature" and param in tried:
            self._settings = {}
            return True
        if param == "max_completion_tokens" and param in tried:
            self._length = "max_tokens"
            return True
        return False


def _reply(request: ChatRequest, answer: object, seconds: float, call: str, service: str) -> ChatReply:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    message = choices[0].get("message") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if not isinstance(answer, dict) or not isinstance(message, dict):
        raise unreadable(call, service)
    usage = told if isinstance(told := answer.get("usage"), dict) else {}
    text, refusal = message.get("content") or "", message.get("refusal") or ""
    return ChatReply(
        request.id,
        text or refusal,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        seconds=seconds,
        declined=bool(refusal) and not text,
    )
