"""Claims that one process at a time can hold, and that end with the process.

A claim has no expiry: one that timed out while its holder was merely suspended (a laptop's lid, SIGSTOP) would let a
second process create the same job. Instead the operating system (a file lock beside SQLite) or the server (an advisory
lock of the PostgreSQL session) gives a claim back when its holder is gone, however it went.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from tuneport.core.ledger.database import Database, SQLite

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

StillHeld = Callable[[], bool]
_POLL_S = 0.05


class Locks(Protocol):
    """Named locks of one ledger."""

    def claim(self, name: str) -> AbstractContextManager[StillHeld | None]:
        """Try once: None when someone else holds it, else a function that says whether it is still held."""
        ...

    def hold(self, name: str) -> AbstractContextManager[None]:
        """Wait until it is free."""
        ...


def locks_of(database: Database) -> Locks:
    """The locks that fit the database."""
    return FileLocks(Path(f"{database.name}.locks")) if isinstance(database, SQLite) else SessionLocks(database)


class FileLocks:
    """One lock file per name, in a folder beside the ledger; a file exists only while it is in use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def claim(self, name: str) -> Iterator[StillHeld | None]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / name
        handle = _locked(path)
        try:
            yield None if handle is None else lambda: True
        finally:
            if handle is not None:
                if sys.platform != "win32":  # which cannot remove an open file
                    path.unlink(missing_ok=True)  # while still locked; see _locked for those who wait on the old file
                os.close(handle)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        while True:
            with self.claim(name) as held:
                if held is not None:
                    yield
                    return
            time.sleep(_POLL_S)


def _locked(path: Path) -> int | None:
    """An open, locked file, or None when another holds the lock."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if isinstance(error, (BlockingIOError, PermissionError)):
                return None
            raise
        try:
            current = path.stat().st_ino
        except FileNotFoundError:
            current = -1
        if os.fstat(handle).st_ino == current:
            return handle
        os.close(handle)  # the holder removed this file between our open and our lock: lock the file that now has the name


class SessionLocks:
    """Advisory locks, each held by a PostgreSQL session of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def claim(self, name: str) -> Iterator[StillHeld | None]:
        with self._session("pg_try_advisory_lock", name) as held:
            yield held

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        with self._session("pg_advisory_lock", name):
            yield

    @contextmanager
    def _session(self, function: str, name: str) -> Iterator[StillHeld | None]:
        # Postgres locks a 64-bit number; names of this ledger's locks are mapped to one.
        number = int.from_bytes(hashlib.sha256(f"tuneport {name}".encode()).digest()[:8], signed=True)
        with closing(self._database.connect()) as session:

            def alive() -> bool:
                try:
                    session.execute("SELECT 1")
                except self._database.errors:
                    return False
                return True

            (taken,) = session.execute(f"SELECT {function}(%s)", (number,)).fetchone()
            try:
                yield None if taken is False else alive
            finally:
                if taken is not False:
                    self._release(session, number)

    def _release(self, session: Any, number: int) -> None:
        with suppress(self._database.errors):  # the server answers once the lock is free; ending the session frees it a moment later
            session.execute("SELECT pg_advisory_unlock(%s)", (number,))
