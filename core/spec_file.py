"""Reads a spec (or another strict document) from a file or a mapping, and turns every fault into one sentence.

All faults are found in one pass: pydantic's, and the pairs of fields that exclude each other.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from tuneport.core.errors import DataError, Fault, SpecError
from tuneport.core.options import ProviderOptions
from tuneport.core.secrets import looks_secret
from tuneport.core.spec import EXCLUSIVE, NEVER_OVERRIDDEN, Data, JobSpec
from tuneport.core.spec_paths import placed

MAX_SPEC_BYTES = 1_000_000
"""A larger file is not a spec (a data file was named by mistake)."""

_LISTED = 24  # a longer list of known fields helps nobody

_Model = TypeVar("_Model", bound=BaseModel)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_spec(source: str | Path | Mapping[str, Any]) -> JobSpec:
    """The JobSpec in a .yaml, .yml or .json file, or in a mapping.

    Paths in a file are taken from that file's folder, and ``~`` from the user's (``core.spec_paths``); those in a mapping from the current
    folder. Raises SpecError with every fault found, and DataError when the file cannot be read.
    """
    if isinstance(source, Mapping):
        return validate(JobSpec, dict(source), "the spec")
    path = Path(source)
    document, lines = read_document(path)
    return placed(validate(JobSpec, document, str(path), lines), path)


def spec_schema() -> dict[str, Any]:
    """JSON Schema of the spec format, for editors (``tuneport schema``)."""
    schema = TypeAdapter(JobSpec).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "tuneport job spec, version 1"}


def read_document(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML or JSON mapping, and the 1-based line of each dotted path in it.

    Raises DataError when the file cannot be read, SpecError when it is not a mapping in YAML or JSON.
    """
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise SpecError(str(path), [Fault("(file)", f"{path.stat().st_size:,} bytes", "a spec under 1 MB", "is this a data file?")])
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", fix="save it as UTF-8") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder", fix="name the spec file in it") from None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", fix="check the path, or write one with: tuneport init") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", fix="check its permissions") from None
    if not text.strip():
        raise SpecError(str(path), [Fault("(file)", "an empty file", "a mapping with at least model and data.train")])
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines, repeated = _index_lines(node)
        document = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise SpecError(str(path), [Fault("(file)", _one_line(error), "valid YAML or JSON")]) from None
    except (RecursionError, ValueError):
        raise SpecError(str(path), [Fault("(file)", "values nested too deep or out of range", "valid YAML or JSON")]) from None
    if repeated:
        raise SpecError(str(path), [Fault(name, "the field given twice", "each field once") for name in repeated])
    if not isinstance(document, dict):
        raise SpecError(str(path), [Fault("(file)", f"a {type(document).__name__}", "a mapping with at least model and data.train")])
    return document, lines


def validate(model: type[_Model], document: dict[str, Any], source: str, lines: Mapping[str, int] | None = None) -> _Model:
    """The document as ``model``. Raises SpecError listing every fault, each with its path, and its line where known."""
    faults: dict[str, Fault] = {}
    result: _Model | None = None
    try:
        result = model.model_validate(document)
    except ValidationError as error:
        faults = {str(f): f for f in faults_of(error, model)}
    if model is JobSpec:
        faults |= {str(f): f for f in (*_exclusive_faults(document), *_plugin_faults(document))}
    if isinstance(result, JobSpec):
        faults |= {str(f): f for f in _provider_faults(result)}
    if result is None or faults:
        lines = lines or {}
        placed = [Fault(f"{f.path} (line {lines[f.path]})", f.met, f.expected, f.hint) if f.path in lines else f for f in faults.values()]
        raise SpecError(source, placed)
    return result


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Pydantic's findings as faults, with "did you mean" for unknown fields."""
    faults: dict[str, Fault] = {}
    for item in error.errors(include_url=False):
        path, names = _locate(item["loc"], model)
        met = _shown(path, item["input"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            fault = Fault(path, met, "a known field", _unknown_hint(path.rpartition(".")[2], names))
        elif item["type"] == "missing":
            fault = Fault(path, "nothing", "a value (required)")
        elif item["type"] == "value_error":
            fault = Fault(path or "(spec)", message, "fields that agree")
        else:
            fault = Fault(path, met, _expected(message))
        # A union reports each of its branches; one sentence names them all.
        known = faults.get(path)
        faults[path] = Fault(path, met, f"{known.expected}, or {fault.expected}", known.hint) if known else fault
    return [f for f in faults.values() if not (f.path == "(spec)" and "are both set" in f.met)]


def _exclusive_faults(document: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for one, other, why in EXCLUSIVE:
        if _raw(document, one) is not None and _raw(document, other) is not None:
            faults.append(Fault(other, f"a value beside {one}", f"only one of the two ({why})", "remove one"))
    return faults


def _plugin_faults(document: Mapping[str, Any]) -> list[Fault]:
    options = document.get("options")
    extra = [n for n in options if n not in ProviderOptions.model_fields] if isinstance(options, Mapping) else []
    if not extra:
        return []
    names = _provider_names()
    return [
        Fault(f"options.{name}", "an unknown provider", "an installed provider", _unknown_hint(name, names))
        for name in extra
        if name not in names
    ]


def _provider_faults(spec: JobSpec) -> list[Fault]:
    """Providers that do not exist, under model and overrides, and overrides that do not fit."""
    faults = []
    names = _provider_names()
    if isinstance(spec.model, dict):
        for provider in spec.model:
            if provider not in names:
                faults.append(Fault(f"model.{provider}", "an unknown provider", "an installed provider", _unknown_hint(provider, names)))
    return faults + _override_faults(spec, names)


def _override_faults(spec: JobSpec, names: list[str]) -> list[Fault]:
    faults: list[Fault] = []
    paths = _all_paths()
    for provider, own in (spec.overrides or {}).items():
        if provider not in names:
            hint = _unknown_hint(provider, names)
            faults.append(Fault(f"overrides.{provider}", "an unknown provider", "an installed provider", hint))
        for path in own:
            if path.split(".")[0] in NEVER_OVERRIDDEN:
                faults.append(Fault(f"overrides.{provider}.{path}", "a field that is the same everywhere", "a field that may differ"))
            elif path not in paths:
                hint = _unknown_hint(path, paths)
                faults.append(Fault(f"overrides.{provider}.{path}", "an unknown field", "a dotted field of the spec", hint))
        if not faults:
            try:
                spec.for_provider(provider)
            except ValidationError as error:
                faults += [Fault(f"overrides.{provider}.{f.path}", f.met, f.expected, f.hint) for f in faults_of(error, JobSpec)]
    return faults


def _provider_names() -> list[str]:
    return [*ProviderOptions.model_fields, *entry_points(group="tuneport.providers").names]


def _locate(loc: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str, list[str]]:
    """The dotted path of an error without pydantic's union markers, and the field names known beside it."""
    parts: list[str] = []
    current: Any = model
    names = list(model.model_fields)
    for part in loc:
        fields = getattr(current, "model_fields", None)
        if fields is not None:
            names = list(fields)
            current = fields[part].annotation if part in fields else None
            parts.append(str(part))
        elif isinstance(part, int):
            parts.append(str(part))
    return ".".join(parts), names


def _unknown_hint(name: str, names: list[str]) -> str:
    if looks_secret(name):
        return "keys never stand in a spec; they come from the environment"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    elsewhere = [p for p in _all_paths() if p.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    return f"known here: {', '.join(names)}" if len(names) <= _LISTED else "see `tuneport schema`"


def _all_paths() -> list[str]:
    return [path for path, _ in JobSpec(model="-", data=Data(train="-")).fields()]


def _shown(path: str, value: Any) -> str:
    if looks_secret(path.rpartition(".")[2]) or (isinstance(value, str) and looks_secret(value)):
        return "a secret (not shown)"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(message: str) -> str:
    text = message.removeprefix("Input should be ")
    return text[:1].lower() + text[1:]


def _raw(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, Mapping) else None
    return document


def _index_lines(root: Any) -> tuple[dict[str, int], list[str]]:
    lines: dict[str, int] = {}
    repeated: list[str] = []
    stack: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()  # an alias makes a graph of the tree: each node is visited once
    while stack:
        prefix, node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = f"{prefix}{key.value}"
                if path in lines:
                    repeated.append(path)
                lines[path] = key.start_mark.line + 1
                stack.append((path + ".", value))
        elif isinstance(node, yaml.SequenceNode):
            stack.extend((f"{prefix}{i}.", value) for i, value in enumerate(node.value))
    return lines, repeated


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
