"""The OpenAI provider."""

from __future__ import annotations

from tuneport.providers.openai.compile import compile_plan
from tuneport.providers.plan_only import PlanOnly


class OpenAIProvider(PlanOnly):
    """Plans; see ``PlanOnly`` for why it does not submit."""

    def __init__(self) -> None:
        super().__init__("openai", compile_plan)
