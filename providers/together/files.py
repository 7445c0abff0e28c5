"""Brings the rows of a job to Together: convert, upload through the SDK, wait for the service's own check.

The SDK asks for an address (302), puts the content there and starts the check; above 5 GB it sends parts. Content that
Together already holds is found by its checksum (409), so uploading twice is harmless. SDK together 3.1.1,
``lib/resources/files.py`` and ``types/file_response.py``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import DataError, ProviderError, UsageError
from tuneport.core.plan import Plan, Upload
from tuneport.core.provider import OnProgress, OpenRows
from tuneport.core.retry import retrying
from tuneport.providers.exchange import write_records
from tuneport.providers.together.errors import translated
from tuneport.providers.together.records import RECORDS
from tuneport.providers.together.session import document

if TYPE_CHECKING:
    import together

CHECK_S = 1800.0
"""How long the service's check of a file is waited for within one call, in seconds (assumed; Together names no time)."""
_LONGEST_PAUSE_S = 15.0
_WAITING = frozenset({"PENDING", "QUEUED", "RUNNING"})
_LINE = re.compile(r"\b(?:line|row|sample|example)s?\b[\s#:]*(\d+(?:\s*(?:,|and)\s*\d+)*)", re.I)
_MOST_NAMED = 10

Sleep = Callable[[float], None]


def upload_all(
    client: together.Together, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None, sleep: Sleep
) -> dict[str, str]:
    """{role: file id} of all files of the plan, each checked by the service.

    Raises DataError for rows that the format cannot express or that the service rejects, each with its place in the
    user's file; ProviderError when the service does not finish its check.
    """
    try:
        sent = _upload_all(client, plan, rows, key, on_progress)
    except OSError as error:
        fix = "make room there, or set TMPDIR to another folder"
        raise UsageError(f"the converted rows cannot be kept in {tempfile.gettempdir()} ({error.strerror})", fix=fix) from error
    for upload in plan.uploads:
        _await_check(client, *sent[upload.role], upload, rows, sleep)
    return {role: ident for role, (ident, _) in sent.items()}


def _upload_all(
    client: together.Together, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None
) -> dict[str, tuple[str, int]]:
    """{role: (file id, bytes)}."""
    ids: dict[str, tuple[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="tuneport-") as folder:
        for upload in plan.uploads:
            # The key in the name tells whose file it is, should Together not show a job's suffix.
            path = Path(folder) / f"{key}-{upload.filename}"
            write_records(path, upload, rows(upload.role), RECORDS[upload.record])
            ids[upload.role] = _send(client, path, upload, on_progress), path.stat().st_size
            path.unlink()
    return ids


def _send(client: together.Together, path: Path, upload: Upload, on_progress: OnProgress | None) -> str:
    def moved(progress: Any) -> None:
        if on_progress is not None:
            on_progress(upload.filename, progress.uploaded_bytes, progress.total_bytes)

    with translated(Exception):  # beside its own classes the SDK raises ValueError, KeyError, AssertionError and bare Exception
        # The service checks the records itself, and write_records has made them: no third reading by the SDK.
        sent = client.files.upload(path, purpose="fine-tune", check=False, progress_callback=moved)
    ident = getattr(sent, "id", None)
    if not isinstance(ident, str) or not ident:
        raise ProviderError("Together's answer to the upload names no file", fix="submit again; what arrived is not sent twice")
    return ident


def _await_check(client: together.Together, ident: str, size: int, upload: Upload, rows: OpenRows, sleep: Sleep) -> None:
    def read() -> dict[str, Any]:
        with translated():
            return document(client.files.with_raw_response.retrieve(ident))

    waited, pause = 0.0, 0.5
    while True:
        record = retrying(read, attempts=3, sleep=sleep)
        status = str(record.get("processing_status") or "").upper()
        report = record.get("validation_report")
        report = report if isinstance(report, dict) else {}
        why = " ".join(str(report.get("error") or "").split())
        arrived = record.get("bytes")
        unfit = status in ("INVALID_FORMAT", "FAILED")
        if isinstance(arrived, int) and arrived < size and (unfit or (arrived == 0 and status not in _WAITING)):
            what = f"only {arrived:,} of {size:,} bytes of the {upload.role} file {ident} arrived at Together"
            raise ProviderError(what, fix="submit again; a proxy may have swallowed the content (HTTPS_PROXY)")
        if status == "INVALID_FORMAT" or report.get("valid") is False:
            raise _rejected(ident, upload, rows, why)
        if status == "FAILED":
            what = f"Together could not check the {upload.role} file {ident}" + (f" ({why})" if why else "")
            raise ProviderError(what, fix=f"delete {ident} at Together and submit again", retry="no")
        if status not in _WAITING:
            return
        if waited >= CHECK_S:
            fix = "go on later with: tuneport reconcile --yes (the file is not sent again)"
            raise ProviderError(f"Together is still checking the {upload.role} file {ident} after {waited / 60:.0f} minutes", fix=fix)
        sleep(pause)
        waited, pause = waited + pause, min(2 * pause, _LONGEST_PAUSE_S)


def _rejected(ident: str, upload: Upload, rows: OpenRows, why: str) -> DataError:
    """The error for a file that the service rejects; lines that it names are those of the user's file."""
    numbers = sorted({int(number) for found in _LINE.finditer(why) for number in re.findall(r"\d+", found[1])})
    places = _places(rows, upload, numbers[:_MOST_NAMED])
    where = f" at {', '.join(places)}" if places else ""
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    what = f"Together rejects the {upload.role} file {upload.source} (as {ident}){where}{more}: {why or 'it names no reason'}"
    return DataError(what, fix="correct these rows and submit again" if places else "correct the file and submit again")


def _places(rows: OpenRows, upload: Upload, numbers: list[int]) -> list[str]:
    """Where the n-th uploaded records (from 1) stand in the user's file."""
    if not numbers:
        return []
    wanted = set(numbers)
    kept = islice(rows(upload.role), max(numbers))
    return [f"{row.file}:{row.line}" for number, row in enumerate(kept, start=1) if number in wanted]


def belongs(client: together.Together, ident: str, key: str) -> bool:
    """Whether a file was uploaded for the job with this key; False when it is gone."""
    try:
        with translated():
            record = document(client.files.with_raw_response.retrieve(ident))
    except ProviderError as error:
        if error.retry == "no":
            return False
        raise
    return str(record.get("filename") or "").startswith(f"{key}-")
