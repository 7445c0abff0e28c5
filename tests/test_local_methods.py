"""Every method with every kind of tuning: it trains on the CPU, or the plan refuses it with the reason."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft", "bitsandbytes")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.data.rows import Row
from tuneport.core.errors import ProviderError
from tuneport.core.spec import Method, TuningKind
from tuneport.local_backend.support import local_facts, refused_combination
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import losses, plan_of, run
from tuneport.tests.local_tiny import write_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries', in a process that is not a worker
METHODS = [method for method in get_args(Method) if method not in local_facts()["lacks"]]
COMBINATIONS = list(product(METHODS, get_args(TuningKind)))
@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setitem(os.environ, "TUNEPORT_ATTEMPT", "1")


@pytest.mark.parametrize(("method", "kind"), COMBINATIONS, ids=[f"{method}-{kind}" for method, kind in COMBINATIONS])
def test_each_combination_trains_or_is_refused(method: str, kind: str, model: Path, tmp_path: Path) -> None:
    plan = plan_of(method, kind, model)
    reason = refused_combination(method, kind)
    if reason:
        assert reason in plan.refusals["tuning.kind"]
        return
    job = run(plan, tmp_path / "job")
    told = losses(job)
    assert {("loss", 1), ("loss", 2), ("eval_loss", 2)} <= told.keys()
    assert job.finished() and (job.adapter / "README.md").exists()


@pytest.mark.parametrize("method", ["sft", "dpo", "rft"])
def test_adapters_on_a_4_bit_base_learn_in_fp32(method: str, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    job = run(plan_of(method, "qlora", model, dtype="bf16"), tmp_path / "job")
    assert {str(tensor.dtype) for tensor in load_file(job.adapter / "adapter_model.safetensors").values()} == {"torch.float32"}


LEARNS: dict[str, tuple[str, dict[str, float]]] = {
    "cpt": ("full", {"training__learning_rate": 3e-3}), "dpo": ("lora", {}), "kto": ("rslora", {}),
    "orpo": ("dora", {}), "simpo": ("qlora", {}),
}  # fmt: skip
"""The method, a kind of tuning to try it with, and settings under which the tiny model learns quickly."""


@pytest.mark.parametrize("method", LEARNS)
def test_each_method_learns(method: str, model: Path, tmp_path: Path) -> None:
    kind, settings = LEARNS[method]
    quick = {"training__steps": 12, "training__gradient_accumulation": 1, "training__learning_rate": 2e-2}
    plan = plan_of(method, kind, model, **quick | settings)
    told = losses(run(plan, tmp_path / "job"))
    assert told["loss", 12] < 0.8 * told["loss", 1], told


@pytest.mark.parametrize("kind", get_args(TuningKind))
def test_each_kind_of_tuning_learns_and_answers_as_it_learnt(kind: str, model: Path, tmp_path: Path) -> None:
    from tuneport.local_backend.generate import replies

    rate = {"full": 5e-3, "prefix": 0.3, "prompt": 0.3}.get(kind, 2e-2)
    job = run(plan_of("sft", kind, model, training__steps=40, training__learning_rate=rate), tmp_path / "job")
    told = losses(job)
    assert told["loss", 40] < 0.7 * told["loss", 1], told
    asked = [{"id": str(i), "messages": [{"role": "user", "content": f"say {i}"}], "max_tokens": 8} for i in range(3)]
    settings = LocalProvider(jobs=tmp_path).answering(f"local:{job.path}")
    texts = [reply["text"] for reply in replies(settings | {"dtype": "fp32"}, asked)]
    assert all(text.startswith("it is ") for text in texts), texts


def test_a_verifiable_reward_rises(model: Path, tmp_path: Path) -> None:
    grader = {"type": "python", "source": "def grade(sample, item):\n    text = sample['output_text']\n    return text.count('e') / 8"}
    reinforcement = {"reinforcement__grader": grader, "reinforcement__samples_per_prompt": 8, "reinforcement__max_output_tokens": 8}
    plan = plan_of("rft", "lora", model, training__steps=15, training__learning_rate=2e-2, **reinforcement)
    job = run(plan, tmp_path / "job")
    rewards = [event.metrics["reward"] for event in job.events() if "reward" in event.metrics]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 1
    assert "mean validation reward" in (job.adapter / "README.md").read_text()


def test_overfitting_ends_the_run_and_the_best_adapter_is_kept(model: Path, tmp_path: Path) -> None:
    answers = ({"role": "user", "content": f"say {i}"} for i in range(8))
    held = (Row("chat", "held.jsonl", i, (asked, {"role": "assistant", "content": "QUITE OTHER"})) for i, asked in enumerate(answers))
    settings = {"training__steps": 60, "training__learning_rate": 3e-2, "training__gradient_accumulation": 1, "evaluation__evaluations": 10}
    job = run(plan_of("sft", "lora", model, **settings), tmp_path / "job", held)
    told = losses(job)
    steps = [step for name, step in told if name == "eval_loss"]
    assert max(steps) < 60
    assert any("overfitting" in event.message for event in job.events())
    kept = json.loads((job.adapter / "resolved_config.json").read_text())["kept_step"]
    assert told["eval_loss", kept] == min(told["eval_loss", step] for step in steps) < told["eval_loss", max(steps)]


def test_overfitting_is_a_rise_in_validation_against_a_fall_in_training() -> None:
    from tuneport.local_backend.story import overfitting

    falling = [(step, 3 - 0.1 * step) for step in range(1, 21)]
    rising = [(step, 1 + 0.1 * step) for step in range(1, 21)]
    assert overfitting([(5, 1.0), (10, 1.1), (15, 1.2)], falling)
    assert not overfitting([(5, 1.0), (10, 1.1), (15, 1.05)], falling)  # it went down again
    assert not overfitting([(5, 1.0), (10, 1.1)], falling)  # one rise may be noise
    assert not overfitting([(5, 1.0), (10, 1.1), (15, 1.2)], rising)  # the training itself goes wrong


def test_what_cannot_be_merged_or_written_is_named(model: Path, tmp_path: Path) -> None:
    from tuneport.local_backend.export import export
    from tuneport.local_backend.generate import replies

    prompt = run(plan_of("sft", "prompt", model), tmp_path / "prompt")
    with pytest.raises(ProviderError, match=r"no weights that could be merged.*serve"):
        export(prompt.adapter, tmp_path / "out", merge=True, gguf=None)
    full = run(plan_of("cpt", "full", model), tmp_path / "full")
    config = full.adapter / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "OtherForCausalLM"))
    with pytest.raises(ProviderError, match=r"OtherForCausalLM cannot be written as GGUF"):
        export(full.adapter, tmp_path / "out", merge=False, gguf="bf16")
    lora = run(plan_of("sft", "lora", model), tmp_path / "lora")
    other = write_model(tmp_path / "other", seed=7)
    resolved = lora.adapter / "resolved_config.json"
    resolved.write_text(resolved.read_text().replace(str(model), str(other)))
    settings = {"model": str(other), "adapter": str(lora.adapter), "device": "cpu", "dtype": "fp32"}
    with pytest.raises(ProviderError, match="trained on another base"):
        list(replies(settings, []))
    with pytest.raises(ProviderError, match="trained on another base"):
        export(lora.adapter, tmp_path / "out", merge=True, gguf=None)
    assert not list((tmp_path / "out").iterdir())
