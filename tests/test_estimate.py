"""Cost and time of a training job: published invoices and examples come out, unknown parts stay unknown."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.catalogue import Offering, load_catalogue
from tuneport.core.estimate import load_providers, training_cost, training_time
from tuneport.core.money import Cost, Range
from tuneport.core.spec import JobSpec

TODAY = date(2026, 11, 22)


def offering(model: str | dict[str, str], provider: str) -> Offering:
    spec = JobSpec.model_validate({"model": model, "data": {"train": "train.jsonl"}})
    return load_catalogue().offering(spec, provider)


def tokens(low: float, high: float | None = None) -> Range:
    return Range(low=low, high=low if high is None else high)


def cost(model: str | dict[str, str], provider: str, trained: Range | None, method: str = "sft", **more: Any) -> Cost:
    return training_cost(offering(model, provider), method=method, trained_tokens=trained, today=TODAY, **more)


def test_golden_aws_text_to_sql() -> None:
    """AWS blog of 2026-03-23: 2,000 examples x 800 tokens x 5 epochs on Nova Micro cost 8.00 USD."""
    found = cost("nova-micro", "bedrock", tokens(2000 * 800 * 5))
    assert found.usd == Range(low=8.0, high=8.0)
    (line,) = found.lines
    assert line.stale == "out of date (244 days)" and "8M tokens x 1 USD per 1M tokens" in line.basis and "2026-03-23" in line.basis


def test_golden_openai() -> None:
    """economics.md 2.2: 2,000 examples x 500 tokens x 3 epochs on gpt-4.1-mini cost 15 USD."""
    found = cost("gpt-4.1-mini", "openai", tokens(2000 * 500 * 3))
    assert found.usd == Range(low=15.0, high=15.0)
    assert found.lines[0].stale == ""


def test_golden_fireworks_invoice() -> None:
    """A real invoice: 13.5M tokens on a 30B base at 3.00 came to 40.59 USD (rounded tokens) in 58 minutes."""
    found = cost("qwen3-32b", "fireworks", tokens(13.5e6), tuning="lora").usd
    assert found is not None and found.low == pytest.approx(40.59, rel=0.01)
    seconds = training_time("fireworks", tokens(13.5e6), TODAY).seconds
    assert seconds is not None and seconds.low < 58 * 60 < seconds.high


def test_together_bills_validation_and_a_disputed_minimum() -> None:
    found = cost("qwen3.5-9b", "together", tokens(100e6), tuning="lora", evaluated_tokens=tokens(10e6))
    assert found.usd is not None and found.usd.low == pytest.approx(37.4) and found.usd.high == pytest.approx(37.4)
    assert [line.item for line in found.lines] == ["training tokens", "validation tokens"]
    small = cost("qwen3.5-9b", "together", tokens(1e6), tuning="lora")
    assert small.usd is not None and (small.usd.low, small.usd.high) == (0.34, 4)
    assert "minimum charge of 0 to 4 USD" in small.lines[0].basis


def test_where_nobody_says_whether_validation_is_billed_the_range_covers_both() -> None:
    found = cost("gpt-4.1-mini", "openai", tokens(1e6), evaluated_tokens=tokens(1e6)).usd
    assert found == Range(low=5, high=10)


def test_the_providers_choice_of_tuning_spans_what_it_offers() -> None:
    found = cost("llama-3.1-8b-instruct", "together", tokens(100e6)).usd
    assert found is not None and (found.low, found.high) == pytest.approx((34, 54))


@pytest.mark.parametrize(
    ("model", "provider", "method"),
    [
        ("nova-pro", "bedrock", "sft"),
        ({"together": "x/y"}, "together", "sft"),
        ("qwen3-8b", "fireworks", "orpo"),
        ({"plugin": "x"}, "plugin", "sft"),
    ],
)
def test_an_unknown_price_is_unknown_not_zero(model: str | dict[str, str], provider: str, method: str) -> None:
    found = cost(model, provider, tokens(1e6), method, tuning="lora")
    assert found.usd is None and found.lines[0].usd is None and "no price known" in found.lines[0].basis


def test_an_unknown_number_of_tokens_is_unknown() -> None:
    found = cost("gpt-4.1-mini", "openai", None)
    assert found.usd is None and "unknown number of tokens x 5 USD" in found.lines[0].basis


def test_reinforcement_is_billed_by_the_hour() -> None:
    found = cost("o4-mini", "openai", None, "rft", hours=Range(low=1, high=2.5))
    assert found.usd == Range(low=100, high=250)


def test_local_machine_time() -> None:
    hours = Range(low=1, high=2)
    mine = cost("smollm2-135m-instruct", "local", tokens(1e6), hours=hours, usd_per_hour=0.5)
    assert mine.usd == Range(low=0.5, high=1)
    assert cost("smollm2-135m-instruct", "local", None, usd_per_hour=0).usd == Range(low=0, high=0)
    rented = cost("llama-3.1-8b-instruct", "local", None, hours=hours, gpu="H100")
    assert rented.usd == Range(low=1.99, high=13.76) and "if rented" in rented.lines[0].basis
    unknown = cost("smollm2-135m-instruct", "local", None, hours=hours)
    assert unknown.usd is None and "options.local.gpu_usd_per_hour" in unknown.lines[0].basis


def test_an_exact_minimum_holds_whatever_the_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "sources: {s: {title: t, observed_on: 2026-11-01, grade: USER}}\n"
        "prices: [{provider: together, kind: train_token, amount: 1, min_charge: 4, source: s}]"
    )
    monkeypatch.setenv("TUNEPORT_PRICES", str(path))
    assert cost("qwen3.5-9b", "together", tokens(1e6, 2e6), tuning="lora").usd == Range(low=4, high=4)
    assert cost("qwen3.5-9b", "together", tokens(1e6), tuning="lora", evaluated_tokens=tokens(1e6)).usd == Range(low=4, high=4)
    assert cost("qwen3.5-9b", "together", tokens(9e6), tuning="lora").usd == Range(low=9, high=9)


@given(st.floats(1, 1e10), st.floats(1, 4), st.sampled_from(["openai", "bedrock", "together", "fireworks"]))
def test_more_tokens_never_cost_or_take_less(low: float, factor: float, provider: str) -> None:
    model = {"openai": "gpt-4.1", "bedrock": "nova-micro"}.get(provider, "llama-3.3-70b-instruct")
    one = cost(model, provider, tokens(low), tuning="lora").usd
    more = cost(model, provider, tokens(low * factor), tuning="lora").usd
    assert one is not None and more is not None
    assert 0 <= one.low <= more.low and one.high <= more.high
    times = [training_time(provider, tokens(t), TODAY).seconds for t in (low, low * factor)]
    assert times[0] is not None and times[1] is not None and times[0].high <= times[1].high


def test_times_are_wide_sourced_and_unknown_where_nobody_knows() -> None:
    openai = training_time("openai", tokens(1e6), TODAY)
    assert openai.seconds == Range(low=1800, high=172800) and "S1" in openai.basis and "out of date" in openai.basis
    for provider in ("local", "a-plugin"):
        unknown = training_time(provider, tokens(1e6), TODAY)
        assert unknown.seconds is None and provider in unknown.basis
    assert training_time("fireworks", None, TODAY).seconds is None


def test_provider_facts_have_sources() -> None:
    facts = load_providers()
    assert set(facts.providers) >= {"openai", "bedrock", "together", "fireworks", "local"}
    for entry in (*facts.providers.values(), *facts.others.values()):
        assert facts.sources[entry.source].observed_on <= TODAY
