"""What is wrong with a model, a checkpoint or a disk is said in one sentence, and nothing half-written stays."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "trl", "peft")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.data.rows import Row
from tuneport.core.errors import ProviderError
from tuneport.local_backend.jobdir import COMPLETE, JobDir, WorkerState
from tuneport.tests.local_jobs import losses, made, plan_of, run, work
from tuneport.tests.local_tiny import write_model

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


def test_a_model_without_a_chat_template_asks_for_one_except_for_text(model: Path, tmp_path: Path) -> None:
    bare = changed(model, tmp_path / "bare", chat_template=None)
    assert "options.local.chat_template" in failure(made(plan_of("dpo", "lora", bare), tmp_path / "job"))
    assert run(plan_of("cpt", "lora", bare), tmp_path / "text").finished()


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_a_base_without_pad_token_trains_to_the_same_losses(method: str, model: Path, tmp_path: Path) -> None:
    bare = changed(model, tmp_path / "bare", pad_token=None)
    one, other = (run(plan_of(method, "lora", base), tmp_path / name) for base, name in ((bare, "bare-job"), (model, "job")))
    assert losses(one) == losses(other)


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


def full_disk(*_: Any, **__: Any) -> Iterator[Row]:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place", ["torch.save", "peft.peft_model.safe_save_file", "tuneport.local_backend.card.shutil.copy"])
def test_a_full_disk_fails_the_job_in_words_and_it_goes_on_once_there_is_room(
    place: str, broken_off: JobDir, finished: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        message = failure(broken_off)
    assert "disk is full" in message and "resume" in message
    assert not (broken_off.checkpoints / "checkpoint-4" / COMPLETE).exists() or place.endswith("copy")
    assert losses(work(broken_off)) == losses(finished)
    weights = "adapter_model.safetensors"
    assert (broken_off.adapter / weights).read_bytes() == (finished.adapter / weights).read_bytes()
    assert not [path for path in broken_off.path.iterdir() if path.name.startswith(".")]
