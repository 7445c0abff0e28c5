"""JSON Schemas that answers must satisfy: read without reaching for a network or a file, and applied.

jsonschema-rs (extra "data", 50 times faster) is used when it is there, else jsonschema, which also words the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneport.core.errors import DataError, UsageError

_LONGEST_REASON = 2_000


class SchemaCheck:
    """One compiled schema. Raises UsageError when it is no valid JSON Schema, or refers to what it does not hold."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            self._slow = validator(dict(schema), "the JSON Schema for answers")
        except DataError as error:
            raise UsageError(error.what, fix=error.fix) from error
        self._fast = _compiled(schema)

    def reason(self, value: Any) -> str:
        """Why the value does not satisfy the schema, in one line, or ""."""
        from referencing.exceptions import Unresolvable  # noqa: PLC0415  comes with jsonschema

        if self._fast is not None and self._fast.is_valid(value):
            return ""
        try:
            error = next(iter(self._slow.iter_errors(value)), None)
        except Unresolvable:
            return "the schema refers to an anchor that it does not hold"
        except RecursionError:
            return "the schema calls itself without end"
        return f"{error.message} at {error.json_path}"[:_LONGEST_REASON] if error is not None else ""


def _compiled(schema: Mapping[str, Any]) -> Any:
    try:
        import jsonschema_rs  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    try:
        return jsonschema_rs.validator_for(dict(schema), retriever=_no_fetch)
    except ValueError:  # something that only jsonschema understands, e.g. a reference it resolves otherwise
        return None


def _no_fetch(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched: a check reaches no network")


def validator(schema: dict[str, Any] | bool, source: str = "the JSON Schema") -> Any:
    """A validator of jsonschema that never reaches for a network or a file. Raises DataError, naming ``source``, on a faulty schema."""
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415  slow to import, needed only with a schema
    from jsonschema.validators import Draft202012Validator, validator_for  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)  # type: ignore[arg-type]  # a boolean is a schema too; the stub knows only dict
    except (SchemaError, RecursionError) as error:
        fault = getattr(error, "message", "nested too deeply")
        raise DataError(f"{source} is no valid JSON Schema ({fault})", fix="correct the schema") from error
    for ref in _references(schema):
        if not ref.startswith("#"):
            raise DataError(f"{source} refers to another document ({ref})", fix="put that definition under $defs of the same file")
        if not _resolves(schema, ref):
            raise DataError(f"{source} refers to {ref}, which it does not hold", fix="correct the reference")
    return kind(schema, registry=Registry())


def _references(value: Any) -> list[str]:
    found, level = [], [value]
    while level:
        met = level.pop()
        if isinstance(met, Mapping):
            found += [ref for key in ("$ref", "$dynamicRef") if isinstance(ref := met.get(key), str)]
            level += met.values()
        elif isinstance(met, list):
            level += met
    return found


def _resolves(schema: Any, ref: str) -> bool:
    """Whether a JSON pointer such as #/$defs/city leads somewhere; anchors (#city) are left to the validator."""
    if not ref.startswith("#/"):
        return True
    met = schema
    for part in ref[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~").replace("%25", "%")
        if isinstance(met, Mapping) and key in met:
            met = met[key]
        elif isinstance(met, list) and key.isdecimal() and int(key) < len(met):
            met = met[int(key)]
        else:
            return False
    return True
