"""What clients of vendors share between a plan and the wire: filling in a payload, writing records, refs with an address,
logs without secrets."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneport.core.data.rows import Row
from tuneport.core.deployment import DeploymentRequest
from tuneport.core.errors import CredentialsError, DataError, ProviderError, RefusedError
from tuneport.core.plan import FieldOutcome, Plan, PlanWarning, Upload
from tuneport.core.secrets import redact
from tuneport.providers.chat_records import row_fault

# -- refs --------------------------------------------------------------------------------------------------------------


def at(name: str, address: str | None) -> str:
    """A ref or a model's name that carries the service's address, e.g. ``ft-1@http://localhost:8080``; without one the name."""
    return f"{name}@{address}" if address else name


def split(ref: str) -> tuple[str, str | None]:
    """The name and the address of what ``at`` has made."""
    name, mark, address = ref.rpartition("@http")
    return (name, f"http{address}") if mark else (ref, None)


# -- plans -------------------------------------------------------------------------------------------------------------


def option(plan: Plan, name: str) -> Any:
    """The value that the spec sets at ``options.<provider>.<name>``, which the compiler has noted among the outcomes; None when unset."""
    path = f"options.{plan.provider}.{name}"
    return next((outcome.value for outcome in plan.outcomes if outcome.path == path), None)


def filled(value: Any, files: Mapping[str, str], title: str) -> Any:
    """A payload as it is sent: ``${upload:role}`` taken from ``files``, ``${env:NAME}`` from the environment.

    ``title`` names the vendor in errors. Raises CredentialsError for a variable that is not set, ProviderError for a
    file that was not uploaded.
    """
    if isinstance(value, dict):
        return {name: filled(entry, files, title) for name, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry, files, title) for entry in value]
    if not isinstance(value, str) or not (value.startswith("${") and value.endswith("}")):
        return value
    kind, _, name = value[2:-1].partition(":")
    if kind == "upload":
        if name not in files:
            raise ProviderError(f"the job's {name} rows were not uploaded to {title}", fix="submit the job again", retry="no")
        return files[name]
    if kind == "env":
        found = os.environ.get(name, "").strip()
        if not found:
            raise CredentialsError(f"{name} is not set, and the job hands it on to {title}", fix=f"set {name}, or remove what needs it")
        return found
    return value


def refused(plan: Plan, reasons: Mapping[str, str]) -> Plan:
    """The plan with these fields (path -> reason) refused; a field that is refused already keeps its reason."""
    outcomes = {outcome.path: outcome for outcome in plan.outcomes}
    for path, reason in reasons.items():
        before = outcomes.get(path) or FieldOutcome(path=path, outcome="defaulted")
        if before.outcome != "refused":
            outcomes[path] = before.model_copy(update={"outcome": "refused", "note": reason})
    return plan.model_copy(update={"outcomes": tuple(outcomes.values())})


def warned(plan: Plan, code: str, message: str) -> Plan:
    """The plan with one more warning."""
    return plan.model_copy(update={"warnings": (*plan.warnings, PlanWarning(code=code, message=message))})


# -- files -------------------------------------------------------------------------------------------------------------


def write_records(path: Path, upload: Upload, rows: Iterator[Row], convert: Callable[[Row], Mapping[str, Any]]) -> int:
    """Write the rows as JSON lines; returns how many.

    Raises DataError for a row that the format cannot express, and when there are no rows.
    """
    written = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            try:
                file.write(json.dumps(convert(row), ensure_ascii=False, allow_nan=False) + "\n")
            except UnicodeEncodeError:
                raise row_fault(row, "holds half a character (a lone surrogate)", "remove it") from None
            written += 1
    if not written:
        raise DataError(f"{upload.source} has no rows for {upload.role}", fix="give it at least one row")
    return written


# -- logs --------------------------------------------------------------------------------------------------------------


class _Mask(logging.Filter):
    """Masks secrets in a log record: an SDK's debug lines hold request bodies, those of its transport signed addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text, record.exc_info = redact(logging.Formatter().formatException(record.exc_info)), None
        return True


_MASK = _Mask()


def mask_logs(*loggers: str) -> None:
    """Mask secrets in all that these loggers say from now on; calling it again changes nothing."""
    for name in loggers:
        logging.getLogger(name).addFilter(_MASK)


# -- deployments -------------------------------------------------------------------------------------------------------


def refuse_requested(
    provider: str, modes: Mapping[str, str], mode: str, request: DeploymentRequest, stands_on: str | None, reasons: Mapping[str, str]
) -> None:
    """Raises RefusedError for every part of the request that is set and has a reason here ("" is none), all in one.

    ``reasons`` maps fields of DeploymentRequest, and "on", to why the provider cannot carry them out.
    """
    found = {} if mode in modes else {"--mode": f"{mode!r} is not offered; offered: {', '.join(modes)}"}
    for name, reason in reasons.items():
        value = stands_on if name == "on" else getattr(request, name)
        if value is not None and reason:
            found[f"--{name.removesuffix('_s')}"] = reason
    if found:
        raise RefusedError(provider, found, wanted="deployment")
