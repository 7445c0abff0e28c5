"""Writes files in one step: a reader sees the old file or the whole new one, and a crash leaves no half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from tuneport.core.errors import TuneportError

EVERYBODY, OWNER = 0o666, 0o600
"""Who may read and write a file, less what the umask takes away: all; this user alone, because private data may stand in it."""


def mode_of(*paths: str) -> int:
    """The mode of files made of these: nobody may read them who may not read all of these. Raises TuneportError where one is gone."""
    mode = EVERYBODY
    for path in paths:
        try:
            mode &= Path(path).stat().st_mode | OWNER
        except OSError as error:
            raise TuneportError(f"{path} cannot be read ({error.strerror})", fix="check the path") from error
    return mode


@contextmanager
def replacing(path: Path, mode: int = EVERYBODY) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    ``mode``: its permissions, less the umask. Raises TuneportError (exit code 1: the machine's fault, not the data's) when the folder
    does not exist or cannot be written, or the disk is full.
    """
    part = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        file = open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, mode: int = EVERYBODY) -> None:
    """Write a text as UTF-8. Raises TuneportError as ``replacing`` does."""
    with replacing(path, mode) as file:
        file.write(text.encode("utf-8"))


def _unwritable(path: Path, error: OSError) -> TuneportError:
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return TuneportError(f"{path} cannot be written: the folder {path.parent} does not exist", fix="make it first, or name another")
    return TuneportError(f"{path} cannot be written ({error.strerror or error})", fix="choose another folder, or free space")
