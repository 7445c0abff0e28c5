"""Reads a job's data: once for its facts (``load_job_data``), and row by row for upload or training (``open_rows``)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from tuneport.core.data.facts import DatasetFacts, JobData
from tuneport.core.data.features import feature_bits, feature_set
from tuneport.core.data.hub_rows import Source, source_name
from tuneport.core.data.normalise import KIND_OF, KINDS_FOR, KNOWN_SHAPES, Normaliser, RowFormat, detect_format
from tuneport.core.data.readers import BadRow, Record, bad_row, peek, read_records, sha256_of
from tuneport.core.data.rows import Kind, Row
from tuneport.core.data.split import PARTS, Key, Part, assign, is_cut, split_key
from tuneport.core.data.tokens import TokenMeter, own_tokenizer
from tuneport.core.errors import DataError, Fault, SpecError
from tuneport.core.spec import DataFormat, JobSpec, Method

DETECTION_ROWS = 20
"""Good rows at the head of a file from which format auto is decided."""

_SHOWN_FAULTS = 5
_KEPT_FAULTS = 100
_IMAGES = "images"


class BadRowsError(DataError):
    """A job's data has bad rows. ``faults`` holds the first hundred, ``total`` counts the bad rows."""

    def __init__(self, faults: list[Fault], total: int, sources: str) -> None:
        self.faults = faults
        self.total = total
        listed = "; ".join(map(str, faults[:_SHOWN_FAULTS]))
        rows = "1 bad row" if total == 1 else f"{total:,} bad rows"
        first = f", the first {_SHOWN_FAULTS}" if len(faults) > _SHOWN_FAULTS else ""
        super().__init__(f"{sources} has {rows}{first}: {listed}", fix="mend or remove them (tuneport check lists all)")


def open_file(path: Source, format: DataFormat, method: Method) -> tuple[RowFormat | None, list[Record], Iterator[Record | BadRow]]:
    """The file's row format (None: not one that is known), its first good records, and all its rows.

    Raises DataError when the file cannot be read or holds no rows.
    """
    first, rows = peek(read_records(path), DETECTION_ROWS)
    head = next(rows, None)
    if head is None:
        raise DataError(f"{source_name(path)} holds no rows", fix="put at least one row into it")
    return (detect_format(first, method) if format == "auto" else format), first, _with_head(head, rows)


def _with_head(head: Record | BadRow, rows: Iterator[Record | BadRow]) -> Iterator[Record | BadRow]:
    yield head
    yield from rows


def wrong_kind(path: str, found: RowFormat, method: Method) -> DataError | None:
    """The error when the method cannot learn from rows of this format, else None."""
    wanted = KINDS_FOR[method]
    kind = KIND_OF[found]
    if kind in wanted:
        return None
    if found == "unpaired_preference" and "chat" in wanted:
        fix = "set data.format to prompt_completion to learn from every completion, or use method kto"
    else:
        methods = ", ".join(name for name, kinds in KINDS_FOR.items() if kind in kinds)
        fix = f"give it rows of that kind, or a method for {kind} rows ({methods})"
    return DataError(f"{path} holds {kind} rows ({found}), but method {method} learns from {' or '.join(sorted(wanted))} rows", fix=fix)


def unknown_format(path: str, first: Record) -> DataError:
    """The error for a file whose rows have no known format."""
    names = ", ".join(sorted(map(str, first.value))[:12]) or "none"
    fix = f"rename the fields to those of a format ({KNOWN_SHAPES})"
    if "text" in first.value:
        fix = "rename the field that holds the class to label, or set data.format to text for raw text"
    return DataError(f"the row format of {path} is unknown: {path}:{first.line} has the fields {names}", fix=fix)


@dataclass(slots=True)
class _Scan:
    """What one pass over a file finds: per row its tokens, features and split key, and the faults."""

    path: str
    kind: Kind = "chat"
    low: array[float] = field(default_factory=lambda: array("d"))
    high: array[float] = field(default_factory=lambda: array("d"))
    longest: array[float] = field(default_factory=lambda: array("d"))
    bits: array[int] = field(default_factory=lambda: array("H"))
    keys: list[Key] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    bad: int = 0

    def refuse(self, problems: list[BadRow]) -> None:
        """Count one bad row and keep its faults, up to a bound."""
        self.bad += 1
        self.faults += [problem.fault for problem in problems][: max(0, _KEPT_FAULTS - len(self.faults))]


def _normaliser(path: str, spec: JobSpec) -> tuple[Normaliser | None, Iterator[Record | BadRow]]:
    """The file's rows and how to read them; None when not one of its first rows is readable."""
    found, first, rows = open_file(path, spec.data.format, spec.method)
    if found is None:
        if first:
            raise unknown_format(path, first[0])
        return None, rows
    if error := wrong_kind(path, found, spec.method):
        raise error
    if spec.data.system_prompt and KIND_OF[found] == "text":
        raise DataError(f"data.system_prompt is set, but {path} holds raw text, which has no turns", fix="remove data.system_prompt")
    return Normaliser(path, found, spec.method, spec.data.system_prompt), rows


def _scan(path: str, spec: JobSpec, meter: TokenMeter | None, *, keyed: bool) -> _Scan:
    """One pass over a file. ``keyed``: note what each row is split by; without a meter only that is noted."""
    normaliser, rows = _normaliser(path, spec)
    scan = _Scan(path)
    split = spec.data.split
    if normaliser:
        scan.kind = KIND_OF[normaliser.format]
        if keyed and split.by == "label" and split.column is None and normaliser.format != "classification":
            raise DataError(f"{path} holds {normaliser.format} rows, which have no label to split by", fix="set data.split.column")
    for found in rows:
        row = normaliser.row(found) if normaliser and isinstance(found, Record) else [found]
        if isinstance(row, Row) and isinstance(found, Record):
            if keyed:
                try:
                    scan.keys.append(split_key(split, found.value, row.label))
                except ValueError as error:
                    expected = f"a value to split by {split.by}"
                    scan.refuse([bad_row(path, found.line, "split_key", met=str(error), expected=expected)])
                    continue
            if meter:
                low, high, longest = meter.measure(row)
                scan.low.append(low)
                scan.high.append(high)
                scan.longest.append(longest)
                scan.bits.append(feature_bits(row))
        elif isinstance(row, list):
            scan.refuse([problem for problem in row if isinstance(problem, BadRow)])
    return scan


def _raise_bad(scans: list[_Scan]) -> None:
    broken = [scan for scan in scans if scan.bad]
    if broken:
        faults = [fault for scan in broken for fault in scan.faults][:_KEPT_FAULTS]
        raise BadRowsError(faults, sum(scan.bad for scan in broken), " and ".join(scan.path for scan in broken))


def _facts(scan: _Scan, meter: TokenMeter, chosen: list[int] | range) -> DatasetFacts:
    bits = 0
    for row in chosen:
        bits |= scan.bits[row]
    features = feature_set(bits)
    low, high = sum(scan.low[row] for row in chosen), sum(scan.high[row] for row in chosen)
    longest = max(scan.longest[row] for row in chosen)
    tokens = meter.facts(low, high, longest, images=_IMAGES in features)
    return DatasetFacts(scan.path, sha256_of(scan.path), scan.kind, len(chosen), tokens, features)


def _check_split(spec: JobSpec) -> None:
    """Raise SpecError when a part has both a file and a share of the training file."""
    data = spec.data
    faults = [
        Fault(f"data.split.{part}", str(getattr(data.split, part)), f"0, because data.{part} names a file", "remove one of the two")
        for part in PARTS[1:]
        if getattr(data, part) is not None and getattr(data.split, part) > 0
    ]
    if faults:
        raise SpecError("the spec", faults)


def load_job_data(spec: JobSpec, *, provider: str | None = None) -> JobData:
    """The facts of a job's parts, after splitting; every row is read and checked once.

    ``provider="openai"`` counts tokens with o200k_base when the extra "tokens" is there (slower: the vocabulary alone
    takes about a second to load), ``provider="local"`` with the tokenizer.json of a base model in a folder; otherwise they are
    estimated as a range.
    Raises DataError when a file cannot be read or does not suit the method, BadRowsError (a DataError) when rows are bad,
    and SpecError when a part has both a file and a share.
    """
    _check_split(spec)
    meter = TokenMeter(openai=provider == "openai", own=own_tokenizer(spec.model_for("local")) if provider == "local" else None)
    cut = is_cut(spec.data.split)
    files = {part: path for part in PARTS if (path := getattr(spec.data, part)) is not None}
    scans = {part: _scan(path, spec, meter, keyed=cut and part == "train") for part, path in files.items()}
    _raise_bad(list(scans.values()))
    train = scans["train"]
    for scan in scans.values():
        if scan.kind != train.kind:
            raise DataError(f"{scan.path} holds {scan.kind} rows, but {train.path} {train.kind} rows", fix="use one kind of rows")
    facts = {part: _facts(scan, meter, range(len(scan.bits))) for part, scan in scans.items()}
    if cut:
        codes = assign(spec.data.split, train.keys, train.path)
        for code, part in enumerate(PARTS):
            if chosen := [row for row, of_row in enumerate(codes) if of_row == code]:
                facts[part] = _facts(train, meter, chosen)
    return JobData(facts["train"], facts.get("validation"), facts.get("test"))


def job_data_for(spec: JobSpec) -> Callable[[str], JobData]:
    """The facts of a job's parts for each provider: one reading for all, and another for this machine where its model has a tokenizer."""

    @cache
    def read(own: bool) -> JobData:
        return load_job_data(spec, provider="local" if own else None)

    own = own_tokenizer(spec.model_for("local")) is not None
    return lambda provider: read(own and provider == "local")


def open_rows(spec: JobSpec, part: Part) -> Iterator[Row]:
    """Stream the rows of one part, in the file's order, after splitting. May be called as often as wanted.

    Raises DataError at the call when the part has no rows or its file cannot be read, and at a row that is bad.
    """
    _check_split(spec)
    own = getattr(spec.data, part)
    share = 0.0 if part == "train" else getattr(spec.data.split, part)
    if own is None and not share:
        raise DataError(f"this job has no {part} rows", fix=f"set data.{part} or data.split.{part}")
    path = own or spec.data.train
    codes: bytearray | None = None
    if path == spec.data.train and (share or (part == "train" and is_cut(spec.data.split))):
        scan = _scan(path, spec, None, keyed=True)
        _raise_bad([scan])
        codes = assign(spec.data.split, scan.keys, path)
    normaliser, rows = _normaliser(path, spec)
    return _stream(path, normaliser, rows, codes, PARTS.index(part))


def _stream(
    path: str, normaliser: Normaliser | None, rows: Iterator[Record | BadRow], codes: bytearray | None, wanted: int
) -> Iterator[Row]:
    index = -1
    for index, found in enumerate(rows):
        row = normaliser.row(found) if normaliser and isinstance(found, Record) else [found]
        if isinstance(row, list):
            raise BadRowsError([problem.fault for problem in row if isinstance(problem, BadRow)], 1, path)
        if codes is not None and index >= len(codes):
            raise changed(path)
        if codes is None or codes[index] == wanted:
            yield row
    if codes is not None and index + 1 != len(codes):
        raise changed(path)


def changed(path: str) -> DataError:
    """The error for a file that has other rows than when it was read before."""
    return DataError(f"{path} changed while it was read", fix="run again when nothing writes to it")


__all__ = ["BadRowsError", "changed", "job_data_for", "load_job_data", "open_file", "open_rows", "unknown_format", "wrong_kind"]
