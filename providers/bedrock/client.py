"""The Bedrock provider."""

from __future__ import annotations

from tuneport.providers.bedrock.compile import compile_plan
from tuneport.providers.plan_only import PlanOnly


class BedrockProvider(PlanOnly):
    """Plans; see ``PlanOnly`` for why it does not submit."""

    def __init__(self) -> None:
        super().__init__("bedrock", compile_plan)
