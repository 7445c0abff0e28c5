"""The numerical shortcuts against the plain way: fused LoRA, the shared prefix in training, batched decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from tuneport.core.errors import ProviderError  # noqa: E402
from tuneport.local_backend import trainer  # noqa: E402
from tuneport.local_backend.chat import IGNORED  # noqa: E402
from tuneport.local_backend.config import Adapter  # noqa: E402
from tuneport.local_backend.decode import Prompt, common_prefix, decode  # noqa: E402
from tuneport.local_backend.lora import speed_up  # noqa: E402
from tuneport.local_backend.models import load_model  # noqa: E402
from tuneport.local_backend.norm import speed_up_norms  # noqa: E402
from tuneport.local_backend.prefix import share_prefix, shared_length  # noqa: E402
from tuneport.local_backend.trainer import collate, label_loss  # noqa: E402
from tuneport.local_backend.tuning import adapt  # noqa: E402
from tuneport.tests.local_tiny import write_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
ADAPTER = Adapter(rank=4, alpha=8, dropout=0, target_modules="all-linear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("tiny")))


def adapted(folder: str, adapter: Adapter = ADAPTER) -> Any:
    """The tiny model in fp32 with an adapter that does something (PEFT begins with B = 0)."""
    model = adapt(load_model(folder, dtype="fp32", device="cpu", training=True), adapter, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def rows(count: int, prefix: int) -> dict[str, Any]:
    """Rows that share a prefix, have prompts of their own, and end with labelled tokens."""
    random = torch.Generator().manual_seed(1)
    shared = torch.randint(0, 256, (prefix,), generator=random).tolist()
    made = []
    for i in range(count):
        own = torch.randint(0, 256, (5 + 3 * i,), generator=random).tolist()
        ids = shared + own + [258]
        made.append({"input_ids": ids, "labels": [IGNORED] * (len(ids) - 4) + ids[-4:]})
    return collate(made, 256)


def loss_and_gradients(model: Any, inputs: dict[str, Any]) -> tuple[float, Any]:
    labels = inputs["labels"]
    logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return loss.item(), gradients


def test_the_fused_layers_give_pefts_loss_and_gradients(folder: str) -> None:
    model, inputs = adapted(folder), rows(3, 10)
    plain_loss, plain = loss_and_gradients(model, inputs)
    assert speed_up(model) == 14  # 7 linear layers in each of 2 blocks
    fused_loss, fused = loss_and_gradients(model, inputs)
    assert fused_loss == pytest.approx(plain_loss, rel=1e-6)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)


def test_the_shorter_norms_give_the_same_loss_and_gradients(folder: str) -> None:
    model, inputs = adapted(folder), rows(3, 10)
    plain_loss, plain = loss_and_gradients(model, inputs)
    assert speed_up_norms(model) == 5  # 2 in each of 2 blocks, and the last
    short_loss, short = loss_and_gradients(model, inputs)
    assert short_loss == plain_loss
    torch.testing.assert_close(short, plain, rtol=1e-4, atol=1e-6)


def test_the_loss_of_labelled_positions_is_that_of_all_logits(folder: str) -> None:
    model, inputs = adapted(folder), rows(3, 10)
    whole_loss, whole = loss_and_gradients(model, inputs)
    total, count = label_loss(model, inputs)
    (total / count).backward()
    assert count == 12  # 4 in each of 3 rows
    assert total.item() / count == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]), whole)
    assert model(input_ids=inputs["input_ids"]).logits.shape[:2] == inputs["input_ids"].shape  # the head is whole again


def test_layers_with_dropout_keep_pefts_own_pass(folder: str) -> None:
    assert speed_up(adapted(folder, ADAPTER.model_copy(update={"dropout": 0.1}))) == 0


def test_an_unknown_target_module_is_a_clear_error(folder: str) -> None:
    with pytest.raises(ProviderError, match="no_such_layer"):
        adapted(folder, ADAPTER.model_copy(update={"target_modules": ("no_such_layer",)}))


def test_the_shared_prefix_changes_neither_loss_nor_gradient(folder: str) -> None:
    model, inputs = adapted(folder), rows(4, 120)
    plain_loss, plain = loss_and_gradients(model, inputs)
    shared = share_prefix(model, inputs)
    assert shared["input_ids"].shape[1] == inputs["input_ids"].shape[1] - 120
    shared_loss, gradients = loss_and_gradients(model, shared)
    assert shared_loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradients, plain, rtol=1e-3, atol=1e-5)


def test_a_prefix_never_reaches_the_labels_and_a_short_one_is_left_alone() -> None:
    inputs = rows(4, 120)
    inputs["labels"][2, 100:] = inputs["input_ids"][2, 100:]
    assert shared_length(inputs["input_ids"], inputs["labels"], inputs["attention_mask"]) == 99
    short = rows(4, 10)
    assert shared_length(short["input_ids"], short["labels"], short["attention_mask"]) == 0
    assert shared_length(*(inputs[name][:1] for name in ("input_ids", "labels", "attention_mask"))) == 0


def alone(model: Any, ids: list[int], count: int, stops: frozenset[int]) -> list[int]:
    """Greedy decoding of one prompt by itself, without a cache."""
    out: list[int] = []
    with torch.inference_mode():
        while len(out) < count:
            token = int(model(input_ids=torch.tensor([ids + out])).logits[0, -1].argmax())
            if token in stops:
                break
            out.append(token)
    return out


@pytest.mark.parametrize("prefix", [0, 40])
def test_batches_with_a_shared_prefix_decode_as_each_prompt_alone(folder: str, prefix: int) -> None:
    model = load_model(folder, dtype="fp32", device="cpu", training=False)
    random = torch.Generator().manual_seed(3)
    shared = torch.randint(0, 256, (prefix,), generator=random).tolist()
    lengths = (1, 9, 4, 17, 2)
    prompts = [Prompt(str(i), shared + torch.randint(0, 256, (n,), generator=random).tolist(), 5 + i) for i, n in enumerate(lengths)]
    expected = {p.id: alone(model, p.ids, p.max_tokens, frozenset()) for p in prompts}
    stops = frozenset({expected["3"][2]})  # one row, at least, ends early
    expected = {p.id: alone(model, p.ids, p.max_tokens, stops) for p in prompts}
    assert common_prefix(prompts) == prefix
    assert {a.id: a.ids for a in decode(model, prompts, stops=stops, pad=256)} == expected


def test_models_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ProviderError, match="cannot be loaded"):
        load_model(str(folder), dtype="fp32", device="cpu", training=False)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle is never opened")
    with pytest.raises(ProviderError, match="cannot be loaded"):
        load_model(str(folder), dtype="fp32", device="cpu", training=False)


def test_a_loss_in_pieces_is_the_loss(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = rows(4, 6)
    found = []
    for most in (trainer.LOGITS_PIECE, 4 * 269 * 3):  # all at once, three positions at a time
        monkeypatch.setattr(trainer, "LOGITS_PIECE", most)
        model = adapted(folder)
        total, count = label_loss(model, inputs)
        (total / count).backward()
        with torch.no_grad():
            again = label_loss(model, inputs)[0]
        found.append((total.item(), again.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-6)
    assert torch.allclose(found[0][2], found[1][2], atol=1e-7)
    model.config.final_logit_softcapping = 3.0  # acts behind the matrix, so everything goes through the model
    assert label_loss(model, inputs)[0].item() == pytest.approx(found[0][0], rel=1e-6)
