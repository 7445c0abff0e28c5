"""Rows of the ledger's tables as records.

A record's fields are columns of its table, and their types say how a stored value is read. Moments are kept in UTC (SQLite
stores them as text without a zone), mappings as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


class Rows(Generic[Record]):
    """The rows of ``table`` as records of ``kind``, a dataclass; ``names`` gives the columns of fields that are called otherwise."""

    def __init__(self, kind: type[Record], table: str, **names: str) -> None:
        types = get_type_hints(kind)
        self.kind = kind
        self.columns = {field.name: names.get(field.name, field.name) for field in fields(kind)}  # type: ignore[arg-type]
        self.select = f"SELECT {', '.join(self.columns.values())} FROM {table}"
        self._readers = [_reader(types[field]) for field in self.columns]

    def record(self, row: Sequence[Any]) -> Record:
        """One row, in the order of ``columns``."""
        return self.kind(*(value if value is None else read(value) for read, value in zip(self._readers, row, strict=True)))


def _reader(annotation: Any) -> Callable[[Any], Any]:
    known = [part for part in get_args(annotation) if part is not NoneType] if isinstance(annotation, UnionType) else [annotation]
    kind: type = get_origin(known[0]) or known[0]
    if issubclass(kind, StrEnum):
        return kind
    if issubclass(kind, Mapping):
        return document
    return _moment if kind is datetime else bool if kind is bool else _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def document(value: Any) -> Any:
    """A mapping kept as JSON. PostgreSQL's driver has read it already."""
    return json.loads(value) if isinstance(value, str) else value


def _moment(value: str | datetime) -> datetime:
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value.astimezone(UTC)


def stored(value: Any) -> Any:
    """A value as both drivers take it; moments are the database's own matter."""
    if isinstance(value, StrEnum):
        return value.value
    return json.dumps(value) if isinstance(value, Mapping) else value
