"""Rows to OpenAI's file store, once per job however often it is tried.

A file's name holds the job's key and a hash of its content, so that an earlier upload is found again by its name.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import DataError, ProviderError
from tuneport.core.plan import Upload
from tuneport.core.provider import OnProgress, OpenRows
from tuneport.core.retry import retrying
from tuneport.providers.openai.errors import translated, unreadable
from tuneport.providers.openai.records import RECORDS

if TYPE_CHECKING:
    from openai import OpenAI

PART_BYTES = 64 * 2**20
"""Files above this size go up in parts of this size, the most that a part may have (openai 3.54.0, resources/uploads)."""
LARGEST_BYTES = 8 * 2**30
"""Source: openai 3.54.0, docstring of uploads.create: at most 8 GB in total."""
_LISTED = 1000  # entries per page of the file list
_PART_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """One file, converted and ready to send."""

    path: Path
    name: str  # at the vendor
    size: int  # bytes
    md5: str


def prepare(upload: Upload, rows: OpenRows, key: str, folder: Path) -> Prepared:
    """Write an upload's rows as JSON Lines. Raises DataError when they are not those that the plan counted."""
    record, path = RECORDS[upload.record], folder / f"{upload.role}.jsonl"
    sha256, md5, count = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("wb") as out:
        for count, row in enumerate(rows(upload.role), start=1):  # noqa: B007 -- counts the rows
            line = json.dumps(record(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
            sha256.update(line)
            md5.update(line)
            out.write(line)
    if count != upload.rows:
        raise DataError(f"{upload.source} gives {count} rows for {upload.role}, and the plan has {upload.rows}", fix="plan the job anew")
    return Prepared(path, f"{key}-{upload.role}-{sha256.hexdigest()[:16]}.jsonl", path.stat().st_size, md5.hexdigest())


def send(
    client: OpenAI, service: str, upload: Upload, rows: OpenRows, key: str, on_progress: OnProgress | None, part_bytes: int = PART_BYTES
) -> str:
    """Convert and upload one file, or find it there from an earlier try; returns its id."""
    with tempfile.TemporaryDirectory(prefix="tuneport-") as folder:
        file = prepare(upload, rows, key, Path(folder))
        if file.size > LARGEST_BYTES:
            what = f"the {upload.role} file has {file.size / 2**30:.1f} GB, and {service} takes 8 GB at most"
            raise ProviderError(what, fix="train on fewer or shorter rows", retry="no")
        present = next((entry for entry in named(client, service, file.name) if entry.bytes == file.size), None)
        file_id = str(present.id) if present else _upload(client, service, file, on_progress, part_bytes)
    if on_progress:
        on_progress(upload.filename, file.size, file.size)
    return file_id


def named(client: OpenAI, service: str, start: str) -> Iterator[Any]:
    """The usable training files whose names begin so, newest first."""
    for entry in pages(lambda after: client.files.list(purpose="fine-tune", order="desc", limit=_LISTED, **after), "to list files", service):
        if str(entry.filename).startswith(start) and getattr(entry, "status", "") != "error":
            yield entry


def pages(fetch: Any, call: str, service: str, most_pages: int | None = None) -> Iterator[Any]:
    """The entries of a list, page by page; every page is checked, since a proxy may answer any of them."""
    after: dict[str, str] = {}
    count = 0
    while most_pages is None or count < most_pages:
        with translated(call, service):
            page = fetch(after)
        entries = getattr(page, "data", None)
        if not isinstance(entries, list) or not all(isinstance(getattr(entry, "id", None), str) for entry in entries):
            raise unreadable(call, service)
        yield from entries
        if not entries or not getattr(page, "has_more", False):
            return
        after = {"after": entries[-1].id}
        count += 1


def _upload(client: OpenAI, service: str, file: Prepared, on_progress: OnProgress | None, part_bytes: int) -> str:
    if file.size > part_bytes:
        return _upload_in_parts(client, service, file, on_progress, part_bytes)
    call = f"to store {file.name}"
    with translated(call, service), file.path.open("rb") as content:
        made = client.files.create(file=(file.name, content), purpose="fine-tune")
    return _id_of(made, call, service)


def _upload_in_parts(client: OpenAI, service: str, file: Prepared, on_progress: OnProgress | None, part_bytes: int) -> str:
    """A part that fails is sent again by itself; an upload that is given up expires at OpenAI within the hour."""
    call = f"to store {file.name} in parts"
    with translated(call, service):
        begun = client.uploads.create(bytes=file.size, filename=file.name, mime_type="application/jsonl", purpose="fine-tune")
    upload_id = _id_of(begun, call, service)
    parts: list[str] = []
    with file.path.open("rb") as content:
        while chunk := content.read(part_bytes):
            parts.append(retrying(lambda: _send_part(client, service, upload_id, chunk, call), attempts=_PART_ATTEMPTS))  # noqa: B023
            if on_progress:
                on_progress(file.name, content.tell(), file.size)
    with translated(call, service):
        done = client.uploads.complete(upload_id, part_ids=parts, md5=file.md5)
    return _id_of(getattr(done, "file", None), call, service)


def _send_part(client: OpenAI, service: str, upload_id: str, chunk: bytes, call: str) -> str:
    with translated(call, service):
        part = client.uploads.parts.create(upload_id, data=("part", chunk))
    return _id_of(part, call, service)


def _id_of(made: Any, call: str, service: str) -> str:
    found = getattr(made, "id", None)
    if not isinstance(found, str):
        raise unreadable(call, service)
    return found
