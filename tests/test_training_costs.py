"""The practitioners' published training costs against tuneport's own: inside the computed range, or the difference is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneport.core.catalogue import load_catalogue
from tuneport.core.estimate import training_cost
from tuneport.core.money import Range
from tuneport.core.prices import load_prices
from tuneport.local_backend.estimate import hardware_of, training_time
from tuneport.local_backend.models import Shape
from tuneport.tests.advice_cases import TODAY

ROWS = yaml.safe_load(Path(__file__).with_name("golden_training_costs.yaml").read_text(encoding="utf-8"))["rows"]
TOKENS, EPOCHS = Range(low=200, high=2000), 3
FULL_OVER_LORA = 6 / 4
"""FLOPs per parameter and token: full tuning also computes the weight gradients of the base."""


def on_gpus(row: dict[str, Any], tokens: Range) -> Range:
    """GPU-hours do not depend on how many GPUs share the work, so one GPU stands for all."""
    work = tokens * (FULL_OVER_LORA if row["tuning"] == "full" else 1.0)
    time = training_time(Shape(parameters=row["parameters_b"] * 1e9), work, Range(low=0, high=0), hardware_of("A100", 8, None))
    market = load_prices().gpu_market(row["gpu"], TODAY)
    rent = Range(low=min(p.amount.low for p in market), high=max(p.amount.high for p in market))
    assert time.seconds is not None
    return time.seconds * (1 / 3600) * rent


def managed(row: dict[str, Any], tokens: Range) -> Range:
    offerings = [o for o in load_catalogue().models() if o.provider == row["provider"] and o.model in row["models"]]
    assert len(offerings) == len(row["models"])
    costs = [training_cost(o, method="sft", tuning="lora", trained_tokens=tokens, today=TODAY).usd for o in offerings]
    known = [c for c in costs if c is not None]
    assert len(known) == len(costs)
    return Range(low=min(c.low for c in known), high=max(c.high for c in known))


@pytest.mark.parametrize("row", ROWS, ids=[f"{r['run']} ({r['source']})" for r in ROWS])
def test_published_costs_are_bracketed_or_explained(row: dict[str, Any]) -> None:
    low, high = row["rows"]
    tokens = TOKENS * Range(low=low * EPOCHS, high=high * EPOCHS)
    ours = managed(row, tokens) if "provider" in row else on_gpus(row, tokens)
    published = Range(low=row["usd"][0], high=row["usd"][1])
    bracketed = ours.low <= published.low and published.high <= ours.high
    assert bracketed != ("differs" in row), f"{ours.low:.2f} to {ours.high:.2f} USD against {row['usd']}"
    assert ours.low <= published.high and published.low <= ours.high  # even then the ranges meet
