"""A model folder as one GGUF file for llama.cpp, written with the ``gguf`` package that llama.cpp's own project keeps.

Offered for Llama and Qwen 2 shapes with byte-level BPE tokenizers. What else there is, is refused with the way round it:
llama.cpp's convert_hf_to_gguf.py takes the merged folder as it is. Names and layout: llama.cpp's converter of November 2026.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from tuneport.core.errors import ProviderError

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""transformers' class -> architecture in GGUF."""
PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
"""How a tokenizer splits text before BPE -> llama.cpp's name for it (``tokenizer.ggml.pre``)."""
_WAY_ROUND = "export with --merge and run llama.cpp's convert_hf_to_gguf.py on that folder"


def write_gguf(folder: Path, target: Path, precision: str) -> None:
    """Write the model in ``folder`` to ``target``, whole or not at all. ``precision``: "bf16", "f32" or "q8_0" for the matrices.

    Raises ProviderError for a model that this does not know how to write.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = next((ARCHITECTURES[name] for name in config.get("architectures") or () if name in ARCHITECTURES), None)
    if kind is None:
        named = ", ".join(config.get("architectures") or ["a model of unknown architecture"])
        raise ProviderError(f"{named} cannot be written as GGUF here; known are {', '.join(ARCHITECTURES)}", fix=_WAY_ROUND, retry="no")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        writer = gguf.GGUFWriter(temporary, kind)
        _describe(writer, config, kind, precision)
        _tokenizer(writer, folder, int(config["vocab_size"]))
        for name, tensor in _tensors(folder, config, kind):
            _add(writer, name, tensor, precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _describe(writer: Any, config: dict[str, Any], kind: str, precision: str) -> None:
    heads = int(config["num_attention_heads"])
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    writer.add_name(str(config.get("_name_or_path") or kind))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_vocab_size(int(config["vocab_size"]))
    width = _head_width(config)
    writer.add_rope_dimension_count(width)
    if width * heads != int(config["hidden_size"]):
        writer.add_key_length(width)
        writer.add_value_length(width)
    writer.add_file_type(
        {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "f32": gguf.LlamaFileType.ALL_F32, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[precision]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _head_width(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


# -- weights -----------------------------------------------------------------------------------------------------------


def _tensors(folder: Path, config: dict[str, Any], kind: str) -> Iterator[tuple[str, Any]]:
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if kind == "llama" else gguf.MODEL_ARCH.QWEN2, layers)
    tied = bool(config.get("tie_word_embeddings"))
    turned = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)} if kind == "llama" else {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - not a dict
                if key == "lm_head.weight" and tied:
                    continue
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ProviderError(f"the weight {key} has no place in a GGUF file of {kind}", fix=_WAY_ROUND, retry="no")
                tensor = weights.get_tensor(key)
                turn = next((count for part, count in turned.items() if f".{part}." in key), None)
                yield name, _interleaved(tensor, turn) if turn else tensor
    factors = _rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", torch.tensor(factors, dtype=torch.float32)


def _interleaved(tensor: Any, heads: int) -> Any:
    """Rows in llama.cpp's order: it rotates neighbouring pairs, transformers the two halves of a head."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _rope_factors(config: dict[str, Any]) -> list[float] | None:
    """Llama 3's stretched rotations as divisors of the frequencies; None for plain ones. Raises ProviderError for other kinds."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ProviderError(f"rotary embeddings of type {kind} cannot be written as GGUF here", fix=_WAY_ROUND, retry="no")
    width = _head_width(config)
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    found = []
    for i in range(0, width, 2):
        length = 2 * math.pi * base ** (i / width)
        if length < context / high:
            found.append(1.0)
        elif length > context / low:
            found.append(factor)
        else:
            smooth = (context / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _add(writer: Any, name: str, tensor: Any, precision: str) -> None:
    """Vectors stay in fp32, as llama.cpp wants them; matrices take the precision asked for."""
    values = tensor.float().contiguous().numpy()
    if values.ndim == 1 or precision == "f32":
        writer.add_tensor(name, values.astype(np.float32))
        return
    wanted = gguf.GGMLQuantizationType.Q8_0 if precision == "q8_0" and values.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.BF16
    writer.add_tensor(name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def _tokenizer(writer: Any, folder: Path, size: int) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "backend_tokenizer", None) else {}
    split = _split(content)
    merges = content["model"]["merges"]
    if not merges:
        raise ProviderError("the tokenizer has no merges, and llama.cpp loads no BPE vocabulary without them", fix=_WAY_ROUND, retry="no")
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    types = []
    for index in range(size):
        if index not in known:
            types.append(gguf.TokenType.UNUSED)
        elif index in added:
            types.append(gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([known.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name in ("bos", "eos", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _split(content: dict[str, Any]) -> str:
    """llama.cpp's name for the way this tokenizer splits text. Raises ProviderError for an unknown one: a guess would garble words."""
    steps = content.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", [steps])
    if content.get("model", {}).get("type") == "BPE" and parts and parts[-1].get("type") == "ByteLevel":
        match parts[:-1]:
            case []:
                return "gpt-2"
            case [{"type": "Digits", "individual_digits": True}]:
                return "smollm"
            case [{"type": "Split", "pattern": {"Regex": pattern}}] if pattern in PATTERNS:
                return PATTERNS[pattern]
            case _:
                pass
    raise ProviderError("this tokenizer's way of splitting text is not known to be one of llama.cpp's", fix=_WAY_ROUND, retry="no")
