"""Personal data: what counts, what only looks like it, and the quick look that misses none."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.data.patterns import KINDS, PresidioFinder, find_personal, iban, luhn, masked, rows_to_search
from tuneport.core.errors import MissingExtraError

FOUND = [
    ("mail jo.doe+x@mail.co.uk.", "email", "jo.doe+x@mail.co.uk"),
    ("call +49 30 901820 now", "phone", "+49 30 901820"),
    ("call (212) 555-0187.", "phone", "(212) 555-0187"),
    ("212-555-0187", "phone", "212-555-0187"),
    ("tel. 1 415 555 2671", "phone", "1 415 555 2671"),
    ("card 4111 1111 1111 1111.", "card", "4111 1111 1111 1111"),
    ("5500-0000-0000-0004", "card", "5500-0000-0000-0004"),
    ("3782 822463 10005", "card", "3782 822463 10005"),
    ("to DE89 3704 0044 0532 0130 00 please", "iban", "DE89 3704 0044 0532 0130 00"),
    ("GB29 NWBK 6016 1331 9268 19 AND MORE", "iban", "GB29 NWBK 6016 1331 9268 19"),
    ("ssn 123-45-6789", "ssn", "123-45-6789"),
    ("8.8.8.8 is", "ip", "8.8.8.8"),
    ("at 2001:4860:4860::8888", "ip", "2001:4860:4860::8888"),
    ("key sk-abcdefghijklmnopqrstuvwx", "secret", "sk-abcdefghijklmnopqrstuvwx"),
    ("AKIAABCDEFGHIJKLMNOP", "secret", "AKIAABCDEFGHIJKLMNOP"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\n-----END PRIVATE KEY-----", "secret", None),
]


@pytest.mark.parametrize(("text", "kind", "match"), FOUND, ids=[text[:20] for text, _, _ in FOUND])
def test_personal_data_is_found(text: str, kind: str, match: str | None) -> None:
    (found,) = find_personal(text)
    assert found.kind == kind
    assert match is None or text[found.start : found.end] == match
    assert kind in rows_to_search(["nothing here", text, "nor here"])[1]


@pytest.mark.parametrize(
    "text",
    [
        "a@example.com",
        "order 1234567890123",
        "4111111111111112",
        "DE89370400440532013001",
        "666-45-6789",
        "192.168.1.1",
        "version 1.2.3.4567",
        "at 12:30:45 today",
        "price $1,234.567",
        "2026-11-22 10:11:12",
        "10.1234/567.890",
        "1-2-3-4-5-6-7-8-9",
        "ISBN 978-3-16-148410-0",
        "+12",
        "task-force-management-and-so-on",
        "see http://example.org/page",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert find_personal(text) == []


@given(st.text(max_size=40), st.sampled_from([(text, kind) for text, kind, _ in FOUND]), st.text(max_size=40))
def test_the_quick_look_never_misses(before: str, planted: tuple[str, str], after: str) -> None:
    text = f"{before} {planted[0]} {after}"
    for match in find_personal(text):
        assert match.kind in rows_to_search([after, text])[1]


@given(st.text(max_size=200))
def test_any_text_is_searched(text: str) -> None:
    found = find_personal(text)
    assert all(text[match.start : match.end] for match in found)
    assert all(one.end <= two.start for one, two in itertools.pairwise(found))


def test_check_digits() -> None:
    assert luhn("79927398713") and not luhn("79927398710")
    assert iban("GB82 WEST 1234 5698 7654 32") and not iban("GB82 WEST 1234 5698 7654 33") and not iban("XX82WEST12345698765432")


def test_masks_show_too_little_to_use() -> None:
    assert masked("email", "jo.doe@mail.com") == "jo***********om"
    assert masked("secret", "sk-abc") == "[secret]"
    assert all(len(set(masked(kind, "1234567890")) - set("*")) <= 8 for kind in KINDS)


def test_presidio_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingExtraError, match=r"tuneport\[pii\]"):
        PresidioFinder()


def test_presidio_is_asked_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def __init__(self, supported_languages: list[str]) -> None:
            assert supported_languages == ["en"]

        def analyze(self, text: str, language: str, entities: list[str], score_threshold: float) -> list[SimpleNamespace]:
            assert "PERSON" in entities and score_threshold == 0.5
            at = text.find("Ada Lovelace")
            return [SimpleNamespace(entity_type="PERSON", start=at, end=at + 12)] if at >= 0 else []

    monkeypatch.setitem(sys.modules, "presidio_analyzer", SimpleNamespace(AnalyzerEngine=Engine))
    assert PresidioFinder()("I am Ada Lovelace.")[0] == ("person", 5, 17)
