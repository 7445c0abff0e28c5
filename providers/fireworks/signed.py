"""Reads from signed addresses: the metrics file, and the tuned weights, which come whole or not at all.

Such an address must never receive our key, so a plain HTTP client reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tuneport.core.errors import ProviderError
from tuneport.core.provider import OnProgress
from tuneport.core.retry import retrying
from tuneport.providers.fetching import Part, intact, kept_in
from tuneport.providers.fireworks.session import TIMEOUT_S, Api, certificates, translated

if TYPE_CHECKING:
    import httpx

MOST_TEXT = 64_000_000
"""Bytes of a metrics file that are read; a longer one is cut off there."""

Sleep = Callable[[float], None]


def read_text(api: Api, url: str) -> str | None:
    """The text at a signed address; None when nothing stands there (yet)."""
    _check(api, url)
    content = b""
    with translated(), _client() as http, http.stream("GET", url) as answer:
        if answer.status_code == 404:
            return None
        if answer.is_error:
            answer.read()
        answer.raise_for_status()
        for block in answer.iter_bytes():
            content += block
            if len(content) >= MOST_TEXT:
                break
    return content.decode("utf-8", errors="replace")


def bring_all(api: Api, model_id: str, account: str, folder: Path, on_progress: OnProgress | None, sleep: Sleep) -> list[Path]:
    """The paths of all files of a model, once each is there whole. A file that is there already, and unharmed, is not fetched again.

    Raises ProviderError when Fireworks gives no files, when one does not arrive whole, and when its checksum differs.
    """
    endpoint = api.client.models.with_raw_response.get_download_endpoint

    def addresses() -> dict[str, str]:
        return dict(api.ask(endpoint, model_id, account_id=account).get("filenameToSignedUrls") or {})

    names = sorted(retrying(addresses, sleep=sleep))
    if not names:
        what = f"Fireworks gives out no files of accounts/{account}/models/{model_id}"
        raise ProviderError(what, fix="try again once the model is READY", retry="no")
    targets = [_inside(folder, name) for name in names]

    def bring(name: str, target: Path) -> None:
        url = addresses().get(name)  # anew for each attempt: a signed address is good for an hour
        if url is None:
            raise ProviderError(f"Fireworks no longer gives out {name}", fix="start the download anew", retry="no")
        _check(api, url)
        part = Part(target)
        with translated():
            part.bring(lambda headers: _asked(url, headers), name, on_progress)
        part.keep(target, "Fireworks")

    for name, target in zip(names, targets, strict=True):
        if not intact(target):
            with kept_in(target.parent):
                target.parent.mkdir(parents=True, exist_ok=True)
            retrying(lambda name=name, target=target: bring(name, target), sleep=sleep)  # type: ignore[misc]
    return targets


def _client() -> httpx.Client:
    """A client that knows no key."""
    import httpx  # noqa: PLC0415 -- comes with the SDK

    return httpx.Client(verify=certificates(), timeout=TIMEOUT_S, follow_redirects=True)


@contextmanager
def _asked(url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    with _client() as http, http.stream("GET", url, headers=headers) as answer:
        if answer.is_error and answer.status_code != 416:
            answer.read()
            answer.raise_for_status()
        yield answer


def _inside(folder: Path, name: str) -> Path:
    """Where a file goes. Raises ProviderError for a name that would leave the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or any(part in ("..", "/") or "\\" in part or ":" in part for part in parts):
        raise ProviderError(f"Fireworks names a file {name!r}, which would not stay inside the folder", fix="ask Fireworks", retry="no")
    return folder.joinpath(*parts)


def _check(api: Api, url: str) -> None:
    """Raises ProviderError for a plain-http address, unless the service itself stands behind one."""
    schemes = {"https", urlsplit(api.address).scheme}
    if urlsplit(url).scheme not in schemes:
        raise ProviderError("Fireworks gave an address that is not https, and nothing was read from it", fix="check the proxy", retry="no")
