"""Names of jobs: a short id for people and an idempotency key for vendors."""

from __future__ import annotations

import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: nothing that is easily misread (i, l, o, u)."""

KEY_LENGTH = 18
"""Characters of ``new_key``."""


def new_job_id() -> str:
    """A fresh id such as ``j-7f3k2a``. Unique within a ledger only because the ledger refuses a second one."""
    return "j-" + _random(6)


def new_deployment_id() -> str:
    """A fresh id such as ``d-7f3k2a``; see ``new_job_id``."""
    return "d-" + _random(6)


def new_key(job_id: str) -> str:
    """The idempotency key of a job or deployment, e.g. ``tp-7f3k2a-x9k3m2qa``; stored with the intent, before anything is sent.

    It holds the id, so that a person finds the thing at the vendor, and 40 random bits more, because several
    ledgers may share one vendor account. 18 characters of [a-z0-9-] starting with a letter fit every vendor's place
    for it (tightest: Together's suffix of 40 characters, Fireworks' job id of 63).
    """
    return f"tp-{job_id[2:]}-{_random(8)}"


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
