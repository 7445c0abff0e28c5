"""Paths in a spec file: all are taken from that file's folder, so that a spec means the same wherever a command is run.

Data files and a chat template are paths always. A model and ``continue_from`` are paths when they begin with ``.``, ``/`` or ``~``, end in
``.gguf``, or name a folder beside the spec; anything else there is a name of the catalogue, a vendor or the hub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tuneport.core.errors import Fault, SpecError
from tuneport.core.spec import JobSpec

_DATA = ("train", "validation", "test")
_JOB = "local:"
"""Stands before a job's folder or key."""
_SQLITE = re.compile(r"(sqlite:///)(?!/)(.+)")


def placed(spec: JobSpec, file: Path) -> JobSpec:
    """The spec of that file with absolute paths. Raises SpecError where a model lies in the current folder and not beside the spec."""
    folder = file.resolve().parent
    local, data = spec.options.local, spec.data
    changed: dict[str, Any] = {n: _path(value, folder) for n in _DATA if (value := getattr(data, n)) is not None}
    update: dict[str, Any] = {"data": data.model_copy(update=changed)}
    own = {"chat_template": _path(local.chat_template, folder)} if local.chat_template else {}
    if local.mlflow_uri:
        own["mlflow_uri"] = _uri(local.mlflow_uri, folder)
    if own:
        update["options"] = spec.options.model_copy(update={"local": local.model_copy(update=own)})
    if isinstance(spec.model, str):
        update["model"] = _named(spec.model, folder, file, "model")
    elif "local" in spec.model:
        update["model"] = {**spec.model, "local": _named(spec.model["local"], folder, file, "model.local")}
    if spec.continue_from:
        update["continue_from"] = _earlier(spec.continue_from, folder, file, "continue_from")
    elsewhere = (spec.overrides or {}).get("local", {})
    if isinstance(earlier := elsewhere.get("continue_from"), str):
        changed = {**elsewhere, "continue_from": _earlier(earlier, folder, file, "overrides.local.continue_from")}
        update["overrides"] = {**(spec.overrides or {}), "local": changed}
    return spec.model_copy(update=update)


def _path(value: str, folder: Path) -> str:
    return str(folder / Path(value).expanduser())


def _uri(value: str, folder: Path) -> str:
    """MLflow's address, where it is a file: a path, or SQLite's with a path that is not absolute."""
    if value.startswith((".", "~")):
        return _path(value, folder)
    return _SQLITE.sub(lambda found: found[1] + _path(found[2], folder), value)


def _earlier(value: str, folder: Path, file: Path, field: str) -> str:
    mark = _JOB if value.startswith(_JOB) else ""
    return mark + _named(value.removeprefix(_JOB), folder, file, field)


def _named(value: str, folder: Path, file: Path, field: str) -> str:
    """A model or an adapter: the path that it is, else the name as it stands."""
    if value.startswith((".", "/", "~")) or value.lower().endswith(".gguf"):
        return _path(value, folder)
    beside, here = (folder / value).is_dir(), Path(value).is_dir()
    if not (beside or here) or _catalogued(value):
        return value
    if not beside:
        hint = f"paths are taken from the spec's folder {folder}: write {Path(value).absolute()}, or run the command elsewhere for the name"
        met = f'"{value}", a folder of the current folder'
        raise SpecError(str(file), [Fault(field, met, "a folder beside the spec, or a name", hint)])
    return str(folder / value)


def _catalogued(name: str) -> bool:
    from tuneport.core.catalogue import load_catalogue  # noqa: PLC0415 - only where a folder has such a name

    return any(name in (o.model, o.vendor_id) for o in load_catalogue().models())
