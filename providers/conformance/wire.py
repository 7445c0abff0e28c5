"""Requests and answers as they come over the wire."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came over the wire."""

    method: str
    path: str  # without the query
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    params: Mapping[str, str] = field(default_factory=dict)  # the {names} of the route

    def json(self) -> Any:
        """The body as JSON; an empty body is {}. Raises VendorError (400) when it is not JSON."""
        try:
            return json.loads(self.body) if self.body else {}
        except ValueError:
            raise VendorError(400, "The body of the request is not valid JSON.") from None

    def form(self) -> tuple[dict[str, str], dict[str, tuple[str, bytes]]]:
        """A multipart body: ({field: value}, {field: (file name, content)})."""
        found = re.search(r'boundary="?([^";]+)"?', self.headers.get("content-type", ""))
        if found is None:
            raise VendorError(400, "The body of the request is not multipart/form-data.")
        fields: dict[str, str] = {}
        files: dict[str, tuple[str, bytes]] = {}
        for part in self.body.split(b"--" + found[1].encode())[1:-1]:
            head, _, content = part[2:-2].partition(b"\r\n\r\n")
            names = dict(re.findall(r'(?<![\w-])(name|filename)="([^"]*)"', head.decode()))
            if "filename" in names:
                files[names["name"]] = (names["filename"], content)
            else:
                fields[names["name"]] = content.decode()
        return fields, files


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; ``body`` is sent as JSON, bytes as they are."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class VendorError(Exception):
    """The vendor refuses a request; sent in the vendor's own error format."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
