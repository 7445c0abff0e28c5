"""The Together provider."""

from __future__ import annotations

from tuneport.providers.together.compile import compile_plan
from tuneport.providers.plan_only import PlanOnly


class TogetherProvider(PlanOnly):
    """Plans; see ``PlanOnly`` for why it does not submit."""

    def __init__(self) -> None:
        super().__init__("together", compile_plan)
