"""The server on loopback, with the real openai client: adapters by name, streams, refusals; and as a deployment of its own."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(find_spec(library) for library in ("torch", "peft", "openai")):
    pytest.skip("the training libraries are not installed", allow_module_level=True)

import openai

from tuneport.core.data.compressed import zstd
from tuneport.core.deployment import DeploymentRequest, DeploymentState, RemoteDeployment, Tuned
from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.errors import ProviderError, RefusedError
from tuneport.core.options import LocalOptions
from tuneport.core.provider import ChatRequest
from tuneport.local_backend.generate import replies
from tuneport.local_backend.models import base_fingerprint
from tuneport.local_backend.server import ChatBody, Models, ServedModel, Server, ServerConfig, serve
from tuneport.providers.local.client import LocalProvider
from tuneport.providers.local.deployments import answers
from tuneport.tests.local_tiny import write_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
ASK: Any = [{"role": "user", "content": "Grüße 🏔️?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base and two adapters that answer differently."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tuneport.local_backend.models import load_model

    root = tmp_path_factory.mktemp("served")
    base = write_model(root / "tiny")
    for number, name in enumerate(("one", "two")):
        model = get_peft_model(
            load_model(str(base), dtype="fp32", device="cpu", training=False), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        )
        torch.manual_seed(number)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.5)
        model.save_pretrained(str(root / "jobs" / name / "adapter"))
    return root


@pytest.fixture(scope="module")
def config(folder: Path) -> ServerConfig:
    served = [ServedModel(name=name, adapter=str(folder / "jobs" / name / "adapter")) for name in ("one", "two")]
    return ServerConfig(base=str(folder / "tiny"), device="cpu", dtype="fp32", models=(*served, ServedModel(name="base")))


@pytest.fixture(scope="module")
def port(config: ServerConfig) -> Iterator[int]:
    with Server(0) as server:
        server.models = Models(config)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def client(port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_adapters_on_one_base_answer_by_their_names(client: openai.OpenAI, folder: Path) -> None:
    assert [model.id for model in client.models.list()] == ["one", "two", "base"]
    assert client.models.retrieve("two").owned_by == "tuneport"
    texts: dict[str, str | None] = {}
    for name in ("one", "two", "base", "one"):
        answer = client.chat.completions.create(model=name, messages=ASK, max_tokens=12, temperature=0)
        assert answer.usage is not None and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert texts.setdefault(name, answer.choices[0].message.content) == answer.choices[0].message.content
    assert len(set(texts.values())) == 3
    # The same as the batched decoder says, which measures them.
    settings = {"model": str(folder / "tiny"), "device": "cpu", "dtype": "fp32"}
    (reply,) = replies(settings, [{"id": "1", "messages": ASK, "max_tokens": 12}])
    assert reply["text"] == texts["base"]


def test_a_stream_holds_the_same_text_as_the_whole_answer(client: openai.OpenAI) -> None:
    settings: Any = {"model": "one", "messages": ASK, "max_tokens": 40, "temperature": 0.7, "top_p": 0.9, "seed": 7}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and chunks[0].choices[0].delta.role == "assistant"
    assert client.chat.completions.create(**settings).choices[0].message.content == whole.choices[0].message.content  # by the seed


def test_an_answer_goes_back_into_the_conversation_as_the_client_holds_it(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="one", messages=ASK, max_tokens=4, temperature=0).choices[0].message
    history: Any = [*ASK, said.model_dump(), {"role": "user", "content": [{"type": "text", "text": "more"}], "name": None}]
    assert client.chat.completions.create(model="one", messages=history, max_tokens=4).usage is not None


def test_a_stop_string_ends_the_answer_before_itself(client: openai.OpenAI) -> None:
    settings: Any = {"model": "one", "messages": ASK, "max_tokens": 24, "temperature": 0}
    text = client.chat.completions.create(**settings).choices[0].message.content or ""
    stop = text[4:7]
    chunks = client.chat.completions.create(**settings, stop=[stop], stream=True)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    stopped = client.chat.completions.create(**settings, stop=stop).choices[0]
    assert streamed == stopped.message.content == text.partition(stop)[0] and stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "says", "kind"),
    [
        ({"model": "three"}, "not served here; there are: one, two, base", openai.NotFoundError),
        ({"n": 2}, "'n'", openai.BadRequestError),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "'tools' is not supported", openai.BadRequestError),
        ({"logprobs": True}, "'logprobs' is not supported", openai.BadRequestError),
        ({"max_tokens": 5000}, "exceed the model's 512", openai.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "plain text", openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, r"'messages\.0\.name' is not supported", openai.BadRequestError),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, r"tool_calls' is not supported", openai.BadRequestError),
        ({"messages": [{"role": "tool", "content": "5"}]}, r"'messages\.0\.role'", openai.BadRequestError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_it_cannot_carry_out_is_refused(client: openai.OpenAI, change: dict[str, Any], says: str, kind: type[Exception]) -> None:
    for stream in (False, True):
        with pytest.raises(kind, match=says):
            client.chat.completions.create(**({"model": "one", "messages": ASK, "stream": stream} | change))


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}])
def test_a_page_in_a_browser_gets_no_answer(port: int, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v1/models", headers=headers)
    assert connection.getresponse().status == 403
    connection.close()


def test_what_is_left_of_a_refused_request_is_never_the_next_one(port: int) -> None:
    """A page may post, without asking first, a body that is itself a request without an Origin."""
    asked = json.dumps({"model": "one", "messages": ASK, "max_tokens": 2}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(asked)}\r\n\r\n"
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for path, headers, status in (("chat/completions", {"Origin": "https://evil.example"}, 403), ("nothing", {}, 404)):
            connection.request("POST", f"/v1/{path}", head.encode() + asked, headers)
            refused = connection.getresponse()
            assert refused.status == status and "error" in json.load(refused)
            connection.request("GET", "/v1/models")
            assert json.load(connection.getresponse())["object"] == "list"


def test_a_client_may_ask_again_on_its_connection_while_the_model_loads() -> None:
    with Server(0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with closing(http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)) as connection:
            for _ in range(2):
                connection.request("POST", "/v1/chat/completions", b'{"model": "one"}')
                answer = connection.getresponse()
                assert answer.status == 503 and "being loaded" in json.load(answer)["error"]["message"]
        server.shutdown()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": "abc"}, 411), ({"Content-Length": "-1"}, 411), ({"Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "99000000"}, 413),
    ],
    ids=str,
)  # fmt: skip
def test_a_request_of_no_known_length_is_refused_and_ends_its_connection(port: int, headers: dict[str, str], status: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.putrequest("POST", "/v1/chat/completions")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (status, "close") and "error" in json.load(answer)


def test_a_fault_of_the_server_is_an_answer_too(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("out of luck")
        yield

    with pytest.raises(openai.BadRequestError, match="'seed'"):
        client.chat.completions.create(model="one", messages=ASK, seed=2**64)
    monkeypatch.setattr(Models, "answer", failing)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="failed with RuntimeError"):
            client.chat.completions.create(model="one", messages=ASK, stream=stream)


def test_no_proxy_hears_what_a_deployment_is_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody answers
    (reply,) = answers("one", f"http://127.0.0.1:{port}", [ChatRequest("1", ASK, 4)])
    assert reply.completion_tokens and not reply.error


def test_one_answer_at_a_time_keeps_each_adapter_to_its_own(client: openai.OpenAI) -> None:
    def ask(name: str) -> str | None:
        return client.chat.completions.create(model=name, messages=ASK, max_tokens=8, temperature=0).choices[0].message.content

    alone = {name: ask(name) for name in ("one", "two")}
    found: list[tuple[str, str | None]] = []
    threads = [threading.Thread(target=lambda name=name: found.append((name, ask(name)))) for name in ("one", "two") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(text == alone[name] for name, text in found)


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.zst", ""])
def test_an_exported_adapter_loads(
    folder: Path, client: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A folder (Fireworks, local) or an archive (Together), whose base is named in the vendor's words."""
    monkeypatch.setenv("TUNEPORT_CACHE", str(tmp_path / "cache"))
    exported = tmp_path / "acme-tickets"
    shutil.copytree(folder / "jobs" / "one" / "adapter", exported)
    if ending:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            archive.add(exported, "checkpoint")
        packed = tmp_path / f"acme-tickets{ending}"
        module = gzip if ending == ".tar.gz" else zstd(str(packed))
        packed.write_bytes(module.compress(plain.getvalue()))
        exported = packed
    settings = LocalProvider().answering(f"local:{exported}")
    served = ServedModel(name="exported", adapter=settings["adapter"])
    models = Models(ServerConfig(base=str(folder / "tiny"), device="cpu", dtype="fp32", models=(served,)))
    body = {"model": "exported", "messages": ASK, "max_tokens": 12, "temperature": 0}
    text = "".join(piece for piece, _ in models.answer(ChatBody.model_validate(body), {}))
    assert text == client.chat.completions.create(**{**body, "model": "one"}).choices[0].message.content
    if ending:
        exported.write_bytes(exported.read_bytes()[:-200])
        with pytest.raises(ProviderError, match="export it again"):
            LocalProvider().answering(f"local:{exported}")


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_learnt_prefixes_stream_what_the_batched_decoder_says(folder: Path, kind: str) -> None:
    import peft
    import torch

    from tuneport.local_backend.decode import Prompt, decode
    from tuneport.local_backend.models import load_model
    from tuneport.local_backend.stream import Sampling, tokens

    base = load_model(str(folder / "tiny"), dtype="fp32", device="cpu", training=False)
    model = peft.get_peft_model(base, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.5)
    ids = [10, 20, 30, 40]
    (batched,) = decode(model, [Prompt("1", ids, 12)], stops=frozenset(), pad=0)
    for _ in range(2):  # the prefix is the same at the second question
        assert list(tokens(model, ids, most=12, stops=frozenset(), sampling=Sampling())) == batched.ids


@pytest.mark.parametrize("limit", ["ttl_s", "idle_s"])
def test_it_ends_by_itself_when_its_time_is_up(config: ServerConfig, limit: str) -> None:
    ports: list[int] = []
    serve(config.model_copy(update={limit: 0.1}), on_ready=ports.append)
    assert len(ports) == 1


def test_it_is_not_idle_while_it_answers(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, whole = threading.Event(), threading.Event()

    def slowly(*_: Any) -> Iterator[tuple[str, str | None]]:
        asked.set()
        time.sleep(1.2)  # more than two looks of the server at its clock
        whole.set()
        yield "", "stop"

    def ask(port: int) -> None:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            client.chat.completions.create(model="one", messages=ASK)

    monkeypatch.setattr(Models, "answer", slowly)
    threads: list[threading.Thread] = []

    def ready(port: int) -> None:
        threads.append(threading.Thread(target=ask, args=(port,)))
        threads[0].start()
        assert asked.wait(60)

    serve(config.model_copy(update={"idle_s": 0.3}), on_ready=ready)
    assert whole.is_set()
    threads[0].join()


def test_an_adapter_of_another_base_is_not_served(folder: Path, config: ServerConfig, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(folder / "jobs" / "one" / "adapter", adapter)
    (adapter / "resolved_config.json").write_text(json.dumps({"base_fingerprint": base_fingerprint(str(folder / "tiny"))}))
    served = {"models": (ServedModel(name="one", adapter=str(adapter)),)}
    assert Models(config.model_copy(update=served)).names == ["one"]
    other = write_model(tmp_path / "other", seed=1)  # of the same shape
    with pytest.raises(ProviderError, match="trained on another base"):
        Models(config.model_copy(update=served | {"base": str(other)}))


# -- as a deployment ---------------------------------------------------------------------------------------------------


def until(provider: LocalProvider, plan: DeploymentPlan, ref: str, wanted: DeploymentState) -> RemoteDeployment:
    deadline = time.monotonic() + 120
    while (seen := provider.deployments().poll(plan, ref)).state is not wanted:
        assert time.monotonic() < deadline and seen.state is DeploymentState.DEPLOYING, seen
        time.sleep(0.05)
    return seen


def test_deployed_killed_and_taken_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    provider = LocalProvider(LocalOptions(gpu_usd_per_hour=2.5), jobs=folder / "jobs")
    deployer, tuned = provider.deployments(), Tuned(str(folder / "jobs" / "one"), f"local:{folder / 'jobs' / 'one'}", "tiny")
    adapter = folder / "jobs" / "one" / "adapter" / "adapter_config.json"
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": str(folder / "tiny")}))
    with pytest.raises(RefusedError, match=r"--replicas.*--on.*tuneport serve"):
        deployer.plan(tuned, DeploymentRequest(replicas=2), stands_on="d-1")
    plan = deployer.plan(tuned, DeploymentRequest())
    assert plan.usd_per_hour is not None and plan.usd_per_hour.high == 2.5
    made = deployer.create(plan, "tp-aaaaaa-aaaaaaaa")
    assert deployer.create(plan, "tp-aaaaaa-aaaaaaaa").ref == made.ref  # one key, one server
    assert deployer.find(plan, "tp-bbbbbb-bbbbbbbb") is None
    seen = until(provider, plan, made.ref, DeploymentState.READY)
    assert seen.call_as is not None and [found.ref for found in deployer.list_deployments()] == [made.ref]
    told = {reply.id: reply for reply in provider.chat(seen.call_as, [ChatRequest("1", ASK, 8), ChatRequest("2", ASK, 9000)])}
    assert told["1"].text and told["1"].completion_tokens and "exceed the model's 512" in told["2"].error
    assert not deployer.remove(plan, made.ref).state.standing
    assert not deployer.remove(plan, made.ref).state.standing
    with pytest.raises(ProviderError, match="tuneport deployments"):
        list(provider.chat(seen.call_as, [ChatRequest("1", ASK)]))

    killed = deployer.create(plan, "tp-dddddd-dddddddd")
    broken = deployer.create(plan.model_copy(update={"payload": plan.payload | {"base": str(folder)}}), "tp-eeeeee-eeeeeeee")
    pid = json.loads((Path(killed.ref) / "worker.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while deployer.poll(plan, killed.ref).state.standing:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    failed = until(provider, plan, broken.ref, DeploymentState.FAILED)
    assert "no config.json" in failed.message
    assert replace(deployer.remove(plan, broken.ref), message="").state is DeploymentState.UNDEPLOYED
