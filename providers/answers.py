"""What the answers of all vendors have in common, and what it means that none comes."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tuneport.core.errors import ProviderError

LONGEST_QUOTE = 350
"""Characters of a vendor's message that are passed on."""
CLOCK_FIX = "set this machine's clock (date and time zone), then try again"
_DEEPEST = 10
"""Causes of a broken connection that are looked at."""


def brief(said: object) -> str:
    """What somebody else said, in one line, without markup, not too long."""
    text = " ".join(str(said).replace("<", " ").replace(">", " ").split())
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]} ..."


def is_page(content_type: str, text: str) -> bool:
    """Whether this is a web page, from a proxy or gateway in the vendor's place."""
    return "html" in content_type.lower() or text.lstrip()[:15].lower().startswith(("<!doctype", "<html"))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the vendor asks to wait: retry-after-ms, or Retry-After in seconds or as a date by its own clock; else None.

    Header names are lower case, or the mapping does not care.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        until = parsedate_to_datetime(headers["retry-after"])
        sent = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
    except (KeyError, ValueError):
        return None
    return max(0.0, (until - sent).total_seconds())


def unreachable(error: BaseException, service: str, address: str) -> ProviderError:
    """The error for a connection that failed; ``address`` is the variable that holds the service's. The innermost cause knows most."""
    causes = list(_causes(error))
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return certificate(str(cause), service, "SSL_CERT_FILE")
    why = brief(causes[-1]) or type(causes[-1]).__name__
    return ProviderError(f"{service} cannot be reached ({why})", fix=f"check the network, HTTPS_PROXY and {address}, then try again")


def certificate(text: str, service: str, variable: str) -> ProviderError:
    """The error for a certificate that is not accepted; ``variable`` names a file of further authorities.

    The connection was never made, so nothing took effect, and trying again would change nothing.
    """
    if "not yet valid" in text or "has expired" in text:
        return ProviderError(f"the certificate that {service} shows is out of date by this machine's clock", fix=CLOCK_FIX, retry="no")
    fix = f"a proxy that opens TLS needs its own authority: set {variable} to its certificate"
    return ProviderError(f"the certificate shown for {service} is not trusted ({brief(text)})", fix=fix, retry="no")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__
