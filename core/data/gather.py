"""Surveys whole sources: batch by batch, in several processes when it pays, and adds the batches up in order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneport.core.data.batches import BlockBatch, RangeBatch, RecordBatch, batches_of, size_of
from tuneport.core.data.deep import DeepArrays, merge_personal
from tuneport.core.data.hub_rows import Source
from tuneport.core.data.near import ShingleStore
from tuneport.core.data.shingles import BANDS
from tuneport.core.data.survey import SurveyJob
from tuneport.core.data.tally import Hits, Tally
from tuneport.core.data.workers import run_in_order, usable_cores
from tuneport.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

OnProgress = Callable[[str, int, int | None], None]
"""Called as a source is read: (its name, bytes or rows done, all of them or None where nobody knows)."""

_WORTH_WORKERS = 16 << 20  # bytes of a source from which starting processes pays (they take about 0.3 s to start)


@dataclass(slots=True)
class Gathered:
    """All that was seen of one source. Arrays hold one entry for each good row."""

    name: str
    tally: Tally = field(default_factory=Tally)
    personal: dict[str, Hits] = field(default_factory=dict)
    store: ShingleStore = field(default_factory=ShingleStore)
    bands: list[NDArray[np.uint32]] = field(default_factory=list)
    watched: dict[int, int] = field(default_factory=dict)
    _parts: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def add(self, arrays: DeepArrays, offset: int) -> None:
        """Append the arrays of the next batch."""
        rows = len(self)
        for name in ("whole", "asked", "answered", "likeness", "low", "high", "longest", "grams"):
            self._parts.setdefault(name, []).append(getattr(arrays, name))
        self._parts.setdefault("gram_rows", []).append(arrays.gram_rows + np.uint32(rows))
        self._parts.setdefault("lines", []).append(arrays.lines + np.uint32(offset))
        if arrays.shingles:
            self.store.add(Path(arrays.shingles), arrays.counts)
            self.bands.append(arrays.bands)
        for gram, count in arrays.watched.items():
            self.watched[gram] = self.watched.get(gram, 0) + count

    def __len__(self) -> int:
        return sum(map(len, self._parts.get("lines", ())))

    def array(self, name: str) -> NDArray[Any]:
        """One of the arrays of ``DeepArrays``, whole."""
        parts = self._parts.get(name, [])
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0] if parts else np.zeros(0, np.uint64)

    def all_bands(self) -> NDArray[np.uint32]:
        """The MinHash bands of all rows."""
        return np.concatenate(self.bands) if self.bands else np.zeros((0, BANDS), np.uint32)


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A temporary folder for shingles (about two thirds of the text's size), removed at the end. Raises DataError."""
    try:
        folder = tempfile.mkdtemp(prefix="tuneport-check-")
    except OSError as error:
        raise DataError(f"no temporary folder can be made ({error.strerror})", fix="set TMPDIR to a writable folder") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def gather(source: Source, job: SurveyJob, workers: int | None = None, on_progress: OnProgress | None = None) -> Gathered:
    """Survey the source. ``workers``: processes, by default one for each core when the source is large.

    Raises DataError when the source cannot be read.
    """
    whole, unit = size_of(source)
    if workers is None:
        large = unit == "bytes" and (whole or 0) >= _WORTH_WORKERS
        workers = usable_cores() if large else 1
    found = Gathered(job.name)
    offset = 0
    for batch, survey in run_in_order(job, batches_of(source), workers):
        found.tally.merge(survey.tally, offset)
        if survey.deep is not None and survey.deep.arrays is not None:
            merge_personal(found.personal, survey.deep, offset)
            found.add(survey.deep.arrays, offset)
        offset += survey.lines
        if on_progress:
            on_progress(job.name, _done(batch), whole)
    if on_progress and whole is not None:
        on_progress(job.name, whole, whole)
    return found


def _done(batch: RangeBatch | BlockBatch | RecordBatch) -> int:
    return batch.end if isinstance(batch, RangeBatch) else batch.done


def in_folder(job: SurveyJob, folder: str) -> SurveyJob:
    """The job with its shingles going to a folder."""
    return replace(job, deep=replace(job.deep, folder=folder)) if job.deep else job
