"""A base model that brings Python code of its own: run where the spec says so, and only there. The code leaves a trace when it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "peft")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

from tuneport.core.errors import ProviderError
from tuneport.core.options import LocalOptions
from tuneport.local_backend.export import export
from tuneport.local_backend.generate import replies
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.server import Models, ServedModel, ServerConfig
from tuneport.local_backend.train import Worker
from tuneport.providers.local.client import LocalProvider
from tuneport.tests.local_jobs import made, plan_of, run
from tuneport.tests.local_tiny import write_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # the libraries'
ASKED: list[dict[str, Any]] = [{"id": "1", "messages": [{"role": "user", "content": "say 1"}], "max_tokens": 4}]
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
with Path({trace!r}).open("a") as file:
    file.write("ran\\n")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TRUSTED: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "trust_remote_code": True}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, trace: Path) -> Iterator[Path]:
    """The tiny Llama under a name that transformers does not know, with the code for it; imported code is kept apart."""
    from transformers import dynamic_module_utils

    folder = write_model(tmp_path_factory.mktemp("own") / "tiny")
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(CODE.format(trace=str(trace)))
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", cache)
        yield folder
        sys.path[:] = [entry for entry in sys.path if entry != cache]


@pytest.fixture
def ran(trace: Path) -> Any:
    """Has the model's code run since the last look? Forgets what was imported, so that it would run again."""

    def look() -> bool:
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]
        there = trace.exists()
        trace.unlink(missing_ok=True)
        return there

    look()
    return look


@pytest.fixture(scope="module")
def job(own: Path, tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    plan = plan_of("sft", "lora", own, options__local=TRUSTED, training__steps=30, training__learning_rate=2e-2)
    return run(plan, tmp_path_factory.mktemp("jobs") / "job")


def test_without_the_option_nothing_of_it_runs(own: Path, job: JobDir, tmp_path: Path, ran: Any) -> None:
    plan = plan_of("sft", "lora", own)
    assert not [w for w in plan.warnings if w.code == "remote-code"]
    untrusted = made(plan, tmp_path / "job")
    assert Worker(untrusted).run() == 1
    state = untrusted.state()
    assert state is not None and "needs Python code of its own" in state.message
    assert "options.local.trust_remote_code: true" in state.message
    # Neither does the job's own word for it, in the folder of its adapter: adapters come from elsewhere, too.
    settings = LocalProvider().answering(f"local:{job.path}")
    with pytest.raises(ProviderError, match="trust_remote_code"):
        list(replies(settings, ASKED))
    with pytest.raises(ProviderError, match="trust_remote_code"):
        export(job.adapter, tmp_path / "out", merge=True, gguf=None)
    with pytest.raises(ProviderError, match="trust_remote_code"):
        Models(ServerConfig(base=str(own), device="cpu", dtype="fp32", models=(ServedModel(name="base"),)))
    assert not ran()


def test_with_it_the_model_is_trained_asked_merged_and_served(own: Path, job: JobDir, tmp_path: Path, ran: Any) -> None:
    plan = plan_of("sft", "lora", own, options__local=TRUSTED)
    (warning,) = [w.message for w in plan.warnings if w.code == "remote-code"]
    assert str(own) in warning and "with your rights" in warning
    assert json.loads((job.adapter / "resolved_config.json").read_text())["config"]["trust_remote_code"] is True
    provider = LocalProvider(LocalOptions(trust_remote_code=True))
    (answer,) = replies(provider.answering(f"local:{job.path}"), ASKED)
    assert answer["text"].startswith("it") and ran()
    (merged,), _ = export(job.adapter, tmp_path / "out", merge=True, gguf=None, trust=True)
    assert ran()
    settings = provider.answering(f"local:{merged}")
    (again,) = replies(settings | {"dtype": "fp32"}, ASKED)  # the merged folder carries the code along
    assert again["text"] == answer["text"] and ran()
    served = ServedModel(name="job", adapter=str(job.adapter))
    Models(ServerConfig(base=str(own), device="cpu", dtype="fp32", trust_remote_code=True, models=(served,)))
    assert ran()


def test_a_fully_tuned_model_keeps_the_code_that_it_needs(own: Path, tmp_path: Path, ran: Any) -> None:
    whole = run(plan_of("sft", "full", own, options__local=TRUSTED), tmp_path / "job")
    (answer,) = replies(LocalProvider(LocalOptions(trust_remote_code=True)).answering(f"local:{whole.path}"), ASKED)
    assert "text" in answer and ran()
