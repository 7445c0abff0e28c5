"""Local jobs done in the test's own process, on the tiny model: rows for every method, plans, and the worker's whole work."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneport.core.data.facts import DatasetFacts, JobData, TokenFacts
from tuneport.core.data.rows import Kind, Row
from tuneport.core.plan import Plan
from tuneport.core.spec import JobSpec
from tuneport.local_backend.config import ParentAdapter
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.parent import keep
from tuneport.local_backend.records import write_records
from tuneport.providers.local.compile import compile_plan

KINDS: dict[str, Kind] = {
    "cpt": "text", "dpo": "preference", "orpo": "preference", "simpo": "preference", "kto": "unpaired_preference"
}  # fmt: skip
STEPS = 2
GRADER = {
    "type": "multi",
    "graders": {
        "long": {"type": "python", "source": "def grade(sample, item):\n    return len(sample['output_text']) % 7"},
        "same": {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"},
    },
    "calculate_output": "0.1 * long + same",
}


def rows(method: str, role: str, count: int = 8) -> Iterator[Row]:
    for i in range(count):
        where = (f"{role}.jsonl", i + 1)
        asked = ({"role": "user", "content": f"say {i}"},)
        good, bad = ({"role": "assistant", "content": f"it {word} {i}"} for word in ("is", "never was"))
        match method:
            case "cpt":
                yield Row("text", *where, text=f"The number {i} follows {i - 1}. " * 3)
            case "kto":
                yield Row("unpaired_preference", *where, (*asked, good if i % 2 else bad), desirable=bool(i % 2))
            case "dpo" | "orpo" | "simpo":
                yield Row("preference", *where, asked, chosen=good, rejected=bad)
            case "rft":
                yield Row("chat", *where, asked, columns={"answer": f"it is {i}"})
            case _:
                yield Row("chat", *where, (*asked, good))


def plan_of(method: str, kind: str | None, model: Path, *, dtype: str = "fp32", earlier: str | None = None, **changes: Any) -> Plan:
    document: dict[str, Any] = {
        "model": {"local": str(model)},
        "method": method,
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "continue_from": earlier,
        "tuning": {"kind": kind},
        "training": {"steps": STEPS, "batch_size": 4, "gradient_accumulation": 2},
        "evaluation": {"evaluations": 1, "checkpoints": 1},
        "options": {"local": {"device": "cpu", "dtype": dtype}},
    }
    if method == "rft":
        document["reinforcement"] = {"grader": GRADER, "samples_per_prompt": 2, "max_output_tokens": 6}
    for path, value in changes.items():
        section, name = path.split("__")
        document.setdefault(section, {})[name] = value
    features = frozenset({"prompt_only"}) if method == "rft" else frozenset()
    facts = DatasetFacts("train.jsonl", "ab" * 32, KINDS.get(method, "chat"), 8, TokenFacts(700, 900, 60, "estimate", False), features)  # type: ignore[arg-type]
    return compile_plan(JobSpec.model_validate(document), JobData(facts, facts))


def made(plan: Plan, folder: Path, held: Iterator[Row] | None = None) -> JobDir:
    """A job's folder before its worker starts, as the provider makes it. ``held``: other validation rows than the method's own."""
    assert not plan.refusals, plan.refusals
    job = JobDir(folder)
    folder.mkdir(parents=True)
    method: Any = plan.payload["method"]
    for role in ("train", "validation"):
        write_records(job.rows(role), held if held and role == "validation" else rows(method, role), method)
    if plan.payload["parent"]:
        keep(ParentAdapter.model_validate(plan.payload["parent"]), job.parent)
    job.config.write_text(json.dumps(plan.payload))
    return job


def run(plan: Plan, folder: Path, held: Iterator[Row] | None = None) -> JobDir:
    """A job after its worker's whole work, done in this process."""
    return work(made(plan, folder, held))


def work(job: JobDir) -> JobDir:
    from tuneport.local_backend.train import Worker

    before = signal.getsignal(signal.SIGTERM)
    try:
        status = Worker(job).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    state = job.state()
    assert status == 0 and state is not None and state.phase == "succeeded", state
    return job


def losses(job: JobDir) -> dict[tuple[str, int], float]:
    return {
        (name, int(event.metrics["step"])): event.metrics[name]
        for event in job.events()
        for name in ("loss", "eval_loss")
        if name in event.metrics
    }
