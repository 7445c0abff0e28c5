"""Asks a vendor about a plan, with what the ledger knows of the plan's files."""

from __future__ import annotations

from tuneport.core.errors import LedgerError
from tuneport.core.ledger import Ledger
from tuneport.core.plan import Plan
from tuneport.core.provider import Provider
from tuneport.core.spec import JobSpec
from tuneport.core.submission import earlier_uploads


def asked(place: Provider, spec: JobSpec, plan: Plan) -> Plan:
    """The plan after ``Provider.online``, with the files that an earlier job of the ledger (if there is one) has uploaded there."""
    try:
        ledger = Ledger.open(create=False)
        files = earlier_uploads(ledger, spec, plan)
        ledger.close()
    except LedgerError:  # the ledger may make an answer better, and is not needed for one
        files = {}
    return place.online(plan, files)
