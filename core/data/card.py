"""The data card: what was read, what was changed and how often, and what was written, with hashes. No clock, no absolute path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

CARDS = ("card.json", "card.md")
"""The card's own files."""


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

    @property
    def tokens(self) -> str:
        """The tokens as a range."""
        return f"{self.tokens_low:,} – {self.tokens_high:,}" if self.tokens_low != self.tokens_high else f"{self.tokens_low:,}"


class DataCard(_Frozen):
    """All that ``prepare`` did."""

    version: Literal[2] = 2
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
    aside: dict[str, str] = {}  # SHA-256 of rejected.jsonl and review.csv
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The card as Markdown."""
        lines = ["# Data card", ""]
        inputs = [(file.name, f"{file.rows:,}", file.sha256 or "(a dataset object)") for file in self.inputs]
        lines += _table("Read", ("file", "rows", "SHA-256"), inputs)
        rows = [(step, what, f"{count:,}") for step, what, count in self.changes()]
        lines += _table("Changed", ("step", "what", "rows or values"), rows) if rows else ["## Changed", "", "Nothing.", ""]
        hard = any(part.difficulty is not None for part in self.parts)
        cells = [(part.part, f"{part.rows:,}", part.tokens, f"{part.difficulty or 0:.2f}") for part in self.parts]
        head = ("part", "rows", "tokens", "mean difficulty")
        lines += _table("Parts", head if hard else head[:3], cells if hard else [row[:3] for row in cells])
        names = sorted({name for part in self.parts for name in part.classes})
        if names:
            body = [(name, *(f"{part.classes.get(name, 0):,}" for part in self.parts)) for name in names]
            lines += _table("Classes", ("class", *(part.part for part in self.parts)), body)
        written = [(f.name, f.shape, f"{f.rows:,}", f.sha256) for f in self.files]
        written += [(name, "", "", sha256) for name, sha256 in self.aside.items()]
        lines += _table("Written", ("file", "shape", "rows", "SHA-256"), written)
        refused = [(f.name, reason, f"{count:,}") for f in self.files for reason, count in f.refused.items()]
        if refused:
            lines += _table("Refused by a shape", ("file", "reason", "rows"), refused)
        changed = [(f.name, note, f"{count:,}") for f in self.files for note, count in f.notes.items()]
        if changed:
            lines += _table("In another form", ("file", "what", "values"), changed)
        if self.notes:
            lines += ["## Notes", "", *(f"- {_cell(note)}" for note in self.notes), ""]
        chosen = [(name, _said(value)) for name, value in sorted(self.options.items()) if value not in (None, "", [], ())]
        lines += _table("Options", ("option", "value"), chosen)
        return "\n".join(lines).rstrip() + "\n"

    def changes(self) -> list[tuple[str, str, int]]:
        """(step, what was done, rows or values) of all that was changed."""
        found = [
            *(("mended", what, count) for what, count in self.mended.items()),
            *(("removed", what, count) for what, count in self.removed.items()),
            *(("redacted", what, count) for what, count in self.redacted.items()),
        ]
        if self.repeated:
            found.append(("repeated", "to balance the classes", self.repeated))
        if self.mixed_in:
            found.append(("mixed in", "general rows", self.mixed_in))
        return found + [("rejected", code.replace("_", " "), count) for code, count in self.rejected.items()]

    def summary(self) -> list[tuple[str, str]]:
        """What a person wants to know at once, as (step, sentence): what went in, what changed, what was written."""
        lines = [("read", f"{file.name}: {_rows(file.rows)}") for file in self.inputs]
        changes = [(step, f"{count:,} × {what}") for step, what, count in self.changes()]
        lines += changes or [("changed", "nothing")]
        if self.rejected:
            lines.append(("", "rejected.jsonl says where and why"))
        for file in self.files:
            lines.append(("written", f"{file.name}: {_rows(file.rows)}, {file.shape}"))
            lines += [("refused", f"{count:,} × {reason}") for reason, count in file.refused.items()]
            lines += [("changed", f"{count:,} × {note}") for note, count in file.notes.items()]
        lines.append(("", f"and {', '.join([*self.aside, CARDS[1]])} (all counts, hashes and options)"))
        lines += [("note", note) for note in self.notes]
        return [(step if number == 0 or lines[number - 1][0] != step else "", said) for number, (step, said) in enumerate(lines)]


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _said(value: object) -> str:
    """An option's value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return [f"## {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body, ""]


def _cell(text: str) -> str:
    """A value that Markdown shows as it is."""
    plain = " ".join(text.split())
    for mark in "\\`*_|<>[]#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain[:300]
