"""Writes files in one step: a reader sees the old file or the whole new one, and a crash leaves no half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tuneport.core.errors import TuneportError


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    ``private``: only this user may read it. Raises TuneportError (exit code 1: the machine's fault, not the data's) when the folder
    does not exist or cannot be written, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:
            Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a text as UTF-8. Raises TuneportError as ``replacing`` does."""
    with replacing(path, private=private) as file:
        file.write(text.encode("utf-8"))


def _unwritable(path: Path, error: OSError) -> TuneportError:
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return TuneportError(f"{path} cannot be written: the folder {path.parent} does not exist", fix="make it first, or name another")
    return TuneportError(f"{path} cannot be written ({error.strerror or error})", fix="choose another folder, or free space")
