"""Checks answers against a JSON Schema, with jsonschema-rs (extra "data", 50 times faster) when it is there, else jsonschema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneport.core.errors import UsageError

_LONGEST_REASON = 2_000


class SchemaCheck:
    """One compiled schema. Raises UsageError when it is no valid JSON Schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        import jsonschema  # noqa: PLC0415 - slow to import, and only needed with a schema

        kind = jsonschema.validators.validator_for(dict(schema), default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(dict(schema))
        except jsonschema.SchemaError as error:
            raise UsageError(f"the JSON schema for answers is not valid ({error.message})", fix="mend the schema") from error
        self._slow = kind(dict(schema))
        self._fast = _compiled(schema)

    def reason(self, value: Any) -> str:
        """Why the value does not satisfy the schema, in one line, or ""."""
        if self._fast is not None and self._fast.is_valid(value):
            return ""
        error = next(iter(self._slow.iter_errors(value)), None)
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
