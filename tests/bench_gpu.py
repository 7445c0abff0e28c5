"""The local backend's training pass against a hand-written TRL script, on one GPU. Each call prints JSON lines; see docs/performance.md.

    python tests/bench_gpu.py reference [--qlora] [--steps 24]
    python tests/bench_gpu.py tuneport  [--qlora] [--gib 12] [--steps 24] [--batch 16]

A model of Llama-3.1-8B's shape with random weights; documents of log-normal length (median 350 tokens, at most 2,048) in which
most tokens follow from the one before, so that there is something to learn. Both start from the same adapter and see the same
rows at the same step, so the losses can be compared step by step. The reference is what most scripts do: batches of 4 padded
rows, gradient checkpointing, bf16 autocast. Needs a GPU of 24 GiB; the times are those of the machine it runs on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainerCallback

from tuneport.core.data.facts import DatasetFacts, JobData, TokenFacts
from tuneport.core.spec import JobSpec
from tuneport.local_backend.best import BestAdapter
from tuneport.local_backend.chat import Encoded
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.estimate import hardware_of
from tuneport.local_backend.jobdir import JobDir
from tuneport.local_backend.packed_trainer import fast_pass, order
from tuneport.local_backend.trainer import Run, train
from tuneport.local_backend.tuning import adapt
from tuneport.providers.local.compile import compile_plan

ROWS, MEDIAN, SPREAD, LONGEST, KNOWN_TOKENS = 1600, 350, 0.8, 2048, 1000
WARM = 4  # steps before the timed ones
GIB = 2**30


def documents() -> list[Encoded]:
    """Every token carries loss."""
    draw = random.Random(0)
    rows = []
    for _ in range(ROWS):
        length = max(16, min(LONGEST, int(draw.lognormvariate(math.log(MEDIAN), SPREAD))))
        ids = [draw.randrange(KNOWN_TOKENS)]
        while len(ids) < length:
            ids.append((31 * ids[-1] + 7) % KNOWN_TOKENS if draw.random() < 0.8 else int(KNOWN_TOKENS * draw.random() ** 3))
        rows.append(Encoded(ids, list(ids)))
    return rows


def base_model(qlora: bool) -> Any:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    if qlora:
        _quantise(model)
    torch.cuda.empty_cache()
    return model


def _quantise(model: Any) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, old in list(part.named_children()):
                if isinstance(old, torch.nn.Linear):
                    kind: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
                    new = Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta", **kind)
                    new.weight = Params4bit(old.weight.data, requires_grad=False, **kind).to("cuda")
                    setattr(part, name, new)
    model.is_loaded_in_4bit = True


def default_config(steps: int, batch: int | None) -> TrainConfig:
    """What a user gets who names only the model, the data and the method; the run's length and its constant rate are ours."""
    facts = DatasetFacts("train.jsonl", "ab" * 32, "chat", ROWS, TokenFacts(700_000, 800_000, LONGEST, "estimate", False))
    spec = JobSpec.model_validate({"model": {"local": "org/llama-3.1-8b"}, "data": {"train": "train.jsonl"}, "method": "sft"})
    made = compile_plan(spec, JobData(facts, None), hardware=hardware_of("NVIDIA H100 80GB HBM3", 16, None))
    config = TrainConfig.model_validate(made.payload)
    # A constant rate without warm-up means the same to both arms; the two count the steps of a schedule differently.
    changes: dict[str, Any] = {"steps": steps, "epochs": None, "checkpoints": 1, "scheduler": "constant"}
    changes |= {"warmup_ratio": None, "warmup_steps": 0}
    if batch is not None:
        changes |= {"batch_size": batch, "micro_batch_size": batch, "gradient_accumulation": 1}
    return config.model_copy(update=changes)


def same_start(model: Any) -> None:
    """The same first factors in both arms; the second are zero."""
    made = torch.Generator(device="cuda").manual_seed(1)
    with torch.no_grad():
        firsts = {name.split("layers.")[-1]: parameter for name, parameter in model.named_parameters() if "lora_A" in name}
        for _, parameter in sorted(firsts.items()):
            parameter.copy_(torch.randn(parameter.shape, device="cuda", generator=made) / math.sqrt(3 * parameter.shape[1]))


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "x": 2}, unk_token="x"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def report(name: str, arguments: argparse.Namespace, tokens: list[int], seconds: list[float], losses: list[float], **more: Any) -> None:
    """One JSON line. ``seconds`` are the ends of the steps."""
    timed = sum(tokens[WARM:]) / (seconds[-1] - seconds[WARM - 1])
    line = {
        "arm": name,
        **vars(arguments),
        "real_tokens_per_s": round(timed),
        "mfu_4N": round(timed * 4 * 8.03e9 / 989e12, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "tokens_per_step": round(sum(tokens) / len(tokens)),
        "step_seconds": [round(end - start, 3) for start, end in itertools.pairwise(seconds)],
        "losses": [round(loss, 4) for loss in losses],
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        **more,
    }
    print(json.dumps(line), flush=True)


def run_tuneport(arguments: argparse.Namespace) -> None:
    config, rows = default_config(arguments.steps, arguments.batch), documents()
    model = adapt(base_model(arguments.qlora), config.adapter, config.seed)
    same_start(model)
    if arguments.gib:  # the bf16 weights that a 4-bit base was made from needed more
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(arguments.gib * GIB / torch.cuda.get_device_properties(0).total_memory)
    torch.cuda.reset_peak_memory_stats()
    fast = fast_pass(model, config, rows)
    assert not isinstance(fast, str), fast
    print(json.dumps({"batch": config.batch_size, "micro_batch_tokens": fast.room.tokens, "words": fast.room.words()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            config=config, job=JobDir(Path(folder)), folder="", model=model, tokenizer=tokenizer(), device="cuda", train=rows,
            validation=[], checkpointing=False, mixed=False, stops=frozenset(), stopping=lambda: False, progress=lambda *_: None, fast=fast,
        )  # fmt: skip
        train(run, BestAdapter(run.job.best), None)
        events = [event for event in run.job.events() if "loss" in event.metrics]
    lengths = [len(row.input_ids) for row in rows]
    tokens = [sum(lengths[i] for i in step) for step in order(lengths, config)]
    seconds = [event.at.timestamp() for event in events]
    print_, biggest = fast.room.footprint, max(tokens)
    predicted = print_.bytes(min(biggest, fast.room.tokens), fast.room.keep(min(biggest, fast.room.tokens))) / GIB
    losses = [event.metrics["loss"] for event in events]
    report("tuneport", arguments, tokens, seconds, losses, rows_per_step=config.batch_size, pass_gib=round(predicted, 2))


def run_reference(arguments: argparse.Namespace) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    config, rows = default_config(arguments.steps, arguments.batch), documents()
    lengths = [len(row.input_ids) for row in rows]
    steps = order(lengths, config)
    model = base_model(arguments.qlora)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    micro = arguments.micro
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=micro, gradient_accumulation_steps=config.batch_size // micro,
        max_steps=arguments.steps, max_length=LONGEST, bf16=True, gradient_checkpointing=True, logging_steps=1, report_to="none",
        save_strategy="no", learning_rate=config.learning_rate, lr_scheduler_type=config.scheduler, optim="adamw_torch_fused",
        warmup_steps=0, disable_tqdm=True,
    )  # fmt: skip
    adapter = config.adapter
    lora = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    dataset = Dataset.from_list([{"input_ids": rows[i].input_ids} for step in steps for i in step])
    trainer = Trainer(
        model=model, args=settings, train_dataset=dataset, processing_class=tokenizer(), peft_config=lora, callbacks=[Clock()]
    )
    same_start(trainer.model)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report("reference", arguments, [sum(lengths[i] for i in step) for step in steps], ends, losses, rows_per_step=config.batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=["tuneport", "reference"])
    parser.add_argument("--qlora", action="store_true")
    parser.add_argument("--gib", type=float, default=None, help="hold the process to so much GPU memory")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=None, help="rows per step; the default is the plan's")
    parser.add_argument("--micro", type=int, default=4, help="rows of a micro-batch of the reference")
    arguments = parser.parse_args()
    (run_tuneport if arguments.arm == "tuneport" else run_reference)(arguments)


if __name__ == "__main__":
    main()
