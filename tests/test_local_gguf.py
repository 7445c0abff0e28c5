"""GGUF files: llama.cpp itself loads them, splits text as the tokenizer does, and answers as transformers does."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft", "bitsandbytes", "gguf")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.errors import ProviderError
from tuneport.local_backend.gguf_file import PATTERNS, write_gguf
from tuneport.tests.llama_cpp import ask
from tuneport.tests.local_jobs import plan_of, run
from tuneport.tests.local_tiny import write_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries', in a process that is not a worker
MERGES = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("1", "2"), ("12", "3"), ("4", "5"), ("r", "e"), ("'", "s"), ("Ã", "©"), ("Ċ", "Ċ")]
TEXT = "It's the 12345th caf\u00e9,\n\nthere  we 're; THE end\u2026 42 \u20ac"
needs_llama_cpp = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp is not installed")


def split_by(*steps: dict[str, Any]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, byte_level]}


def pattern(name: str) -> dict[str, Any]:
    (regex,) = (regex for regex, known in PATTERNS.items() if known == name)
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "plain Llama, GPT-2's split": (None, {}),
    "Llama 3": (split_by(pattern("llama-bpe")), {"rope_parameters": LLAMA_3}),
    "Qwen 2": (split_by(pattern("qwen2")), {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}),
    "Mistral, digits apart": (
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                               {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None, "tie_word_embeddings": False},
    ),
}  # fmt: skip
"""The tokenizer's way of splitting text (None: as it is), and what the config says other than the tiny Llama's."""


def family(folder: Path, name: str) -> Path:
    """The tiny model, turned into one of another family: missing weights (biases, a head of its own) are drawn anew."""
    import torch
    from transformers import AutoModelForCausalLM

    split, changes = FAMILIES[name]
    write_model(folder, merges=MERGES)
    if split is not None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": split}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    for label, weight in model.named_parameters():
        if label.endswith("bias") or label == "lm_head.weight":
            weight.data = torch.randn(weight.shape, generator=draw) * 0.3
    model.save_pretrained(folder)
    return folder


def continuation_of(folder: Path) -> tuple[int, list[int], Any, list[int]]:
    """By transformers: prompt tokens, the likeliest 8 whole characters after TEXT, log-probabilities of the first; the other tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    never = [index for token, index in tokenizer.get_vocab().items() if len(token) > 1 or not token.isascii()]
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    count = ids.shape[1]
    with torch.inference_mode():
        first = torch.log_softmax(model(ids).logits[0, -1], -1)
        for _ in range(8):
            logits = model(ids).logits[:, -1]
            logits[:, never] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return count, ids[0, count:].tolist(), first, never


@needs_llama_cpp
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_loads_the_file_and_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    folder = family(tmp_path / "model", name)
    count, tokens, logprobs, never = continuation_of(folder)
    for precision, apart in (("f32", 0.02), ("bf16", 0.1), ("q8_0", 0.2)):  # llama.cpp keeps keys and values in fp16
        write_gguf(folder, tmp_path / "model.gguf", precision)
        told = ask(tmp_path / "model.gguf", TEXT, never)
        assert told.prompt_tokens == count
        assert max(abs(value - float(logprobs[token])) for token, value in told.logprobs.items()) < apart
        assert precision != "f32" or told.tokens == tokens


def logits_of(folder: Path, **how: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    tuned = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    with torch.inference_mode():
        return tuned(torch.arange(40)[None]).logits[0]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_and_gguf_weights_answer_as_the_adapter_does(kind: str, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tuneport.local_backend.export import export

    model = write_model(tmp_path / "tiny", merges=MERGES)
    job = run(plan_of("sft", kind, model, training__steps=8, training__learning_rate=2e-2), tmp_path / "job")
    made, notes = export(job.adapter, tmp_path / "out", merge=True, gguf="f32")
    assert [path.name for path in made] == ["model-f32.gguf", "merged"] and "nats per token" in notes[0]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), job.adapter).eval()
    with torch.inference_mode():
        wanted = tuned(torch.arange(40)[None]).logits[0]
    assert (wanted - logits_of(model)).abs().max() > 0.5  # the adapter does something
    torch.testing.assert_close(logits_of(tmp_path / "out/merged"), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits_of(tmp_path / "out", gguf_file="model-f32.gguf"), wanted, rtol=1e-3, atol=1e-3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model-f32.gguf", "merged"}


def test_a_tokenizer_without_merges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="no merges"):
        write_gguf(write_model(tmp_path / "tiny"), tmp_path / "model.gguf", "f32")
    assert not list(tmp_path.glob("*.gguf*"))
