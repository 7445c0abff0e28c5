"""Runs one function over batches in several processes and hands the results back in order.

The processes are started as ``python -c`` with our own import path. ``multiprocessing`` would either fork, which is unsafe
when the caller has threads, or import the caller's main module again, which breaks scripts without a ``__main__`` guard.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from tuneport.core.errors import DataError, TuneportError

T = TypeVar("T")
R = TypeVar("R")

_SIZE_BYTES = 8
_CHILD = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tuneport.core.data.workers import serve; serve(sys.stdin.buffer, sys.stdout.buffer)"
)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_order(call: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """(item, call(item)) for every item, in order; ``call`` must be picklable. With ``workers`` below 2, in this process.

    Items are drawn as results are taken, so memory is bounded whatever their number. Errors of ``call`` that are
    TuneportErrors come out as DataErrors of the same words. Raises DataError when a worker process dies.
    """
    if workers < 2 or not sys.executable:
        for item in items:
            yield item, call(item)
        return
    idle: SimpleQueue[_Worker] = SimpleQueue()
    all_workers = [_Worker(call) for _ in range(workers)]
    for worker in all_workers:
        idle.put(worker)

    def work(item: T) -> R:
        worker = idle.get()
        try:
            result: R = worker.do(item)
            return result
        finally:
            idle.put(worker)

    pending: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            pending.append((item, pool.submit(work, item)))
            if len(pending) > 2 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    finally:
        for worker in all_workers:
            worker.stop()
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """One process that answers one item at a time."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._begin = (pickle.dumps(list(sys.path)), pickle.dumps(call))
        self._begun = False

    def do(self, item: Any) -> Any:
        source, sink = self._process.stdout, self._process.stdin
        if source is None or sink is None:
            raise DataError("a worker process has no pipes", fix="run with one worker")
        try:
            if not self._begun:
                sink.write(self._begin[0])
                _send(sink, self._begin[1])
                self._begun = True
            _send(sink, pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
            answer = _receive(source)
        except (OSError, ValueError) as error:
            raise _dead() from error
        if answer is None:
            raise _dead()
        kind, *value = pickle.loads(answer)  # noqa: S301 - from our own child process
        if kind == "result":
            return value[0]
        if kind == "data error":
            raise DataError(value[0], fix=value[1])
        raise RuntimeError(value[0])

    def stop(self) -> None:
        """End the process at once; what it was doing is not wanted any more."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be flushed has no reader any more
                    pipe.close()


def _dead() -> DataError:
    return DataError("a worker process of the check died, perhaps for want of memory", fix="run again with one worker")


def _send(sink: Any, data: bytes) -> None:
    sink.write(len(data).to_bytes(_SIZE_BYTES, "little"))
    sink.write(data)
    sink.flush()


def _receive(source: Any) -> bytes | None:
    head = source.read(_SIZE_BYTES)
    if len(head) < _SIZE_BYTES:
        return None
    size = int.from_bytes(head, "little")
    data: bytes = source.read(size)
    return data if len(data) == size else None


def serve(source: Any, sink: Any) -> None:
    """The child's side: receive the call, then items, and answer each with its result or what went wrong."""
    sys.stdout = sys.stderr  # the pipe is ours; nothing else may print into it
    first = _receive(source)
    if first is None:
        return
    call = pickle.loads(first)  # noqa: S301 - from our own parent process
    gc.disable()  # a batch makes many objects and no cycles; the collector would walk them again and again
    with contextlib.suppress(KeyboardInterrupt):
        while (item := _receive(source)) is not None:
            try:
                answer = pickle.dumps(("result", call(pickle.loads(item))), pickle.HIGHEST_PROTOCOL)  # noqa: S301
            except TuneportError as error:
                answer = pickle.dumps(("data error", error.what, error.fix))
            except Exception as error:  # noqa: BLE001 - the parent raises it
                answer = pickle.dumps(("fault", f"{type(error).__name__}: {error}"))
            _send(sink, answer)
