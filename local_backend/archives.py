"""Adapters and models as vendors pack them (.tar.zst, .tar.gz): unpacked once into the user's cache, by content."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tuneport.core.data.compressed import DamagedArchiveError, open_content
from tuneport.core.errors import ProviderError
from tuneport.local_backend.models import cache_dir

if TYPE_CHECKING or sys.version_info >= (3, 11, 4):
    import tarfile
else:  # Debian 12's Python has no filters yet, without which an archive may write wherever it likes
    from backports import tarfile

ENDINGS = (".tar.zst", ".tar.gz", ".tar")
_CONFIGS = ("adapter_config.json", "config.json")
"""What stands in the folder of an adapter, or of a whole model."""


def unpacked(path: Path) -> Path:
    """The folder of the adapter or model in an archive. Nothing in it is run, and nothing lands outside of the cache.

    Raises ProviderError for a damaged archive and for one that holds neither, MissingExtraError for Zstandard without its extra.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = cache_dir() / "unpacked" / f"{path.name.partition('.tar')[0]}-{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            whole = Path(folder) / "content"
            _unpack(path, whole)
            try:
                whole.rename(target)
            except OSError:
                if not target.exists():  # a racing process that finished first is fine; anything else is not
                    raise
    for name in _CONFIGS:
        if found := sorted(target.rglob(name), key=lambda one: len(one.parts)):
            return found[0].parent
    raise ProviderError(f"{path} holds neither an adapter nor a model", fix="name an archive that tuneport export has brought", retry="no")


def _unpack(path: Path, into: Path) -> None:
    try:
        with open_content(str(path)) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            archive.extractall(into, filter="data")
    except (tarfile.TarError, DamagedArchiveError, EOFError) as error:
        raise ProviderError(f"{path} cannot be unpacked ({error})", fix="export it again", retry="no") from error
