"""Which way to tune: the first row of the table in ``rules.yaml`` that holds (field guide, section 2)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from tuneport.advisor.rules import Fact, holds, load_rules

LORA_GB_PER_BILLION = 2.7
"""GB that LoRA needs for each billion parameters in 16 bits (Unsloth's table: 19 GB for 7B, 33 GB for 14B; economics notes 3.3)."""


class MethodAdvice(BaseModel):
    """The method to use, and what speaks for it. ``differs`` is said when the spec asks for another one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    id: str
    name: str
    because: str
    data: str
    ceiling: str
    cost: str
    sources: tuple[str, ...]
    differs: str = ""


def method_for(facts: Mapping[str, Fact]) -> MethodAdvice:
    """The advised method; the last row of the table has no condition, so there always is one."""
    row = next(row for row in load_rules().methods if all(holds(c, facts) for c in row.when))
    method, tuning = facts["spec_method"], facts["spec_tuning"]
    differs = ""
    if method is not None and row.method is not None and (method != row.method or (tuning and row.tuning and tuning != row.tuning)):
        differs = f"The spec asks for {method}{f' with {tuning}' if tuning else ''}."
    elif method is not None and row.method is None:
        differs = f"The spec asks for {method} all the same."
    return MethodAdvice(
        id=row.id, name=row.name, because=row.says, data=row.data, ceiling=row.ceiling, cost=row.cost, sources=row.sources, differs=differs
    )
