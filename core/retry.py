"""The one retry policy. The verdict is a value that an error carries; nobody else decides.

| error                                              | verdict                 |
| -------------------------------------------------- | ----------------------- |
| ProviderError(retry="transient"), the default      | transient: try again    |
| ProviderError(retry="rate_limit", retry_after=...) | rate limit: wait first  |
| ProviderError(retry="no"), VendorClosedError       | no                      |
| any other error                                    | no                      |

Used for reads, uploads and cancels, which are harmless to repeat. Never for ``Provider.create``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from tuneport.core.errors import ProviderError

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
LONGEST_RATE_LIMIT_S = 120.0
"""A vendor that asks for a longer pause than this is not waited for within one call."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to call again. ``after`` is the vendor's own wish in seconds, when it named one."""

    kind: Literal["no", "transient", "rate_limit"]
    after: float | None = None


def verdict(error: BaseException) -> Verdict:
    """Whether a call that raised this error may be repeated."""
    if isinstance(error, ProviderError):
        return Verdict(error.retry, error.retry_after)
    return Verdict("no")


def retrying(call: Callable[[], T], *, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep) -> T:
    """Call until it succeeds; waits 1, 2, 4, ... 30 s with jitter, or as long as the vendor asks.

    Raises the last error when the verdict is no, the attempts are used up, or the vendor asks for more than 120 s.
    """
    import tenacity  # noqa: PLC0415 -- only needed once something is sent

    backoff = tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, min=FIRST_WAIT_S, max=LONGEST_WAIT_S)

    def again(error: BaseException) -> bool:
        found = verdict(error)
        return found.kind != "no" and (found.after or 0) <= LONGEST_RATE_LIMIT_S

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = verdict(error).after if error else None
        return float(backoff(state)) if asked is None else asked

    policy = tenacity.Retrying(
        retry=tenacity.retry_if_exception(again), wait=wait, stop=tenacity.stop_after_attempt(attempts), sleep=sleep, reraise=True
    )
    return policy(call)
