"""int8 weights of a tuned model: written by compressed-tensors, read back by transformers, and held against the whole model."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "peft", "compressed_tensors", "auto_round")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.errors import MissingExtraError, ProviderError
from tuneport.local_backend.export import export
from tuneport.local_backend.generate import replies
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.process import run_export
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import plan_of, run
from tuneport.tests.local_tiny import write_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # the libraries'
ASKED: list[dict[str, Any]] = [{"id": str(i), "messages": [{"role": "user", "content": f"say {i}"}], "max_tokens": 6} for i in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("rounded") / "tiny")


@pytest.fixture(scope="module")
def job(model: Path, tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    plan = plan_of("sft", "lora", model, training__steps=40, training__learning_rate=2e-2)
    return run(plan, tmp_path_factory.mktemp("jobs") / "job")


def test_int8_weights_answer_as_the_tuned_model_does(job: JobDir, tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    from tuneport.local_backend.models import load_model

    made, notes = export(job.adapter, tmp_path, merge=True, quantize="int8")
    assert [path.name for path in made] == ["int8", "merged"]
    assert any("14 linear layers in int8" in note and "which tuning moved by" in note for note in notes), notes
    with safe_open(tmp_path / "int8" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_slice("model.layers.0.mlp.down_proj.weight_packed").get_dtype() == "I32"
        assert "model.layers.0.mlp.down_proj.weight" not in names and "model.embed_tokens.weight" in names
    # By hand: no weight is further off than half a step of its row, and rounding is not nothing either.
    whole, rounded = (load_model(str(tmp_path / name), dtype="fp32", device="cpu", training=False) for name in ("merged", "int8"))
    with torch.inference_mode():
        rounded(torch.tensor([[1, 2]]))  # the first forward pass unpacks them
    one, other = whole.model.layers[1].self_attn.q_proj.weight, rounded.model.layers[1].self_attn.q_proj.weight
    step = one.abs().amax(-1, keepdim=True) / 127.5
    assert bool(((one - other).abs() <= step * 0.5001 + (one.abs() > 127 * step) * step).all()) and not torch.equal(one, other)
    answering = LocalProvider().answering(f"local:{tmp_path / 'int8'}")
    texts = [reply["text"] for reply in replies(answering, ASKED)]
    assert texts == [reply["text"] for reply in replies(LocalProvider().answering(f"local:{job.path}"), ASKED)]
    assert all(text.startswith("it is ") for text in texts)


def test_a_full_disk_is_told_in_a_sentence_and_what_a_killed_export_left_goes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import PreTrainedModel

    from tuneport.local_backend.export import main

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    out = tmp_path / "out"
    left, at_work = out / ".export.99999999.abc", out / f".export.{os.getpid()}.abc"  # no system has so many processes
    for folder in (left, at_work):
        (folder / "merged").mkdir(parents=True)
    asked = {"adapter": str(model), "out": str(out), "merge": False, "quantize": "int8"}
    asked |= {"gguf": None, "job": None, "trust_remote_code": False}
    (tmp_path / "settings.json").write_text(json.dumps(asked))
    before = os.dup(1)
    try:
        assert main([str(tmp_path / "settings.json")]) == ProviderError.exit_code
    finally:
        os.dup2(before, 1)
        os.close(before)
    reply = json.loads(capfd.readouterr().out)
    assert reply["fault"] == f"the disk that holds {out} is full" and "nothing half-written" in reply["fix"]
    assert list(out.iterdir()) == [at_work]


def test_a_fully_tuned_model_is_rounded_too_and_only_what_was_asked_for_is_written(model: Path, tmp_path: Path) -> None:
    made, notes = export(model, tmp_path, merge=False, quantize="int8")
    assert made == [tmp_path / "int8"] and "from the whole model's answers" in notes[0]
    assert json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_awq_is_calibrated_on_the_jobs_own_rows(job: JobDir, tmp_path: Path) -> None:
    """In a process of its own, as the command does it."""
    made, (merged, rounded) = run_export(job.adapter, tmp_path, merge=False, quantize="awq", job=job.path)
    assert made == [tmp_path / "awq"] and merged.startswith("merged")
    tokens = sum(len(row) for row in _training_tokens(job))
    assert f"10 linear layers in 4 bits by AWQ (groups of 32, calibrated on {tokens:,} tokens" in rounded, rounded
    quantization = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    assert quantization["config_groups"]["group_0"]["weights"]["num_bits"] == 4
    texts = [reply["text"] for reply in replies(LocalProvider().answering(f"local:{tmp_path / 'awq'}"), ASKED)]
    assert all(text.startswith("it ") for text in texts), texts
    assert [path.name for path in tmp_path.iterdir()] == ["awq"]


def _training_tokens(job: JobDir) -> list[list[int]]:
    """The eight rows by hand: ChatML, one token per byte or mark."""
    rows = []
    for line in job.rows("train").read_text().splitlines():
        asked, said = (message["content"] for message in json.loads(line)["messages"])
        rows.append([0] * (len(f"user\n{asked}\nassistant\n{said}") + 4))
    return rows


def test_awq_without_rows_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"do not lie on this machine; int8 needs none"):
        export(model, tmp_path, merge=False, quantize="awq")


def test_without_the_library_the_command_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tuneport\[quantize\]'"):
        run_export(model, tmp_path, merge=False, quantize="int8")


def test_prefixes_cannot_be_rounded(model: Path, tmp_path: Path) -> None:
    prefix = run(plan_of("sft", "prefix", model), tmp_path / "job")
    with pytest.raises(ProviderError, match="no weights that could be merged"):
        export(prefix.adapter, tmp_path / "out", merge=False, quantize="int8")
    assert not list((tmp_path / "out").iterdir())
