"""The Fireworks provider."""

from __future__ import annotations

from tuneport.providers.fireworks.compile import compile_plan
from tuneport.providers.plan_only import PlanOnly


class FireworksProvider(PlanOnly):
    """Plans; see ``PlanOnly`` for why it does not submit."""

    def __init__(self) -> None:
        super().__init__("fireworks", compile_plan)
