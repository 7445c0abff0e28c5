"""The HTML report as PDF, by WeasyPrint. Nothing is loaded while it is made: no protocol is allowed."""

from __future__ import annotations

from tuneport.core.errors import MissingExtraError


def render_pdf(html: str) -> bytes:
    """The page as it prints. Raises MissingExtraError when WeasyPrint, or the Pango that it needs, is missing."""
    try:
        from weasyprint import HTML  # noqa: PLC0415
        from weasyprint.urls import URLFetcher  # noqa: PLC0415
    except (ImportError, OSError):  # OSError: the package is there, the system's Pango is not
        raise MissingExtraError("a PDF needs WeasyPrint, and Pango on the system", "pdf") from None
    made: bytes = HTML(string=html, url_fetcher=URLFetcher(allowed_protocols=())).write_pdf()
    return made
