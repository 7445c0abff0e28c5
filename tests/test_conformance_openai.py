"""OpenAI against the conformance suite, and what only OpenAI has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

pytest.register_assert_rewrite("tuneport.providers.conformance.suite")
pytest.importorskip("openai")

from tuneport.core.errors import TuneportError  # noqa: E402
from tuneport.core.plan import Plan  # noqa: E402
from tuneport.core.spec import JobSpec  # noqa: E402
from tuneport.providers.conformance.openai_vendor import OpenAIVendor  # noqa: E402
from tuneport.providers.conformance.suite import ProviderConformance  # noqa: E402
from tuneport.providers.openai.errors import mapped  # noqa: E402
from tuneport.providers.openai.records import RECORDS  # noqa: E402
from tuneport.providers.openai.states import STATES  # noqa: E402

MODEL = "gpt-4.1-mini-2025-04-14"


class TestOpenAI(ProviderConformance):
    target = "tuneport.providers.openai.client:OpenAIProvider"
    vendor_class = OpenAIVendor
    states = STATES
    records = RECORDS
    sdk_modules = ("openai", "openai._exceptions")
    key_variable = "OPENAI_API_KEY"

    def specs(self, train: str, held: str) -> list[JobSpec]:
        every_field = {
            "name": "tickets",
            "data": {"train": train, "validation": held},
            "training": {"epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.8, "seed": 7, "loss_on": "completions"},
            "tracking": {"wandb": {"project": "tickets", "entity": "team", "name": "run", "tags": ["a"]}},
            "tags": {f"tag{n}": "x" for n in range(15)},
        }
        documents: list[dict[str, Any]] = [{"data": {"train": train}}, every_field]
        return [JobSpec.model_validate({"model": {"openai": MODEL}} | document) for document in documents]

    def expected_body(self, plan: Plan, files: Mapping[str, str], key: str) -> dict[str, Any]:
        body = super().expected_body(plan, files, key)
        return body | {"metadata": {**body.get("metadata", {}), "tuneport_key": key}}

    def map_error(self, error: Exception) -> TuneportError:
        return mapped(error)
