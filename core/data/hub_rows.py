"""Reads the rows of Hugging Face ``datasets`` objects (Dataset, IterableDataset). The package itself is not imported here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from tuneport.core.data.json_rows import JsonFault
from tuneport.core.errors import DataError

_PLAIN = (str, int, float, bool, type(None))


@runtime_checkable
class HubDataset(Protocol):
    """What of a ``datasets.Dataset`` is used."""

    @property
    def features(self) -> Any:
        """Columns with their types; None where an IterableDataset does not know them."""
        ...

    def with_format(self, type: Any) -> Any:
        """The rows in another form; None means Python values."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """The rows."""
        ...


Source = str | HubDataset
"""Where rows come from: the path of a file, or a dataset object."""


def source_name(source: Source) -> str:
    """A name for messages: the path, or ``dataset:<name>[<split>]``."""
    if isinstance(source, str):
        return source
    info = getattr(source, "info", None)
    name = getattr(info, "dataset_name", None) or type(source).__name__
    split = getattr(source, "split", None)
    return f"dataset:{name}[{split}]" if split else f"dataset:{name}"


def parts_of(source: Any) -> dict[str, Any]:
    """The splits of a DatasetDict by the names train, validation and test ("valid", "dev" and "val" mean validation).

    Raises DataError when there is no train split, or a split of another name.
    """
    names = {"valid": "validation", "val": "validation", "dev": "validation"}
    parts = {names.get(name, name): rows for name, rows in source.items()}
    if "train" not in parts or len(parts) != len(source) or parts.keys() - {"train", "validation", "test"}:
        names_found = ", ".join(map(str, source)) or "none"
        raise DataError(f"the dataset's splits are {names_found}", fix="give one dataset object for each of train, validation, test")
    return parts


def hub_rows(source: HubDataset) -> Iterator[tuple[int, dict[str, Any] | JsonFault]]:
    """(row number from 1, row or fault). Raises DataError when the rows cannot be read."""
    name = source_name(source)
    if isinstance(source, Mapping):
        raise DataError(f"{name} is a DatasetDict, which holds several splits", fix="give one of its splits")
    try:
        for number, value in enumerate(source.with_format(None), start=1):
            yield number, _row(value)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} cannot be read ({first[:200]})", fix="check that iterating over it works") from error


def _row(value: Any) -> dict[str, Any] | JsonFault:
    if not isinstance(value, Mapping):
        return JsonFault(type(value).__name__, "a row that maps column names to values")
    row = dict(value)
    for column, held in row.items():
        if isinstance(held, float) and not math.isfinite(held):
            if math.isinf(held):
                return JsonFault(f"an infinite number in {column!r}", "a finite number")
            row[column] = None  # NaN in a column of numbers means missing there, as in Parquet
        elif odd := _odd(held):
            hint = "images go into the messages, as base64"
            return JsonFault(f"a value of type {odd} in {column!r}", "text, numbers, lists and objects", hint)
        elif isinstance(held, str) and not _encodable(held):
            return JsonFault(f"half of a surrogate pair in {column!r}", "valid Unicode text")
    return row


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _odd(value: Any) -> str:
    """The type of a value that no file of rows could hold (a decoded image, an audio array), or ""."""
    if isinstance(value, _PLAIN) or hasattr(value, "isoformat"):
        return ""
    if isinstance(value, dict):
        return next((odd for held in value.values() if (odd := _odd(held))), "")
    if isinstance(value, (list, tuple)):
        return next((odd for held in value if (odd := _odd(held))), "")
    return type(value).__name__
