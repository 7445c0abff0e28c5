"""Estimates beside bills, read from the ledger."""

from __future__ import annotations

from collections.abc import Iterable

from tuneport.core.calibration import LATEST_BILLS, Calibration, JobCost, learn, midpoint
from tuneport.core.errors import LedgerError
from tuneport.core.ledger import JobRecord, Ledger
from tuneport.core.money import Range


def calibration_of(ledger: Ledger, provider: str) -> Calibration | None:
    """What the latest bills of a provider teach about its estimates; None while there are fewer than 3."""
    costs = job_costs(ledger, ledger.billed(provider, LATEST_BILLS))
    ratios = [
        midpoint(cost.billed) / midpoint(cost.planned)
        for cost in costs
        if cost.billed is not None and cost.planned is not None and midpoint(cost.planned) > 0
    ]
    return learn(provider, ratios)


def job_costs(ledger: Ledger, records: Iterable[JobRecord]) -> list[JobCost]:
    """Each job's estimate beside its bill."""
    found = []
    for r in records:
        billed, basis = _bill(ledger, r)
        found.append(JobCost(r.id, r.provider, r.model, r.state, r.planned_usd, r.estimate_usd, billed, r.billed_tokens, basis))
    return found


def _bill(ledger: Ledger, record: JobRecord) -> tuple[Range | None, str]:
    if record.billed_usd is not None:
        return Range(low=record.billed_usd, high=record.billed_usd), f"billed by {record.provider}"
    if record.billed_tokens is None:
        return None, f"{record.provider} has reported no bill"
    try:
        spec = ledger.spec(record.id)
    except LedgerError as error:  # a spec of another version must not hide the other jobs' bills
        return None, f"{record.billed_tokens:,} tokens billed; their price is unknown ({error})"
    from tuneport.core.estimate import tokens_bill  # noqa: PLC0415 -- catalogue and price book, which listing jobs does not need

    line = tokens_bill(record.provider, spec.for_provider(record.provider), record.billed_tokens, record.created_at.date())
    if line is None:
        return None, f"{record.billed_tokens:,} tokens billed; the price book has no price for them"
    return line.usd, line.basis
