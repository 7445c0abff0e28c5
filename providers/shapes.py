"""Every provider's record shapes: what ``prepare`` can write beside our own formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuneport.core.data.rows import Row


def record_shapes() -> dict[str, Callable[[Row], dict[str, Any]]]:
    """Converters by name, e.g. "openai-chat". They are plain functions: no SDK is imported."""
    from tuneport.providers.bedrock.records import RECORDS as BEDROCK  # noqa: PLC0415
    from tuneport.providers.fireworks.records import RECORDS as FIREWORKS  # noqa: PLC0415
    from tuneport.providers.openai.records import RECORDS as OPENAI  # noqa: PLC0415
    from tuneport.providers.together.records import RECORDS as TOGETHER  # noqa: PLC0415

    return {**OPENAI, **BEDROCK, **TOGETHER, **FIREWORKS}
