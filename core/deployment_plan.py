"""A deployment compiled for one provider, with its price, before anything is sent."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from tuneport.core.deployment import HOURS_PER_MONTH
from tuneport.core.money import Range


class DeploymentPlan(BaseModel):
    """A deployment in one provider's words, before anything is sent; stored with the deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = 1
    provider: str
    model: str  # the tuned model, as the provider calls it
    mode: str
    operation: str  # the call that makes it
    payload: dict[str, JsonValue]
    usd_per_hour: Range | None  # while it runs at its largest; None: unknown
    price: str  # how the price comes about, with source and date
    committed_hours: float = 0.0  # paid for even if it is undeployed before
    may_idle: bool = False  # scales to zero by itself, and then costs nothing
    stands_on: str | None = None  # ref of the deployment that this one joins
    notes: tuple[str, ...] = ()  # what the user should know before agreeing

    @property
    def usd_per_month(self) -> Range | None:
        """The price of 730 hours; None when it is unknown."""
        return None if self.usd_per_hour is None else self.usd_per_hour * HOURS_PER_MONTH

    @property
    def free(self) -> bool:
        """True when the deployment itself is known to cost nothing, whatever its answers cost."""
        return self.usd_per_hour is not None and self.usd_per_hour.high == 0
