"""What worker processes are asked to do in tests; they import it, so it imports little."""

from __future__ import annotations

import os

from tuneport.core.errors import DataError


def double(number: int) -> int:
    return 2 * number


def fail(number: int) -> int:
    if number == 3:
        raise DataError("three is bad", fix="leave it out")
    return number


def die(number: int) -> int:
    os._exit(9)
