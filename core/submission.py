"""Submits a job exactly once: intent on disk → upload → create → record.

Before each step the ledger says on disk that it begins (``records.Step``), so whoever comes after a crash knows what
may have happened:

    intent     no create was called: nothing exists, nothing was spent; uploading again is harmless
    uploaded   likewise, and the files are at the provider
    creating   create was called and its answer is not known: only the provider can say, through ``Provider.find``
    created    the job's ref is recorded

``create`` is called again only after ``find`` has found nothing for the provider's settling time, since a vendor's
list may lag behind what it accepted. One process at a time works on a job (``Ledger.claim``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from tuneport.core.errors import BudgetError, Fault, LedgerError, ProviderError, RefusedError, SpecError, TuneportError, UsageError
from tuneport.core.job import JobState, RemoteJob
from tuneport.core.ledger import JobRecord, Ledger, Step
from tuneport.core.ledger.locks import StillHeld
from tuneport.core.provider import OnProgress, OpenRows, Provider
from tuneport.core.reading import offered
from tuneport.core.retry import retrying, verdict
from tuneport.core.secrets import find_secrets

if TYPE_CHECKING:
    from tuneport.core.plan import Plan
    from tuneport.core.spec import JobSpec

SETTLE_S = 60.0
"""How long a vendor's list may lag behind an accepted create, in seconds (assumed; no vendor states a figure).
A provider whose ``find`` is exact at once declares ``settle_seconds = 0``, one that lags longer a larger number."""
_LONG_AGO = 10  # settling times after which one look suffices

RESUME_FIX = "finish it with: tuneport reconcile --yes"

Sleep = Callable[[float], None]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What became of one unfinished submission, or deployment.

    adopted      the provider had made it; it is recorded now
    resumed      it had not been made; it is made now
    interrupted  it has not been made, and spending was not asked for
    unsettled    create's answer is lost and the provider shows no job yet; look again later
    cancelled    cancelling was asked for before it was made
    failed       the provider refuses it; nothing was made
    unreachable  the provider cannot be asked now
    busy         another process is submitting it
    """

    job_id: str  # or a deployment's
    outcome: Literal["adopted", "resumed", "interrupted", "unsettled", "cancelled", "failed", "unreachable", "busy"]
    note: str = ""


def check_before_spending(spec: JobSpec, plan: Plan) -> None:
    """The gates before anything is written or sent.

    Raises RefusedError when the plan has refusals, BudgetError when the upper estimate exceeds ``budget.max_usd`` or is
    unknown, SpecError when spec or plan hold a secret (both are stored in the ledger).
    """
    if plan.refusals:
        raise RefusedError(plan.provider, plan.refusals)
    found = [*find_secrets(spec.model_dump(mode="json")), *(f"payload.{path}" for path in find_secrets(plan.payload))]
    if found:
        hint = "keys come from the environment, and what stands in a spec is stored"
        raise SpecError("the spec", [Fault(path, "a secret (not shown)", "no secret", hint) for path in found])
    limit = spec.budget.max_usd
    if limit is None:
        return
    cost = plan.cost.usd
    if cost is None:
        unknown = ", ".join(line.item for line in plan.cost.lines if line.usd is None) or "the whole job"
        raise BudgetError(
            f"the cost at {plan.provider} is unknown ({unknown}), so budget.max_usd of {limit:g} USD cannot be kept",
            fix="add the missing price to your price file, or remove budget.max_usd to accept an unknown cost",
        )
    if cost.high > limit:
        raise BudgetError(
            f"the job may cost up to {cost.high:.2f} USD at {plan.provider}, above budget.max_usd of {limit:g} USD",
            fix="raise budget.max_usd, or make the job smaller (fewer rows, epochs, a smaller model)",
        )


def source_facts(spec: JobSpec) -> dict[str, tuple[int, int]]:
    """Size and time of change (ns) of the files that are trained on, so that a resumed job trains on the same rows."""
    facts: dict[str, tuple[int, int]] = {}
    for path in (spec.data.train, spec.data.validation):
        if path is not None and Path(path).is_file():
            status = Path(path).stat()
            facts[path] = (status.st_size, status.st_mtime_ns)
    return facts


def with_absolute_paths(spec: JobSpec) -> JobSpec:
    """The spec with its data paths absolute, so that the job can be resumed from any directory."""
    paths = {part: getattr(spec.data, part) for part in ("train", "validation", "test")}
    absolute = {part: str(Path(path).absolute()) for part, path in paths.items() if path is not None}
    return spec.model_copy(update={"data": spec.data.model_copy(update=absolute)})


_EARLIER_JOBS = 20


def earlier_uploads(ledger: Ledger, spec: JobSpec, plan: Plan) -> dict[str, str]:
    """{role: file id} of the plan's files, where one of the provider's latest 20 jobs has uploaded the same; else {}.

    The same are: files that have not changed since, read and converted in the same way. Whether the provider still holds them is
    for it to say. Raises LedgerError when the ledger cannot be read.
    """
    spec = with_absolute_paths(spec)
    facts, address = source_facts(spec), spec.options.for_provider(plan.provider)
    if not facts:  # rows that are no file here may change unseen
        return {}
    converted = [(upload.role, upload.record, upload.rows) for upload in plan.uploads]
    for record in ledger.latest(limit=_EARLIER_JOBS, provider=plan.provider):
        if not record.uploads or record.deleted_at is not None or ledger.sources(record.id) != facts:
            continue
        earlier = ledger.spec(record.id)
        if earlier.data != spec.data or earlier.options.for_provider(plan.provider) != address:
            continue
        if [(upload.role, upload.record, upload.rows) for upload in ledger.plan(record.id).uploads] == converted:
            return dict(record.uploads)
    return {}


class Submission:
    """One claimed job on its way to the provider. All calls of ``Provider.create`` happen here."""

    def __init__(
        self, ledger: Ledger, provider: Provider, job_id: str, held: StillHeld, sleep: Sleep = time.sleep,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._ledger, self._provider, self._id, self._held, self._sleep = ledger, provider, job_id, held, sleep
        self._on_progress = on_progress
        self._plan = ledger.plan(job_id)
        self._settle_s = float(getattr(provider, "settle_seconds", SETTLE_S))

    def carry_out(self, rows: OpenRows) -> None:
        """Bring the job from where it stands to *created*. Its steps are idempotent.

        Raises the provider's error. Where that error proves that nothing was made, the job has ended as failed;
        otherwise it stays in *submitting*, and this method (``tuneport reconcile``) goes on from there.
        """
        record = self._ledger.get(self._id)
        if record.ref is not None or record.state.terminal:
            return
        if record.step is Step.CREATING and self.adopt(wait=True) is not None:
            return
        if record.uploads is None:
            self._upload(rows, record)
        if not self._held():
            raise LedgerError(f"the claim on job {self._id} was lost before it was created", fix=RESUME_FIX)
        if self._ledger.creating(self._id):
            self._create(record.key)
        else:
            self._ledger.ended_unmade(self._id, JobState.CANCELLED, "cancelled before it was created")

    def adopt(self, *, wait: bool) -> JobRecord | None:
        """Record the job that an earlier create made, if the provider shows one; ``wait`` out the settling time for it.

        None: there is none. Reads only (but passes on a cancel that was asked for meanwhile).
        """
        record = self._ledger.get(self._id)
        remote = self._find(record, wait=wait)
        return None if remote is None else self._record(remote, "found at the provider and adopted")

    def settled(self) -> bool:
        """Whether so long has passed since create was called that the provider would show the job if there were one."""
        called = self._ledger.get(self._id).create_called_at
        return called is None or (self._ledger.now() - called).total_seconds() >= self._settle_s

    def _find(self, record: JobRecord, *, wait: bool) -> RemoteJob | None:
        called = record.create_called_at
        age = (self._ledger.now() - called).total_seconds() if called else 0.0
        return looked_for(lambda: self._provider.find(self._plan, record.key), age, self._settle_s, self._sleep, wait=wait)

    def _upload(self, rows: OpenRows, record: JobRecord) -> None:
        try:
            files = retrying(lambda: self._provider.upload(self._plan, rows, record.key, self._on_progress), sleep=self._sleep)
        except TuneportError as error:
            if proves_nothing_made(error):
                self._ledger.ended_unmade(self._id, JobState.FAILED, f"not created: {error}")
            else:
                self._ledger.note(self._id, f"upload failed: {error}")
            raise
        self._ledger.uploaded(self._id, files)

    def _create(self, key: str) -> None:
        files = self._ledger.get(self._id).uploads or {}
        try:
            remote = self._provider.create(self._plan, files, key)
        except TuneportError as error:
            if verdict(error).kind == "rate_limit":
                self._ledger.not_created(self._id, f"not created yet: {error}")
                raise
            if proves_nothing_made(error):
                self._ledger.ended_unmade(self._id, JobState.FAILED, f"not created: {error}")
                raise
            self._after_lost_reply(error)
            return
        self._record(remote, "created")

    def _after_lost_reply(self, error: TuneportError) -> None:
        """Create failed without saying whether a job was made: look for it; never create again from here."""
        name = self._provider.name
        self._ledger.note(self._id, f"the answer of {name} was lost: {error}")
        fix = "let tuneport look again before it makes one: tuneport reconcile"
        try:
            found = self.adopt(wait=True)
        except LedgerError:
            raise
        except TuneportError as looking:
            raise ProviderError(f"{name} did not confirm job {self._id}, and cannot be asked ({looking.what})", fix=fix) from error
        if found is None:
            raise ProviderError(f"{name} did not confirm job {self._id}, and shows no such job ({error.what})", fix=fix) from error

    def _record(self, remote: RemoteJob, note: str) -> JobRecord:
        try:
            record = self._ledger.observe(self._id, remote, note)
        except LedgerError as error:
            raise LedgerError(
                f"{self._provider.name} has made job {self._id} as {remote.ref}, but it could not be recorded ({error})",
                fix="mend the ledger, then adopt the job with: tuneport reconcile",
            ) from error
        if record.cancel_requested_at is not None and not record.state.terminal:
            provider = offered(self._provider, "cancel")
            cancelled = retrying(lambda: provider.cancel(remote.ref), sleep=self._sleep)
            record = self._ledger.observe(self._id, cancelled, "cancelled as asked during submission")
        return record


def looked_for(find: Callable[[], Found | None], age_s: float, settle_s: float, sleep: Sleep, *, wait: bool) -> Found | None:
    """What ``find`` finds; with ``wait`` it is asked until the settling time is over, unless create was called (``age_s``) long ago."""
    # Waits are counted, not read off a clock, so that a clock set wrong by another machine does no harm.
    left = 0.0 if not wait or age_s > _LONG_AGO * settle_s else settle_s
    pause = 1.0
    while True:
        found = retrying(find, attempts=3 if wait else 1, sleep=sleep)
        if found is not None or left <= 0:
            return found
        pause = min(pause, left)
        sleep(pause)
        left, pause = left - pause, min(2 * pause, 15.0)


def check_sources(ledger: Ledger, record: JobRecord) -> None:
    """Raises UsageError when a file that is still to be uploaded is gone or was changed since the job was submitted."""
    if record.uploads is not None:
        return
    for path, facts in ledger.sources(record.id).items():
        try:
            status = Path(path).stat()
        except OSError:
            status = None
        if status is None or (status.st_size, status.st_mtime_ns) != facts:
            raise UsageError(
                f"{path} has been changed or removed since job {record.id} was submitted",
                fix=f"put the old file back, or cancel the job (tuneport cancel {record.id}) and submit anew",
            )


def proves_nothing_made(error: TuneportError) -> bool:
    """Whether the error says that the provider did not, and will not, carry out the call."""
    return not isinstance(error, LedgerError) and verdict(error).kind == "no"
