"""Every error that tuneport raises on purpose, and the exit code that the CLI gives it.

    TuneportError             1   anything below; also the catch-all for an unforeseen fault
    ├── UsageError            2   the command line or an argument is wrong
    ├── SpecError             3   the job spec is wrong; carries every fault found, not just the first
    ├── DataError             4   a data file cannot be read, or holds bad rows
    ├── RefusedError          5   the provider cannot do what the spec asks; carries every refusal
    ├── BudgetError           6   the upper cost estimate exceeds the budget, or no upper estimate exists
    ├── CredentialsError      7   no key, a wrong key, or a key without the right
    ├── ProviderError         8   the vendor answered with an error, or cannot be reached
    │   └── VendorClosedError 8   the vendor takes no jobs (any more) from this account: do not retry
    ├── JobFailedError        9   the job ended as failed or cancelled
    ├── LedgerError          10   the ledger cannot be read or written
    │   └── NoLedgerError    10   there is none yet
    ├── MissingExtraError    11   an optional dependency is not installed
    ├── CatalogueError       12   an unknown model, or a faulty catalogue or price file
    └── GateError            13   ``evaluate --gate``: the tuned model is worse, or not shown to be good enough
    Ctrl-C                  130   nothing is lost: whatever was begun stands in the ledger

Each error is one sentence: what is wrong and where, then how to mend it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tuneport.core.secrets import redact


class TuneportError(Exception):
    """A fault with a remedy.

    ``what`` says what is wrong and where; ``fix`` says how to mend it. Secrets that they quote are masked.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, fix: str = "") -> None:
        what, fix = redact(what), redact(fix)
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}" if self.fix else self.what


class UsageError(TuneportError):
    """The caller asked for something that has no meaning; change the call."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a document: where it stands, what was met, what was expected, and a hint."""

    path: str
    met: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.path}: expected {self.expected}, met {self.met}{hint}"


class SpecError(TuneportError):
    """The job spec is wrong; ``faults`` lists everything that is, so that one edit mends it."""

    exit_code = 3

    def __init__(self, source: str, faults: list[Fault]) -> None:
        self.source = source
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source} has {count}: " + "; ".join(map(str, faults)), fix="correct the file and run again")


class DataError(TuneportError):
    """A data file cannot be read, or has bad rows; nothing was uploaded."""

    exit_code = 4


class RefusedError(TuneportError):
    """The provider cannot carry out the spec as written; ``reasons`` maps each field to why."""

    exit_code = 5

    def __init__(self, provider: str, reasons: dict[str, str], *, wanted: str = "job") -> None:
        self.provider = provider
        self.reasons = reasons
        listed = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        super().__init__(
            f"{provider} refuses this {wanted} ({listed})",
            fix="change these fields, or choose another provider (tuneport plan --provider all)" if wanted == "job" else "change these",
        )


class BudgetError(TuneportError):
    """The job may cost more than the spec allows; nothing was sent."""

    exit_code = 6


class CredentialsError(TuneportError):
    """The vendor's key is missing, wrong or lacks a right; the message names the variable, never the value."""

    exit_code = 7


class ProviderError(TuneportError):
    """The vendor refused or failed a call, or cannot be reached; the ledger keeps the last good state.

    ``retry`` is the verdict of ``tuneport.core.retry``:

    - ``"no"``: the vendor answered that it will not do this (a 4xx). From ``create`` it means that no job was made.
    - ``"transient"`` (the default, because it is the safe one): it may work later, and nobody knows whether this call
      took effect: timeouts, resets, 5xx, an answer that cannot be read. After ``create`` the job is looked for.
    - ``"rate_limit"``: refused for now (a 429), nothing took effect; ``retry_after`` is in seconds where known.
    """

    exit_code = 8

    def __init__(
        self,
        what: str,
        *,
        fix: str = "",
        retry: Literal["no", "transient", "rate_limit"] = "transient",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what, fix=fix)
        self.retry: Literal["no", "transient", "rate_limit"] = retry
        self.retry_after = retry_after


class VendorClosedError(ProviderError):
    """The vendor takes no fine-tuning jobs from this account; retrying is useless, moving is the way out."""

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what, fix=fix, retry="no")


class JobFailedError(TuneportError):
    """The job that was waited for ended without a model."""

    exit_code = 9


class LedgerError(TuneportError):
    """The ledger cannot be opened, read or written."""

    exit_code = 10


class NoLedgerError(LedgerError):
    """There is no ledger yet: nothing was ever submitted from here."""


class MissingExtraError(TuneportError):
    """An optional dependency is needed; the message holds the command that installs it."""

    exit_code = 11

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(what, fix=f"install it with: pip install 'tuneport[{extra}]'")


class CatalogueError(TuneportError):
    """A model is unknown, or a catalogue or price file breaks its schema."""

    exit_code = 12


class GateError(TuneportError):
    """The gate of an evaluation is shut; everything was measured and written before."""

    exit_code = 13
