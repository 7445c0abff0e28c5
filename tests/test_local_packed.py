"""The packed pass against transformers' own, document by document; micro-batches by memory; going on when memory runs out."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tuneport.core.errors import ProviderError  # noqa: E402
from tuneport.local_backend import packed_trainer  # noqa: E402
from tuneport.local_backend import trainer as sft  # noqa: E402
from tuneport.local_backend.best import BestAdapter  # noqa: E402
from tuneport.local_backend.chat import IGNORED, Encoded  # noqa: E402
from tuneport.local_backend.config import Adapter, TrainConfig  # noqa: E402
from tuneport.local_backend.jobdir import JobDir  # noqa: E402
from tuneport.local_backend.models import Shape  # noqa: E402
from tuneport.local_backend.packed import PackedDecoder, packed_decoder  # noqa: E402
from tuneport.local_backend.packed_trainer import FastPass, fast_pass  # noqa: E402
from tuneport.local_backend.packing import pack, parts  # noqa: E402
from tuneport.local_backend.room import Footprint, Keep, Room, choose_room, footprint  # noqa: E402
from tuneport.local_backend.train import Worker  # noqa: E402
from tuneport.local_backend.tuning import adapt  # noqa: E402
from tuneport.tests.local_tiny import write_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
VOCABULARY = 199
LLAMA_8B = Shape(8.03e9, hidden=4096, layers=32, intermediate=14336, vocabulary=128256, key_value=1024)


def tiny(family: str, targets: Any = "all-linear", dropout: float = 0.0, **config: Any) -> Any:
    """A decoder of this family with an adapter that does something, in fp32."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = getattr(transformers, f"{family}Config")(**sizes, vocab_size=VOCABULARY, **config)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model = adapt(model, Adapter(rank=4, alpha=12, dropout=dropout, target_modules=targets), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def documents(lengths: tuple[int, ...]) -> list[Encoded]:
    """Random documents; some of their tokens carry no loss."""
    draw = random.Random(1)
    ids = [[draw.randrange(VOCABULARY) for _ in range(n)] for n in lengths]
    return [Encoded(row, [token if token % 3 else IGNORED for token in row]) for row in ids]


def gradients(model: Any) -> Any:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found


def alone(model: Any, rows: list[Encoded]) -> tuple[float, Any]:
    """Loss and gradients with each document in a pass of its own, by transformers and PEFT."""
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="sum")
    total.backward()
    return total.item(), gradients(model)


@pytest.mark.parametrize(
    ("family", "targets", "config"),
    [
        ("Llama", "all-linear", {}),
        ("Llama", ("q_proj", "down_proj"), {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("Qwen2", "all-linear", {}),  # biases
        ("Qwen3", "all-linear", {"head_dim": 32}),  # normalised heads, wider than the hidden state
        ("Mistral", ("k_proj", "up_proj"), {"sliding_window": None}),
    ],
)
def test_packed_documents_have_the_loss_and_gradients_of_each_alone(family: str, targets: Any, config: dict[str, Any]) -> None:
    model, rows = tiny(family, targets, **config), documents((7, 2, 19, 3))
    loss, expected = alone(model, rows)
    decoder = packed_decoder(model)
    assert isinstance(decoder, PackedDecoder)
    for keep in (Keep(2, 2), Keep(0, 0), Keep(2, 1)):
        packed = decoder.loss(pack(rows), keep)
        packed.backward()
        assert packed.item() == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(gradients(model), expected, rtol=1e-3, atol=1e-4)


def test_a_4_bit_base_gives_the_loss_of_its_unpacked_weights() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, rows = tiny("Llama"), documents((12, 5))
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, torch.nn.Linear):
            stored = bitsandbytes.nn.Params4bit(base.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
            four_bit = bitsandbytes.nn.Linear4bit(base.in_features, base.out_features, bias=False, quant_type="nf4", device="meta")
            four_bit.weight = stored
            base.weight.data = bitsandbytes.functional.dequantize_4bit(stored.data, stored.quant_state)
            module.four_bit = four_bit
    loss, expected = alone(model, rows)
    for module in model.modules():
        if hasattr(module, "four_bit"):
            module.base_layer = module.four_bit
    decoder = packed_decoder(model)
    assert isinstance(decoder, PackedDecoder) and decoder.four_bit
    packed = decoder.loss(pack(rows), Keep(1, 0))
    packed.backward()
    assert packed.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: tiny("Llama", dropout=0.1), "dropout"),
        (lambda: tiny("Gemma", head_dim=16), "not of the Llama family"),
        (lambda: tiny("Mistral", sliding_window=8), "sliding windows"),
        (lambda: tiny("Llama", hidden_act="gelu"), "activation"),
        (lambda: tiny("Llama", ("q_proj", "lm_head")), "outside the layers"),
    ],
)
def test_a_model_that_the_packed_pass_does_not_know_is_left_to_the_plain_one(model: Any, reason: str) -> None:
    found = packed_decoder(model())
    assert isinstance(found, str) and reason in found


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(10, 200), st.integers(1, 8))
def test_parts_hold_every_row_once_within_both_limits(lengths: list[int], tokens: int, rows: int) -> None:
    made = parts(lengths, tokens, rows)
    assert sorted(itertools.chain(*made)) == list(range(len(lengths)))
    assert all(len(part) <= rows for part in made)
    assert all(sum(lengths[i] for i in part) <= tokens or len(part) == 1 for part in made)


# -- memory ------------------------------------------------------------------------------------------------------------


def llama_8b(four_bit: bool) -> Footprint:
    found = footprint(LLAMA_8B, rank=16, four_bit=four_bit)
    assert found is not None
    return found


@given(st.integers(1, 40_000), st.floats(1e8, 1e11))
def test_what_is_kept_fits_the_budget(tokens: int, budget: float) -> None:
    print_ = llama_8b(False)
    keep = Room(print_, budget, tokens).keep(tokens)
    assert 0 <= keep.attention <= 32 and 0 <= keep.mlp <= 32
    assert keep == Keep(0, 0) or print_.bytes(tokens, keep) <= budget * (1 + 1e-9)
    assert keep.mlp == 0 or keep.attention == 32


def test_more_memory_never_means_more_time_and_too_little_is_told() -> None:
    print_ = llama_8b(True)
    rooms = [choose_room(print_, budget * 2**30, longest=2048, largest=12_000) for budget in (1, 3, 5, 10, 20, 60)]
    assert rooms[0] is None
    costs = [room.cost(room.tokens) for room in rooms if room is not None]
    assert len(costs) == 5 and costs == sorted(costs, reverse=True)
    assert rooms[-1] is not None and rooms[-1].tokens == 12_000 and rooms[-1].words() == "nothing is computed twice"


def test_the_gpu_and_its_memory_decide_on_the_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = TrainConfig.model_validate_json(job(tmp_path).config.read_text()).model_copy(update={"dtype": "bf16"})
    model, rows = tiny("Llama"), documents((30, 200) * 12)
    gpu: dict[str, Any] = {"free": 80e9, "capability": (9, 0)}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(packed_trainer, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu["capability"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(gpu["free"]), int(80e9)))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0, raising=False)
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)

    plenty = fast_pass(model, config, rows)
    assert isinstance(plenty, FastPass)
    assert plenty.room.tokens == 24 * 115 and plenty.room.words() == "nothing is computed twice"  # every row in every step
    again = fast_pass(model, config, rows, shortages=1)
    assert isinstance(again, FastPass) and again.room.budget == 0.75 * plenty.room.budget
    gpu["free"] = 1e8
    with pytest.raises(ProviderError, match="200 tokens needs about"):
        fast_pass(model, config, rows)
    gpu["capability"] = (7, 5)
    assert "older than Ampere" in str(fast_pass(model, config, rows))
    assert "fp32" in str(fast_pass(model, config.model_copy(update={"dtype": "fp32"}), rows))


# -- whole runs --------------------------------------------------------------------------------------------------------


def job(folder: Path, **changes: Any) -> JobDir:
    """A job folder as the provider writes it: 24 rows, all of them in each step."""
    model = write_model(folder / "model")
    config = {
        "model": str(model), "adapter": {"rank": 4, "alpha": 8, "dropout": 0, "target_modules": "all-linear"}, "steps": 6,
        "batch_size": 24, "micro_batch_size": 12, "gradient_accumulation": 2, "learning_rate": 5e-3, "scheduler": "linear",
        "scheduler_cycles": 0.5, "min_learning_rate_ratio": 0, "warmup_steps": 1, "weight_decay": 0, "max_grad_norm": 1,
        "loss_on": "completions", "evaluations": 2, "checkpoints": 3, "seed": 0, "device": "cpu", "dtype": "fp32",
    }  # fmt: skip
    made = JobDir(folder)
    made.config.write_text(json.dumps(config | changes))
    for role, count in (("train", 24), ("validation", 5)):
        lines = []
        for i in range(count):
            messages = [{"role": "user", "content": f"say {'so ' * (i % 4)}{i}"}, {"role": "assistant", "content": f"it is {i % 5}"}]
            lines.append(json.dumps({"source": f"{role}:{i + 1}", "messages": messages}) + "\n")
        made.rows(role).write_text("".join(lines))
    return made


def told(made: JobDir) -> list[float]:
    """Every loss in the job's story, training and validation."""
    return [e.metrics[name] for e in made.events() for name in ("loss", "eval_loss") if name in e.metrics]


def test_the_packed_run_tells_the_losses_of_the_padded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padded, packed = job(tmp_path / "padded"), job(tmp_path / "packed")
    assert Worker(padded).run() == 0
    plain = sft.train

    def fast(run: Any, best: BestAdapter, checkpoint: Path | None) -> bool:
        decoder = packed_decoder(run.model)
        assert isinstance(decoder, PackedDecoder)
        found = footprint(replace(LLAMA_8B, hidden=32, layers=2, intermediate=64, key_value=16), rank=4, four_bit=False)
        assert found is not None
        return plain(replace(run, fast=FastPass(decoder, Room(found, 1.5 * found.least(300), 300))), best, checkpoint)

    monkeypatch.setattr(sft, "train", fast)
    assert Worker(packed).run() == 0
    assert len(told(padded)) == 8
    assert told(packed) == pytest.approx(told(padded), rel=1e-4)


def test_when_memory_runs_out_smaller_micro_batches_go_on_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, short = job(tmp_path / "whole"), job(tmp_path / "short")
    assert Worker(whole).run() == 0
    plain, steps = sft.label_loss, itertools.count()

    def scarce(model: Any, inputs: dict[str, Any]) -> Any:
        if torch.is_grad_enabled() and inputs["input_ids"].shape[0] > 6 and next(steps) >= 7:  # the fourth step of two micro-batches
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return plain(model, inputs)

    monkeypatch.setattr(sft, "label_loss", scarce)
    assert Worker(short).run() == 0
    story = [event.message for event in short.events()]
    warning = next(i for i, message in enumerate(story) if "out of memory" in message)
    assert "micro-batches of at most 6 rows, the same 24 rows per step" in story[warning]
    assert any("resumed from the checkpoint at step 2 of 6" in message for message in story[warning:])
    losses = {e.metrics["step"]: e.metrics["loss"] for e in short.events() if "loss" in e.metrics}
    assert losses == pytest.approx({e.metrics["step"]: e.metrics["loss"] for e in whole.events() if "loss" in e.metrics}, rel=1e-4)


def test_a_run_that_never_fits_fails_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(tmp_path)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sft, "label_loss", full)
    assert Worker(made).run() == 1
    state = made.state()
    assert state is not None and state.phase == "failed" and "smaller model" in state.message
    assert sum("going on with micro-batches" in e.message for e in made.events()) == 3  # 6, 3 and 1 of 12 rows
