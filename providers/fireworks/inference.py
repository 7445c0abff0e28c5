"""Answers from a model at Fireworks. A tuned model answers only on a deployment, which bills by the GPU-second.

Sources: fireworks-ai 1.2.28, ``types/model.py`` (deployedModelRefs), ``types/deployment.py``; Fireworks' deployment guide:
the name of a model on a deployment is ``accounts/A/models/M#accounts/A/deployments/D``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from tuneport.core.errors import ProviderError, VendorClosedError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.core.retry import retrying
from tuneport.providers.fireworks.session import PAGE, Api, document, model_parts, translated

AT_ONCE = 8
"""Questions on their way at one time."""
_DEPLOY_FIX = "deploy it first, which bills by the GPU-second while it runs: tuneport deploy"


def answers(api: Api, model: str, requests: Iterable[ChatRequest], sleep: Callable[[float], None]) -> Iterator[ChatReply]:
    """The replies, a few questions at once. A question that fails gets a reply with ``error``; the others go on.

    Raises ProviderError when the model stands on no deployment, or the deployment does not answer the first question
    (for another reason than the question itself); CredentialsError.
    """
    name, waiting = serving_name(api, model), iter(requests)
    first = next(waiting, None)
    if first is None:
        return
    # Alone, because a deployment that was scaled to zero first wakes up (503 DEPLOYMENT_SCALING_UP).
    yield _answer(api, name, first, sleep, must_answer=True)
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        asked = deque(pool.submit(_answer, api, name, request, sleep) for request in islice(waiting, 2 * AT_ONCE))
        try:
            while asked:
                yield asked.popleft().result()
                asked.extend(pool.submit(_answer, api, name, request, sleep) for request in islice(waiting, 1))
        finally:
            for future in asked:
                future.cancel()


def _answer(api: Api, name: str, request: ChatRequest, sleep: Callable[[float], None], *, must_answer: bool = False) -> ChatReply:
    started = time.monotonic()
    try:
        told = retrying(lambda: _ask(api, name, request), sleep=sleep)
    except ProviderError as error:
        if isinstance(error, VendorClosedError) or (must_answer and error.retry != "no"):
            raise
        return ChatReply(request.id, "", seconds=time.monotonic() - started, error=str(error))
    return _reply(request, told, time.monotonic() - started)


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


def _ask(api: Api, name: str, request: ChatRequest) -> dict[str, Any]:
    messages: Any = [dict(message) for message in request.messages]
    create = api.client.chat.completions.with_raw_response.create
    with translated():
        return document(create(model=name, messages=messages, max_tokens=request.max_tokens, temperature=0))


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
