"""Mends, cleans, splits and converts data, and writes down what it did: what ``tuneport prepare`` runs.

Two passes over the source: the first decides by hashes what happens to each row, the second writes. The same input, options and
seed give the same bytes. Nothing is changed in place, and files appear whole or not at all; the data card is written last.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuneport.core.data.atomic import mode_of, replacing, write_text
from tuneport.core.data.card import CARDS, DataCard, InputFile, OutputFile, PartSummary
from tuneport.core.data.convert import OWN_FORMAT, InexpressibleError, plain_value, records_of
from tuneport.core.data.decide import Decision, class_of, decide
from tuneport.core.data.folder import leftovers, make_folder
from tuneport.core.data.gather import OnProgress, scratch_folder
from tuneport.core.data.hub_rows import Source, source_name
from tuneport.core.data.load import changed
from tuneport.core.data.mend import MENDS, WHAT, Mend
from tuneport.core.data.mended import MendedRows
from tuneport.core.data.normalise import RowFormat
from tuneport.core.data.readers import BadRow, sha256_of
from tuneport.core.data.redact import Redactor
from tuneport.core.data.rows import Row
from tuneport.core.data.select import class_counts, sample, spread
from tuneport.core.data.split import PARTS
from tuneport.core.data.tally import row_contents
from tuneport.core.data.writers import Writer, json_text, open_writer
from tuneport.core.errors import DataError, TuneportError, UsageError
from tuneport.core.spec import DataFormat, Method

Converter = Callable[[Row], dict[str, Any]]
"""Makes a provider's record of a row, or raises DataError with the reason (``tuneport.providers.*.records.RECORDS``)."""

FileType = Literal["jsonl", "jsonl.gz", "jsonl.zst", "json", "json.gz", "json.zst", "csv", "csv.gz", "csv.zst", "parquet"]
Share = Annotated[float, Field(ge=0, lt=0.5)]


class PrepareOptions(BaseModel):
    """What to do. Every step is off, or changes only what has one right answer, until it is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    method: Annotated[Method, Field(description="Method that the rows are for.")] = "sft"
    format: Annotated[DataFormat, Field(description="Row format of the input; auto detects it.")] = "auto"
    to: Annotated[RowFormat | None, Field(description="Row format to write; by default the one that carries everything.")] = None
    file_type: Annotated[FileType, Field(description="Kind of file to write.")] = "jsonl"
    shapes: Annotated[tuple[str, ...], Field(description="Providers' record shapes to write as well.")] = ()
    mends: Annotated[tuple[Mend, ...], Field(description="Mends to try on each row.")] = MENDS
    system_prompt: Annotated[str | None, Field(description="Production system prompt, put before rows that have none.")] = None
    replace_system_prompt: Annotated[bool, Field(description="Put it in the place of other system prompts too.")] = False
    dedupe: Annotated[Literal["none", "exact", "near"], Field(description="Duplicates to remove; the first stays.")] = "none"
    near: Annotated[float, Field(gt=0, le=1, description="Jaccard similarity of near duplicates.")] = 0.8
    exclude: Annotated[tuple[str, ...], Field(description="Files whose rows must not be in the result (benchmarks, test sets).")] = ()
    redact: Annotated[tuple[str, ...], Field(description="Kinds of personal data to replace; `names` needs the extra pii.")] = ()
    redaction_map: Annotated[
        str | None, Field(description="File for the map that undoes the redaction, outside the output folder.")
    ] = None
    validation: Share = 0.0
    test: Share = 0.0
    by: Annotated[
        Literal["random", "label", "group", "time", "hard"], Field(description="How to split; hard: a test set above average.")
    ] = "random"
    column: Annotated[str | None, Field(description="Column that holds the label, group or time to split by.")] = None
    class_column: Annotated[str | None, Field(description="Column that holds the class; by default the label, or a short answer.")] = None
    cap: Annotated[int | None, Field(ge=1, description="Most rows of one class.")] = None
    balance: Annotated[
        Literal["none", "down", "up"], Field(description="down: cut classes to the smallest; up: repeat training rows.")
    ] = "none"
    mix: Annotated[str | None, Field(description="File of general rows to mix into the training part.")] = None
    mix_share: Annotated[float, Field(gt=0, lt=1, description="Share of general rows afterwards (S4: 0.2 to 0.3).")] = 0.25
    review: Annotated[int, Field(ge=0, description="Rows to draw for human review, evenly over the classes.")] = 0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _agree(self) -> PrepareOptions:
        if self.by in ("group", "time") and self.column is None:
            raise ValueError(f"a split by {self.by} needs `column`")
        if self.by != "random" and not self.validation + self.test:
            raise ValueError("`by` is set, but nothing is held out; set `test`")
        if self.redaction_map and not self.redact:
            raise ValueError("`redaction_map` is set, but `redact` names nothing")
        if self.replace_system_prompt and not self.system_prompt:
            raise ValueError("`replace_system_prompt` is set, but there is no `system_prompt`")
        return self


def options_of(given: Mapping[str, Any], spelled: Callable[[str], str] = "`{}`".format) -> PrepareOptions:
    """Options from plain values. Raises UsageError in one sentence for the first that is wrong; ``spelled`` says an option's name."""
    try:
        return PrepareOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = spelled(str(first["loc"][0])) if first["loc"] else ""
        match first["type"]:
            case "literal_error":
                known = first["ctx"]["expected"].replace("'", "")
                raise UsageError(f"{name} {first['input']!r} is not known", fix=f"choose one of {known}") from None
            case "extra_forbidden":
                raise UsageError(f"there is no option {name}", fix=f"choose from {', '.join(PrepareOptions.model_fields)}") from None
            case "value_error":  # our own words, with names of options in back quotes
                said = re.sub(r"`(\w+)`", lambda option: spelled(option[1]), str(first["ctx"]["error"]))
                raise UsageError(said) from None
        wanted = first["msg"].removeprefix("Input ")
        raise UsageError(f"{name} {first['input']!r} is out of bounds", fix=f"it {wanted}") from None


def prepare(
    source: Source,
    out: str | Path,
    options: PrepareOptions,
    *,
    converters: Mapping[str, Converter] | None = None,
    on_progress: OnProgress | None = None,
) -> DataCard:
    """Prepare a file or dataset: writes the parts, rejected.jsonl, review.csv, card.json and card.md into the folder ``out``.

    ``converters`` are the providers' record shapes by name. Files of an earlier run that lie there are replaced.
    Nobody may read the files who may not read the source (nor, with ``mix``, the general rows).
    Raises UsageError for options that do not fit, or an output folder with files of other origin, DataError when the source
    cannot be read, holds no good row, or none that can be written as asked, MissingExtraError when a step needs an extra, and
    TuneportError when the folder cannot be written.
    """
    folder = Path(out)
    converters = converters or {}
    _check_places(source, folder, options, converters)
    earlier = leftovers(folder)
    make_folder(folder)
    with scratch_folder() as scratch:
        rows = MendedRows(source, options)
        redactor = _redactor(options)
        decision = decide(rows, options, redactor, scratch, on_progress)
        mode = mode_of(*(path for path in (source, options.mix) if isinstance(path, str)))
        card = _Output(rows, options, decision, redactor, folder, mode, earlier, converters, on_progress).write()
    if redactor is not None and options.redaction_map:
        redactor.write_map(Path(options.redaction_map))
    write_text(folder / CARDS[1], card.markdown(), mode)
    write_text(folder / CARDS[0], card.model_dump_json(indent=2) + "\n", mode)
    return card


def _check_places(source: Source, folder: Path, options: PrepareOptions, converters: Mapping[str, Converter]) -> None:
    if unknown := [name for name in options.shapes if name not in converters]:
        known = ", ".join(sorted(converters)) or "none"
        raise UsageError(f"there is no record shape {unknown[0]!r}", fix=f"choose from: {known}")
    if options.redaction_map and Path(options.redaction_map).resolve().is_relative_to(folder.resolve()):
        raise UsageError("the redaction map would lie beside the redacted data", fix="keep it apart: name a file outside the output folder")
    if options.redaction_map and not Path(options.redaction_map).parent.is_dir():
        what = f"{options.redaction_map} cannot be written: its folder does not exist"
        raise TuneportError(what, fix="make it first, or name another")
    for given in (source, options.mix, *options.exclude):
        if isinstance(given, str) and Path(given).resolve().parent == folder.resolve():
            raise UsageError(f"{given} lies in the output folder, whose files are replaced", fix="choose another output folder")


def _redactor(options: PrepareOptions) -> Redactor | None:
    if not options.redact:
        return None
    from tuneport.core.data.patterns import KINDS, presidio  # noqa: PLC0415

    if unknown := sorted(set(options.redact) - {*KINDS, "names", "all"}):
        raise UsageError(f"{unknown[0]!r} is no kind of personal data", fix=f"choose from all, names, {', '.join(KINDS)}")
    kinds = KINDS if "all" in options.redact else tuple(kind for kind in KINDS if kind in options.redact)
    return Redactor(kinds, presidio() if "names" in options.redact else None)


class _Output:
    """The second pass: writes every row where the decision puts it."""

    def __init__(
        self,
        rows: MendedRows,
        options: PrepareOptions,
        decision: Decision,
        redactor: Redactor | None,
        folder: Path,
        mode: int,
        earlier: Sequence[Path],
        converters: Mapping[str, Converter],
        on_progress: OnProgress | None,
    ) -> None:
        self.rows, self.options, self.decision, self.redactor = rows, options, decision, redactor
        self.mode = mode
        self.folder, self.earlier, self.converters, self.on_progress = folder, earlier, converters, on_progress
        self.shape = options.to or OWN_FORMAT[rows.kind]
        self.refused: dict[str, Counter[str]] = {}
        self.notes: Counter[str] = Counter()
        self.mixed = len(decision.general.chosen) if decision.general else 0

    def write(self) -> DataCard:
        """Write all files but the card."""
        decision = self.decision
        parts = [code for code in range(len(PARTS)) if ((decision.parts == code) & (decision.copies > 0)).any()]
        with ExitStack() as stack:
            files: dict[int, list[tuple[str, Writer]]] = {}
            for code in parts:
                own = self.folder / f"{PARTS[code]}.{self.options.file_type}"
                others = [(shape, self.folder / f"{PARTS[code]}.{shape}.jsonl") for shape in self.options.shapes]
                files[code] = [(shape, stack.enter_context(open_writer(path, self.mode))) for shape, path in ((self.shape, own), *others)]
            rejected = stack.enter_context(replacing(self.folder / "rejected.jsonl", self.mode))
            review = _Review(stack, self.folder, self.mode) if self.options.review else None
            self._pass(files, rejected, review)
            self._refuse_empty([pair for code in parts for pair in files[code]])
            replaced = {writer.path.name for pairs in files.values() for _, writer in pairs} | {"rejected.jsonl"}
            for path in self.earlier:  # the card first: where one stands, all that it names is whole
                if path.name not in replaced:
                    path.unlink(missing_ok=True)
        written = [pair for code in parts for pair in files[code]]
        return self._card(parts, written)

    def _refuse_empty(self, files: list[tuple[str, Writer]]) -> None:
        """Raise DataError, so that nothing is written, where a file would have no row."""
        for shape, writer in files:
            if writer.rows == 0:
                refused = self.refused.get(writer.path.name, Counter())
                why = "; ".join(f"{count:,} × {reason}" for reason, count in refused.most_common(3))
                what = f"none of the {sum(refused.values()):,} rows for {writer.path.name} can be written as {shape} ({why})"
                raise DataError(what, fix="choose a format that can carry them; nothing was written")

    def _pass(self, files: dict[int, list[tuple[str, Writer]]], rejected: Any, review: _Review | None) -> None:
        decision = self.decision
        drawn = set(sample(decision.classes, decision.copies > 0, self.options.review, self.options.seed).tolist()) if review else set()
        train_rows = int(decision.copies[decision.parts == 0].sum())
        general = self._general()
        before = spread(train_rows, self.mixed).tolist()
        train_at = mixed_at = index = 0
        for found in self.rows:
            if isinstance(found, list):
                _reject(rejected, found)
                continue
            if index >= len(decision.copies):
                raise changed(self.rows.name)
            copies, part = int(decision.copies[index]), int(decision.parts[index])
            if copies:
                row = found
                if self.redactor is not None:
                    row = self.redactor.row(found)
                    if decision.classes[index] is not None:  # card and sheet name it as the file does
                        decision.classes[index] = class_of(row, self.options.class_column)
                for _ in range(copies):
                    while part == 0 and mixed_at < self.mixed and before[mixed_at] <= train_at:
                        self._put(next(general), files[0], rejected)
                        mixed_at += 1
                    self._put(row, files[part], rejected)
                    train_at += part == 0
                if review and index in drawn:
                    review.add(PARTS[part], row, decision.classes[index])
            index += 1
            if self.on_progress and index % 2_000 == 0:
                self.on_progress(f"writing {self.rows.name}", index, len(decision.copies))
        for row in general:
            self._put(row, files[0], rejected)
        if index != len(decision.copies):
            raise changed(self.rows.name)

    def _put(self, row: Row, files: list[tuple[str, Writer]], rejected: Any) -> None:
        """Write one row to the files of its part; a file whose shape cannot carry it goes without, which is counted."""
        for number, (shape, writer) in enumerate(files):
            try:
                records = [self.converters[shape](row)] if number else records_of(row, self.shape)  # the first file is of our own format
                records = [plain_value(record, lambda note: self.notes.update([note])) for record in records]
                for record in records:
                    writer.write(record)
            except (InexpressibleError, DataError) as error:
                reason = error.reason if isinstance(error, InexpressibleError) else error.what.removeprefix(f"{row.file}:{row.line} ")
                self.refused.setdefault(writer.path.name, Counter())[reason] += 1
                line = {"file": row.file, "line": row.line, "code": "refused", "shape": shape, "reason": reason}
                rejected.write(json_text(line).encode() + b"\n")

    def _general(self) -> Iterator[Row]:
        """The general rows to mix in, in their file's order."""
        general = self.decision.general
        if general is None:
            return
        chosen = set(general.chosen)
        for at, row in enumerate(found for found in general.rows if isinstance(found, Row)):
            if at in chosen:
                chosen.remove(at)
                yield self.redactor.row(row) if self.redactor else row
        if chosen:
            raise changed(general.rows.name)

    def _card(self, parts: list[int], written: list[tuple[str, Writer]]) -> DataCard:
        decision, options = self.decision, self.options
        sources = [self.rows.source, *([options.mix] if options.mix else []), *options.exclude]
        inputs = [_input(source, decision.read if number == 0 else None) for number, source in enumerate(sources)]
        shown = options.model_dump(mode="json", exclude={"redaction_map", "mix", "exclude"})
        shown |= {"mix": options.mix and Path(options.mix).name, "exclude": [Path(path).name for path in options.exclude]}
        summaries = []
        for code in parts:
            mine = (decision.parts == code) & (decision.copies > 0)
            summaries.append(
                PartSummary(
                    part=PARTS[code],
                    rows=int(decision.copies[mine].sum()) + (self.mixed if code == 0 else 0),
                    classes=class_counts(decision.classes, decision.copies, decision.parts, code),
                    tokens_low=int(np.floor((decision.low * decision.copies)[mine].sum(dtype="f8"))),
                    tokens_high=int(np.ceil((decision.high * decision.copies)[mine].sum(dtype="f8"))),
                    difficulty=round(float(decision.difficulty[mine].mean()), 4) if decision.difficulty is not None else None,
                )
            )
        files = [
            OutputFile(
                name=writer.path.name,
                shape=shape,
                rows=writer.rows,
                sha256=writer.sha256,
                refused=dict(sorted(self.refused.get(writer.path.name, Counter()).items())),
                notes=dict(sorted(writer.notes.items())),
            )
            for shape, writer in written
        ]
        general = f"token counts of the parts leave out the {self.mixed:,} rows mixed in" if self.mixed else ""
        return DataCard(
            inputs=tuple(inputs),
            options=shown,
            read=decision.read,
            mended={WHAT[name]: count for name, count in sorted(decision.mended.items())},
            rejected=dict(sorted(decision.rejected.items())),
            removed={what: count for what, count in decision.removed.items() if count},
            repeated=int(np.maximum(decision.copies - 1, 0).sum()),
            redacted=dict(sorted(self.redactor.counts.items())) if self.redactor else {},
            mixed_in=self.mixed,
            parts=tuple(summaries),
            files=tuple(files),
            aside={name: sha256_of(str(self.folder / name)) for name in ("rejected.jsonl", *(["review.csv"] if options.review else []))},
            notes=(*decision.notes, *sorted(self.notes), *([general] if general else [])),
        )


def _input(source: Source, rows: int | None) -> InputFile:
    if not isinstance(source, str):
        return InputFile(name=source_name(source), sha256="", rows=rows or 0)
    count = sum(1 for _ in MendedRows.records(source)) if rows is None else rows
    return InputFile(name=Path(source).name, sha256=sha256_of(source), rows=count)


def _reject(file: Any, problems: list[BadRow]) -> None:
    for problem in problems:
        reason = f"expected {problem.fault.expected}, met {problem.fault.met}"
        place = problem.fault.path.rpartition(":")[0]
        file.write(json_text({"file": place, "line": problem.line, "code": problem.code, "reason": reason}).encode() + b"\n")


class _Review:
    """A sheet for people: the text of drawn rows, with room for a verdict."""

    def __init__(self, stack: ExitStack, folder: Path, mode: int) -> None:
        raw = stack.enter_context(replacing(folder / "review.csv", mode))
        self._text = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
        stack.callback(self._text.detach)
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(["part", "file", "line", "class", "text", "verdict", "comment"])

    def add(self, part: str, row: Row, name: str | None) -> None:
        """Add one row."""
        lines = [f"{message['role']}: {message['content']}" for message in row.messages]
        lines += [f"{side}: {message['content']}" for side, message in (("chosen", row.chosen), ("rejected", row.rejected)) if message]
        text = "\n\n".join(lines) if lines else "\n\n".join(row_contents(row))
        self._rows.writerow([part, Path(row.file).name, row.line, _cell(name or ""), _cell(text), "", ""])


def _cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
