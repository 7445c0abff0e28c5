"""Promise 1 for all five providers: every field that is set moves what is sent, or is refused in words."""

from __future__ import annotations

import pytest

from tuneport.core.data.facts import JobData
from tuneport.core.plan import HANDLED_BY_TUNEPORT
from tuneport.providers import registry
from tuneport.tests.wire_truth import (
    ELSEWHERE,
    METHODS,
    SAMPLES,
    SURVEY_DAY,
    Compile,
    base_spec,
    data_for,
    leaf_paths,
    models_for,
    violations,
)

PROVIDERS = ("openai", "bedrock", "together", "fireworks", "local")


def compiler(provider: str) -> Compile:
    """The provider's own compile, as of the day of the survey."""
    compile_plan = registry.get(provider).compile
    return lambda job, data: compile_plan(job, data, SURVEY_DAY)


def test_the_five_providers_are_all_there() -> None:
    assert set(PROVIDERS) <= set(registry.names())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_field_has_samples(provider: str) -> None:
    """A field added to the spec must be added here, or the check would pass it over."""
    sampled = {path for path in SAMPLES if not path.startswith("options.") or path.startswith(f"options.{provider}.")}
    assert set(leaf_paths(provider)) == sampled | ELSEWHERE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_field_moves_what_is_sent_or_is_refused(provider: str, method: str) -> None:
    assert violations(provider, compiler(provider), method) == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_method_is_replaced_by_another(provider: str) -> None:
    """Two methods that are both accepted never make the same call."""
    compile_plan = compiler(provider)
    calls = {}
    for method in METHODS:
        job = base_spec(provider, method)
        plan = compile_plan(job, data_for(job))
        if "method" not in plan.refusals:
            calls[method] = (plan.operation, str(plan.payload), tuple(upload.record for upload in plan.uploads))
    assert len(set(calls.values())) == len(calls), f"same call for two of {sorted(calls)}"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_base_model_moves_the_payload(provider: str) -> None:
    compile_plan = compiler(provider)
    one, two = (base_spec(provider, "sft", model=model) for model in models_for(provider)[:2])
    assert compile_plan(one, data_for(one)).payload != compile_plan(two, data_for(two)).payload


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_tuneport_does_itself_is_reported_as_such(provider: str) -> None:
    job = base_spec(provider, "sft", **{"budget.max_usd": 5.0, "data.system_prompt": "Be brief."})
    outcomes = {o.path: o for o in compiler(provider)(job, data_for(job)).outcomes}
    assert set(outcomes) == set(leaf_paths(provider))
    assert {outcomes[path].wire for path in ("budget.max_usd", "data.system_prompt")} == {"(tuneport)"}
    assert set(HANDLED_BY_TUNEPORT) <= set(outcomes)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_compiling_is_pure(provider: str) -> None:
    compile_plan = compiler(provider)
    job = base_spec(provider, "sft", **{"training.epochs": 2.0})
    data: JobData = data_for(job)
    assert compile_plan(job, data) == compile_plan(job, data)
