"""Questions to a provider, paid out of a purse."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from tuneport.advisor.spending import Purse, Rates
from tuneport.core.errors import ProviderError
from tuneport.core.provider import ChatReply, ChatRequest, Provider

STREAK = 25


def asked(
    provider: Provider,
    model: str,
    requests: Mapping[str, ChatRequest],
    rates: Rates | None,
    purse: Purse,
    who: str,
    settings: dict[str, Any],
) -> Iterator[ChatReply]:
    """The provider's replies, each checked to answer a request that is still open, while money lasts and the service answers.

    Asked in rounds: when what is set aside exhausts the purse no more is asked; once the answers have come and cost less, the
    rest is. Raises BudgetError when not one more question can be paid, and ProviderError when 25 in a row had no answer: the next would
    have none either, and each of them waits through all retries.
    """
    waiting, failed = dict(requests), 0
    while waiting:
        sent: set[str] = set()

        def affordable(sent: set[str] = sent) -> Iterator[ChatRequest]:
            for request in list(waiting.values()):
                if not purse.take(request, rates):
                    return
                sent.add(request.id)
                yield request

        replies = provider.chat(model, affordable(), **settings)
        try:
            for reply in replies:
                if reply.id not in sent or reply.id not in waiting:
                    fault = "answered one request twice" if reply.id in requests else "sent an answer to no request"
                    raise ProviderError(f"{provider.name} {fault} (model {model})", fix="report this to whoever maintains the provider")
                del waiting[reply.id]
                purse.settle(reply, rates)
                yield reply
                failed = failed + 1 if reply.error else 0
                if failed >= STREAK and waiting:
                    what = f"{provider.name} gave no answer to {failed} questions in a row ({reply.error})"
                    raise ProviderError(what, fix="answers so far are kept; mend that and run again")
        finally:
            if isinstance(replies, Generator):
                replies.close()  # at once: what is still queued must not be asked any more
        if not sent:
            raise purse.exhausted(who)
        for key in sent & waiting.keys():  # asked and never answered
            purse.settle(ChatReply(key, "", error="no answer"), rates)
            del waiting[key]
