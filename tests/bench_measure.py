"""2,000 questions to a loopback service that answers after 200 ms: the runner, a bare asyncio loop over the openai SDK, and inspect-ai.

    python tests/bench_measure.py [QUESTIONS [CONCURRENCY...]]      2000 64 200 unless given; or make bench

The service runs in a process of its own (``chat_server``). Each side answers the same questions once, from the first call to the last
score; the runner also keeps every answer on disk. A row is (what, seconds, ratio to the bare loop, limit as a ratio). inspect-ai
is a dependency of this comparison only (0.3.285 pulls older boto3 and fsspec in; reinstall the pinned ones afterwards, it runs with them);
without it, it is left out and said so. The last part injects 429 and 500 and counts what was lost
or answered twice.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tuneport.advisor.arm import run_arm
from tuneport.advisor.suite import EvalSuite, build_suite
from tuneport.core.data.rows import Row
from tuneport.core.options import OpenAIOptions
from tuneport.providers.openai.client import OpenAIProvider
from tuneport.tests.chat_server import ChatServer, chat_server

DELAY_S = 0.2
LIMIT = 1.15
"""Issue 6: within 15 % of a bare asyncio loop over the vendor's SDK."""
Line = tuple[str, float, float, float | None]

_INSPECT = """
import sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import match
from inspect_ai.solver import generate
import time

url, count, concurrency, logs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
samples = [Sample(input=f"question {i} say word{i}", target=f"word{i}") for i in range(count)]
task = Task(dataset=samples, solver=generate(), scorer=match(location="exact"))
config = dict(max_connections=concurrency, max_samples=concurrency, temperature=0, max_tokens=64)
began = time.perf_counter()
(log,) = eval(task, model="openai/m", model_base_url=url, model_args={"responses_api": False}, display="none", log_dir=logs,
              log_realtime=False, log_samples=True, **config)
seconds = time.perf_counter() - began
assert log.status == "success", log.error
assert log.results.scores[0].metrics["accuracy"].value == 1, log.results
print("SECONDS", seconds)
"""


def questions(count: int) -> EvalSuite:
    """A suite of distinct questions with short answers."""
    rows = []
    for i in range(count):
        turns = ({"role": "user", "content": f"question {i} say word{i}"}, {"role": "assistant", "content": f"word{i}"})
        rows.append(Row(kind="chat", file="bench", line=i + 1, messages=turns))
    return build_suite(rows, source="bench", task="text", max_tokens=64)


def runner(suite: EvalSuite, server: ChatServer, concurrency: int, folder: Path) -> float:
    """Seconds of the runner: asking, keeping and scoring."""
    provider = OpenAIProvider(OpenAIOptions(base_url=server.url))
    began = time.perf_counter()
    arm = run_arm(provider, "m", suite, name="bench", cache=folder, concurrency=concurrency)
    seconds = time.perf_counter() - began
    assert arm.metrics["exact_match"].value == 1, arm.answers[0]
    return seconds


def bare_loop(suite: EvalSuite, server: ChatServer, concurrency: int) -> float:
    """Seconds of the shortest program over the SDK: a semaphore and gather."""
    from openai import AsyncOpenAI

    async def run() -> float:
        async with AsyncOpenAI(api_key="key-for-loopback", base_url=server.url, max_retries=0) as client:
            free = asyncio.Semaphore(concurrency)

            async def one(prompt: list[dict[str, str]], expected: str) -> bool:
                async with free:
                    told = await client.chat.completions.create(model="m", messages=prompt, temperature=0, max_completion_tokens=64)
                return told.choices[0].message.content == expected

            began = time.perf_counter()
            right = await asyncio.gather(*(one([dict(m) for m in item.messages], item.expected) for item in suite.items))
            seconds = time.perf_counter() - began
            assert all(right)
            return seconds

    return asyncio.run(run())


def inspect_ai(count: int, server: ChatServer, concurrency: int, folder: Path) -> float | None:
    """Seconds of inspect-ai's ``eval`` (without its start-up) in a process of its own; None, and said, where it cannot run."""
    if subprocess.run([sys.executable, "-c", "import inspect_ai"], capture_output=True, check=False).returncode:
        print("inspect-ai is not installed here, so it is not compared; pip install inspect-ai")
        return None
    arguments = [server.url, str(count), str(concurrency), str(folder)]
    environment = {**os.environ, "OPENAI_API_KEY": "key-for-loopback"}
    done = subprocess.run([sys.executable, "-c", _INSPECT, *arguments], capture_output=True, text=True, env=environment, check=False)
    said = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not said:
        print("inspect-ai failed: " + " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:]))
        return None
    return float(said[0])


def speed(count: int, concurrency: int) -> list[Line]:
    """All sides at one concurrency, each twice in turn; the faster run of each counts."""
    suite = questions(count)
    found: dict[str, list[float]] = {"bare": [], "runner": []}
    with tempfile.TemporaryDirectory() as folder, chat_server(Path(folder), delay=DELAY_S) as server:
        for turn in range(2):
            found["bare"].append(bare_loop(suite, server, concurrency))
            found["runner"].append(runner(suite, server, concurrency, Path(folder) / f"kept-{turn}"))
        other = inspect_ai(count, server, concurrency, Path(folder) / "logs")
    bare, ours = min(found["bare"]), min(found["runner"])
    title = f"{count:,} questions, {concurrency} at once"
    rows: list[Line] = [
        (f"{title}: bare asyncio loop over the openai SDK", bare, 1.0, None),
        (f"{title}: runner, answers kept and scored", ours, ours / bare, LIMIT),
    ]
    if other is not None:
        rows.append((f"{title}: inspect-ai ({other / ours:.1f} x the runner's time; goal 4)", other, other / bare, None))
    return rows


def losses(count: int, concurrency: int) -> list[Line]:
    """Questions lost or answered twice with 429 and 500 injected into 20 % of them; both have to be 0."""
    suite = questions(count)
    with tempfile.TemporaryDirectory() as folder, chat_server(Path(folder), delay=0.02, failing=0.2) as server:
        provider = OpenAIProvider(OpenAIOptions(base_url=server.url), sleep=lambda seconds: time.sleep(min(seconds, 0.05)))
        arm = run_arm(provider, "m", suite, name="bench", concurrency=concurrency)
        answered = Counter(server.answered())
    lost = sum(bool(answer.error) for answer in arm.answers) + (count - len({answer.row for answer in arm.answers}))
    twice = sum(times - 1 for times in answered.values())
    return [
        (f"{count:,} questions with 429 and 500: lost", float(lost), float(lost), 0.0),
        (f"{count:,} questions with 429 and 500: answered twice", float(twice), float(twice), 0.0),
    ]


def rows(count: int = 2000, *concurrencies: int) -> list[Line]:
    """Every row of the bench. Sets a key for loopback while it runs."""
    known = os.environ.get("OPENAI_API_KEY")
    os.environ["OPENAI_API_KEY"] = "key-for-loopback"
    try:
        found = [row for concurrency in concurrencies or (64, 200) for row in speed(count, concurrency)]
        return [*found, *losses(count, 64)]
    finally:
        if known is None:
            del os.environ["OPENAI_API_KEY"]
        else:
            os.environ["OPENAI_API_KEY"] = known


def show(lines: list[Line]) -> int:
    """Print the table; the number of limits passed."""
    print(f"{'':96}{'seconds':>9}{'ratio':>8}{'limit':>8}")
    late = 0
    for name, seconds, ratio, limit in lines:
        over = limit is not None and ratio > limit
        late += over
        print(f"{name:96}{seconds:9.3f}{ratio:8.2f}{'' if limit is None else f'{limit:8.2f}':>8}{'  over' if over else ''}")
    return late


if __name__ == "__main__":
    sys.exit(1 if show(rows(*map(int, sys.argv[1:]))) else 0)
