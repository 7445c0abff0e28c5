"""A tuned model being served: what is asked for, and what a provider says of it. ``core.deployment_plan`` has the plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loads pydantic, which listing jobs does not need
    from tuneport.core.money import Range

HOURS_PER_MONTH = 730.0
"""Hours of an average month (365 x 24 / 12), for prices per month."""


class DeploymentState(StrEnum):
    """The portable states: deploying → ready ⇄ idle → undeploying → undeployed.

    idle: scaled to zero by the provider, wakes on a request. stopped: costs nothing and answers nothing. failed: it does not
    serve, and parts of it may exist and bill until it is undeployed. refused: the provider made nothing.
    """

    DEPLOYING = "deploying"
    READY = "ready"
    IDLE = "idle"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"
    UNDEPLOYING = "undeploying"
    UNDEPLOYED = "undeployed"
    REFUSED = "refused"

    @property
    def standing(self) -> bool:
        """True while something may exist at the provider, and bill."""
        return self not in (DeploymentState.UNDEPLOYED, DeploymentState.REFUSED)

    @property
    def serving(self) -> bool:
        """True when a request is answered (an idle deployment wakes first)."""
        return self in (DeploymentState.READY, DeploymentState.IDLE)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The tuned model to be served."""

    job: str  # ref of the job that made it
    model: str  # its name at the provider
    base_model: str  # the provider's id of the base


@dataclass(frozen=True, slots=True)
class DeploymentRequest:
    """What a user asks for. None leaves the choice to the provider; what a provider cannot do it refuses, it never drops it."""

    mode: str | None = None  # one of the provider's ``Deployer.modes``
    replicas: int | None = None  # at most so many replicas, or model units
    hardware: str | None = None  # GPU, shape or configuration, in the provider's words
    idle_s: float | None = None  # scale to zero after so long without a request
    ttl_s: float | None = None  # undeploy after so long
    commitment: str | None = None  # e.g. "1-month"
    port: int | None = None  # of a server on this machine


@dataclass(frozen=True, slots=True)
class RemoteDeployment:
    """What a provider says of a deployment at one moment. None means the provider does not say."""

    ref: str  # what it takes to reach it again
    state: DeploymentState
    raw_state: str  # the provider's own word
    message: str = ""
    call_as: str | None = None  # the model's name in ``Provider.chat`` once it serves
    usd_per_hour: Range | None = None  # where the provider chose the hardware itself
    unfinished: bool = False  # ``Deployer.finish`` has something to do
