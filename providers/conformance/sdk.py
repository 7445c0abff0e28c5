"""The exception classes of a vendor's SDK, and an instance of each."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any


def sdk_errors(modules: Sequence[str]) -> list[type[Exception]]:
    """Every exception class of these modules. A package's own name ("openai") stands for all of it that is loaded."""
    for module in modules:
        import_module(module)
    found: dict[str, type[Exception]] = {}
    queue: list[type[Exception]] = [Exception]
    seen = set(queue)
    while queue:
        for kind in queue.pop().__subclasses__():
            if kind not in seen:
                seen.add(kind)
                queue.append(kind)
                # A class that is made at run time, as botocore makes one for each error code, is not in its module.
                named = vars(sys.modules.get(kind.__module__, object)).get(kind.__qualname__) is kind
                if named and (kind.__module__ in modules or kind.__module__.partition(".")[0] in modules):
                    found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return [found[name] for name in sorted(found)]


def sample_error(kind: type[Exception]) -> Exception:
    """An instance of an exception class of a Stainless SDK, made from the names of its arguments."""
    sdk = import_module(kind.__module__.partition(".")[0])
    client = _transport_of(sdk)
    request = client.Request("POST", "http://127.0.0.1/v1/jobs")
    status = getattr(kind, "status_code", 500)
    response = client.Response(status if isinstance(status, int) else 500, request=request, json={"error": {"message": "no", "code": "x"}})
    values: dict[str, Any] = {
        "message": "something went wrong",
        "request": request,
        "response": response,
        "body": {"message": "no", "code": "x"},
        "completion": SimpleNamespace(usage=None),
        "unsent_messages": [],
        "file_id": "file-1",
    }
    if not any("__init__" in vars(base) for base in kind.__mro__ if base.__module__ != "builtins"):
        return kind("something went wrong")
    parameters = inspect.signature(kind).parameters.values()
    required = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and (p.default is p.empty or p.name in values)]
    if not required:
        return kind()
    positional = [values.get(p.name, "value") for p in required if p.kind is not p.KEYWORD_ONLY]
    return kind(*positional, **{p.name: values.get(p.name) for p in required if p.kind is p.KEYWORD_ONLY})


def _transport_of(sdk: Any) -> Any:
    """The HTTP library of an SDK: the one whose Timeout it gives out."""
    return import_module(sdk.Timeout.__init__.__module__.partition(".")[0])
