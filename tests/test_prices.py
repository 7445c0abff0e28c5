"""The price book: every row has evidence, the most specific row wins, dates are honoured, unknown stays unknown."""

from __future__ import annotations

import json
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.catalogue import load_catalogue
from tuneport.core.errors import CatalogueError, UsageError
from tuneport.core.money import Range
from tuneport.core.prices import UNITS, Kind, Price, load_prices, prices_schema
from tuneport.core.sources import GRADES

TODAY = date(2026, 11, 22)


def amount(provider: str, kind: str, **selectors: Any) -> tuple[float, float] | None:
    price = load_prices().find(provider, kind, today=TODAY, **selectors)
    return None if price is None else (price.amount.low, price.amount.high)


def test_every_price_has_evidence() -> None:
    for price in load_prices().prices():
        assert price.source.title and price.source.grade in GRADES, price
        assert date(2024, 1, 1) <= price.source.observed_on <= TODAY, price
        free = price.kind == "cache_write"  # known to cost nothing beyond the input price
        assert 0 <= price.amount.low <= price.amount.high and (price.amount.high > 0 or free), price
        assert price.unit == UNITS[price.kind]


def test_a_range_says_why_it_is_one() -> None:
    assert [p for p in load_prices().prices() if p.amount.low != p.amount.high and not p.note and p.provider != "runpod"] == []


def test_every_row_can_be_found() -> None:
    """No row is hidden behind another: asking for exactly what it names returns it."""
    book = load_prices()
    for row in book.prices():
        size = row.upto_b or (row.above_b + 1 if row.above_b is not None else None)
        found = book.find(
            row.provider,
            row.kind,
            model=row.model,
            method=min(row.methods) if row.methods else None,
            tuning=min(row.tunings) if row.tunings else None,
            parameters_b=size,
            gpu=row.gpu,
            tuned=bool(row.tuned),
            variant=row.variant,
            today=row.valid_from or row.valid_to or TODAY,
        )
        assert found == row


def test_openai_tuned_and_base_inference_differ() -> None:
    assert amount("openai", "infer_in", model="gpt-4.1-mini", tuned=True) == (0.8, 0.8)
    assert amount("openai", "infer_in", model="gpt-4.1-mini") == (0.4, 0.4)
    assert amount("openai", "infer_out", model="gpt-4.1-2025-04-14", tuned=True) == (12, 12)  # a vendor id serves as well
    assert amount("openai", "batch_out", model="gpt-4.1", tuned=True) == (6, 6)
    assert amount("openai", "infer_cached", model="gpt-4o", tuned=True) == (1.875, 1.875)
    assert amount("bedrock", "infer_in", model="nova-lite", tuned=True) == amount("bedrock", "infer_in", model="nova-lite") == (0.06, 0.06)
    assert amount("bedrock", "infer_in", model="nova-2-lite", tuned=True) is None


def test_the_most_specific_row_wins() -> None:
    sft = {"method": "sft", "tuning": "lora"}
    assert amount("together", "train_token", model="qwen3.5-9b", parameters_b=9.41, **sft) == (0.34, 0.34)
    assert amount("together", "train_token", model="llama-3.1-8b-instruct", parameters_b=8.03, **sft) == (0.34, 0.48)
    assert amount("together", "train_token", model="glm-5.1", parameters_b=744, **sft) == (2.5, 100)
    assert amount("together", "train_token", parameters_b=None, **sft) is None  # size unknown: price unknown


@pytest.mark.parametrize(("size", "expected"), [(0.1, 0.5), (16, 0.5), (16.1, 3), (80, 3), (80.1, 6), (300, 6), (301, 10), (3000, 10)])
def test_size_bands_of_fireworks(size: float, expected: float) -> None:
    assert amount("fireworks", "train_token", method="sft", tuning="lora", parameters_b=size) == (expected, expected)


@given(st.floats(0.01, 5000), st.sampled_from(["sft", "dpo"]), st.sampled_from(["lora", "full"]))
@pytest.mark.parametrize("provider", ["together", "fireworks"])
def test_bands_leave_no_gap(provider: str, size: float, method: str, tuning: str) -> None:
    assert amount(provider, "train_token", method=method, tuning=tuning, parameters_b=size) is not None


def test_prices_have_dates() -> None:
    book = load_prices()
    before, after = date(2026, 9, 10), date(2026, 9, 11)
    old, new = (book.find("together", "train_token", method="sft", tuning="lora", parameters_b=8, today=d) for d in (before, after))
    assert old is not None and new is not None
    assert (old.amount.low, old.amount.high) == (0.48, 0.48) and (new.amount.low, new.amount.high) == (0.34, 0.48)
    assert old.valid_to == before and new.valid_from == after


def test_terms_and_unknowns() -> None:
    assert amount("bedrock", "host_hour", model="llama-2-13b") == (23.5, 23.5)
    assert amount("bedrock", "host_hour", model="llama-2-13b", variant="6-month commitment") == (13.08, 13.08)
    assert amount("bedrock", "train_token", model="nova-pro", method="sft") is None  # AWS publishes it, but we have not seen it
    assert amount("fireworks", "train_token", method="orpo", tuning="lora", parameters_b=8) is None
    assert amount("together", "host_hour", gpu="h100") == (3.99, 6.49)
    assert amount("together", "host_hour") is None
    with pytest.raises(UsageError, match="unknown kind of price 'training'"):
        load_prices().find("openai", "training")


def test_the_rental_market_of_a_gpu() -> None:
    market = load_prices().gpu_market("H100", TODAY)
    assert market[0].provider == "runpod" and {p.provider for p in market} >= {"aws", "lambda", "modal", "nebius", "sagemaker"}
    assert all(p.variant == "" for p in market)
    assert load_prices().gpu_market("abacus", TODAY) == ()


def test_priced_models_of_the_four_vendors_are_in_the_catalogue() -> None:
    known = set(load_catalogue().names()) | {"llama-2-13b", "llama-2-70b"}  # priced, no longer tunable
    known |= {p.model for p in load_prices().prices() if p.model and ".anthropic.claude-" in p.model}  # in use today, not tunable there
    vendors = {"openai", "bedrock", "together", "fireworks"}
    assert {p.model for p in load_prices().prices() if p.provider in vendors and p.model} <= known


# -- the user's file ---------------------------------------------------------------------------------------------------

SOURCE = "sources: {deal: {title: our contract, observed_on: 2026-11-01, grade: USER}}\n"


def _use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("TUNEPORT_PRICES", str(path))
    return path


def test_an_override_wins_wherever_it_matches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = "prices: [{provider: together, kind: train_token, methods: [sft], amount: [0.1, 0.2], min_charge: 0, source: deal}]"
    _use(monkeypatch, tmp_path, SOURCE + rows)
    price: Price | None = load_prices().find("together", "train_token", model="qwen3.5-9b", method="sft", tuning="lora", today=TODAY)
    assert price is not None and price.override and price.source.grade == "USER"
    assert (price.amount.low, price.amount.high) == (0.1, 0.2) and price.min_charge is not None and price.min_charge.high == 0
    assert amount("together", "train_token", model="qwen3.5-9b", method="dpo", tuning="lora") == (0.84, 0.84)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prices: [{provider: x, kind: train_token, amount: 1}]", "prices.0.source: Field required"),
        ("prices: [{provider: x, kind: train_token, amount: 1, source: gone}]", "prices.0: source 'gone' is not defined"),
        (SOURCE + "prices: [{provider: x, kind: train, amount: 1, source: deal}]", "prices.0.kind"),
        (SOURCE + "prices: [{provider: x, kind: gpu_hour, amount: -1, source: deal}]", "prices.0.amount"),
        (SOURCE + "prices: [{provider: x, kind: gpu_hour, amount: [2, 1], source: deal}]", "low 2.0 exceeds high 1.0"),
        (SOURCE + "prices: [{provider: x, kind: gpu_hour, amount: .nan, source: deal}]", "prices.0.amount"),
        (SOURCE + "prices: [{provider: x, kind: gpu_hour, amount: 1, cents: 5, source: deal}]", "prices.0.cents"),
        (SOURCE + "prices: [&a {provider: x, kind: gpu_hour, amount: 1, source: deal}, *a]", "two prices for the same thing (x gpu_hour)"),
    ],
)
def test_a_faulty_override_names_file_and_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, named: str) -> None:
    path = _use(monkeypatch, tmp_path, text)
    with pytest.raises(CatalogueError) as caught:
        load_prices()
    assert str(path) in str(caught.value) and named in str(caught.value)


def test_the_schema_is_a_schema_and_names_every_kind() -> None:
    schema = prices_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    built_in = yaml.safe_load(files("tuneport.core.facts").joinpath("prices.yaml").read_text())
    jsonschema.validate(json.loads(json.dumps(built_in, default=str)), schema)
    assert set(schema["$defs"]["PriceEntry"]["properties"]["kind"]["enum"]) == set(get_args(Kind)) == set(UNITS)


def test_an_end_of_a_range_is_a_number_and_low_is_not_above_high() -> None:
    with pytest.raises(ValueError, match="not a number"):
        Range(low=float("nan"), high=1)
    with pytest.raises(ValueError, match=r"low 2.0 exceeds high 1.0"):
        Range(low=2, high=1)
