"""continue_from on this machine: an earlier adapter is trained further, and one that cannot be is refused with the reason."""

from __future__ import annotations

import json
import math
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft", "bitsandbytes")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.errors import ProviderError
from tuneport.local_backend.jobdir import JobDir
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import losses, made, plan_of, run, work
from tuneport.tests.local_tiny import write_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries', in a process that is not a worker
QUICK: dict[str, Any] = {"training__steps": 12, "training__learning_rate": 2e-2}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setitem(os.environ, "TUNEPORT_ATTEMPT", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def earlier(model: Path, tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    """A finished job, of a rank that is not the default."""
    return run(plan_of("sft", "lora", model, tuning__rank=4, **QUICK), tmp_path_factory.mktemp("jobs") / "tp-abc123-00000000")


@pytest.mark.parametrize(("method", "kind"), [("sft", None), ("sft", "qlora"), ("orpo", None), ("rft", None)])
def test_training_goes_on_from_the_earlier_adapter(method: str, kind: str | None, model: Path, earlier: JobDir, tmp_path: Path) -> None:
    plan = plan_of(method, kind, model, earlier=f"local:{earlier.path}", tuning__rank=4)
    assert plan.payload["adapter"]["rank"] == 4 and plan.payload["adapter"]["kind"] == (kind or "lora")
    job = run(plan, tmp_path / "job")
    told = losses(job)
    if method == "sft":
        before = losses(earlier)
        assert told["loss", 1] < 0.8 * before["loss", 1]
        assert kind == "qlora" or told["loss", 1] == pytest.approx(before["eval_loss", 12], rel=0.3)  # 4 bits change the tiny base
    card = (job.adapter / "README.md").read_text()
    assert f"trained further from the adapter in `{earlier.adapter}`" in card
    assert json.loads((job.adapter / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_reference_is_the_earlier_adapter_and_a_resumed_run_keeps_it(
    method: str, model: Path, earlier: JobDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneport.local_backend import train

    settings = {"training__steps": 4, "evaluation__checkpoints": 2, "training__learning_rate": 1e-2}
    plan = plan_of(method, None, model, earlier=str(earlier.adapter), **settings)
    whole = run(plan, tmp_path / "whole")
    if method == "dpo":
        assert losses(whole)["loss", 1] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are one before the first step
    job = made(plan, tmp_path / "paused")
    with monkeypatch.context() as patch:
        patch.setattr(train.Worker, "stopping", lambda self: self.job.last_checkpoint() is not None or self._state.step == 1)
        assert train.Worker(job).run() == 0
    assert job.last_checkpoint() and not job.finished()
    assert losses(work(job)) == losses(whole)
    assert (job.adapter / "adapter_model.safetensors").read_bytes() == (whole.adapter / "adapter_model.safetensors").read_bytes()


def test_the_result_answers_is_exported_and_is_continued_again(model: Path, earlier: JobDir, tmp_path: Path) -> None:
    from tuneport.local_backend.export import export
    from tuneport.local_backend.generate import replies
    from tuneport.local_backend.parent import find_parent

    copy = tmp_path / "jobs" / earlier.path.name
    shutil.copytree(earlier.path, copy)
    provider = LocalProvider(jobs=copy.parent)
    for name in ("j-abc123", f"local:{earlier.path.name}", str(copy), f"local:{copy}/adapter"):
        assert find_parent(name, copy.parent).folder == copy / "adapter"
    job = run(plan_of("sft", None, model, earlier=str(copy), **QUICK), copy.parent / "tp-second")
    shutil.rmtree(copy)  # the later job needs the earlier one no more
    asked = [{"id": "1", "messages": [{"role": "user", "content": "say 1"}], "max_tokens": 8}]
    texts = [reply["text"] for reply in replies(provider.answering(f"local:{job.path}") | {"dtype": "fp32"}, asked)]
    assert texts[0].startswith("it is "), texts
    files, notes = export(job.adapter, tmp_path / "out", merge=True, gguf=None)
    assert (tmp_path / "out/merged") in files and "nats per token" in notes[0]
    third = plan_of("dpo", None, model, earlier=str(job.path))
    assert not third.refusals and third.payload["parent"] != plan_of("dpo", None, model, earlier=str(earlier.path)).payload["parent"]


def test_what_cannot_be_continued_is_refused(model: Path, earlier: JobDir, tmp_path: Path) -> None:
    def refusal(field: str, kind: str | None = None, base: Path = model, where: Path = earlier.path, **changes: Any) -> str:
        return plan_of("sft", kind, base, earlier=str(where), **changes).refusals[field]

    assert "has 4" in refusal("tuning.rank", tuning__rank=8)
    assert "one of lora" in refusal("tuning.kind", kind="dora")
    assert "weights in" in refusal("continue_from", base=write_model(tmp_path / "other", seed=7))
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    assert not plan_of("sft", None, moved, earlier=str(earlier.path)).refusals  # the same weights elsewhere
    assert "no finished adapter" in refusal("continue_from", where=tmp_path)
    foreign = tmp_path / "foreign"
    shutil.copytree(earlier.adapter, foreign)
    (foreign / "resolved_config.json").unlink()
    settings = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps(settings | {"modules_to_save": ["lm_head"]}))
    assert "modules_to_save" in refusal("continue_from", where=foreign)
    (foreign / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "PROMPT_TUNING"}))
    assert "only LORA" in refusal("continue_from", where=foreign)


def test_an_adapter_that_changed_since_the_plan_is_not_trained_on(model: Path, earlier: JobDir, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(earlier.adapter, copy)
    plan = plan_of("sft", None, model, earlier=str(copy))
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80\x3f")
    assert plan_of("sft", None, model, earlier=str(copy)).payload["parent"] != plan.payload["parent"]
    with pytest.raises(ProviderError, match="has changed since the job was planned"):
        LocalProvider(jobs=tmp_path / "jobs").create(plan, {}, "tp-changed")
    assert not (tmp_path / "jobs/tp-changed/config.json").exists()
