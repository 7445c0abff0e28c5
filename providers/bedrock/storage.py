"""The job's files in S3: rows go up, metrics come down. The object's name holds the job's key and the content's hash.

    s3://<data_s3_uri>/<key>/<hash>-<file name>      what ``upload_all`` writes; the same content is not sent twice
    s3://<output_s3_uri>/model-customization-job-<id>/...   what Bedrock writes (user guide, "Analyze the results of a
                                                     model customization job"); some Nova jobs use the job's name instead
"""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneport.core.catalogue import Offering, load_catalogue
from tuneport.core.data.rows import Row
from tuneport.core.errors import CredentialsError, DataError, ProviderError, UsageError
from tuneport.core.job import JobEvent
from tuneport.core.plan import Plan, Upload
from tuneport.core.provider import OnProgress, OpenRows
from tuneport.providers.bedrock.errors import code_of, translated
from tuneport.providers.bedrock.records import RECORDS
from tuneport.providers.bedrock.states import METRICS, metric_events
from tuneport.providers.exchange import write_records

MULTIPART_BYTES = 32 * 1024 * 1024
"""Larger files go up in parts of this size; S3 takes 10,000 parts, so up to 320 GB."""
PARTS_AT_ONCE = 4
LONGEST_METRICS_BYTES = 50_000_000
"""Metrics files above this are not read; one line is about 40 bytes."""

_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_WRONG_REGION = frozenset({"301", "PermanentRedirect", "AuthorizationHeaderMalformed"})


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and a key, or the beginning of keys."""

    bucket: str
    key: str = ""

    @classmethod
    def of(cls, uri: str) -> Place:
        """The place of an s3:// address."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(bucket, key.strip("/"))

    def under(self, *parts: str) -> Place:
        """A place below this one."""
        return Place(self.bucket, "/".join(part for part in (self.key, *parts) if part))

    @property
    def uri(self) -> str:
        """Its s3:// address."""
        return f"s3://{self.bucket}/{self.key}"


def bucket_region(s3: Any, bucket: str) -> str | None:
    """The bucket's region; None when AWS does not tell this caller. Raises ProviderError when there is no such bucket."""
    try:
        with translated():
            headers = s3.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except (CredentialsError, ProviderError) as error:
        response = getattr(error.__cause__, "response", None) or {}
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if code_of(error) == "404":
            fix = "create it in the job's region, or correct options.bedrock.data_s3_uri and output_s3_uri"
            raise ProviderError(f"there is no S3 bucket {bucket}", fix=fix, retry="no") from error
        if code_of(error) not in _WRONG_REGION and not (code_of(error) == "403" and headers.get("x-amz-bucket-region")):
            raise
    found = headers.get("x-amz-bucket-region")
    return str(found) if found else None


def require_region(s3: Any, uri: str, region: str) -> None:
    """Raises ProviderError when the bucket is missing or in another region than the job, which Bedrock does not take.

    A caller who may not look at the bucket goes on: the upload itself will tell.
    """
    bucket = Place.of(uri).bucket
    try:
        found = bucket_region(s3, bucket)
    except CredentialsError as error:
        if code_of(error) != "403":
            raise
        return
    if found is not None and found != region:
        fix = f"use a bucket in {region}, or set options.bedrock.region to {found} if it offers the model"
        raise ProviderError(f"the S3 bucket {bucket} is in {found}, and the job runs in {region}", fix=fix, retry="no")


def upload_all(s3: Any, plan: Plan, folder_uri: str, rows: OpenRows, key: str, on_progress: OnProgress | None) -> dict[str, str]:
    """{role: s3:// address} of the plan's files. Twice with one key sends nothing again.

    Raises DataError for a row that the record format cannot express, for more or fewer rows than the plan counted, and
    for a file above the model's documented size; ProviderError or CredentialsError from S3.
    """
    sent: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="tuneport-") as scratch:
            for upload in plan.uploads:
                path = Path(scratch) / upload.filename
                digest = _written(path, upload, rows(upload.role))
                _check_size(path, upload, _offering(plan))
                place = Place.of(folder_uri).under(key, f"{digest.hexdigest()[:16]}-{upload.filename}")
                _send(s3, path, place, digest.digest(), on_progress)
                path.unlink()
                sent[upload.role] = place.uri
    except OSError as error:
        fix = "make room there, or set TMPDIR to another folder"
        raise UsageError(f"the converted rows cannot be kept in {tempfile.gettempdir()} ({error.strerror})", fix=fix) from error
    return sent


def metrics(s3: Any, output_uri: str, job_id: str, job_name: str) -> Iterator[JobEvent]:
    """The points of the loss curves that Bedrock has written so far, file by file; none while there are none."""
    for folder in (f"model-customization-job-{job_id}", job_name):
        place = Place.of(output_uri).under(folder)
        found = [(key, size, at) for key, size, at in listed(s3, Place(place.bucket, place.key + "/")) if key.rpartition("/")[2] in METRICS]
        for key, size, at in sorted(found, key=lambda entry: (entry[2], entry[0])):
            if size > LONGEST_METRICS_BYTES:
                what = f"the metrics file s3://{place.bucket}/{key} has {size / 1e6:.0f} MB, too many to read as events"
                raise ProviderError(what, fix="read it with the aws command", retry="no")
            with translated():
                body = s3.get_object(Bucket=place.bucket, Key=key)["Body"].read()
            yield from metric_events(key.removeprefix(place.key), io.StringIO(body.decode("utf-8", "replace")), at)
        if found:
            return


def listed(s3: Any, place: Place) -> Iterator[tuple[str, int, Any]]:
    """(key, bytes, time of last change) of every object whose key begins with the place's."""
    token: dict[str, str] = {}
    while True:
        with translated():
            page = s3.list_objects_v2(Bucket=place.bucket, Prefix=place.key, **token)
        for entry in page.get("Contents") or ():
            yield entry["Key"], entry["Size"], entry["LastModified"]
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def remove(s3: Any, place: Place, *, dry_run: bool = False) -> bool:
    """Delete one object, or only look for it; False when there was none."""
    try:
        with translated():
            s3.head_object(Bucket=place.bucket, Key=place.key)
    except (CredentialsError, ProviderError) as error:
        if code_of(error) in _ABSENT:
            return False
        raise
    if not dry_run:
        with translated():
            s3.delete_object(Bucket=place.bucket, Key=place.key)
    return True


# -- going up ------------------------------------------------------------------------------------------------------------


def _written(path: Path, upload: Upload, rows: Iterator[Row]) -> Any:
    """Write the rows in the upload's record format; returns their SHA-256."""
    count = write_records(path, upload, rows, RECORDS[upload.record])
    if count != upload.rows:
        what = f"{upload.source} gives {count} rows for {upload.role}, and the plan was made for {upload.rows}"
        raise DataError(what, fix="plan again: the file has changed since")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _offering(plan: Plan) -> Offering | None:
    return next((o for o in load_catalogue().models() if o.provider == "bedrock" and plan.model in (o.model, o.vendor_id)), None)


def _check_size(path: Path, upload: Upload, offering: Offering | None) -> None:
    limit = offering.limits.get("max_train_mb" if upload.role == "train" else "max_validation_mb") if offering else None
    size = path.stat().st_size
    if offering is not None and limit is not None and size > limit * 1024 * 1024:
        what = f"{upload.source} is {size / 1024**2:.1f} MB as records, and {offering.vendor_id} takes {limit:g} MB for {upload.role}"
        raise DataError(what, fix="train on fewer or shorter rows")


def _send(s3: Any, path: Path, place: Place, digest: bytes, on_progress: OnProgress | None) -> None:
    from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 -- an extra

    size = path.stat().st_size
    tell = _Progress(path.name, size, on_progress)
    if _holds(s3, place, size):
        return tell(size)
    large = size > MULTIPART_BYTES
    if large:
        _drop_unfinished(s3, place)
    config = TransferConfig(multipart_threshold=MULTIPART_BYTES + 1, multipart_chunksize=MULTIPART_BYTES, max_concurrency=PARTS_AT_ONCE)
    extra = {"ContentType": "application/jsonl", "ChecksumAlgorithm": "SHA256"}
    if not large:  # S3 compares it with what arrives; parts carry their own
        extra["ChecksumSHA256"] = base64.b64encode(digest).decode()
    with translated():
        s3.upload_file(str(path), place.bucket, place.key, ExtraArgs=extra, Callback=tell, Config=config)
    if _holds(s3, place, size) is False:
        raise ProviderError(f"S3 does not show {place.uri} after its upload", fix="try again; a proxy may have answered in place of S3")
    return None


def _holds(s3: Any, place: Place, size: int) -> bool | None:
    """Whether S3 holds the object in full (its name holds the content's hash); None when the caller may not look."""
    try:
        with translated():
            found = s3.head_object(Bucket=place.bucket, Key=place.key)
    except (CredentialsError, ProviderError) as error:
        if code_of(error) in _ABSENT:
            return False
        if code_of(error) == "403":
            return None
        raise
    return bool(found.get("ContentLength") == size)


def _drop_unfinished(s3: Any, place: Place) -> None:
    """End uploads of this very object that a killed process left unfinished: S3 bills their parts.

    A caller without that right (s3:ListBucketMultipartUploads, s3:AbortMultipartUpload) may upload nevertheless.
    """
    with suppress(CredentialsError):
        with translated():
            left = s3.list_multipart_uploads(Bucket=place.bucket, Prefix=place.key).get("Uploads") or ()
        for upload in left:
            if upload["Key"] == place.key:
                with translated():
                    s3.abort_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload["UploadId"])


class _Progress:
    """Adds up what the transfer's threads report."""

    def __init__(self, name: str, size: int, tell: OnProgress | None) -> None:
        self._name, self._size, self._tell = name, size, tell
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, moved: int) -> None:
        with self._lock:
            self._done += moved
            if self._tell is not None:
                self._tell(self._name, self._done, self._size)

