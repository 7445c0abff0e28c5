"""Asks a vendor about a plan, with what the ledger knows of the plan's files."""

from __future__ import annotations

from contextlib import closing, suppress

from tuneport.core.errors import LedgerError
from tuneport.core.ledger import Ledger
from tuneport.core.plan import Plan
from tuneport.core.provider import Provider
from tuneport.core.spec import JobSpec
from tuneport.core.submission import earlier_uploads


def asked(place: Provider, spec: JobSpec, plan: Plan) -> Plan:
    """The plan after ``Provider.online``, with the files that an earlier job of the ledger (if there is one) has uploaded there."""
    files: dict[str, str] = {}
    with suppress(LedgerError), closing(Ledger.open(create=False)) as ledger:  # it may better the answer, and is not needed for one
        files = earlier_uploads(ledger, spec, plan)
    return place.online(plan, files)
