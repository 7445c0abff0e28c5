"""Finds personal data by patterns that are validated wherever a rule exists, so that numbers alone raise no alarm.

email    an address with a top-level domain of letters; example domains (RFC 2606) are no one's
phone    E.164: + and 8 to 15 digits with an assigned country code; or North American, (NXX) NXX-XXXX with separators
card     13 to 19 digits of an issuer's range that satisfy the Luhn check (ISO/IEC 7812)
iban     country, length and check digits (ISO 13616, modulo 97)
ssn      a US social security number that could have been issued (no 000, 666 or 9xx area, no 00 group, no 0000 serial)
ip       an IPv4 or IPv6 address that is neither private nor reserved
secret   keys and tokens of the shapes that ``core.secrets`` knows, and private keys in PEM form

Names and addresses need a language model: the extra "pii" adds Presidio (``PresidioFinder``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from tuneport.core import secrets
from tuneport.core.errors import DataError, MissingExtraError

PersonalKind = Literal["email", "phone", "card", "iban", "ssn", "ip", "secret"]
KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)


class Match(NamedTuple):
    """One piece of personal data: ``text[start:end]``."""

    kind: str
    start: int
    end: int


_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])", re.ASCII
)
_EXAMPLE_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$", re.IGNORECASE)
# Any run of digits with separators of phone, card and social security numbers; its validators decide what it is.
_NUMBER = re.compile(r"(?<![\w.,+$€£#-])[+(]?\d[\d ().-]{7,24}\d(?![\w@]|[.,-]\d)", re.ASCII)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:{1,2}){2,7}(?:[0-9A-Fa-f]{1,4}|:)?(?![\w:])", re.ASCII)
_PEM = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----[A-Za-z0-9+/=\s\\n]{16,}?-----END (?:[A-Z]+ )?PRIVATE KEY-----")
_SECRET_MARKS = {
    "sk-": "k-", "hf_": "f_", "AKIA": "KI", "ASIA": "SI", "fw_": "w_", "tgp_": "p_", "wandb_v1_": "b_", "gho_": "o_", "ghp_": "p_",
    "ghr_": "r_", "ghs_": "s_", "ghu_": "u_", "github_pat_": "b_", "AIza": "Iz", "eyJ": "yJ", "Bearer ": "Be", "://": ":/",
    "Signature=": "e=", "X-Amz-": "X-", "-----BEGIN": "--",
}  # fmt: skip
"""One of these stands in every secret that ``core.secrets`` knows the shape of; with two letters of it that are rare in texts."""

_BETWEEN = "\n\0\n"

_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21, "CR": 22,
    "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22,
    "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30,
    "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27,
    "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31,
    "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
"""Length by country (SWIFT IBAN registry)."""

_CARD = re.compile(  # issuers' ranges (ISO/IEC 7812): Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
_CARD_FORM = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}")
_SSN = re.compile(r"(?!000|666|9)\d{3}([- ])(?!00)\d\d\1(?!0000)\d{4}")
_NANP = re.compile(r"(?:1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}")
_COUNTRY_CODES = re.compile(  # ITU E.164 assigned country codes, as prefixes
    r"1[2-9]|7[3-9]|20|2[1-6]|27|29[0-9]|3[0-469]|3[578]\d|4[013-9]|42[013]|5[1-8]|50|59|6[0-6]|6[789]\d|8[1246]|85[02356]|88\d|9[0-58]|9[679]\d"
)


def find_personal(text: str, kinds: Iterable[str] = KINDS) -> list[Match]:
    """All personal data in the text, in order, without overlaps (of two, the first in the order email to secret wins)."""
    found: list[Match] = []
    for kind, finder in _FINDERS.items():
        if kind in kinds:
            for match in finder(text):
                if all(match.end <= other.start or match.start >= other.end for other in found):
                    found.append(match)
    return sorted(found, key=lambda match: match.start)


def rows_to_search(texts: Sequence[str]) -> dict[int, set[str]]:
    """The texts that may hold personal data, by index, with the kinds to look for: a quick look at all at once, which misses none.

    A phone number, card, IBAN or social security number has seven digits or more; an IPv4 address three points between digits;
    an IPv6 address seven colons or a double one.
    """
    import numpy as np  # noqa: PLC0415 - only where there are many texts

    joined = _BETWEEN.join(texts)
    blob = np.frombuffer(joined.encode("utf-8", "replace"), np.uint8)
    sizes = [len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts]
    starts = np.concatenate(([0], np.cumsum(np.array(sizes[:-1], np.int64) + len(_BETWEEN))))
    rows: dict[int, set[str]] = {}

    def flag(mask: Any, least: int, *kinds: str) -> None:
        at = np.flatnonzero(mask)
        if at.size >= least:
            counts = np.bincount(np.searchsorted(starts, at, side="right") - 1, minlength=len(texts))
            for row in np.flatnonzero(counts >= least).tolist():
                rows.setdefault(row, set()).update(kinds)

    digit = (blob - np.uint8(48)) < 10
    flag(digit, 7, "phone", "card", "iban", "ssn")
    flag((blob[1:-1] == ord(".")) & digit[:-2] & digit[2:], 3, "ip")
    if joined.count(":") >= 2:
        colon = blob == ord(":")
        flag(colon, 7, "ip")
        flag(colon[1:] & colon[:-1], 1, "ip")
    flag(blob == ord("@"), 1, "email")
    pairs = blob[:-1].astype(np.uint16) << 8 | blob[1:]
    marks = np.zeros(1 << 16, np.bool_)
    marks[[ord(pair[0]) << 8 | ord(pair[1]) for pair in _SECRET_MARKS.values()]] = True
    flag(marks[pairs], 1, "secret")
    return rows


def _emails(text: str) -> Iterator[Match]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        name, _, domain = match[0].rpartition("@")
        if not (_EXAMPLE_DOMAIN.search(domain) or ".." in name or name.endswith(".")):
            yield Match("email", match.start(), match.end())


def _numbers(text: str) -> Iterator[tuple[str, int, int]]:
    """Runs of digits and separators, less brackets and separators that belong to the sentence."""
    for match in _NUMBER.finditer(text):
        raw = match[0]
        start = match.start() + (raw[0] == "(" and ")" not in raw)
        yield text[start : match.end()], start, match.end()


def _phones(text: str) -> Iterator[Match]:
    for raw, start, end in _numbers(text):
        digits = re.sub(r"\D", "", raw)
        if raw[0] == "+":
            good = 8 <= len(digits) <= 15 and bool(_COUNTRY_CODES.match(digits)) and len(set(digits)) > 2 and "  " not in raw
        else:
            good = bool(_NANP.fullmatch(raw))
        if good:
            yield Match("phone", start, end)


def _cards(text: str) -> Iterator[Match]:
    for raw, start, end in _numbers(text):
        if _CARD_FORM.fullmatch(raw):
            digits = re.sub(r"\D", "", raw)
            if _CARD.fullmatch(digits) and luhn(digits) and len(set(digits)) > 1:
                yield Match("card", start, end)


def luhn(digits: str) -> bool:
    """Whether the digits satisfy the Luhn check (ISO/IEC 7812-1, annex B)."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(number - 9 if number > 9 else number for number in doubled)) % 10 == 0


def _ssns(text: str) -> Iterator[Match]:
    for raw, start, end in _numbers(text):
        if _SSN.fullmatch(raw):
            yield Match("ssn", start, end)


def _ibans(text: str) -> Iterator[Match]:
    for match in _IBAN.finditer(text):
        raw = match[0]
        size = _IBAN_LENGTHS.get(raw[:2], 0)
        kept = 0  # the pattern may run into a following word of capitals: the country's length says where the number ends
        for at, character in enumerate(raw):
            kept += character != " "
            if kept == size:
                if iban(raw[: at + 1]) and (at + 1 == len(raw) or raw[at + 1] == " "):
                    yield Match("iban", match.start(), match.start() + at + 1)
                break


def iban(text: str) -> bool:
    """Whether the text is an IBAN: a known country, its length, and check digits that fit (ISO 13616)."""
    plain = text.replace(" ", "")
    if not plain.isascii() or not plain.isalnum() or _IBAN_LENGTHS.get(plain[:2]) != len(plain):
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _ips(text: str) -> Iterator[Match]:
    for pattern in (_IPV4, _IPV6) if text.count(":") > 1 else (_IPV4,):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if address.is_global and not address.is_multicast:
                yield Match("ip", match.start(), match.end())


def _secrets(text: str) -> Iterator[Match]:
    if "-----BEGIN" in text:
        yield from (Match("secret", match.start(), match.end()) for match in _PEM.finditer(text))
    if any(mark in text for mark in _SECRET_MARKS):
        yield from (Match("secret", start, end) for start, end in secrets.spans(text))


_FINDERS: dict[PersonalKind, Callable[[str], Iterator[Match]]] = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ssn": _ssns,
    "phone": _phones,
    "ip": _ips,
    "secret": _secrets,
}


def masked(kind: str, text: str) -> str:
    """The text with all but its ends hidden, fit for a report: enough to find it, too little to use it."""
    if kind == "secret":
        return "[secret]"
    keep = _ends(len(text))
    return f"{text[:keep]}{'*' * min(len(text) - 2 * keep, 12)}{text[-keep:]}"


def _ends(length: int) -> int:
    """How many characters of each end are shown."""
    return 2 if length > 8 else 1


def hide(text: str) -> str:
    """The text with all personal data in it masked, as long as before: every character stays at its place."""
    for kind, start, end in find_personal(text):
        keep = 0 if kind == "secret" else _ends(end - start)
        text = f"{text[: start + keep]}{'*' * (end - start - 2 * keep)}{text[end - keep :]}"
    return text


class PresidioFinder:
    """Names, addresses and more through Presidio (extra "pii") and the spaCy model that it is set up with.

    Raises MissingExtraError without Presidio, DataError when its language model cannot be loaded.
    """

    ENTITIES = ("PERSON", "LOCATION", "NRP", "MEDICAL_LICENSE")

    def __init__(self, language: str = "en", entities: tuple[str, ...] = ENTITIES, score: float = 0.5) -> None:
        try:
            from presidio_analyzer import AnalyzerEngine  # type: ignore[import-not-found]  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError("names and addresses are found by Presidio", "pii") from error
        try:
            self._engine: Any = AnalyzerEngine(supported_languages=[language])
        except (OSError, ValueError, SystemExit) as error:  # spaCy ends the process when it cannot fetch a model
            raise DataError(f"Presidio cannot load its language model ({error})", fix="python -m spacy download en_core_web_lg") from error
        self._language, self._entities, self._score = language, list(entities), score

    def __call__(self, text: str) -> list[Match]:
        """The matches in one text, in order; kinds are Presidio's entity names in lower case."""
        found = self._engine.analyze(text=text, language=self._language, entities=self._entities, score_threshold=self._score)
        return sorted((Match(hit.entity_type.lower(), hit.start, hit.end) for hit in found), key=lambda match: match.start)


@cache
def presidio() -> PresidioFinder:
    """The finder that all batches of a process share: loading its model takes seconds. Raises as PresidioFinder does."""
    return PresidioFinder()
