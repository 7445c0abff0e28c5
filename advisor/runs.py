"""Runs of the ledger that differ only in their share of the training rows: the points of a learning curve.

Two jobs are of one family when their specs agree, as they hold at one provider, in all but names, labels and the share of the rows. The
share is known for ``options.local.train_share``, and for a training file whose rows all stand in the other one's file. The
ledger alone is read: no vendor is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tuneport.core.errors import LedgerError, TuneportError
from tuneport.core.job import JobState
from tuneport.core.ledger import JobRecord, Ledger
from tuneport.core.options import Options
from tuneport.core.spec import JobSpec

LATEST = 1_000
"""Succeeded jobs of the ledger that are looked at, the newest ones: bounds the time on a ledger of years."""
LABELS = frozenset({"name", "tags", "budget", "tracking", "export", "options", "model", "data", "overrides", "version"})
"""Parts of a spec that change nothing in the tuned weights, or are compared on their own."""
OPTION_LABELS = frozenset(
    {"train_share", "job_name", "output_model", "gpu_usd_per_hour", "gpu_memory_gib", "tracking", "wandb_mode", "mlflow_uri"}
)
"""The same for the options of a provider."""

Facts = tuple[int, int]
"""Bytes and time of change (ns) of a file."""


class TrainedRun(BaseModel):
    """One job on a known number of training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    rows: int
    loss: float | None  # lowest validation loss in the ledger, where all runs of the family were validated on the same rows
    origin: str  # where the number of rows is known from


class RunFamily(BaseModel):
    """Runs at one provider that differ only in their rows, by rows. ``notes``: what was left out, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    runs: tuple[TrainedRun, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Made:
    """A succeeded job, as far as it matters here."""

    id: str
    provider: str
    spec: JobSpec
    rows: int  # of its training part
    share: float
    train: Facts | None  # of the training file when it was submitted
    validation: Facts | None
    loss: float | None

def find_runs(ledger: Ledger, spec: JobSpec | None, named: Collection[str] = ()) -> tuple[RunFamily, ...]:
    """The families of at least two sizes: those of ``spec``, one for each provider; without a spec those of the jobs ``named``.

    Raises LedgerError when the ledger cannot be read.
    """
    families: dict[tuple[str, str], list[tuple[JobRecord, JobSpec]]] = {}
    for record in ledger.latest(limit=LATEST, states=[JobState.SUCCEEDED]):
        if spec is not None and record.method != spec.method:
            continue
        try:
            own = ledger.spec(record.id)
        except LedgerError:  # written by another version, or with the options of a plugin that is gone
            continue
        families.setdefault((record.provider, _digest(own, record.provider)), []).append((record, own))
    found = []
    for (provider, digest), members in families.items():
        ours = digest == _digest(spec, provider) if spec is not None else any(record.id in named for record, _ in members)
        jobs = [made for record, own in members if (made := _made(ledger, record, own))] if ours and len(members) > 1 else []
        if jobs:
            largest = max((job for job in jobs if job.id in named), key=lambda job: job.rows, default=jobs[0])
            found.append(_family(jobs, spec.data.train if spec is not None else largest.spec.data.train))
    return tuple(family for family in found if len({run.rows for run in family.runs}) > 1)


def _made(ledger: Ledger, record: JobRecord, spec: JobSpec) -> _Made | None:
    """None for a job whose plan names no training rows."""
    rows = next((upload.rows for upload in ledger.plan(record.id).uploads if upload.role == "train"), None)
    if rows is None:
        return None
    share = (spec.options.local.train_share if record.provider == "local" else None) or 1.0
    sources, data = ledger.sources(record.id), spec.data
    told = ledger.events(record.id) if record.method != "rft" else ()  # there it is the mean reward with its sign turned, no loss
    losses = [event.metrics["eval_loss"] for event in told if "eval_loss" in event.metrics]
    held_out = sources.get(data.validation) if data.validation else None
    return _Made(record.id, record.provider, spec, rows, share, sources.get(data.train), held_out, min(losses, default=None))


def _digest(spec: JobSpec, provider: str) -> str:
    """Of all that decides the weights at a provider, less the training rows and their share."""
    own = spec.for_provider(provider)
    options = own.options.for_provider(provider)
    told = options.model_dump(mode="json", exclude=set(OPTION_LABELS)) if isinstance(options, Options) else options
    data = own.data.model_dump(mode="json", exclude={"train", "test"})
    document = [own.model_dump(mode="json", exclude=set(LABELS)), own.model_for(provider), data, told]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _family(jobs: Sequence[_Made], train: str) -> RunFamily:
    """The runs on the rows of the file ``train``, or on rows that all stand in it (or it in them)."""
    name, now = Path(train).name, _facts_now(train)
    by_file: dict[tuple[str, Facts | None], list[_Made]] = {}
    for job in jobs:  # newest first
        by_file.setdefault((job.spec.data.train, job.train), []).append(job)
    states = [facts for path, facts in by_file if path == train]
    state = now if now in states or not states else states[0]
    notes = [] if state == now else [f"{name} has changed since these runs"]
    whole = _row_hashes(jobs[0].spec, train, state) if len(by_file) > len(states) else None
    kept: list[tuple[_Made, str]] = []
    for (path, facts), members in by_file.items():
        told = ", ".join(job.id for job in members)
        rows = _row_hashes(members[0].spec, path, facts) if path != train else None
        if path == train and facts == state:
            kept += [(job, "") for job in members]
        elif path == train:
            notes.append(f"left out: {told}, on another state of {name}")
        elif rows is None or whole is None:
            notes.append(f"left out: {told}, since {Path(path).name} or {name} has changed or gone and their rows cannot be compared")
        elif rows <= whole or whole <= rows:
            kept += [(job, f", {f'all of them in {name}' if rows <= whole else f'with all of those in {name}'}") for job in members]
    same = len({(job.validation, job.train if job.spec.data.split.validation else None) for job, _ in kept}) == 1
    if not same and any(job.loss is not None for job, _ in kept):
        notes.append("validation losses are left out: the runs were validated on different rows")
    runs = [
        TrainedRun(job=job.id, rows=max(1, round(job.rows * job.share)), loss=job.loss if same else None, origin=_origin(job) + where)
        for job, where in kept
    ]
    return RunFamily(provider=jobs[0].provider, runs=tuple(sorted(runs, key=lambda run: (run.rows, run.job))), notes=tuple(notes))


def _origin(job: _Made) -> str:
    whole = f"{job.rows:,} training rows of {Path(job.spec.data.train).name}"
    return f"ledger: {whole}" if job.share >= 1 else f"ledger: options.local.train_share {job.share:g} of {whole}"


def _facts_now(path: str) -> Facts | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _row_hashes(spec: JobSpec, path: str, facts: Facts | None) -> frozenset[bytes] | None:
    """Hashes of the training rows in a file; None when it is no longer what it was, or cannot be read."""
    from tuneport.core.data.load import open_rows  # noqa: PLC0415 - only where two files are compared

    if facts is None or _facts_now(path) != facts:
        return None
    of_file = spec.model_copy(update={"data": spec.data.model_copy(update={"train": path})})
    try:
        learnt = ([r.messages, r.chosen, r.rejected, r.desirable, r.text, r.tools] for r in open_rows(of_file, "train"))
        return frozenset(hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest() for row in learnt)
    except TuneportError:
        return None
