"""What is wrong with a model, a checkpoint or a disk is said in one sentence, and nothing half-written stays."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from safetensors.numpy import load_file, save_file

from tuneport.core.data.rows import Row
from tuneport.core.errors import ProviderError
from tuneport.local_backend.jobdir import JobDir, WorkerState
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import losses, made, plan_of, run, work
from tuneport.tests.local_tiny import CHATML, write_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries', in a process that is not a worker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    settings = {"training__steps": 4, "evaluation__checkpoints": 2, "evaluation__evaluations": 2}
    return run(plan_of("sft", "lora", model, **settings), tmp_path_factory.mktemp("job") / "job")


@pytest.fixture
def broken_off(finished: JobDir, tmp_path: Path) -> JobDir:
    """A job that was killed after its checkpoint at step 2."""
    folder = tmp_path / "job"
    shutil.copytree(finished.path, folder, ignore=shutil.ignore_patterns("adapter", "checkpoint-4", "state.json"))
    return JobDir(folder)


def failure(job: JobDir) -> str:
    """What a failed worker left as its message."""
    from tuneport.local_backend.train import Worker

    assert Worker(job).run() == 1
    state = job.state()
    assert state is not None and state.phase == "failed" and not job.finished()
    return state.message


def changed(model: Path, folder: Path, **config: Any) -> Path:
    """A copy of the model with other values in its tokenizer's configuration."""
    shutil.copytree(model, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | config).items() if v is not None}))
    return folder


def test_a_tokenizer_of_another_model_is_named(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 5000, "content": "<|far|>"})
    tokenizer["model"]["vocab"]["<|far|>"] = 5000
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = failure(made(plan_of("sft", "lora", other), tmp_path / "job"))
    assert "token ids up to 5000" in message and "the tokenizer that belongs to this model" in message


def rewritten(model: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **config: Any) -> Path:
    """A copy of the model with other weights, and other values in its configuration."""
    shutil.copytree(model, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return folder


def test_a_tokenizer_that_leaves_most_of_the_model_unused_is_another_models(model: Path, tmp_path: Path) -> None:
    def larger(weights: dict[str, Any]) -> dict[str, Any]:
        return weights | {"model.embed_tokens.weight": np.ones((3000, 32), np.float32)}

    message = failure(made(plan_of("sft", "lora", rewritten(model, tmp_path / "large", larger, vocab_size=3000)), tmp_path / "job"))
    assert "the model knows 3000 tokens" in message and "the tokenizer that belongs to this model" in message


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda given: {name: one for name, one in given.items() if "layers.1.mlp.up" not in name}, "layers.1.mlp.up_proj.weight missing"),
        (lambda given: {f"x.{name}": one for name, one in given.items()}, "20 others missing"),
        (lambda given: {name: one[:10] if "1.mlp.up" in name else one for name, one in given.items()}, "up_proj.weight missing or of an"),
    ],
    ids=["lacking", "renamed", "reshaped"],
)
def test_weights_that_are_not_the_models_are_never_filled_in_by_chance(
    kind: str, change: Callable[[dict[str, Any]], dict[str, Any]], fault: str, model: Path, tmp_path: Path
) -> None:
    assert fault in failure(made(plan_of("sft", kind, rewritten(model, tmp_path / "other", change)), tmp_path / "job"))


def test_an_index_that_names_a_pickle_is_refused_and_it_is_never_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "run"))
    other = tmp_path / "other"
    shutil.copytree(model, other)
    names = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    (other / "part.bin").write_bytes(pickle.dumps(_Evil(), protocol=2))
    (other / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.bin")}))
    message = failure(made(plan_of("sft", "lora", other), tmp_path / "job"))
    assert "part.bin" in message and "safetensors only" in message
    assert not (tmp_path / "run").exists()


def test_a_loss_that_no_learning_made_points_to_the_weights(model: Path, tmp_path: Path) -> None:
    def spoilt(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda given: {name: one * value if "embed" in name else one for name, one in given.items()}

    message = failure(made(plan_of("sft", "lora", rewritten(model, tmp_path / "nan", spoilt(np.nan))), tmp_path / "one"))
    assert "nan at step 1" in message and "the base model's weights" in message
    odd = run(plan_of("sft", "lora", rewritten(model, tmp_path / "odd", spoilt(30))), tmp_path / "two")
    assert any("worse than by chance" in event.message for event in odd.events() if event.level == "warning")


def test_documents_are_cut_and_prompts_held_to_what_the_model_reads(model: Path, finished: JobDir, tmp_path: Path) -> None:
    short = rewritten(model, tmp_path / "short", dict, max_position_embeddings=40)
    plan = plan_of("cpt", "prompt", short)
    assert plan.payload["max_seq_length"] == 40
    job = run(plan, tmp_path / "text")
    assert any("pieces of 20 tokens" in event.message for event in job.events())  # 20 are virtual
    drawn = plan_of("rft", "lora", short, reinforcement__max_output_tokens=35)
    assert "longer than 5 tokens" in failure(made(drawn, tmp_path / "drawn"))


def test_a_resumed_run_keeps_its_base_and_tells_of_other_versions(model: Path, broken_off: JobDir, tmp_path: Path) -> None:
    shutil.copytree(broken_off.path, tmp_path / "other")
    began = json.loads((broken_off.path / "began.json").read_text())
    (broken_off.path / "began.json").write_text(json.dumps(began | {"settings": began["settings"] | {"torch": "1.0"}}))
    told = [event.message for event in work(broken_off).events() if "never cut off" in event.message]
    assert len(told) == 1 and "torch was 1.0 and is 2" in told[0] and "peft" not in told[0]
    other = JobDir(tmp_path / "other")
    base = rewritten(model, tmp_path / "base", lambda given: {name: one + ("1.mlp.up" in name) for name, one in given.items()})
    other.config.write_text(json.dumps(json.loads(other.config.read_text()) | {"model": str(base)}))
    assert "have changed since the run began" in failure(other)


def test_a_template_that_tells_the_date_makes_a_run_of_two_days_another(model: Path, tmp_path: Path) -> None:
    dated = changed(model, tmp_path / "dated", chat_template="{{ strftime_now('%d %b %Y') }}" + CHATML)
    job = run(plan_of("sft", "lora", dated, training__steps=4, evaluation__checkpoints=2), tmp_path / "job")
    shutil.rmtree(job.adapter)
    (job.path / "began.json").write_text((job.path / "began.json").read_text().replace(str(date.today()), "2001-02-03"))
    assert any("date in the chat template was 2001-02-03" in event.message for event in work(job).events())


def test_a_model_without_a_chat_template_asks_for_one_except_for_text(model: Path, tmp_path: Path) -> None:
    bare = changed(model, tmp_path / "bare", chat_template=None)
    assert "options.local.chat_template" in failure(made(plan_of("dpo", "lora", bare), tmp_path / "job"))
    assert run(plan_of("cpt", "lora", bare), tmp_path / "text").finished()


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_a_base_without_pad_token_trains_to_the_same_losses(method: str, model: Path, tmp_path: Path) -> None:
    bare = changed(model, tmp_path / "bare", pad_token=None)
    one, other = (run(plan_of(method, "lora", base), tmp_path / name) for base, name in ((bare, "bare-job"), (model, "job")))
    assert losses(one) == losses(other)


def test_a_base_with_neither_padding_nor_end_is_named_where_one_is_needed(model: Path, tmp_path: Path) -> None:
    bare = changed(model, tmp_path / "bare", pad_token=None, eos_token=None)
    assert "neither a padding nor an end token" in failure(made(plan_of("dpo", "lora", bare), tmp_path / "pairs"))
    assert run(plan_of("sft", "lora", bare), tmp_path / "job").finished()


def test_damaged_files_of_a_job_are_named(model: Path, tmp_path: Path) -> None:
    job = made(plan_of("sft", "lora", model), tmp_path / "job")
    job.rows("train").write_bytes(job.rows("train").read_bytes()[:-20])
    assert f"{job.rows('train')}:8 is damaged" in failure(job)
    job.config.write_text(json.dumps(json.loads(job.config.read_text()) | {"of_a_later_version": 1}))
    assert "of_a_later_version" in failure(job)
    with pytest.raises(ProviderError, match="of_a_later_version"):
        LocalProvider(jobs=tmp_path).poll("job")


def test_a_preference_longer_than_the_model_is_named_by_its_place(model: Path, tmp_path: Path) -> None:
    job = made(plan_of("dpo", "lora", model), tmp_path / "job")
    lines = job.rows("train").read_text().splitlines()
    row = json.loads(lines[2])
    row["rejected"]["content"] = "x" * 600
    job.rows("train").write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]) + "\n")
    message = failure(job)
    assert "train.jsonl:3" in message and "longer than 512 tokens" in message


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(
    name: str, broken_off: JobDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "run"))
    (broken_off.checkpoints / "checkpoint-2" / name).write_bytes(pickle.dumps(_Evil(), protocol=2))
    message = failure(broken_off)
    assert name in message and "delete the folder" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_named_and_without_it_the_job_goes_on(name: str, broken_off: JobDir, finished: JobDir) -> None:
    folder = broken_off.checkpoints / "checkpoint-2"
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    message = failure(broken_off)
    assert name in message and "damaged" in message and "delete the folder" in message
    shutil.rmtree(folder)
    assert losses(work(broken_off)) == losses(finished)


def test_a_worker_that_finds_the_adapter_says_so_and_keeps_the_steps(finished: JobDir, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "job")
    job = JobDir(tmp_path / "job")
    job.set_state(WorkerState("saving", step=4, total_steps=4))  # killed before its last word
    state = work(job).state()
    assert state is not None and (state.step, state.total_steps) == (4, 4) and "nothing was trained again" in state.message
    assert losses(job) == losses(finished)


def test_an_adapter_of_pickles_is_not_loaded(model: Path, finished: JobDir, tmp_path: Path) -> None:
    from tuneport.local_backend.models import load_adapter, load_model

    folder = tmp_path / "adapter"
    shutil.copytree(finished.adapter, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    base = load_model(str(model), dtype="fp32", device="cpu", training=False)
    with pytest.raises(ProviderError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(base, folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda given: {name: one for name, one in given.items() if "layers.0.mlp.up_proj.lora_A" not in name}, "it has no weights for"),
        (lambda given: given | {min(given).replace(".0.", ".7."): np.ones((16, 32), np.float32)}, "it has weights for"),
        (lambda given: {name: one[:, :3] for name, one in given.items()}, "size mismatch"),
    ],
    ids=["lacking", "beyond", "reshaped"],
)
def test_an_adapter_goes_in_whole_or_not_at_all(
    change: Callable[[dict[str, Any]], dict[str, Any]], fault: str, model: Path, finished: JobDir, tmp_path: Path
) -> None:
    from tuneport.local_backend.models import load_adapter, load_model

    folder = tmp_path / "adapter"
    shutil.copytree(finished.adapter, folder)
    weights = folder / "adapter_model.safetensors"
    base = load_adapter(load_model(str(model), dtype="fp32", device="cpu", training=False), folder)
    save_file(change(load_file(weights)), weights)
    for one in (load_model(str(model), dtype="fp32", device="cpu", training=False), base):  # alone, and beside another
        with pytest.raises(ProviderError, match=fault):
            load_adapter(one, folder, name="second")


def test_one_changed_matrix_makes_another_base(model: Path, tmp_path: Path) -> None:
    from tuneport.local_backend.models import base_fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    other = rewritten(model, tmp_path / "other", lambda given: {name: one + ("1.mlp.down" in name) for name, one in given.items()})
    assert base_fingerprint(str(copy)) == base_fingerprint(str(model)) != base_fingerprint(str(other))
    (other / "model.safetensors").write_bytes(b"\xff" * 20)
    assert base_fingerprint(str(other)) != base_fingerprint(str(model))


def full_disk(*_: Any, **__: Any) -> Iterator[Row]:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place", ["torch.save", "peft.peft_model.safe_save_file", "tuneport.local_backend.card.shutil.copy", "os.fsync"])
def test_a_full_disk_fails_the_job_in_words_and_it_goes_on_once_there_is_room(
    place: str, broken_off: JobDir, finished: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off.set_state(WorkerState("paused"))
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        message = failure(broken_off)  # with "os.fsync", even these words find no room of their own
    assert "disk is full" in message and "resume" in message
    assert "disk is full" in [event.message for event in broken_off.events()][-1]
    whole = {folder for _, folder in broken_off.whole_checkpoints()}
    assert set(broken_off.checkpoints.iterdir()) == whole and (broken_off.checkpoints / "checkpoint-4" in whole) == place.endswith("copy")
    assert len(list(broken_off.best.glob("step-*"))) == 1
    assert not [path for path in broken_off.path.iterdir() if path.name.startswith(".")]
    assert losses(work(broken_off)) == losses(finished)
    weights = "adapter_model.safetensors"
    assert (broken_off.adapter / weights).read_bytes() == (finished.adapter / weights).read_bytes()
    assert not [path for path in broken_off.path.iterdir() if path.name.startswith(".")]
