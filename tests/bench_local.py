"""The local backend on the CPU beside a plain TRL script: real tokens per second on the example's tickets, same rows, batch and adapter.

    python tests/bench_local.py [STEPS]      14 unless given; or make bench

Each side trains the packaged 135M model in a process of its own and is timed from the end of step WARM to the end of the last. The plain
script is what a user would write from TRL's own documentation: prompt and completion, a LoRA adapter on all linear layers, bf16,
no tuning of the machine. Real tokens are those of the rows, without padding. A row of the table is (what, seconds for 1,000 real
tokens, ratio to the plain script, limit of the seconds).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
TICKETS = ROOT / "examples" / "tickets"
MODEL = "smollm2-135m-instruct"
STEPS, WARM = 14, 4
BATCH, RANK = 4, 16
LIMIT = 1.0
"""No slower than the plain script."""
PATIENCE_S = 600
SYSTEM = "Ticket to JSON: category, priority, ref."

_PLAIN = """
import json, sys, time
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

model, rows, steps, batch, rank, system, out = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), *sys.argv[6:]
told = [json.loads(line)["messages"] for line in open(rows, encoding="utf-8")]
data = Dataset.from_list([{"prompt": [{"role": "system", "content": system}, *m[:-1]], "completion": m[-1:]} for m in told])
seen = []

class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        seen.append((time.perf_counter(), int(state.num_input_tokens_seen)))

trainer = SFTTrainer(
    model=model, train_dataset=data, callbacks=[Clock()],
    args=SFTConfig(output_dir=out, per_device_train_batch_size=batch, max_steps=steps, use_cpu=True, bf16=True, learning_rate=2e-3,
                   logging_steps=1, save_strategy="no", report_to="none", include_num_input_tokens_seen="non_padding"),
    peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
print("SEEN", json.dumps(seen))
"""


@dataclass(frozen=True)
class Speed:
    """Real tokens, and the seconds they took, after the warm-up."""

    tokens: float
    seconds: float


def plain(model: str, steps: int, folder: Path) -> Speed:
    """The plain script, on a folder of the same weights."""
    arguments = [model, str(TICKETS / "train.jsonl"), *map(str, (steps, BATCH, RANK)), SYSTEM, str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=PATIENCE_S
    )
    told = [line[5:] for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    if not told:
        raise SystemExit("the plain script failed: " + done.stderr[-2000:])
    seen = json.loads(told[0])
    return Speed(seen[-1][1] - seen[WARM - 1][1], seen[-1][0] - seen[WARM - 1][0])


def tuneport(steps: int, folder: Path) -> Speed:
    """A job through the provider, as ``submit`` makes it; its events carry the times and the speeds."""
    from tuneport.core.data.load import load_job_data, open_rows
    from tuneport.core.job import JobState
    from tuneport.core.plan import compile_for
    from tuneport.core.spec_file import load_spec
    from tuneport.providers.local.client import LocalProvider

    spec = load_spec(
        {
            "model": {"local": MODEL},
            "data": {"train": str(TICKETS / "train.jsonl"), "system_prompt": SYSTEM},
            "tuning": {"kind": "lora", "rank": RANK},
            "training": {"steps": steps, "batch_size": BATCH, "learning_rate": 2e-3},
            "evaluation": {"checkpoints": 1},
            "options": {"local": {"device": "cpu"}},
        }
    )
    provider = LocalProvider(jobs=folder)
    plan = compile_for(provider, spec, load_job_data(spec))
    job = provider.create(plan, provider.upload(plan, lambda part: open_rows(spec, part), "bench"), "bench")
    deadline = time.monotonic() + PATIENCE_S
    while not job.state.terminal and time.monotonic() < deadline:
        time.sleep(0.5)
        job = provider.poll(job.ref)
    if job.state is not JobState.SUCCEEDED:
        raise SystemExit(f"the job did not succeed: {job.state.value}: {job.message}")
    told = [event for event in provider.events(job.ref) if "loss" in event.metrics][WARM - 1 :]
    each = [(after.at - before.at).total_seconds() for before, after in pairwise(told)]
    tokens = sum(event.metrics["tokens_per_second"] * seconds for event, seconds in zip(told[1:], each, strict=True))
    return Speed(tokens, sum(each))


def rows(steps: int = STEPS) -> list[tuple[str, float, float, float | None]]:
    """Both sides, one after the other."""
    from tuneport.local_backend.models import locate, prepare

    with tempfile.TemporaryDirectory() as folder:
        theirs = plain(prepare(locate(MODEL)), steps, Path(folder) / "plain")
        ours = tuneport(steps, Path(folder) / "jobs")
    found: list[tuple[str, float, float, float | None]] = []
    reference = 1000 * theirs.seconds / theirs.tokens
    for name, speed, limit in (("plain TRL script", theirs, None), ("tuneport submit", ours, LIMIT)):
        title = f"{name}: {speed.tokens / speed.seconds:,.0f} real tokens/s over {steps - WARM} steps of {BATCH} rows"
        each = 1000 * speed.seconds / speed.tokens
        found.append((title, each, each / reference, limit and limit * reference))
    return found


if __name__ == "__main__":
    from bench_engine import show

    sys.exit(1 if show(rows(*map(int, sys.argv[1:]))) else 0)
