"""Asking many questions at once: every request one reply, fewer at once when the service asks to slow down, nothing taken early."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tuneport.core.asking import Pace, ask_all
from tuneport.core.errors import CredentialsError, DataError, ProviderError
from tuneport.core.options import OpenAIOptions, TogetherOptions
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.providers.bedrock import converse
from tuneport.providers.fireworks.client import FireworksProvider
from tuneport.providers.openai.client import OpenAIProvider
from tuneport.providers.together.client import TogetherProvider
from tuneport.tests.chat_server import chat_server

SLOW_DOWN = ProviderError("slow down", retry="rate_limit", retry_after=0.01)


def questions(count: int, stream: bool = False) -> list[ChatRequest]:
    return [ChatRequest(str(i), [{"role": "user", "content": f"say {i}"}], 9, stream) for i in range(count)]


def test_random_429_and_500_lose_and_double_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-loopback")
    with chat_server(tmp_path, delay=0.02, failing=0.3) as server:
        provider = OpenAIProvider(OpenAIOptions(base_url=server.url), sleep=lambda s: time.sleep(min(s, 0.02)))
        replies = list(provider.chat("m", questions(300), concurrency=32))
        answered = Counter(server.answered())
    assert Counter(r.id for r in replies) == Counter(str(i) for i in range(300))
    assert {r.id for r in replies if r.text == r.id and not r.error and r.completion_tokens == 2} == {str(i) for i in range(300)}
    assert answered == Counter(f"say {i}" for i in range(300)), "each question was answered, and paid, once"


def test_a_service_that_bears_three_at_once_answers_everything_however_many_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-loopback")
    with chat_server(tmp_path, delay=0.01, most=3) as server:
        provider = OpenAIProvider(OpenAIOptions(base_url=server.url))
        replies = list(provider.chat("m", questions(150), concurrency=48))
        answered = Counter(server.answered())
    assert [reply.error for reply in replies if reply.error] == []
    assert answered == Counter(f"say {i}" for i in range(150))


def test_streams_give_the_same_answer_and_the_time_to_its_first_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-loopback")
    with chat_server(tmp_path, delay=0.1) as server:
        (reply,) = OpenAIProvider(OpenAIOptions(base_url=server.url)).chat("m", [questions(78, stream=True)[-1]])
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.error) == ("77", 7, 2, "")
    assert reply.first_token_seconds is not None and reply.seconds is not None
    assert 0.05 <= reply.first_token_seconds < reply.seconds


def test_every_vendor_streams_and_tells_the_time_to_its_first_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOGETHER_API_KEY", "FIREWORKS_API_KEY", "FIREWORKS_ACCOUNT_ID"):
        monkeypatch.setenv(name, "key-for-loopback")
    with chat_server(tmp_path, delay=0.02) as server:
        root = server.url.removesuffix("/v1")
        fireworks = f"accounts/me/models/m#accounts/me/deployments/d@{root}"
        for provider, model in ((TogetherProvider(TogetherOptions(base_url=root)), "m"), (FireworksProvider(), fireworks)):
            found = {reply.id: reply for reply in provider.chat(model, questions(3, stream=True), concurrency=2)}
            assert {i: (r.text, r.completion_tokens, r.error) for i, r in found.items()} == {str(i): (str(i), 2, "") for i in range(3)}
            assert all(r.first_token_seconds and r.seconds and r.first_token_seconds < r.seconds for r in found.values())

    class Client:
        def converse_stream(self, **asked: object) -> dict[str, object]:
            pieces: list[dict[str, object]] = [{"contentBlockDelta": {"delta": {"text": text}}} for text in ("Hel", "lo")]
            end = [{"messageStop": {"stopReason": "end_turn"}}, {"metadata": {"usage": {"inputTokens": 7, "outputTokens": 2}}}]
            return {"stream": iter([{"messageStart": {"role": "assistant"}}, *pieces, *end])}

    (reply,) = converse.replies(Client(), "amazon.nova-micro-v1:0", questions(1, stream=True), time.sleep)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("Hello", 7, 2)
    assert reply.first_token_seconds is not None


def test_a_service_that_limits_is_asked_less_at_once_and_then_more_again() -> None:
    pace = Pace(16, lambda _: None)
    with pytest.raises(ProviderError):
        pace.run(lambda: _raise(SLOW_DOWN))
    assert pace.limit == 8
    for _ in range(500):
        pace.run(lambda: "answer")
    assert pace.limit == 16
    together = threading.Barrier(8)

    def refused() -> None:
        together.wait()
        raise SLOW_DOWN

    def asking() -> None:
        with pytest.raises(ProviderError):
            pace.run(refused)

    threads = [threading.Thread(target=asking) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pace.limit == 8, "requests that were on their way together halve the number once"


def test_never_more_at_once_than_allowed_and_none_taken_before_its_turn() -> None:
    running, most, taken = 0, 0, 0
    lock = threading.Lock()

    def ask(request: ChatRequest) -> ChatReply:
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
        time.sleep(0.002)
        with lock:
            running -= 1
        return ChatReply(request.id, "answer")

    def source() -> object:
        nonlocal taken
        for request in questions(60):
            taken += 1
            yield request

    replies = ask_all(source(), ask, concurrency=5)  # type: ignore[arg-type]
    next(replies)
    assert taken <= 6
    assert len(list(replies)) == 59
    assert most == 5


def test_faults_of_one_request_are_its_own_and_those_of_all_stop_the_run() -> None:
    def ask(request: ChatRequest) -> ChatReply:
        match request.id:
            case "1":
                raise DataError("half a character", fix="correct it")
            case "2":
                raise ProviderError("bad request", retry="no")
        return ChatReply(request.id, "answer")

    found = {reply.id: reply for reply in ask_all(questions(4), ask)}
    assert [found[i].error for i in "0123"] == ["", "half a character; correct it", "bad request", ""]
    asked = []

    def locked_out(request: ChatRequest) -> ChatReply:
        asked.append(request.id)
        raise CredentialsError("no key", fix="set it")

    with pytest.raises(CredentialsError):
        list(ask_all(questions(500), locked_out, concurrency=4))
    assert len(asked) <= 4
    with pytest.raises(ZeroDivisionError):
        list(ask_all(questions(3), lambda _: 1 / 0))  # type: ignore[arg-type,return-value]


def test_what_gives_up_gives_up_after_some_tries() -> None:
    slept: list[float] = []

    def ask(request: ChatRequest) -> ChatReply:
        raise ProviderError("it is down")

    (reply,) = ask_all(questions(1), ask, attempts=3, sleep=slept.append)
    assert reply.error == "it is down"
    assert len(slept) == 2


def _raise(error: Exception) -> None:
    raise error


def test_the_log_of_the_server_is_what_it_says(tmp_path: Path) -> None:
    import urllib.request

    with chat_server(tmp_path) as server:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "say x"}]}).encode()
        for _ in range(2):
            with urllib.request.urlopen(urllib.request.Request(f"{server.url}/chat/completions", body)) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"] == "x"
        assert server.answered() == ["say x", "say x"]
