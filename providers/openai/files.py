"""Rows to OpenAI's file store, once per job however often it is tried.

A file's name holds the job's key and a hash of its content, so that an earlier upload is found again by its name.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import DataError, ProviderError
from tuneport.core.plan import Upload
from tuneport.core.provider import OnProgress, OpenRows
from tuneport.core.retry import retrying
from tuneport.providers.openai.errors import parsed, translated, unreadable
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


def pages(fetch: Callable[[dict[str, Any]], Any], call: str, service: str, most_pages: int | None = None) -> Iterator[Any]:
    """The entries of a list, page by page, from raw responses of the SDK; every page is checked, since a proxy may answer any of them."""
    after: dict[str, Any] = {}
    count = 0
    while most_pages is None or count < most_pages:
        with translated(call, service):
            page = parsed(fetch(after), call, service)
        entries = getattr(page, "data", None)
        if not isinstance(entries, list) or not all(isinstance(getattr(entry, "id", None), str) for entry in entries):
            raise unreadable(call, service)
        yield from entries
        if not entries or not getattr(page, "has_more", False):
            return
        after = {"after": entries[-1].id}
        count += 1


class FileStore:
    """The file store of one service, over a client of the SDK. Files above ``part_bytes`` go up in parts."""

    def __init__(self, client: OpenAI, service: str, part_bytes: int = PART_BYTES, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client, self._service, self._part_bytes, self._sleep = client, service, part_bytes, sleep

    def send(self, upload: Upload, rows: OpenRows, key: str, on_progress: OnProgress | None = None) -> str:
        """Convert and upload one file, or find it there from an earlier try; returns its id."""
        with tempfile.TemporaryDirectory(prefix="tuneport-") as folder:
            file = prepare(upload, rows, key, Path(folder))
            if file.size > LARGEST_BYTES:
                what = f"the {upload.role} file has {file.size / 2**30:.1f} GB, and {self._service} takes 8 GB at most"
                raise ProviderError(what, fix="train on fewer or shorter rows", retry="no")
            present = next((entry for entry in self.named(file.name) if entry.bytes == file.size), None)
            if present:
                file_id = str(present.id)
            elif file.size > self._part_bytes:
                file_id = self._upload_in_parts(file, on_progress)
            else:
                file_id = self._upload(file)
        if on_progress:
            on_progress(file.name, file.size, file.size)
        return file_id

    def named(self, start: str) -> Iterator[Any]:
        """The usable training files whose names begin so, newest first."""
        listed = self._client.files.with_raw_response

        def fetch(after: dict[str, Any]) -> Any:
            return listed.list(purpose="fine-tune", order="desc", limit=_LISTED, **after)

        for entry in pages(fetch, "to list files", self._service):
            if str(entry.filename).startswith(start) and getattr(entry, "status", "") != "error":
                yield entry

    def _upload(self, file: Prepared) -> str:
        call = f"to store {file.name}"
        with translated(call, self._service), file.path.open("rb") as content:
            made = self._client.files.create(file=(file.name, content), purpose="fine-tune")
        return self._id_of(made, call)

    def _upload_in_parts(self, file: Prepared, on_progress: OnProgress | None) -> str:
        """A part that fails is sent again by itself; an upload that is given up expires at OpenAI within the hour."""
        call = f"to store {file.name} in parts"
        with translated(call, self._service):
            begun = self._client.uploads.create(bytes=file.size, filename=file.name, mime_type="application/jsonl", purpose="fine-tune")
        upload_id = self._id_of(begun, call)
        parts: list[str] = []
        with file.path.open("rb") as content:
            while chunk := content.read(self._part_bytes):
                send_part = partial(self._send_part, upload_id, chunk, call)
                parts.append(retrying(send_part, attempts=_PART_ATTEMPTS, sleep=self._sleep))
                if on_progress:
                    on_progress(file.name, content.tell(), file.size)
        with translated(call, self._service):
            done = self._client.uploads.complete(upload_id, part_ids=parts, md5=file.md5)
        return self._id_of(getattr(done, "file", None), call)

    def _send_part(self, upload_id: str, chunk: bytes, call: str) -> str:
        with translated(call, self._service):
            part = self._client.uploads.parts.create(upload_id, data=("part", chunk))
        return self._id_of(part, call)

    def _id_of(self, made: Any, call: str) -> str:
        found = getattr(made, "id", None)
        if not isinstance(found, str):
            raise unreadable(call, self._service)
        return found
