"""The retry policy: one verdict, one table."""

from __future__ import annotations

import pytest

from tuneport.core.errors import CredentialsError, DataError, ProviderError, TuneportError, VendorClosedError
from tuneport.core.retry import Verdict, retrying, verdict


class Script:
    """A call that raises what it is told to, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls, self.slept = list(errors), 0, []

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


TRANSIENT = ProviderError("reset")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TRANSIENT, Verdict("transient")),
        (ProviderError("429", retry="rate_limit", retry_after=3), Verdict("rate_limit", 3)),
        (ProviderError("400", retry="no"), Verdict("no")),
        (VendorClosedError("closed"), Verdict("no")),
        (CredentialsError("key"), Verdict("no")),
        (DataError("row"), Verdict("no")),
        (ValueError("bug"), Verdict("no")),
    ],
)
def test_verdicts(error: Exception, expected: Verdict) -> None:
    assert verdict(error) == expected


def test_transient_errors_are_repeated_with_growing_waits() -> None:
    call = Script(TRANSIENT, TRANSIENT, TRANSIENT)
    assert retrying(call, sleep=call.sleep) == "done"
    assert call.calls == 4
    assert all(1 <= seconds <= 30 for seconds in call.slept)


def test_the_last_error_comes_out_when_the_attempts_are_used_up() -> None:
    call = Script(*[ProviderError(str(n)) for n in range(9)])
    with pytest.raises(ProviderError, match="2"):
        retrying(call, attempts=3, sleep=call.sleep)
    assert call.calls == 3


def test_a_rate_limit_waits_as_long_as_the_vendor_asks() -> None:
    call = Script(ProviderError("429", retry="rate_limit", retry_after=42))
    assert retrying(call, sleep=call.sleep) == "done"
    assert call.slept == [42]


@pytest.mark.parametrize(
    "error", [ProviderError("429", retry="rate_limit", retry_after=3600), ProviderError("400", retry="no"), DataError("x")]
)
def test_what_cannot_help_is_not_repeated(error: TuneportError) -> None:
    call = Script(error)
    with pytest.raises(type(error)):
        retrying(call, sleep=call.sleep)
    assert (call.calls, call.slept) == (1, [])
