"""What a check says: one report for each file, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tuneport.core.data.facts import TokenFacts
from tuneport.core.data.normalise import RowFormat
from tuneport.core.data.split import Part
from tuneport.core.spec import Method

Severity = Literal["error", "warning", "info"]


ROW_FAULTS = frozenset(
    {"malformed_row", "wrong_shape", "unknown_role", "role_order", "empty_turn", "last_turn", "bad_weight"}
)
"""Codes of faults that make a row a bad one (``CheckReport.rows`` less ``good_rows``)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Finding(_Frozen):
    """One thing found: how often, and the first lines (rows, in JSON arrays, Parquet and datasets) where it stands.

    ``examples`` show what was met, with personal data masked.
    """

    code: str
    severity: Severity
    message: str
    count: int
    lines: tuple[int, ...] = ()
    examples: tuple[str, ...] = ()


class AnswerSummary(_Frozen):
    """What the model would learn to say. ``labels`` counts the classes, for classification rows only."""

    distinct: int | None  # None when duplicates were not looked for
    json_answers: int
    labels: dict[str, int] = {}


class Quantile(_Frozen):
    """Tokens that a share of the rows stays below, as a range; the two are equal when tokens were counted."""

    share: float  # 0.5 is the median, 1.0 the longest row
    low: int
    high: int


class VendorFit(_Frozen):
    """How the rows fit one provider's limits. None means that the limit is not known, never that there is none."""

    provider: str
    models: tuple[str, ...]
    max_tokens: int | None = None  # in one training row
    limit_is_context: bool = False  # the limit is the base model's context: no limit for training is known
    surely_over: int = 0  # rows that exceed max_tokens by the lower estimate
    perhaps_over: int = 0  # rows that exceed it by the upper estimate
    min_rows: int | None = None
    max_rows: int | None = None
    max_mb: float | None = None
    problems: tuple[str, ...] = ()
    source: str = ""


class CheckReport(_Frozen):
    """What was found in one file."""

    file: str
    part: Part
    rows: int
    good_rows: int
    format: RowFormat | None  # None: none that is known
    detected: bool  # False when the caller named the format
    method: Method
    features: tuple[str, ...] = ()
    tokens: TokenFacts | None = None  # None without a good row, and when tokens were not counted
    lengths: tuple[Quantile, ...] = ()
    vendors: tuple[VendorFit, ...] = ()  # of the models asked for; where none was, only those whose limits the rows break
    vendors_asked: bool = False  # whether models, providers or a spec were named
    answers: AnswerSummary | None = None  # None for raw text, for rft and without a good row
    languages: dict[str, int] = {}  # rows of the sample by language
    personal: dict[str, int] = {}  # pieces of personal data by kind
    skipped: tuple[str, ...] = ()  # parts of the check that were not asked for
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing found is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def worst(self) -> Severity | None:
        """The gravest severity found; None when nothing was."""
        return self.findings[0].severity if self.findings else None  # findings are sorted by it
