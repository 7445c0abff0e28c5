"""Questions to a provider, paid out of a purse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tuneport.advisor.spending import Purse, Rates
from tuneport.core.errors import ProviderError
from tuneport.core.provider import ChatReply, ChatRequest, Provider


def asked(
    provider: Provider,
    model: str,
    requests: Mapping[str, ChatRequest],
    rates: Rates | None,
    purse: Purse,
    who: str,
    settings: dict[str, Any],
) -> Iterator[ChatReply]:
    """The provider's replies, each checked to answer a request that is still open, while money lasts.

    Asked in rounds: when what is set aside exhausts the purse no more is asked; once the answers have come and cost less, the
    rest is. Raises BudgetError when not one more question can be paid.
    """
    waiting = dict(requests)
    while waiting:
        sent: set[str] = set()

        def affordable(sent: set[str] = sent) -> Iterator[ChatRequest]:
            for request in list(waiting.values()):
                if not purse.take(request, rates):
                    return
                sent.add(request.id)
                yield request

        for reply in provider.chat(model, affordable(), **settings):
            if reply.id not in sent or reply.id not in waiting:
                fault = "answered one request twice" if reply.id in requests else "sent an answer to no request"
                raise ProviderError(f"{provider.name} {fault} (model {model})", fix="report this to whoever maintains the provider")
            del waiting[reply.id]
            purse.settle(reply, rates)
            yield reply
        if not sent:
            raise purse.exhausted(who)
        for key in sent & waiting.keys():  # asked and never answered
            purse.settle(ChatReply(key, "", error="no answer"), rates)
            del waiting[key]
