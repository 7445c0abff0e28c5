"""Asks many questions at once, as fast as the service allows: what every vendor's ``chat`` shares.

At most ``concurrency`` requests are on their way. When the service asks to slow down (429), the number is halved, at most once for
all requests that were on their way by then, and nobody asks before the moment that the service named; each answer then
raises it again by 1/number: additive increase, multiplicative decrease (Chiu and Jain, 1989). Whether a request is sent
again is decided by ``core.retry`` alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

from tuneport.core.errors import CredentialsError, ProviderError, TuneportError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.core.retry import LONGEST_RATE_LIMIT_S, retrying, verdict

T = TypeVar("T")

CONCURRENCY = 8
"""Requests at once, unless the caller says otherwise: what the smallest accounts of all vendors bear."""
ATTEMPTS = 8
"""More than for other calls: with many requests on their way, a single one may meet several faults."""
SWITCH_S = 0.0005
"""Seconds after which a thread hands on Python's lock meanwhile: at the usual 5 ms, those whose answers have come wait for each other."""
ROUNDS = 4
"""So many times as many tries while the service only asks to wait: until the pace is found, one request may be put off often."""


class Pace:
    """How many may ask at once, and from when on. Shared by the threads of one run."""

    def __init__(self, most: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._most, self._sleep = most, sleep
        self._limit = float(most)
        self._running = 0
        self._not_before = self._slowed_at = 0.0
        self._free = threading.Condition()

    @property
    def limit(self) -> int:
        """Requests that may be on their way now."""
        return int(self._limit)

    def run(self, call: Callable[[], T]) -> T:
        """Make the call when there is room; learn from its outcome. Errors pass through."""
        began = self._enter()
        try:
            result = call()
        except TuneportError as error:
            said = verdict(error)
            self._leave(slow=said.kind == "rate_limit", began=began, after=said.after or 0.0)
            raise
        except BaseException:
            self._leave()
            raise
        self._leave(fast=True)
        return result

    def _enter(self) -> float:
        with self._free:
            self._free.wait_for(lambda: self._running < self.limit)
            self._running += 1
            wait = self._not_before - time.monotonic()
        if wait > 0:
            self._sleep(wait)
        return time.monotonic()

    def _leave(self, *, fast: bool = False, slow: bool = False, began: float = 0.0, after: float = 0.0) -> None:
        now = time.monotonic()
        with self._free:
            self._running -= 1
            if fast:
                self._limit = min(float(self._most), self._limit + 1 / self._limit)
            if slow:
                self._not_before = max(self._not_before, now + after)
                if began > self._slowed_at:
                    self._limit, self._slowed_at = max(1.0, self._limit / 2), now
            self._free.notify(2)


def ask_all(
    requests: Iterable[ChatRequest],
    ask: Callable[[ChatRequest], ChatReply],
    *,
    concurrency: int = CONCURRENCY,
    fatal: tuple[type[TuneportError], ...] = (),
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[ChatReply]:
    """A reply for each request, as they come; requests are taken only when there is room for them.

    ``ask`` makes one call and runs in threads. A request that fails for good becomes a reply with its error. Raises
    CredentialsError and the errors in ``fatal`` (they concern every request); what is on its way then is waited for.
    """
    stop = threading.Event()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, SWITCH_S))

    def rest(seconds: float) -> None:  # a pause of two minutes must not hold up the end of the run
        if sleep is time.sleep:
            stop.wait(seconds)
        else:
            sleep(seconds)

    pace = Pace(concurrency, rest)
    done: SimpleQueue[ChatReply | BaseException] = SimpleQueue()

    def once(request: ChatRequest) -> ChatReply:
        if stop.is_set():
            raise ProviderError("nobody waits for the answer any more", retry="no")
        return pace.run(lambda: ask(request))

    def patiently(request: ChatRequest) -> ChatReply:
        for _ in range(ROUNDS - 1):
            try:
                return retrying(lambda: once(request), attempts=attempts, sleep=rest)
            except ProviderError as error:
                if error.retry != "rate_limit" or (error.retry_after or 0) > LONGEST_RATE_LIMIT_S:
                    raise
        return retrying(lambda: once(request), attempts=attempts, sleep=rest)

    def answer(request: ChatRequest) -> ChatReply | BaseException:
        try:
            return patiently(request)
        except TuneportError as error:
            return error if isinstance(error, (CredentialsError, *fatal)) else ChatReply(request.id, "", error=str(error))
        except BaseException as error:  # noqa: BLE001 -- raised again where the replies are read
            return error

    todo: SimpleQueue[ChatRequest | None] = SimpleQueue()

    def work() -> None:
        while (request := todo.get()) is not None:
            done.put(answer(request))

    source, waiting = iter(requests), 0
    workers: list[threading.Thread] = []  # a ThreadPoolExecutor costs a Future and two locks more for each question
    try:
        while True:
            while waiting < concurrency and (request := next(source, None)) is not None:
                todo.put(request)
                waiting += 1
                if waiting > len(workers):
                    workers.append(threading.Thread(target=work, name="tuneport-ask", daemon=True))
                    workers[-1].start()
            if not waiting:
                return
            found = done.get()
            waiting -= 1
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        sys.setswitchinterval(usual)
        stop.set()
        for _ in workers:
            todo.put(None)
        for worker in workers:
            worker.join()
