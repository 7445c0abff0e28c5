"""Refs that say where they live: ``ftjob-...``, or ``ftjob-...@https://host/v1`` for another service than the environment's.

The names of tuned models follow the same rule, so that a ref or a name is all that is needed to reach them again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from tuneport.core.plan import Plan
from tuneport.providers import exchange
from tuneport.providers.exchange import at, option

URL_VARIABLE = "OPENAI_BASE_URL"
OWN_HOST = "api.openai.com"


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go. ``base_url`` is None for the environment's service (OPENAI_BASE_URL, else OpenAI's own)."""

    base_url: str | None = None

    @classmethod
    def of_plan(cls, plan: Plan) -> Address:
        """The service that the spec names in options.openai.base_url; it stands in the plan's outcomes."""
        return cls(option(plan, "base_url"))

    def mark(self, name: str) -> str:
        """A job's id, or a model's name, as it is given out."""
        return at(name, self.base_url)

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI itself, not a service that speaks its protocol."""
        url = self.base_url or os.environ.get(URL_VARIABLE) or ""
        return not url or urlsplit(url).hostname == OWN_HOST

    @property
    def service(self) -> str:
        """What messages call it."""
        if self.is_openai:
            return "OpenAI"
        return f"the service at {urlsplit(self.base_url or os.environ[URL_VARIABLE]).hostname}"


def split(marked: str) -> tuple[str, Address]:
    """A marked id or name as (what the service calls it, where it lives)."""
    name, url = exchange.split(marked)
    return name, Address(url)
