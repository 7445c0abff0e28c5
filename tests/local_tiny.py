"""A tiny Llama with random weights and a byte-level tokenizer, made without torch, for tests of the local backend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",  # ChatML
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",  # Llama 3
    "<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>",  # Mistral, Gemma
)  # fmt: skip
HIDDEN, LAYERS, INNER, HEADS, KEY_VALUE = 32, 2, 64, 4, 16


def byte_alphabet() -> list[str]:
    """The 256 symbols of byte-level BPE (GPT-2's mapping)."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_tokenizer(
    folder: Path, template: str | None = CHATML, eos: str = "<|im_end|>", bos: str | None = None, merges: Sequence[tuple[str, str]] = ()
) -> None:
    """tokenizer.json and its config: one token per byte and per merge, and the special tokens of four families."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = [*byte_alphabet(), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": "<|endoftext|>"}
    if bos is not None:
        config["bos_token"] = bos
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(folder: Path, *, template: str | None = CHATML, seed: int = 0, merges: Sequence[tuple[str, str]] = ()) -> Path:
    """A folder that ``from_pretrained`` loads: config, random safetensors weights, tokenizer."""
    from safetensors.numpy import save_file

    write_tokenizer(folder, template, merges=merges)
    plain = 256 + len(merges)
    vocabulary = plain + len(SPECIAL)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2, "vocab_size": vocabulary,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu",
        "bos_token_id": None, "eos_token_id": plain + 2, "pad_token_id": plain, "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> Any:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    tensors = {"model.embed_tokens.weight": weights(vocabulary, HIDDEN), "model.norm.weight": np.ones(HIDDEN, np.float32)}
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEY_VALUE, HIDDEN), "self_attn.v_proj": (KEY_VALUE, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
    }
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        tensors |= {f"{stem}{name}.weight": weights(*shape) for name, shape in shapes.items()}
        tensors |= {f"{stem}{norm}.weight": np.ones(HIDDEN, np.float32) for norm in ("input_layernorm", "post_attention_layernorm")}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder
