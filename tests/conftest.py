"""Shared by all tests: no test reaches the network, and none sees the developer's keys or ledger."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests run side by side on models of a few thousand parameters: threads of one test would only wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("tuneport.providers.conformance")

settings.register_profile("tuneport", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tuneport")

_LOOPBACK = ("127.", "::1", "localhost")
_CREDENTIALS = ("_API_KEY", "_TOKEN", "_SECRET", "AWS_", "TUNEPORT_", "FIREWORKS_", "OPENAI_", "TOGETHER_")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is loaded for the tests stays to the end: no garbage collection looks for garbage in it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """The same holds for libraries that a test loaded. Looking through them took two fifths of a test that trains."""
    loaded = len(sys.modules)
    result = yield
    if len(sys.modules) > loaded + 100:
        gc.collect()
        gc.freeze()
    return result


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to reach {address[0]}; tests speak to loopback only")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if any(mark in name for mark in _CREDENTIALS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
