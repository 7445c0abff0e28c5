"""Reads from signed addresses: the metrics file, and the tuned weights, which come whole or not at all.

Such an address must never receive our key, so a plain HTTP client reads it. What has arrived of a file stands in
``NAME.part``; a later call asks for the rest (Range) on the condition that the file is still the same (If-Range).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tuneport.core.errors import ProviderError
from tuneport.core.provider import OnProgress
from tuneport.core.retry import retrying
from tuneport.providers.fireworks.session import TIMEOUT_S, Api, certificates, translated

if TYPE_CHECKING:
    import httpx

BLOCK = 1 << 20
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
    folder.mkdir(parents=True, exist_ok=True)
    targets = [_inside(folder, name) for name in names]

    def bring(name: str, target: Path) -> None:
        url = addresses().get(name)  # anew for each attempt: a signed address is good for an hour
        if url is None:
            raise ProviderError(f"Fireworks no longer gives out {name}", fix="start the download anew", retry="no")
        _check(api, url)
        _fetch(url, target, name, on_progress)

    for name, target in zip(names, targets, strict=True):
        if not _intact(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            retrying(lambda name=name, target=target: bring(name, target), sleep=sleep)  # type: ignore[misc]
    return targets


def _client() -> httpx.Client:
    """A client that knows no key."""
    import httpx  # noqa: PLC0415 -- comes with the SDK

    return httpx.Client(verify=certificates(), timeout=TIMEOUT_S, follow_redirects=True)


def _fetch(url: str, target: Path, name: str, on_progress: OnProgress | None) -> None:
    part, facts = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    have, mark = part.stat().st_size if part.exists() else 0, _known(facts).get("etag", "")
    if not mark or mark.startswith("W/"):  # nothing says that the rest would be the rest of the same file
        have = 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": mark} if have else {})
    with translated(), _client() as http, http.stream("GET", url, headers=headers) as answer:
        if have and answer.status_code == 416:  # all of it had arrived, only its name was missing
            total: int | None = have
        else:
            if answer.is_error:
                answer.read()
            answer.raise_for_status()
            if "html" in answer.headers.get("content-type", "").lower():
                raise ProviderError(f"a web page came back in place of {name}", fix="check HTTPS_PROXY and the network")
            if answer.status_code != 206:  # the whole file, since there was nothing yet or it is another one now
                have = 0
            total = _total(answer.headers)
            # In the answer to a Range, a checksum may be that of the rest alone.
            md5 = _known(facts).get("md5", "") if have else _md5(answer.headers)
            with part.open("r+b" if have else "wb") as file:
                facts.write_text(json.dumps({"etag": answer.headers.get("etag", ""), "md5": md5}), encoding="utf-8")
                file.seek(have)
                file.truncate()
                for block in answer.iter_bytes():
                    file.write(block)
                    have += len(block)
                    if on_progress is not None:
                        on_progress(name, have, total)
                file.flush()
                os.fsync(file.fileno())
    if total is not None and have != total:
        raise ProviderError(f"{have:,} of {total:,} bytes of {name} arrived", fix="download again; it goes on from there")
    _finish(part, facts, target, name)


def _finish(part: Path, facts: Path, target: Path, name: str) -> None:
    """Compare with the MD5 that the service told, if it told one, note the SHA-256, and give the file its name."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            md5.update(block)
    told = _known(facts).get("md5")
    if told and told != base64.b64encode(md5.digest()).decode():
        part.unlink()
        facts.unlink()
        raise ProviderError(f"{name} did not arrive as Fireworks sent it: its checksum differs", fix="download again; it starts anew")
    _noted(target).write_text(f"{sha256.hexdigest()}  {target.name}\n", encoding="utf-8")
    part.replace(target)
    facts.unlink()


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


def _intact(target: Path) -> bool:
    """Whether an earlier call has brought this file, and it still has its checksum."""
    noted = _noted(target)
    if not target.is_file() or not noted.is_file():
        return False
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return noted.read_text(encoding="utf-8").partition(" ")[0] == digest


def _noted(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _known(facts: Path) -> dict[str, str]:
    """What is known of what has arrived so far; empty when nothing is."""
    try:
        found = json.loads(facts.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _md5(headers: Mapping[str, str]) -> str:
    """The MD5 of the whole file in base64, from Google's or the standard header; empty when the service tells none."""
    google = dict(entry.strip().partition("=")[::2] for entry in headers.get("x-goog-hash", "").split(","))
    return google.get("md5") or headers.get("content-md5", "")


def _total(headers: Mapping[str, str]) -> int | None:
    """Size of the whole file in bytes, where the answer tells it."""
    _, slash, total = headers.get("content-range", "").rpartition("/")
    length = total if slash else headers.get("content-length", "")
    return int(length) if length.isdigit() else None
