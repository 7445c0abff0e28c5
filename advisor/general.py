"""What tuning has cost elsewhere: the base and the tuned model on a general suite (field-guide section 7: regression against the base)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tuneport.advisor.suite import EvalSuite, build_suite
from tuneport.core.data.load import open_rows
from tuneport.core.spec import JobSpec

BUILT_IN = "general.jsonl"
"""62 short questions written for this project in eight kinds: enough to notice that a model has broken, too few for fine distinctions."""
MAX_TOKENS = 128


def general_suite(rows: Path | None = None) -> EvalSuite:
    """The built-in suite, or the user's rows (any format that ``check`` reads, with an answer each).

    An answer is right when the expected one stands in it: what is asked is whether the model still knows and follows, not the format that
    tuning was meant to change. Raises DataError for rows that cannot be measured.
    """
    path = str(rows) if rows is not None else str(files("tuneport.advisor").joinpath(BUILT_IN))
    spec = JobSpec.model_validate({"model": "any", "data": {"train": path, "test": path}})
    return build_suite(
        open_rows(spec, "test"),
        source=path if rows is not None else "the general suite of tuneport",
        task="text",
        extras=("contains",),
        primary="contains",
        max_tokens=MAX_TOKENS if rows is None else None,
    )
