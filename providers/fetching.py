"""Brings a large file from a vendor: resumable, verified, and never half there under its own name.

What has arrived stands in ``NAME.part``, and the headers that it came with in ``NAME.part.json``. A later call asks for the rest
(Range) on the condition that the file is still the same (If-Range), and starts over where nothing can say so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.provider import OnProgress

BLOCK = 1 << 20
"""Bytes between two reports of progress, and of one read."""
_KEPT = ("content-type", "content-length", "etag", "content-md5", "x-amz-checksum-sha256", "x-goog-hash")


class Answer(Protocol):
    """The answer of an HTTP client, whose body is still to be read."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def iter_bytes(self) -> Iterator[bytes]: ...


Ask = Callable[[dict[str, str]], AbstractContextManager[Answer]]
"""Asks for the file with these headers; any error status but 416 (no such range) is raised."""


class Part:
    """What has arrived of one file, beside the place where it will stand."""

    def __init__(self, stem: Path) -> None:
        self._path, self._facts = stem.with_name(f"{stem.name}.part"), stem.with_name(f"{stem.name}.part.json")

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the file's beginning came with; empty when they are not known."""
        try:
            known = json.loads(self._facts.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def bring(self, ask: Ask, name: str, on_progress: OnProgress | None) -> None:
        """Bring all that is missing. Raises ProviderError when it breaks off, UsageError when it cannot be kept here."""
        with kept_in(self._path.parent):
            self._bring(ask, name, on_progress)

    def _bring(self, ask: Ask, name: str, on_progress: OnProgress | None) -> None:
        have, known = self._path.stat().st_size if self._path.exists() else 0, self.headers
        if have and have == _total(known):
            return
        mark = known.get("etag", "")
        if not mark or mark.startswith("W/"):  # nothing says that the rest would be the rest of the same file
            have = 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": mark} if have else {})
        with ask(headers) as answer:
            if have and answer.status_code == 416:  # all of it had arrived, only its name was missing
                return
            if "html" in answer.headers.get("content-type", "").lower():
                raise ProviderError(f"a web page came back in place of {name}", fix="check HTTPS_PROXY and the network")
            if answer.status_code != 206:  # the whole file, since there was nothing yet or it is another one now
                have = 0
            total = _total(answer.headers)
            with self._path.open("r+b" if have else "wb") as file:
                if not have:  # what comes with a part may be that of the part alone
                    self._facts.write_text(json.dumps({h: v for h in _KEPT if (v := answer.headers.get(h))}), encoding="utf-8")
                file.seek(have)
                file.truncate()
                told = have
                for block in answer.iter_bytes():  # as it arrives, so that nothing waits in memory when the connection breaks
                    file.write(block)
                    have += len(block)
                    if on_progress is not None and (have - told >= BLOCK or have == total):
                        on_progress(name, have, total)
                        told = have
                file.flush()
                os.fsync(file.fileno())
        if total is not None and have != total:
            raise ProviderError(f"{have:,} of {total:,} bytes of {name} arrived", fix="download again; it goes on from there")

    def keep(self, target: Path, service: str, *, begins: tuple[bytes, ...] = (b"",)) -> None:
        """Compare what arrived with every digest that came with it, note its SHA-256, and give it its name.

        Raises ProviderError, and drops it, when a digest differs or it begins with none of ``begins``.
        """
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with self._path.open("rb") as file:
            first = file.read(8)
            file.seek(0)
            while block := file.read(BLOCK):
                sha256.update(block)
                md5.update(block)
        headers = self.headers
        google = dict(entry.strip().partition("=")[::2] for entry in headers.get("x-goog-hash", "").split(","))
        named = {
            "x-amz-checksum-sha256": (headers.get("x-amz-checksum-sha256"), sha256.digest()),
            "content-md5": (headers.get("content-md5"), md5.digest()),
            "x-goog-hash": (google.get("md5"), md5.digest()),
        }
        # A checksum with a "-N" is that of N parts, not of the content.
        wrong = [name for name, (said, ours) in named.items() if said and "-" not in said and said != base64.b64encode(ours).decode()]
        if wrong or not first.startswith(begins):
            self._path.unlink()
            self._facts.unlink(missing_ok=True)
            why = f"its checksum differs ({', '.join(wrong)})" if wrong else "it is no archive"
            raise ProviderError(f"{target.name} did not arrive as {service} sent it: {why}", fix="download again; it starts anew")
        with kept_in(target.parent):
            _noted(target).write_text(f"{sha256.hexdigest()}  {target.name}\n", encoding="utf-8")
            self._path.replace(target)
            self._facts.unlink(missing_ok=True)


def intact(target: Path) -> bool:
    """Whether an earlier call has brought this file, and it still has its checksum."""
    noted = _noted(target)
    if not target.is_file() or not noted.is_file():
        return False
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return noted.read_text(encoding="utf-8").partition(" ")[0] == digest


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Raises UsageError where the folder cannot take what is written into it."""
    try:
        yield
    except (ConnectionError, TimeoutError):  # the network's, not the folder's
        raise
    except OSError as error:
        raise UsageError(f"the weights cannot be kept in {folder} ({error.strerror})", fix="choose another folder, or make room") from error


def _noted(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _total(headers: Mapping[str, str]) -> int | None:
    """Size of the whole file in bytes, where the answer tells it."""
    _, slash, total = headers.get("content-range", "").rpartition("/")
    length = total if slash else headers.get("content-length", "")
    return int(length) if length.isdigit() else None
