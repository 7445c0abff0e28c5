"""Where a fact comes from, how good the evidence is, how old it is, and how files of facts are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuneport.core.errors import CatalogueError

Grade = Literal["P", "M", "R", "K", "S", "SDK", "SPEC", "DOC", "REPO", "3P", "INFER", "USER"]

GRADES: Mapping[str, str] = {
    "P": "seen in an official page or repository, or a dated copy of one",
    "M": "seen in a third party's copy or note; check again before relying on it",
    "R": "run or computed by us from stated inputs",
    "K": "general knowledge, not verified",
    "S": "claim of a practitioner's document",
    "SDK": "read in the vendor's installed package, or observed on the wire",
    "SPEC": "read in a vendor's OpenAPI document",
    "DOC": "read in a stored copy of a vendor's documentation page",
    "REPO": "read in a vendor's own repository",
    "3P": "third-party article, study or repository; a hint",
    "INFER": "inferred by us from other facts",
    "USER": "stated by the user in an override file",
}
"""Grades of evidence and what each means."""

WARN_AFTER_DAYS = 60
"""A fact older than this is shown with its age. Rule of the project: prices move within a quarter."""
OUT_OF_DATE_AFTER_DAYS = 180
"""A fact older than this is never called current."""


@dataclass(frozen=True, slots=True)
class Source:
    """Evidence for a fact. ``observed_on`` is the day of the copy that was read; for an undated copy the earliest likely day."""

    title: str
    observed_on: date
    grade: str

    def __str__(self) -> str:
        return f"{self.title}, observed {self.observed_on}, grade {self.grade}"


def staleness(source: Source | None, today: date) -> str:
    """'' while the fact is at most 60 days old, then 'N days old', and above 180 'out of date (N days)'."""
    if source is None:
        return ""
    age = (today - source.observed_on).days
    if age > OUT_OF_DATE_AFTER_DAYS:
        return f"out of date ({age} days)"
    return f"{age} days old" if age > WARN_AFTER_DAYS else ""


class Entry(BaseModel):
    """Base of everything in a file of facts: unknown fields are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class SourceEntry(Entry):
    """One source, named once per file and referred to by its key."""

    title: Annotated[str, Field(min_length=1, description="Document or note, precise enough to find it again.")]
    observed_on: Annotated[date, Field(description="Day of the copy that was read.")]
    grade: Annotated[Grade, Field(description="; ".join(f"{g}: {meaning}" for g, meaning in GRADES.items()))]

    def as_source(self) -> Source:
        """The entry as the value that travels with facts."""
        return Source(self.title, self.observed_on, self.grade)


FileModel = TypeVar("FileModel", bound=Entry)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is about ten times faster


class _UserLoader(yaml.SafeLoader):
    """Loader of user files: a key given twice is a fault instead of silently losing the first."""


def _mapping(loader: _UserLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key_node.value!r} stands twice", key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_UserLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_builtin(name: str, model: type[FileModel]) -> FileModel:
    """A file of facts that ships with the package. Raises CatalogueError when it breaks its schema."""
    text = files("tuneport.core.facts").joinpath(name).read_text(encoding="utf-8")
    return _validated(yaml.load(text, Loader=_Loader), name, model)  # noqa: S506 - a safe loader


def read_override(variable: str, model: type[FileModel]) -> tuple[FileModel, str] | None:
    """The user's file named by an environment variable, with its path; None when the variable is unset or empty.

    Raises CatalogueError naming the file and every fault in it.
    """
    path = os.environ.get(variable)
    if not path:
        return None
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UserLoader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise CatalogueError(f"{path} (from {variable}) cannot be read: {error.strerror}", fix=f"correct or unset {variable}") from error
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{path} is not UTF-8 text", fix="save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date such as 2026-02-30
        raise CatalogueError(f"{path} is not valid YAML: {' '.join(str(error).split())}", fix="correct the file") from error
    return _validated(raw, path, model), path


def _validated(raw: Any, file: str, model: type[FileModel]) -> FileModel:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{_path(fault['loc'])}: {fault['msg']}" for fault in error.errors(include_url=False, include_context=False))
        raise CatalogueError(f"{file} breaks its schema at {faults}", fix="correct the file (tuneport schema prints the schema)") from error


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc)) or "(top level)"


def source_for(key: str, sources: Mapping[str, SourceEntry], file: str, path: str) -> Source:
    """The source under a key. Raises CatalogueError naming the file and path when the key is not defined."""
    try:
        return sources[key].as_source()
    except KeyError:
        raise CatalogueError(f"{file}: {path}: source {key!r} is not defined", fix="add it under `sources`") from None
