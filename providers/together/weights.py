"""Brings a tuned model's archive from Together: resumable, verified, and never half there under its own name.

``GET /v1/finetune/download`` answers with a .tar.zst (SDK together 3.1.1, ``resources/fine_tuning.py``, ``content``). What has
arrived stands in ``NAME.part``; a later call asks for the rest (Range), on the condition that the archive is still the same
(If-Range), and starts over where Together cannot say so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.provider import OnProgress
from tuneport.core.retry import retrying
from tuneport.providers.together.errors import translated, unreadable

if TYPE_CHECKING:
    import together

Kind = Literal["adapter", "merged"]
"""Of a LoRA job: the adapter alone, or the base model with the adapter merged in (where Together makes one)."""

BLOCK = 1 << 20
"""Bytes between two reports of progress, and of one read."""
_KEPT = ("content-type", "content-range", "content-length", "etag", "content-md5", "x-amz-checksum-sha256", "x-goog-hash")
_ARCHIVES = (b"\x28\xb5\x2f\xfd", b"\x1f\x8b")
"""First bytes of zstd and gzip."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What an earlier call has brought: the bytes, and what identifies the archive that they belong to."""

    path: Path
    facts: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def headers(self) -> dict[str, str]:
        """The headers that the archive came with; empty when they are not known."""
        try:
            known = json.loads(self.facts.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def drop(self) -> None:
        for path in (self.path, self.facts):
            path.unlink(missing_ok=True)


def archive(
    client: together.Together,
    job: Mapping[str, Any],
    folder: Path,
    *,
    kind: Kind | None,
    step: int | None,
    on_progress: OnProgress | None,
    sleep: Callable[[float], None],
) -> Path:
    """The path of the archive, once all of it is there. An archive that is there already, and unharmed, is not fetched again.

    Raises ProviderError when it does not arrive whole, UsageError when the job has no such archive or the folder cannot take it.
    """
    try:
        return _archive(client, job, folder, _wanted(job, kind), step, on_progress, sleep)
    except OSError as error:
        raise UsageError(f"the weights cannot be kept in {folder} ({error.strerror})", fix="choose another folder, or make room") from error


def _archive(
    client: together.Together,
    job: Mapping[str, Any],
    folder: Path,
    word: str,
    step: int | None,
    on_progress: OnProgress | None,
    sleep: Callable[[float], None],
) -> Path:
    name = "--".join(part for part in re.split(r"[^\w.+-]+", str(job.get("model_output_name") or job["id"])) if part)
    stem = f"{name}-step-{step}" if step is not None else f"{name}-{word}" if word != "model_output_path" else name
    done = next((path for suffix in (".tar.zst", ".tar.gz") if _intact(path := folder / f"{stem}{suffix}")), None)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(folder / f"{stem}.part", folder / f"{stem}.part.json")
    wanted: dict[str, Any] = {"ft_id": job["id"], "checkpoint": word} | ({"checkpoint_step": step} if step is not None else {})
    retrying(lambda: _fetch(client, wanted, part, stem, on_progress), sleep=sleep)
    headers = part.headers()
    digest = _verified(part, headers)
    target = folder / (stem + (".tar.gz" if "x-tar" in headers.get("content-type", "").lower() else ".tar.zst"))
    _checksum_file(target).write_text(f"{digest}  {target.name}\n", encoding="utf-8")
    part.path.replace(target)
    part.drop()
    return target


def _wanted(job: Mapping[str, Any], kind: Kind | None) -> str:
    tuned = job.get("training_type")
    if isinstance(tuned, Mapping) and tuned.get("type") == "Full":
        if kind is not None:
            raise UsageError(f"job {job['id']} tuned the full model and has no {kind} weights", fix="leave the kind out")
        return "model_output_path"
    return kind or "adapter"


def _fetch(client: together.Together, wanted: dict[str, Any], part: _Part, name: str, on_progress: OnProgress | None) -> None:
    """Bring the rest of the archive into ``part``, where its headers are kept too."""
    have, known = part.size, part.headers()
    if have and have == _total(known):
        return
    mark = known.get("etag", "")
    if not mark or mark.startswith("W/"):  # nothing says that the rest would be the rest of the same archive
        part.drop()
        have = 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": mark} if have else {})
    with translated(), client.fine_tuning.with_streaming_response.content(**wanted, extra_headers=headers) as answer:
        if "html" in answer.headers.get("content-type", "").lower():
            raise unreadable("text/html", "")
        if answer.status_code != 206:  # the whole archive, since there was nothing yet or it is another one now
            have = 0
        total = _total(answer.headers)
        with part.path.open("r+b" if have else "wb") as file:
            part.facts.write_text(json.dumps({h: v for h in _KEPT if (v := answer.headers.get(h))}), encoding="utf-8")
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
        raise ProviderError(f"{have:,} of {total:,} bytes of the weights arrived", fix="download again; it goes on from there")


def _total(headers: Mapping[str, str]) -> int | None:
    """Size of the whole archive in bytes, where the answer tells it."""
    _, slash, total = headers.get("content-range", "").rpartition("/")
    length = total if slash else headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _verified(part: _Part, headers: Mapping[str, str]) -> str:
    """The archive's SHA-256, after comparing it with every digest that the answer names.

    Raises ProviderError, and drops what has arrived, when it differs or is no archive.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with part.path.open("rb") as file:
        first = file.read(4)
        file.seek(0)
        while block := file.read(BLOCK):
            sha256.update(block)
            md5.update(block)
    google = dict(entry.strip().partition("=")[::2] for entry in headers.get("x-goog-hash", "").split(","))
    named = {
        "x-amz-checksum-sha256": (headers.get("x-amz-checksum-sha256"), sha256.digest()),
        # of a partial answer it is that of the part
        "content-md5": (None if "content-range" in headers else headers.get("content-md5"), md5.digest()),
        "x-goog-hash": (google.get("md5"), md5.digest()),
    }
    # A checksum with a "-N" is that of N parts, not of the content.
    wrong = [name for name, (said, ours) in named.items() if said and "-" not in said and said != base64.b64encode(ours).decode()]
    if wrong or not first.startswith(_ARCHIVES):
        part.drop()
        why = f"its checksum differs ({', '.join(wrong)})" if wrong else "it is no archive"
        raise ProviderError(f"the weights did not arrive as Together sent them: {why}", fix="download again; it starts anew")
    return sha256.hexdigest()


def _checksum_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _intact(target: Path) -> bool:
    """Whether an earlier call has brought this archive, and it still has its checksum."""
    noted = _checksum_file(target)
    if not target.is_file() or not noted.is_file():
        return False
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return noted.read_text(encoding="utf-8").partition(" ")[0] == digest
