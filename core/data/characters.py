"""Finds characters that hint at a damaged or hostile text: control characters, wrong encodings, invisible marks.

Kinds: ``control`` (C0 but tab and line breaks, DEL, C1), ``replacement`` (U+FFFD, left by a lossy decoder), ``mojibake`` (UTF-8 read
as Latin-1 or Windows-1252, "Ã©" for "é"), ``invisible`` (zero-width marks within words, byte order marks), ``direction``
(bidirectional overrides: text that shows in another order than it is read, CVE-2021-42574), ``private`` (private use, noncharacters).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, get_args

CharacterKind = Literal["control", "replacement", "mojibake", "invisible", "direction", "private"]

_SUSPICIOUS = re.compile(
    "(?P<control>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f])"
    "|(?P<replacement>\ufffd)"
    # The lead byte of a UTF-8 pair as Latin-1 followed by a continuation byte as Latin-1 or Windows-1252.
    "|(?P<mojibake>[\u00c2\u00c3][\u00a0-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
    "|\u00e2\u20ac[\u0153\u009d\u2122\u0093\u0094\u00a6\u2018\u201c\u201d\u02dc\u00a2])"
    "|(?P<invisible>[\u200b\u2060\ufeff\u00ad\u180e]|[\U000e0000-\U000e007f])"
    "|(?P<direction>[\u202a-\u202e\u2066-\u2069])"
    "|(?P<private>[\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff])"
)

WHAT: dict[CharacterKind, str] = {
    "control": "control characters",
    "replacement": "U+FFFD, which a lossy decoder leaves where it met other bytes",
    "mojibake": 'UTF-8 that was read as Latin-1 ("Ã©" for "é")',
    "invisible": "invisible characters (zero-width, soft hyphen, byte order mark, tags)",
    "direction": "marks that change the direction of the text (CVE-2021-42574)",
    "private": "private-use characters or noncharacters",
}
"""Each kind in words."""

KINDS: tuple[CharacterKind, ...] = get_args(CharacterKind)


def suspicious(text: str) -> Iterator[tuple[CharacterKind, int]]:
    """Each kind that stands in the text, once, with the place of its first character."""
    seen: set[str] = set()
    for match in _SUSPICIOUS.finditer(text):
        kind = match.lastgroup
        if kind and kind not in seen:
            seen.add(kind)
            yield next(known for known in KINDS if known == kind), match.start()


def clean_characters(text: str) -> str:
    """The text without control and invisible characters and direction marks, and with mojibake undone where that works.

    Mojibake is undone only when the whole text decodes; what cannot be mended (U+FFFD, private use) stays.
    """
    if not _SUSPICIOUS.search(text):
        return text
    text = _undone(text)
    return _SUSPICIOUS.sub(lambda match: "" if match.lastgroup in ("control", "invisible", "direction") else match[0], text)


def _undone(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1, read again; the text itself when it is anything else."""
    if any(kind == "mojibake" for kind, _ in suspicious(text)):
        for encoding in ("cp1252", "latin-1"):
            try:
                return text.encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
    return text
