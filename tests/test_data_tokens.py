"""Token counts say what they are, and ranges hold the truth."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tuneport.core.data import tokens
from tuneport.core.data.rows import Row
from tuneport.core.data.tokens import TokenMeter, count_tokens, tokenizer_name


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    tokens._o200k.cache_clear()
    yield
    tokens._o200k.cache_clear()


@pytest.fixture
def _without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)


@pytest.fixture
def _word_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for bpe-openai: one token per word, and its refusal of long texts."""

    def encode_ordinary(text: str) -> list[int]:
        assert len(text) <= 200_000
        return [0] * len(text.split())

    encoding = SimpleNamespace(encode_ordinary=encode_ordinary)
    monkeypatch.setitem(sys.modules, "bpe_openai", SimpleNamespace(get_encoding=lambda name: encoding))


def chat(*contents: str) -> Row:
    return Row("chat", "f", 1, tuple({"role": "user", "content": content} for content in contents))


@pytest.mark.usefixtures("_without_extra")
def test_the_estimate_is_a_stated_range_with_message_frames() -> None:
    meter = TokenMeter(openai=True)
    assert not meter.exact
    assert meter.measure(chat("x" * 400, "y" * 400)) == (208 * 0.75, 208 * 1.25, 208 * 1.25)
    facts = meter.facts(10.5, 20.5, 7.1)
    assert (facts.low, facts.high, facts.longest_row, facts.exact) == (10, 21, 8, False)
    assert facts.tokenizer == tokenizer_name() == "estimate: characters / 4, +-25 %"
    assert count_tokens("12345") == 2


@pytest.mark.usefixtures("_without_extra")
def test_other_scripts_widen_the_range() -> None:
    assert TokenMeter().measure(chat("数" * 400)).high >= 400


@pytest.mark.usefixtures("_word_encoding")
def test_openai_rows_are_counted_when_the_extra_is_there() -> None:
    meter = TokenMeter(openai=True)
    assert meter.measure(chat("one two", "three")) == (3 + 8, 3 + 8, 3 + 8)
    assert (meter.name, meter.exact) == ("o200k_base", True)
    assert count_tokens("word " * 100_000) == 100_000
    assert tokenizer_name() == "o200k_base"
    assert meter.facts(11, 11, 11, images=True).exact is False
    assert TokenMeter().exact is False


@pytest.mark.usefixtures("_word_encoding")
def test_every_part_of_a_row_counts() -> None:
    meter = TokenMeter(openai=True)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a b"}, {"type": "image_url"}], "name": "n"}
    thought = {"role": "assistant", "content": "x", "reasoning_content": "y z"}
    assert meter.measure(Row("chat", "f", 1, (call, parts, thought), tools=({"t": 1},))).low == 12 + 1 + 3 + 3 + 1
    assert meter.measure(Row("text", "f", 1, text="a b c")).low == 3
    pair = Row("preference", "f", 1, ({"role": "user", "content": "q"},), {"content": "a b c"}, {"content": "d"})
    assert meter.measure(pair) == (5 + 7 + 5, 5 + 7 + 5, 5 + 7)


def test_the_real_vocabulary() -> None:
    pytest.importorskip("bpe_openai")
    assert count_tokens("hello world") == 2
    assert count_tokens("<|endoftext|>") > 1  # text in a row is never a control token
    assert count_tokens("\U0001f9ff" * 110_000) > 0
