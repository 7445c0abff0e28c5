"""Opens data files that may be packed with gzip or Zstandard, as streams of their content.

gzip comes with Python; Zstandard too from 3.14 (``compression.zstd``, PEP 784). Older Pythons use ``backports.zstd`` (extra
"zstd"): the same code under the same interface, kept by the author of the PEP's implementation, so the extra falls away by itself.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from tuneport.core.errors import MissingExtraError

PACKINGS = {".gz": "gzip", ".zst": "zstd"}
"""File name endings that mean a packed file, after the ending of its content (rows.jsonl.gz)."""

_READ_BYTES = 1 << 16


class DamagedArchiveError(Exception):
    """A packed file ends early or cannot be unpacked any further; what came before is good."""


def packing_of(path: str) -> str | None:
    """ "gzip", "zstd", or None for a file that is not packed."""
    return PACKINGS.get(PurePath(path).suffix.lower())


def content_suffix(path: str) -> str:
    """The ending that says what the content is, in lower case: ".jsonl" of both rows.jsonl and rows.jsonl.gz."""
    name = PurePath(path)
    return PurePath(name.stem).suffix.lower() if packing_of(path) else name.suffix.lower()


def open_content(path: str) -> BinaryIO:
    """The file's content as a binary stream, unpacked on the way.

    Reading raises OSError as any file does, and DamagedArchiveError where a packed file is damaged.
    Raises MissingExtraError for Zstandard without its extra.
    """
    packing = packing_of(path)
    if packing is None:
        return Path(path).open("rb")
    file: Any = gzip.open(path, "rb") if packing == "gzip" else zstd(path).open(path, "rb")  # noqa: SIM115 - closed with its wrapper
    return io.BufferedReader(_Unpacked(file, packing), _READ_BYTES)


def zstd(path: str) -> Any:
    """The module that packs and unpacks Zstandard. Raises MissingExtraError, naming ``path``, without one."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd as module  # noqa: PLC0415
        else:
            from backports import zstd as module  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(f"{path} is packed with Zstandard, which this Python cannot unpack by itself", "zstd") from error
    return module


class _Unpacked(io.RawIOBase):
    """The unpacked content; every fault of the archive becomes a DamagedArchiveError."""

    def __init__(self, file: Any, packing: str) -> None:
        self._file = file
        self._packing = packing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read1(len(buffer)) if hasattr(self._file, "read1") else self._file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamagedArchiveError(f"a damaged or cut-off {self._packing} archive ({error})") from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # of a module that may not be there to import
                raise
            raise DamagedArchiveError(f"a damaged or cut-off {self._packing} archive ({error})") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
