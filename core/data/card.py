"""The data card: what was read, what was changed and how often, and what was written, with hashes. No clock, no absolute path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class InputFile(_Frozen):
    """A file that was read. ``sha256`` is "" for a dataset object."""

    name: str
    sha256: str
    rows: int


class OutputFile(_Frozen):
    """A file that was written; ``shape`` is its record format, ours or a provider's."""

    name: str
    shape: str
    rows: int
    sha256: str
    refused: dict[str, int] = {}  # rows that the shape cannot carry, by reason
    notes: dict[str, int] = {}  # values that stand in it in another form


class PartSummary(_Frozen):
    """One part after all steps."""

    part: str
    rows: int
    classes: dict[str, int] = {}
    tokens_low: int = 0
    tokens_high: int = 0
    difficulty: float | None = None  # mean, 0 to 1, with a hard test set

    def cells(self) -> tuple[str, ...]:
        """The part as a line of the card's table."""
        hard = "" if self.difficulty is None else f"{self.difficulty:.2f}"
        return self.part, f"{self.rows:,}", f"{self.tokens_low:,} – {self.tokens_high:,}", hard


class DataCard(_Frozen):
    """All that ``prepare`` did."""

    version: int = 1
    inputs: tuple[InputFile, ...]
    options: dict[str, Any]
    read: int
    mended: dict[str, int] = {}
    rejected: dict[str, int] = {}  # rows that could not be mended, by code
    removed: dict[str, int] = {}
    repeated: int = 0  # rows written more than once to balance classes
    redacted: dict[str, int] = {}
    mixed_in: int = 0
    parts: tuple[PartSummary, ...] = ()
    files: tuple[OutputFile, ...] = ()
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The card as Markdown."""
        lines = ["# Data card", ""]
        inputs = [(file.name, f"{file.rows:,}", file.sha256 or "(a dataset object)") for file in self.inputs]
        lines += _table("Read", ("file", "rows", "SHA-256"), inputs)
        changes = [
            *(("mended", what, count) for what, count in self.mended.items()),
            *(("rejected", what, count) for what, count in self.rejected.items()),
            *(("removed", what, count) for what, count in self.removed.items()),
            *(("redacted", what, count) for what, count in self.redacted.items()),
        ]
        if self.repeated:
            changes.append(("repeated", "to balance the classes", self.repeated))
        if self.mixed_in:
            changes.append(("mixed in", "general rows", self.mixed_in))
        rows = [(step, what, f"{count:,}") for step, what, count in changes]
        lines += _table("Changed", ("step", "what", "rows or values"), rows) if rows else ["## Changed", "", "Nothing.", ""]
        lines += _table("Parts", ("part", "rows", "tokens", "mean difficulty"), [part.cells() for part in self.parts])
        names = sorted({name for part in self.parts for name in part.classes})
        if names:
            body = [(name, *(f"{part.classes.get(name, 0):,}" for part in self.parts)) for name in names]
            lines += _table("Classes", ("class", *(part.part for part in self.parts)), body)
        lines += _table("Written", ("file", "shape", "rows", "SHA-256"), [(f.name, f.shape, f"{f.rows:,}", f.sha256) for f in self.files])
        refused = [(f.name, reason, f"{count:,}") for f in self.files for reason, count in f.refused.items()]
        if refused:
            lines += _table("Refused by a shape", ("file", "reason", "rows"), refused)
        changed = [(f.name, note, f"{count:,}") for f in self.files for note, count in f.notes.items()]
        if changed:
            lines += _table("In another form", ("file", "what", "values"), changed)
        if self.notes:
            lines += ["## Notes", "", *(f"- {_cell(note)}" for note in self.notes), ""]
        chosen = [(name, str(value)) for name, value in sorted(self.options.items()) if value not in (None, "", [], ())]
        lines += _table("Options", ("option", "value"), chosen)
        return "\n".join(lines).rstrip() + "\n"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return [f"## {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body, ""]


def _cell(text: str) -> str:
    """A value that Markdown shows as it is."""
    plain = " ".join(text.split())
    for mark in "\\`*_|<>[]#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain[:300]
