"""Models of other families than Llama: trained, asked and merged like any other."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.local_backend.export import export
from tuneport.local_backend.generate import replies
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.train import Worker
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import made, plan_of, run
from tuneport.tests.local_tiny import SPECIAL, write_model, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries', in a process that is not a worker
GATED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": GATED | {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},  # has no sdpa
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},  # layers that are no nn.Linear, learnt positions
    "mixtral": GATED | {"num_key_value_heads": 2, "num_local_experts": 2},
}


def of_family(name: str, folder: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {"vocab_size": 256 + len(SPECIAL), "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256}
    config = AutoConfig.for_model(name, **settings | FAMILIES[name])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_answers_and_is_merged(name: str, tmp_path: Path) -> None:
    job = run(plan_of("sft", "lora", of_family(name, tmp_path / "model")), tmp_path / "job")
    asked = [{"id": str(i), "messages": [{"role": "user", "content": f"say {i}"}], "max_tokens": 3} for i in (1, 22)]
    assert all("text" in reply for reply in replies(LocalProvider().answering(f"local:{job.path}"), asked))
    made, notes = export(job.adapter, tmp_path / "out", merge=True)
    assert [path.name for path in made] == ["merged"] and "merged in fp32" in notes[0]


def test_virtual_tokens_that_nobody_could_ask_are_refused_before_training(tmp_path: Path) -> None:
    job: JobDir = made(plan_of("sft", "prefix", of_family("gemma2", tmp_path / "model")), tmp_path / "job")
    assert Worker(job).run() == 1
    state = job.state()
    assert state is not None and "sliding windows" in state.message and not job.whole_checkpoints()


@pytest.mark.parametrize(("settings", "reason"), [({"num_local_experts": 8}, "mixture of experts"), ({"multi_query": True}, "share one")])
def test_a_prefix_that_a_family_cannot_take_is_refused_by_the_plan(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    assert "tuning.kind" not in plan_of("sft", "prefix", model).refusals
    (model / "config.json").write_text(json.dumps(config | settings))
    assert reason in plan_of("sft", "prefix", model).refusals["tuning.kind"]
    assert "tuning.kind" not in plan_of("sft", "lora", model).refusals
    (model / "config.json").write_text("[]")
    assert "tuning.kind" not in plan_of("sft", "prefix", model).refusals
