"""Reading specs: every fault at once, each with its path, what was met, what was expected, and a hint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tuneport.core.errors import DataError, Fault, SpecError, TuneportError, UsageError
from tuneport.core.spec import JobSpec
from tuneport.core.spec_file import load_spec, spec_schema

MINIMAL: dict[str, Any] = {"model": "llama-3.1-8b-instruct", "data": {"train": "train.jsonl"}}


def faults(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        load_spec(document)
    return {fault.path: str(fault) for fault in caught.value.faults}


def write(tmp_path: Path, text: str, name: str = "spec.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_all_faults_are_reported_at_once_with_hints() -> None:
    found = faults(
        {
            "data": {},
            "learning_rate": 2,
            "training": {"learnin_rate": 1e-4, "learning_rate": 1e-4, "learning_rate_multiplier": 2, "epochs": -1, "scheduler": "cosin"},
            "tuning": {"rank": "a"},
            "options": {"opnai": {}},
        }
    )
    assert set(found) == {
        "model", "data.train", "learning_rate", "training.learnin_rate", "training.learning_rate_multiplier", "training.epochs",
        "training.scheduler", "tuning.rank", "options.opnai",
    }  # fmt: skip
    assert "did you mean `learning_rate`?" in found["training.learnin_rate"]
    assert "did you mean `training.learning_rate`?" in found["learning_rate"]
    assert "did you mean `openai`?" in found["options.opnai"]
    assert "met -1" in found["training.epochs"]


def test_a_fault_in_a_file_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\ndata: {train: t.jsonl}\ntraining:\n  epochs: 3\n  batchsize: 4\n")
    with pytest.raises(SpecError, match=r"training\.batchsize \(line 5\).*did you mean `batch_size`"):
        load_spec(path)


def test_every_path_in_a_spec_is_taken_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, home, elsewhere = (tmp_path / name for name in ("jobs", "home", "elsewhere"))
    for folder in (jobs / "base", jobs / "smollm2-135m-instruct", home, elsewhere / "org" / "theirs"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)

    def read(model: str, earlier: str = "j-abc", **local: str) -> JobSpec:
        data = {"train": "rows/train.jsonl", "test": "~/test.jsonl"}
        overrides = {"local": {"continue_from": earlier}}
        named = {"local": model, "together": "qwen3-8b"}
        return load_spec(write(jobs, json.dumps({"model": named, "data": data, "options": {"local": local}, "overrides": overrides})))

    spec = read("base", "local:./earlier", chat_template="chat.jinja", mlflow_uri="sqlite:///runs.db")
    assert (spec.data.train, spec.data.test) == (str(jobs / "rows" / "train.jsonl"), str(home / "test.jsonl"))
    assert spec.model == {"local": str(jobs / "base"), "together": "qwen3-8b"}
    assert spec.options.local.chat_template == str(jobs / "chat.jinja")
    assert spec.options.local.mlflow_uri == f"sqlite:///{jobs / 'runs.db'}"
    assert spec.for_provider("local").continue_from == f"local:{jobs / 'earlier'}"
    for written, meant in {
        "./new": jobs / "new", "~/m": home / "m", "m.gguf": jobs / "m.gguf", "/m": "/m", "org/name": "org/name",
        "smollm2-135m-instruct": "smollm2-135m-instruct",
    }.items():  # fmt: skip
        assert read(written).model_for("local") == str(meant)
    assert read("base", "ft:gpt-4.1-mini:a").for_provider("local").continue_from == "ft:gpt-4.1-mini:a"
    with pytest.raises(SpecError, match=r"model\.local: expected .*org/theirs.*paths are taken from the spec.s folder"):
        read("org/theirs")


@pytest.mark.parametrize("value", ["sk-abcdefghijklmnop1234", "hf_abcdefghijklmnop"])
def test_a_key_in_a_spec_is_refused_and_never_shown(value: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(MINIMAL | {"api_key": value, "name": value + "!"})
    assert value not in str(caught.value)
    assert "come from the environment" in str(caught.value)


def test_a_rate_and_a_multiplier_exclude_each_other_also_in_python() -> None:
    both = {"learning_rate": 1e-4, "learning_rate_multiplier": 2.0}
    with pytest.raises(ValidationError, match="both set"):
        JobSpec.model_validate(MINIMAL | {"training": both})


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_numbers_in_yaml_keep_their_meaning(tmp_path: Path, written: str) -> None:
    spec = load_spec(write(tmp_path, f"model: m\ndata: {{train: t.jsonl}}\ntraining: {{learning_rate: {written}}}\n"))
    assert spec.training.learning_rate == 1e-4


def test_unset_stays_unset_and_paths_become_absolute(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, "model: m\ndata: {train: rows/t.jsonl}\n"))
    assert spec.training.epochs is None and spec.tuning.kind is None
    assert spec.data.train == str(tmp_path / "rows/t.jsonl")


def test_a_spec_cannot_be_changed_after_loading() -> None:
    spec = load_spec(MINIMAL)
    with pytest.raises(ValidationError):
        spec.name = "other"  # type: ignore[misc]


def test_json_and_yaml_and_python_read_the_same(tmp_path: Path) -> None:
    document = MINIMAL | {"training": {"epochs": 2}, "options": {"local": {"device": "cpu"}}}
    as_json = load_spec(write(tmp_path, json.dumps(document), "spec.json"))
    as_yaml = load_spec(write(tmp_path, json.dumps(document), "spec.yaml"))  # JSON is YAML
    assert as_json == as_yaml
    assert as_json.model_copy(update={"data": load_spec(document).data}) == load_spec(document)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", SpecError, "an empty file"),
        ("- a\n- b\n", SpecError, "a list"),
        ("model: [unclosed\n", SpecError, "valid YAML"),
        ("model: m\nmodel: n\ndata: {train: t}\n", SpecError, "given twice"),
        ("{" * 20_000, SpecError, "YAML"),
        ("x" * 1_000_001, SpecError, "under 1 MB"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", SpecError, "known field"),
    ],
    ids=["empty", "list", "broken", "repeated", "deep", "huge", "aliases"],
)
def test_files_that_are_no_spec(tmp_path: Path, text: str, error: type[TuneportError], says: str) -> None:
    with pytest.raises(error, match=says):
        load_spec(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="is a folder"):
        load_spec(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("model: \xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_spec(tmp_path / "latin.yaml")


def test_overrides_hold_at_their_provider_only() -> None:
    spec = load_spec(MINIMAL | {"tuning": {"rank": 8}, "overrides": {"openai": {"tuning.rank": None, "training.epochs": 2}}})
    assert (spec.for_provider("openai").tuning.rank, spec.for_provider("openai").training.epochs) == (None, 2)
    assert (spec.for_provider("local").tuning.rank, spec.for_provider("local").training.epochs) == (8, None)
    assert spec.for_provider("local").overrides is None


@pytest.mark.parametrize(
    ("overrides", "path", "says"),
    [
        ({"openai": {"tuning.kindd": None}}, "overrides.openai.tuning.kindd", "did you mean `tuning.kind`?"),
        ({"opnai": {}}, "overrides.opnai", "did you mean `openai`?"),
        ({"openai": {"data.train": "x"}}, "overrides.openai.data.train", "may differ"),
        ({"openai": {"training.epochs": -1}}, "overrides.openai.training.epochs", "greater than 0"),
    ],
)
def test_faulty_overrides(overrides: dict[str, Any], path: str, says: str) -> None:
    assert says in faults(MINIMAL | {"overrides": overrides})[path]


def test_the_published_schema_accepts_what_loads_and_refuses_unknown_fields() -> None:
    validator = Draft202012Validator(spec_schema())
    full = MINIMAL | {"method": "dpo", "training": {"epochs": 1.5, "scheduler": "cosine"}, "options": {"together": {"warmup_evals": 1}}}
    assert load_spec(full) and validator.is_valid(full)
    assert not validator.is_valid(full | {"learning_rate": 1})
    assert not validator.is_valid({"data": {"train": "t"}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "data", "train", "training", "epochs", "x"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(JobSpec.model_fields)), JSON))
def test_any_document_either_loads_or_is_refused_with_its_faults(document: dict[str, Any]) -> None:
    found: list[Fault] = []
    try:
        spec = load_spec(document)
    except SpecError as error:
        found = error.faults
        spec = None
    if spec is None:
        assert found and all(fault.path and fault.expected for fault in found)
    else:
        assert load_spec(json.loads(spec.model_dump_json(exclude_none=True))) == spec


def test_a_misspelt_provider_under_model_is_a_fault() -> None:
    with pytest.raises(SpecError) as raised:
        load_spec({"model": {"togehter": "qwen3.5-9b", "local": "x"}, "data": {"train": "a.jsonl"}})
    (fault,) = raised.value.faults
    assert (fault.path, fault.hint) == ("model.togehter", "did you mean `together`?")


def test_the_starter_is_a_sound_spec_for_every_provider(tmp_path: Path) -> None:
    from tuneport.core.commands import init
    from tuneport.core.data.load import load_job_data
    from tuneport.core.plan import compile_for
    from tuneport.providers import registry

    init(tmp_path / "spec.yaml")
    with pytest.raises(UsageError, match="exists already"):
        init(tmp_path / "spec.yaml")
    row = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    (tmp_path / "train.jsonl").write_text((json.dumps(row) + "\n") * 200, encoding="utf-8")
    spec = load_spec(tmp_path / "spec.yaml")
    data = load_job_data(spec)
    refused = {name: compile_for(registry.get(name), spec, data).refusals for name in registry.names()}
    assert not any(refused.values()), refused
