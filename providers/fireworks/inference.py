"""Answers from a model at Fireworks. A tuned model answers only on a deployment, which bills by the GPU-second.

Sources: fireworks-ai 1.2.28, ``types/model.py`` (deployedModelRefs), ``types/deployment.py``; Fireworks' deployment guide:
the name of a model on a deployment is ``accounts/A/models/M#accounts/A/deployments/D``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tuneport.core.asking import CONCURRENCY, ask_all
from tuneport.core.errors import ProviderError, VendorClosedError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.core.retry import retrying
from tuneport.providers.completions import streamed
from tuneport.providers.fireworks.session import PAGE, Api, document, model_parts, translated

_DEPLOY_FIX = "deploy it first, which bills by the GPU-second while it runs: tuneport deploy"


def answers(
    api: Api, model: str, requests: Iterable[ChatRequest], sleep: Callable[[float], None], concurrency: int = CONCURRENCY
) -> Iterator[ChatReply]:
    """The replies, a few questions at once. A question that fails gets a reply with ``error``; the others go on.

    Raises ProviderError when the model stands on no deployment, or the deployment does not answer the first question
    (for another reason than the question itself); CredentialsError.
    """
    name, waiting = serving_name(api, model), iter(requests)
    first = next(waiting, None)
    if first is None:
        return
    # Alone, because a deployment that was scaled to zero first wakes up (503 DEPLOYMENT_SCALING_UP).
    try:
        yield retrying(lambda: _answer(api, name, first), sleep=sleep)
    except ProviderError as error:
        if isinstance(error, VendorClosedError) or error.retry != "no":
            raise
        yield ChatReply(first.id, "", error=str(error))
    yield from ask_all(
        waiting, lambda request: _answer(api, name, request), concurrency=concurrency, fatal=(VendorClosedError,), sleep=sleep
    )


def _answer(api: Api, name: str, request: ChatRequest) -> ChatReply:
    messages: Any = [dict(message) for message in request.messages]
    settings: Any = {"model": name, "messages": messages, "max_tokens": request.max_tokens, "temperature": 0}
    began = time.monotonic()
    with translated():
        if request.stream:
            return streamed(request, api.client.chat.completions.create(stream=True, **settings), began)
        told = document(api.client.chat.completions.with_raw_response.create(**settings))
    return _reply(request, told, time.monotonic() - began)


def serving_name(api: Api, model: str) -> str:
    """What to call the model by: itself where it is served per token, else together with the deployment that it stands on.

    Raises ProviderError when it stands on none, or on one that is not ready yet.
    """
    if "#" in model or "/deployments/" in model:
        return model
    account, ident = model_parts(model)
    found = api.ask(api.client.models.with_raw_response.get, ident, account_id=account)
    if found.get("supportsServerless") and account == "fireworks":
        return model
    states: dict[str, str] = {}
    for ref in found.get("deployedModelRefs") or ():
        if ref.get("deployment"):
            states[str(ref["deployment"])] = str(ref.get("state") or "")
    listed = api.pages(api.client.deployments.with_raw_response.list, "deployments", page_size=PAGE)
    states |= {str(entry["name"]): str(entry.get("state")) for entry in listed if entry.get("baseModel") == model and entry.get("name")}
    ready = next((deployment for deployment, state in states.items() if state in ("DEPLOYED", "READY", "UPDATING")), None)
    if ready is not None:
        return f"{model}#{ready}"
    coming = next((f"{deployment} is {state}" for deployment, state in states.items() if state in ("DEPLOYING", "CREATING")), None)
    if coming is not None:
        raise ProviderError(f"{model} is being deployed ({coming})", fix="ask again in some minutes")
    what = f"{model} stands on no deployment at Fireworks, and a tuned model answers only there"
    raise ProviderError(what, fix=_DEPLOY_FIX, retry="no")


def _reply(request: ChatRequest, told: dict[str, Any], seconds: float) -> ChatReply:
    usage = told.get("usage") or {}
    choices = told.get("choices") or [{}]
    text = (choices[0].get("message") or {}).get("content")
    error = "" if isinstance(text, str) else "Fireworks' answer holds no text"
    return ChatReply(
        request.id,
        text if isinstance(text, str) else "",
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        seconds=seconds,
        error=error,
    )
