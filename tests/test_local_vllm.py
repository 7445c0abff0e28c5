"""Serving by vLLM, over a stand-in for its command (``fake_vllm``) and the real openai client: adapters come and go while it runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from tuneport import cli  # noqa: E402
from tuneport.core.errors import ProviderError, UsageError  # noqa: E402
from tuneport.local_backend import vllm_server  # noqa: E402
from tuneport.local_backend.estimate import Hardware  # noqa: E402
from tuneport.local_backend.server import ServedModel, ServerConfig  # noqa: E402

ASK: Any = [{"role": "user", "content": "hello"}]
H100 = Hardware(2, None, "NVIDIA H100 80GB HBM3")


def adapter(folder: Path, base: Path, **settings: Any) -> ServedModel:
    """An adapter's folder as far as it is read before vLLM loads it."""
    folder.mkdir(parents=True)
    known = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(known | settings))
    (folder / "adapter_model.safetensors").touch()
    return ServedModel(name=folder.name, adapter=str(folder))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Callable[..., ServerConfig]:
    def make(*models: ServedModel, **settings: Any) -> ServerConfig:
        return ServerConfig(base=str(base), models=models, ttl_s=0.05, **settings)

    return make


@pytest.fixture(autouse=True)
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in as ``vllm`` on the PATH."""
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    fake = Path(__file__).with_name("fake_vllm.py")
    command.write_text(f"#!/bin/sh\nexec {sys.executable} {fake} \"$@\"\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(command.with_name("python")))  # a real one beside this Python is not taken
    monkeypatch.setenv("TUNEPORT_CACHE", str(tmp_path / "cache"))
    return command


def test_adapters_by_name_and_hot_swapped(config: Callable[..., ServerConfig], base: Path, tmp_path: Path) -> None:
    """Everything is asked while it runs: what the command would do from other terminals."""
    one, two = adapter(tmp_path / "one", base), adapter(tmp_path / "two", base, r=20)
    late, large, other = adapter(tmp_path / "late", base), adapter(tmp_path / "large", base, r=64), tmp_path / "other-base"
    other.mkdir()
    (other / "config.json").write_text("{}")
    seen: list[int] = []

    def meanwhile(port: int) -> None:
        seen.append(port)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:

            def ask(name: str) -> str:
                return str(client.chat.completions.create(model=name, messages=ASK).choices[0].message.content)

            assert [model.id for model in client.models.list()] == [str(base), "one", "two"]
            assert ask("one") == f"one at {one.adapter} in bfloat16, template None" and "two at" in ask("two")
            assert "the base" in ask(str(base))
            assert vllm_server.add(port, config(late)) == [str(base), "one", "two", "late"]
            assert ask("late").startswith(f"late at {late.adapter}")
            with pytest.raises(ProviderError, match=r"refuses late: .* already been loaded"):
                vllm_server.add(port, config(late))
            assert vllm_server.remove(port, ["one"]) == [str(base), "two", "late"]
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                ask("one")
            with pytest.raises(ProviderError, match=r"refuses one: .* cannot be found"):
                vllm_server.remove(port, ["one"])
            with pytest.raises(ProviderError, match=r"large has rank 64, and the server .* takes adapters up to 32"):
                vllm_server.add(port, config(large))
            with pytest.raises(ProviderError, match="another base model than large"):
                vllm_server.add(port, config(large).model_copy(update={"base": str(other)}))
            (tmp_path / "large" / "resolved_config.json").write_text('{"base_fingerprint": "0123456789abcdef"}')
            with pytest.raises(ProviderError, match="trained on another base"):
                vllm_server.add(port, config(large))
            with pytest.raises(ProviderError, match="another precision"):
                vllm_server.add(port, config(late, dtype="fp32"))
            with pytest.raises(ProviderError, match=f"port {port} cannot be used"):
                vllm_server.serve(config(one, port=port), on_ready=meanwhile)

    vllm_server.serve(config(one, two), on_ready=meanwhile)
    (port,) = seen
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # its time is up, and it is gone
    said = (tmp_path / "cache" / "servers" / f"{port}.log").read_text()
    assert "'host': '127.0.0.1'" in said and "'allowed_origins': []" in said and "'max_loras': 4, 'max_lora_rank': 32" in said
    with pytest.raises(ProviderError, match=r"no vLLM server of tuneport's runs on port"):
        vllm_server.add(port, config(late))


def test_template_precision_and_trust_reach_it_and_a_whole_model_needs_no_adapter(
    config: Callable[..., ServerConfig], base: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    own = adapter(tmp_path / "own", base).model_copy(update={"chat_template": str(template)})
    told = vllm_server.command(config(own, dtype="fp32", trust_remote_code=True), 8001)
    assert told[told.index("--chat-template") + 1] == str(template) and "--trust-remote-code" in told
    assert told[told.index("--dtype") + 1] == "float32" and told[told.index("--max-lora-rank") + 1] == "8"
    whole = vllm_server.command(config(ServedModel(name="j-1")), 8001)
    assert whole[whole.index("--served-model-name") + 1] == "j-1"
    assert not {"--enable-lora", "--trust-remote-code", "--chat-template"} & set(whole)
    plain = adapter(tmp_path / "plain", base)

    def meanwhile(port: int) -> None:
        with pytest.raises(ProviderError, match="another chat template"):
            vllm_server.add(port, config(plain))

    vllm_server.serve(config(own), on_ready=meanwhile)


def test_the_choice_is_told_with_its_reason(
    config: Callable[..., ServerConfig], base: Path, tmp_path: Path, vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, dora = adapter(tmp_path / "lora", base), adapter(tmp_path / "dora", base, use_dora=True)
    prefix = adapter(tmp_path / "prefix", base, peft_type="PREFIX_TUNING")
    huge = adapter(tmp_path / "huge", base, rank_pattern={"q_proj": 1024})
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    own = lora.model_copy(update={"name": "own", "chat_template": str(template)})
    assert vllm_server.choose("auto", config(lora)) == (False, "served by the light server, one answer at a time: there is no GPU")
    assert vllm_server.choose("vllm", config(lora))[0] and not vllm_server.choose("light", config(lora))[0]
    monkeypatch.setattr(vllm_server, "detect_hardware", lambda device: H100 if device != "cpu" else Hardware(2, None))
    assert vllm_server.choose("auto", config(lora)) == (True, f"served by vLLM, which is installed, on {H100.gpu}")
    assert "device is cpu" in vllm_server.choose("auto", config(lora, device="cpu"))[1]
    for models, reason in (((dora,), "DoRA"), ((prefix,), "no LoRA"), ((huge,), "512 at most"), ((lora, own), "one for all")):
        by_vllm, why = vllm_server.choose("auto", config(*models))
        assert not by_vllm and reason in why
        with pytest.raises(UsageError, match=reason):
            vllm_server.choose("vllm", config(*models))
    vllm.unlink()
    assert "vLLM is not installed" in vllm_server.choose("auto", config(lora))[1]


def test_a_start_that_fails_is_told_with_vllms_words(config: Callable[..., ServerConfig], base: Path, tmp_path: Path, vllm: Path) -> None:
    vllm.write_text("#!/bin/sh\necho 'ValueError: Free memory on device is less than desired' >&2\nexit 1\n")
    with pytest.raises(ProviderError, match=r"status 1 \(ValueError: Free memory .* --server light"):
        vllm_server.serve(config(adapter(tmp_path / "one", base)), on_ready=lambda _: None)
    assert not list((tmp_path / "cache" / "servers").glob("*.json"))


def test_on_the_command_line(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        adapter(tmp_path / name, base)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuneport", "serve", "--port", port, *arguments])
        monkeypatch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    answers = vllm_server._answers
    looks: list[tuple[int, str, str]] = []

    def answering(at: int) -> bool:
        """Once it answers, and its note is written, another terminal acts; then it is asked to end."""
        if not looks and vllm_server._note(at).exists():
            looks.append((0, "", ""))
            looks.append(run(str(tmp_path / "two"), "--add"))
            looks.append(run(str(tmp_path / "one"), "--remove"))
            os.kill(os.getpid(), signal.SIGTERM)
        return answers(at)

    check = vllm_server._check

    def checking(process: Any, log: Path) -> None:
        answering(int(log.stem))
        check(process, log)

    monkeypatch.setattr(vllm_server, "_check", checking)
    code, shown, said = run(str(tmp_path / "one"), "--server", "vllm")
    assert code == 0, said
    assert "served by vLLM, as asked" in shown or "served by vLLM, as asked" in looks[1][1]
    assert looks[1][0] == 0 and looks[1][1].endswith(f"serves {base}, one, two\n")
    assert looks[2][0] == 0 and looks[2][1].endswith(f"serves {base}, two\n")
    code, _, said = run(str(tmp_path / "one"), "--add", "--remove")
    assert code == 2 and "exclude each other" in said
