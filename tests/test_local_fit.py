"""Memory before training: the component model against published runs and our own, and which GPU a job needs. Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneport.core.data.facts import DatasetFacts, JobData, TokenFacts
from tuneport.core.money import Range
from tuneport.core.plan import Plan
from tuneport.core.spec import JobSpec
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.drawing import Draws, pass_seconds
from tuneport.local_backend.estimate import GIB, Hardware, Setup, hardware_of, memory_bytes
from tuneport.local_backend.fit import CONTEXT, STATE, Load, completed, fit
from tuneport.local_backend.models import Shape
from tuneport.local_backend.room import choose_room, footprint
from tuneport.providers.local.compile import compile_plan

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published_memory.yaml").read_text(encoding="utf-8"))
LLAMA_8B = Shape(**PUBLISHED["shapes"]["llama-3.1-8b"])
FACTS = DatasetFacts("train.jsonl", "ab" * 32, "chat", 1600, TokenFacts(750_000, 755_000, 2048, "estimate", False))


def test_published_runs_lie_in_the_stated_range_and_the_range_is_no_wider_than_a_quarter() -> None:
    inside: dict[bool, list[bool]] = {True: [], False: []}
    for row in PUBLISHED["rows"]:
        setup = {name: value for name, value in row.items() if name not in ("source", "shape", "gib")}
        need = memory_bytes(Setup(shape=Shape(**PUBLISHED["shapes"][row["shape"]]), **setup))
        assert need is not None and need.high <= 1.25 * (need.low + need.high) / 2, row["source"]
        inside["four_bit" in row].append(need.low <= row["gib"] * GIB <= need.high)
    assert len(inside[False]) == 20 and sum(inside[False]) >= 0.9 * len(inside[False])
    assert len(inside[True]) == 6 and sum(inside[True]) >= 5  # with the weights that bitsandbytes unpacks


@pytest.mark.parametrize(
    ("four_bit", "tokens", "held", "measured"),
    [
        (False, 7_876, None, 38.46),  # tokens of the largest step; GiB held to; peak GiB, one H100, docs/performance.md
        (False, 12_544, None, 51.73),
        (False, 7_876, 24, 23.64),
        (True, 7_876, None, 28.58),
        (True, 12_544, None, 41.84),
        (True, 7_876, 12, 11.14),
        (True, 12_544, 12, 11.17),
    ],
)
def test_our_own_pass_takes_what_is_predicted(four_bit: bool, tokens: int, held: float | None, measured: float) -> None:
    print_ = footprint(LLAMA_8B, rank=16, four_bit=four_bit)
    assert print_ is not None
    trained, ends = 41.9e6, 2 * 128256 * 4096
    standing = (0.516 * (8.03e9 - ends) + 2 * ends if four_bit else 2 * 8.03e9) + STATE * trained
    room = choose_room(print_, 0.94 * (held or 79) * GIB - standing, 2048, tokens)
    assert room is not None
    largest = min(room.tokens, tokens)
    predicted = (standing + print_.bytes(largest, room.keep(largest))) / GIB
    assert predicted == pytest.approx(measured, rel=0.06)


def plan(model: str = "org/llama-8B", gpu: str = "NVIDIA H100 80GB HBM3", facts: DatasetFacts = FACTS, **document: Any) -> Plan:
    spec = JobSpec.model_validate({"model": {"local": model}, "data": {"train": "train.jsonl"}} | document)
    return compile_plan(spec, JobData(facts, None), hardware=hardware_of(gpu, 16, None))


def test_the_plan_says_which_gpu_the_job_needs() -> None:
    lora, qlora, full = (plan(tuning={"kind": kind}).machines for kind in ("lora", "qlora", "full"))
    assert lora[0].here and lora[0].fits and lora[0].peak_gib is not None
    assert lora[0].peak_gib.low < 51.73 < lora[0].peak_gib.high  # measured with 16 rows a step

    def too_small(machines: Any) -> set[str]:
        return {machine.name for machine in machines if machine.fits is False}

    assert too_small(lora) == {"T4"} and "H100" in too_small(full)
    assert all(m.seconds is None for m in full if m.fits is False)
    big = plan("org/model-70B", tuning={"kind": "qlora"}).machines
    assert "RTX 4090" in too_small(big) and not {"H100", "A100"} & too_small(big)
    by_name = {machine.name: machine for machine in qlora}
    slow, fast = by_name["RTX 4090"].seconds, by_name["H100"].seconds
    assert slow is not None and fast is not None and slow.high > fast.high


def test_a_limit_on_memory_is_kept_to_and_costs_time() -> None:
    held, free = (plan(tuning={"kind": "qlora"}, options={"local": options}) for options in ({"gpu_memory_gib": 12.0}, {}))
    peak = held.machines[0].peak_gib
    assert held.payload["gpu_memory_gib"] == 12 and peak is not None and peak.high < 12.7
    assert held.time.seconds is not None and free.time.seconds is not None and held.time.seconds.high > free.time.seconds.high
    assert plan(tuning={"kind": "lora"}, options={"local": {"gpu_memory_gib": 12.0}}).machines[0].fits is False


def test_measured_speed_lies_in_the_planned_time() -> None:
    for kind, speed in (("lora", 15_728), ("qlora", 15_511)):  # tokens/s with 16 rows a step, one H100
        found = plan(tuning={"kind": kind}).time.seconds
        assert found is not None
        assert found.low - 20 <= 3 * 752_000 / speed <= found.high - 180


def test_rows_beyond_the_gpu_are_told_and_unknown_sizes_are_not_guessed() -> None:
    long = replace(FACTS, tokens=replace(FACTS.tokens, longest_row=60_000))
    warning = next(w.message for w in plan(gpu="NVIDIA L4", facts=long).warnings if w.code == "memory")
    assert "will not fit" in warning
    assert plan("org/nameless").machines == ()
    assert completed(Shape(parameters=1e12)) is None
    assert {machine.fits for machine in plan("org/model-1000B").machines} <= {None, False}


GRADER = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "1"}
RFT: dict[str, Any] = {"method": "rft", "reinforcement": {"grader": GRADER}}
PROMPTS = replace(FACTS, features=frozenset({"prompt_only"}))


def test_drawing_and_training_make_up_the_time_of_rft() -> None:
    def seconds(model: str = "org/llama-8B", facts: DatasetFacts = PROMPTS, **changes: Any) -> Any:
        made = plan(model, facts=facts, **RFT | {"reinforcement": RFT["reinforcement"] | changes})
        assert made.time.seconds is not None, made.time.basis
        return made.time.seconds

    usual = seconds()
    assert usual.low < usual.high
    assert seconds(samples_per_prompt=16).low > usual.low and seconds(max_output_tokens=1024).high > 2 * usual.high
    assert seconds("org/llama-1B").high < usual.high
    times = {machine.name: machine.seconds for machine in plan(facts=PROMPTS, **RFT).machines}
    h100, l4 = times["H100"], times["L4"]
    assert h100 is not None and (l4 is None or l4.high > h100.high)
    assert "--calibrate" in plan(facts=PROMPTS, **RFT).time.basis
    unknown = plan("org/model-1000B", facts=PROMPTS, **RFT).time
    assert unknown.seconds is None and "how many layers" in unknown.basis


def test_measured_drawing_on_a_cpu_lies_in_the_range() -> None:
    """SmolLM2-135M in bf16 on two cores: 25 tokens/s of one answer, 268 of sixteen (local-training notes, November 2026)."""
    small = Shape(134.5e6, hidden=576, layers=30, intermediate=1536, vocabulary=49152, key_value=192, tied=True)
    for answers, speed in ((1, 25), (16, 268)):
        draws = Draws(steps=1, prompts=1, samples=answers, prompt_tokens=100, longest=100)
        found = pass_seconds(small, Hardware(2, None), answers, draws, Range(low=2, high=2))
        assert found is not None and found.low < answers / speed < found.high


SMOL = Shape(134.5e6, hidden=576, layers=30, intermediate=1536, vocabulary=49152, key_value=192, query=576, tied=True)
LLAMA_1B = Shape(1.236e9, hidden=2048, layers=16, intermediate=8192, vocabulary=128256, key_value=512, query=2048, tied=True)
LLAMA_8B_HEADS = replace(LLAMA_8B, query=4096)


PADDED: list[tuple[Shape, str, dict[str, Any], int, int, float | None, float]] = [
    # rows of a micro-batch, tokens of the longest, GiB held to; peak GiB, one H100, docs/performance.md. The first seven recompute.
    (LLAMA_1B, "sft", {"kind": "dora"}, 16, 1914, None, 15.46),
    (LLAMA_1B, "sft", {"kind": "lora", "dropout": 0.05}, 16, 1914, None, 11.54),
    (LLAMA_1B, "sft", {"kind": "full"}, 16, 1914, 40, 23.69),
    (LLAMA_1B, "dpo", {"kind": "lora"}, 8, 916, 16, 6.41),
    (LLAMA_1B, "simpo", {"kind": "lora"}, 8, 916, 24, 10.42),
    (LLAMA_8B_HEADS, "sft", {"kind": "dora"}, 16, 1914, None, 43.01),
    (LLAMA_8B_HEADS, "dpo", {"kind": "lora"}, 8, 916, None, 24.66),
    (LLAMA_1B, "dpo", {"kind": "lora"}, 8, 916, None, 39.33),
    (LLAMA_1B, "kto", {"kind": "lora"}, 8, 916, None, 20.84),
    (LLAMA_1B, "orpo", {"kind": "lora"}, 8, 916, None, 47.06),
    (LLAMA_1B, "sft", {"kind": "prompt"}, 16, 1914, None, 39.72),
    (SMOL, "sft", {"kind": "dora"}, 8, 1914, None, 31.34),
    (SMOL, "sft", {"kind": "full"}, 8, 1914, None, 17.62),
    (SMOL, "dpo", {"kind": "lora"}, 8, 916, None, 17.14),
]


@pytest.mark.parametrize(("shape", "method", "tuning", "rows", "longest", "held", "measured"), PADDED)
def test_our_padded_pass_takes_what_is_predicted(
    shape: Shape, method: str, tuning: dict[str, Any], rows: int, longest: int, held: float | None, measured: float
) -> None:
    kind = {"dpo": "preference", "orpo": "preference", "simpo": "preference", "kto": "unpaired_preference"}.get(method, "chat")
    made = plan(method=method, tuning=tuning, training={"batch_size": rows, "gradient_accumulation": 1},
                options={"local": {"gpu_memory_gib": held}}, facts=replace(FACTS, kind=kind))  # fmt: skip
    found = fit(TrainConfig.model_validate(made.payload), shape, Load(300, longest), hardware_of("NVIDIA H100 80GB HBM3", 16, None))
    assert found.peak is not None and found.fits
    middle = (found.peak.low + found.peak.high) / 2 - CONTEXT  # the driver's share is not in what torch counts
    assert measured == pytest.approx(middle / GIB, rel=0.15)  # the band is 22 %
