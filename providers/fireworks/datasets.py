"""Brings the rows of a job to Fireworks: a dataset with an id of ours, its file, and the wait until it is ready.

The id holds the job's key and the content's checksum, so that uploading twice finds the dataset that is there.
Sources: fireworks-ai 1.2.28, ``resources/datasets.py`` and ``lib/dataset_upload.py``.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuneport.core.errors import ProviderError, TuneportError
from tuneport.core.plan import Plan, Upload
from tuneport.core.provider import OnProgress, OpenRows
from tuneport.core.retry import retrying, verdict
from tuneport.providers.exchange import write_records
from tuneport.providers.fireworks.errors import vendor_message
from tuneport.providers.fireworks.records import RECORDS
from tuneport.providers.fireworks.session import Api, exists_already, status_of, translated

LARGEST_DIRECT = 150_000_000
"""Bytes that ``datasets.upload`` takes (its docstring: 150 MB). Larger files go to a signed address, which the SDK's helper
only accepts as https: a service under a plain-http address of one's own cannot take them."""
READY_S = 1800.0
"""How long a dataset is waited for within one call, in seconds (assumed; Fireworks names no time)."""
UPLOAD_S = 600.0
"""Longest wait while a file is sent, in seconds, as in the SDK's own helper."""
_LONGEST_PAUSE_S = 15.0

FORMATS: Mapping[str, str] = {"fireworks-chat": "CHAT", "fireworks-chat-weighted": "CHAT", "fireworks-rft": "RL"}
"""Record shape -> the dataset's ``format``. It has no word for preference pairs, and is left out for them."""

Sleep = Callable[[float], None]


def upload_all(api: Api, plan: Plan, rows: OpenRows, key: str, on_progress: OnProgress | None, sleep: Sleep) -> dict[str, str]:
    """{role: resource name of the dataset} of all files of the plan, each ready.

    Raises DataError for a row that the format cannot express, ProviderError for rows that Fireworks rejects and for a
    dataset that does not become ready.
    """
    names: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="tuneport-") as folder:
        for upload in plan.uploads:
            path = Path(folder) / f"{upload.role}.jsonl"
            count = write_records(path, upload, rows(upload.role), RECORDS[upload.record])
            names[upload.role] = _bring(api, upload, path, count, key, on_progress)
            path.unlink()
    for upload in plan.uploads:
        _await_ready(api, upload, names[upload.role], sleep)
    return names


def dataset_id(key: str, role: str, digest: str) -> str:
    """The id of a job's dataset, e.g. ``tp-7f3k2a-x9k3m2qa-train-0123456789ab``: 63 characters at most, of [a-z0-9-]."""
    return f"{key}-{role}-{digest[:12]}"


def _bring(api: Api, upload: Upload, path: Path, count: int, key: str, on_progress: OnProgress | None) -> str:
    with path.open("rb") as file:
        ident = dataset_id(key, upload.role, hashlib.file_digest(file, "sha256").hexdigest())
    name, size = f"accounts/{api.account}/datasets/{ident}", path.stat().st_size
    datasets = api.client.datasets.with_raw_response
    facts: dict[str, Any] = {"user_uploaded": {}, "example_count": str(count), "display_name": upload.filename}
    if upload.record in FORMATS:
        facts["format"] = FORMATS[upload.record]
    try:
        api.ask(datasets.create, dataset_id=ident, dataset=facts)
    except ProviderError as error:
        if not exists_already(error):
            raise
        if api.ask(datasets.get, ident).get("state") == "READY":  # an earlier call brought it
            _tell(on_progress, upload, size, size)
            return name
    _tell(on_progress, upload, 0, size)
    if size <= LARGEST_DIRECT:
        _send(api, ident, path)
    else:
        from fireworks.lib.dataset_upload import upload_dataset_shards  # noqa: PLC0415

        with translated():
            upload_dataset_shards(api.client, ident, str(path), account_id=api.account)
    _tell(on_progress, upload, size, size)
    return name


def _send(api: Api, ident: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            api.ask(api.client.datasets.with_raw_response.upload, ident, file=(path.name, file), timeout=UPLOAD_S)
    except ProviderError as error:
        # An earlier call's answer was lost, and the file is there: Fireworks refuses a second one.
        if status_of(error) not in (400, 409) or "already uploaded" not in error.what.lower():
            raise


def _await_ready(api: Api, upload: Upload, name: str, sleep: Sleep) -> None:
    ident = name.rpartition("/")[2]
    waited, pause = 0.0, 0.5
    while True:
        found = retrying(lambda: api.ask(api.client.datasets.with_raw_response.get, ident), attempts=3, sleep=sleep)
        if found.get("state") == "READY":
            return
        status = found.get("status") or {}
        if status.get("code") not in (None, "", "OK"):
            what = f"Fireworks rejects the {upload.role} rows of {upload.source} ({vendor_message(status) or status['code']})"
            raise ProviderError(what, fix="correct these rows and submit again", retry="no")
        if waited >= READY_S:
            state = found.get("state") or "in no state"
            what = f"Fireworks has not made dataset {ident} ready in {waited / 60:.0f} minutes (it is {state})"
            raise ProviderError(what, fix="go on later with: tuneport reconcile --yes (the file is not sent again)")
        sleep(pause)
        waited, pause = waited + pause, min(2 * pause, _LONGEST_PAUSE_S)


def remove(api: Api, job: Mapping[str, Any], job_id: str, *, dry_run: bool = False) -> list[str]:
    """Delete the datasets that were uploaded for this job, or only look for them; returns their names. Datasets of others stay."""
    removed = []
    raw = api.client.datasets.with_raw_response
    for field in ("dataset", "evaluationDataset"):
        ident = str(job.get(field) or "").rpartition("/")[2]
        if ident.startswith(f"{job_id}-") and there(api, raw.get if dry_run else raw.delete, ident):
            removed.append(f"dataset accounts/{api.account}/datasets/{ident}")
    return removed


def there(api: Api, call: Callable[..., Any], ident: str) -> bool:
    """Get or delete something; False when it was not there. Raises what else goes wrong."""
    try:
        api.ask(call, ident)
    except TuneportError as error:
        if status_of(error) == 404 and verdict(error).kind == "no":
            return False
        raise
    return True


def _tell(on_progress: OnProgress | None, upload: Upload, done: int, size: int) -> None:
    if on_progress is not None:
        on_progress(upload.filename, done, size)
