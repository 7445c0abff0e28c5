"""What is taken for granted about a tuned model's quality before one was trained: stated priors with wide intervals (``priors.yaml``)."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import Field

from tuneport.core.money import Range
from tuneport.core.sources import Entry, SourceEntry


class PriorRow(Entry):
    """One row of the table. ``tasks`` None: any task; ``under_rows`` None: any number of training rows."""

    removed: Annotated[tuple[float, float], Field(description="10th and 90th percentile of the share of misses that tuning removes.")]
    source: str
    why: str
    tasks: tuple[str, ...] | None = None
    under_rows: int | None = None


class PriorFile(Entry):
    """priors.yaml."""

    version: int
    sources: dict[str, SourceEntry]
    priors: tuple[PriorRow, ...]


class Prior(Entry):
    """The prior of one decision, as the report shows it."""

    removed: Range
    why: str
    source: SourceEntry


@lru_cache(maxsize=1)
def load_priors() -> PriorFile:
    """The table that ships with the package."""
    text = files("tuneport.advisor").joinpath("priors.yaml").read_text(encoding="utf-8")
    return PriorFile.model_validate(yaml.safe_load(text))


def prior_for(task: str | None, training_rows: int | None) -> Prior:
    """The first row that fits; an unknown number of rows counts as enough, since the report says that it is not known."""
    book = load_priors()
    row = next(
        row
        for row in book.priors
        if (row.tasks is None or task in row.tasks)
        and (row.under_rows is None or (training_rows is not None and training_rows < row.under_rows))
    )
    low, high = row.removed
    return Prior(removed=Range(low=low, high=high), why=row.why, source=book.sources[row.source])
