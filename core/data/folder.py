"""The output folder of ``prepare``: what an earlier run left there, which the next one replaces."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from tuneport.core.data.card import CARDS, DataCard
from tuneport.core.data.readers import sha256_of
from tuneport.core.errors import TuneportError, UsageError

_OURS = re.compile(r"(train|validation|test)\..+|rejected\.jsonl|review\.csv|card\.(json|md)")
"""Names of the files that ``prepare`` writes, whatever its options."""


def leftovers(folder: Path) -> list[Path]:
    """The files of the earlier run whose card lies there, the card first.

    Raises UsageError for a file of such a name that the card does not account for, or that was changed since: an old
    test set beside a new training set is leakage, and a review sheet that people have filled in is not to be lost.
    """
    card = _card(folder)
    hashes = {} if card is None else {file.name: file.sha256 for file in card.files} | card.aside
    found: list[Path] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _OURS.fullmatch(path.name):
            continue
        if path.name in CARDS and card is not None:
            found.insert(0, path)
            continue
        if path.name not in hashes or sha256_of(str(path)) != hashes[path.name]:
            why = "was changed since prepare wrote it" if path.name in hashes else "is not of an earlier prepare"
            raise UsageError(f"{path} {why}", fix="move it away, or choose another output folder")
        found.append(path)
    return found


def _card(folder: Path) -> DataCard | None:
    try:
        return DataCard.model_validate_json((folder / CARDS[0]).read_bytes())
    except (OSError, ValidationError):  # none, or another program's
        return None


def make_folder(folder: Path) -> None:
    """Make the folder where it is missing, but not those above it. Raises TuneportError where that fails."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", fix="choose another output folder")
    if not folder.parent.is_dir():
        raise TuneportError(f"{folder} cannot be made: {folder.parent} does not exist", fix="make it first, or name another")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise TuneportError(f"{folder} cannot be made ({error.strerror})", fix="choose another output folder") from error
