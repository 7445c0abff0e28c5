"""Asks a GGUF file through llama.cpp itself, in a process of its own: ``python llama_cpp.py FILE REQUEST`` prints its answer, both JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Continuation:
    prompt_tokens: int
    tokens: list[int]  # the likeliest continuation
    logprobs: dict[int, float]  # natural logarithms, of the likeliest 20 tokens right after the prompt


def ask(file: Path, text: str, never: Sequence[int] = (), count: int = 8) -> Continuation:
    """The likeliest ``count`` tokens after ``text``, none of ``never``: llama.cpp tells nothing of tokens that end amid a character.

    Raises AssertionError with llama.cpp's own words when it cannot load the file.
    """
    biases = [[token, False] for token in never]
    request = {"prompt": text, "n_predict": count, "temperature": 0, "n_probs": 20, "ignore_eos": True, "logit_bias": biases}
    command = [sys.executable, __file__, str(file), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    steps = told["choices"][0]["logprobs"]["content"]
    first = {top["id"]: top["logprob"] for top in steps[0]["top_logprobs"]}
    return Continuation(told["usage"]["prompt_tokens"], [step["id"] for step in steps], first)


if __name__ == "__main__":
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity, params.cpuparams.n_threads = 256, 1, False, 1, 1
    server = xllamacpp.Server(params)
    print(json.dumps(server.handle_completions(json.loads(sys.argv[2]))), flush=True)
