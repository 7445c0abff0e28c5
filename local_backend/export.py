"""The export worker: ``python -m tuneport.local_backend.export SETTINGS.json``. Makes whole models of adapters.

Settings: {"adapter": folder of an adapter or of a fully tuned model, "out": folder, "merge": bool, "gguf": precision or null,
"quantize": "int8", "awq" or null, "job": folder of the job or null, "trust_remote_code": bool}.
The reply goes to stdout as one JSON line: {"files": [...], "notes": [...]} or {"fault", "kind", "fix"}.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneport.core.errors import ProviderError, TuneportError
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.jobdir import JobDir, disk_full, holds_model
from tuneport.local_backend.models import (
    base_of,
    check_base,
    choose_device,
    load_adapter,
    load_model,
    load_tokenizer,
    locate,
    prepare,
    remove_tree,
    require_training_stack,
    stored_precision,
)
from tuneport.local_backend.quantise import Rounding

PROBE = (
    "The quick brown fox jumps over the lazy dog. Dear customer, your order 4711 has left our warehouse.\n"
    'def total(rows):\n    return sum(row["price"] for row in rows)\n'
)
"""Text on which merged and unmerged weights are compared."""
SCRATCH = ".export."
"""Begins the name of the folder in which an export is made; the process follows."""
NOTES = ("README.md", "resolved_config.json")
"""What tells of the tuning, and holds for every form of the result."""
LOST = 0.1
"""Share of what the adapter changed that merging may lose: rounding in bf16 costs well below this."""
NOTHING = 1e-3
"""Divergence in nats per token below which two models count as the same."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the merged model's next-token distributions are from the adapter's, in nats per token; and the base's, to compare."""

    merged: float
    base: float

    @property
    def good(self) -> bool:
        """Did merging keep what was learnt?"""
        return self.merged <= max(NOTHING, LOST * self.base)


def export(
    adapter: Path, out: Path, *, merge: bool, gguf: str | None = None, quantize: Rounding | None = None, job: Path | None = None,
    trust: bool = False,
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Make ``out/merged``, ``out/int8`` or ``out/awq`` (which calibrates on the rows in the ``job``'s folder) and
    ``out/model-<precision>.gguf`` as asked; returns (what was made, notes on it).

    Raises ProviderError for an adapter that cannot be merged, and when the merged weights do not answer as the adapter does.
    """
    require_training_stack()
    made: list[Path] = []
    notes: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{SCRATCH}[0-9]*.*"):
        try:
            os.kill(int(left.name.split(".")[2]), 0)
        except ProcessLookupError:  # it was killed
            remove_tree(left)
        except (PermissionError, ValueError):  # another user's export, or no export's folder at all
            continue
    with tempfile.TemporaryDirectory(dir=out, prefix=f"{SCRATCH}{os.getpid()}.") as scratch:
        whole, agreement = adapter, None
        if not holds_model(adapter):
            whole = Path(scratch) / "merged"
            note, agreement = _merge(adapter, whole, trust)
            notes.append(note)
        if gguf:
            from tuneport.local_backend.gguf_file import write_gguf  # noqa: PLC0415 - imports torch

            target = out / f"model-{gguf}.gguf"
            write_gguf(whole, target, gguf)
            made.append(target)
        if quantize:
            rounded = Path(scratch) / quantize
            notes.append(_quantise(whole, rounded, quantize, job, agreement, trust))
            remove_tree(out / quantize)
            rounded.rename(out / quantize)
            made.append(out / quantize)
        if merge and whole == adapter:
            notes.append(f"{adapter} is a whole model already; there is nothing to merge")
        elif merge:
            remove_tree(out / "merged")
            whole.rename(out / "merged")
            made.append(out / "merged")
    return made, notes


def _merge(adapter: Path, target: Path, trust: bool) -> tuple[str, Agreement]:
    import torch  # noqa: PLC0415

    kind = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    if kind != "LORA":
        what = f"an adapter of type {kind} has no weights that could be merged into the base"
        raise ProviderError(what, fix="serve it beside its base (tuneport serve)", retry="no")
    name = str(base_of(adapter)["model"])
    folder = prepare(locate(name))
    check_base(adapter, folder)
    template = adapter / "chat_template.jinja"
    tokenizer = load_tokenizer(folder, template if template.exists() else None, chats=False, trust=trust)
    precision = stored_precision(folder, trust=trust)
    base = load_model(folder, dtype=precision, device="cpu", training=False, trust=trust)
    ids = _probe(tokenizer, base)
    with torch.inference_mode():
        before = base(ids).logits.float().log_softmax(-1)
    model = load_adapter(base, adapter)
    with torch.inference_mode():
        wanted = model(ids).logits.float().log_softmax(-1)
    merged = model.merge_and_unload(safe_merge=True)
    with torch.inference_mode():
        got = merged(ids).logits.float().log_softmax(-1)
    agreement = Agreement(_divergence(wanted, got), _divergence(wanted, before))
    if not agreement.good:
        raise ProviderError(
            f"merging in {precision} loses too much: {agreement.merged:.2g} nats per token from the adapter's answers, where the "
            f"adapter itself moved {agreement.base:.2g}",
            fix="serve the adapter beside its base (tuneport serve), or train longer",
            retry="no",
        )
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for note in NOTES:
        if (adapter / note).exists():
            shutil.copy(adapter / note, target / note)
    near, far = f"{agreement.merged:.2g}", f"{agreement.base:.2g}"
    return f"merged in {precision}: {near} nats per token from the adapter's answers, which are {far} from the base's", agreement


def _probe(tokenizer: Any, model: Any) -> Any:
    """The text to compare on, as far as the model reads."""
    import torch  # noqa: PLC0415

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return torch.tensor([tokenizer(PROBE)["input_ids"][:limit]])


def _quantise(whole: Path, target: Path, wanted: Rounding, job: Path | None, tuned: Agreement | None, trust: bool) -> str:
    """Write the model rounded and say how far its answers, as they are loaded again, are from the whole model's."""
    import torch  # noqa: PLC0415

    from tuneport.local_backend.quantise import write_awq, write_int8  # noqa: PLC0415

    precision = stored_precision(str(whole), trust=trust)
    tokenizer = load_tokenizer(str(whole), chats=False, trust=trust)

    def answers(model: Any) -> Any:
        with torch.inference_mode():
            return model(ids.to(model.device)).logits.float().log_softmax(-1).cpu()

    device = choose_device("auto") if wanted == "awq" else "cpu"  # calibration is many forward passes
    model = load_model(str(whole), dtype=precision, device=device, training=False, trust=trust)
    ids = _probe(tokenizer, model)
    before = answers(model)
    if wanted == "awq":
        done = write_awq(model, tokenizer, _training_tokens(job, tokenizer, model), whole, target)
    else:
        done = write_int8(model, whole, target)
    del model
    tokenizer.save_pretrained(target)
    for note in NOTES:
        if (whole / note).exists():
            shutil.copy(whole / note, target / note)
    far = _divergence(before, answers(load_model(str(target), dtype=precision, device=device, training=False, trust=trust)))
    said = f"{done.words}: {far:.2g} nats per token from the whole model's answers"
    if tuned is None:
        return said
    lost = f"; that is more than tuning moved them ({tuned.base:.2g}), so measure it before it is used (tuneport evaluate)"
    return said + (lost if far > tuned.base else f", which tuning moved by {tuned.base:.2g}")


def _training_tokens(job: Path | None, tokenizer: Any, model: Any) -> Iterator[list[int]]:
    """The tokens of each training row of the job, as it was trained on. Raises ProviderError when the rows are not here."""
    from tuneport.local_backend.chat import stop_tokens  # noqa: PLC0415 - these import torch
    from tuneport.local_backend.sequences import read_rows  # noqa: PLC0415

    folder = JobDir(job) if job is not None else None
    if folder is None or not folder.rows("train").exists() or not folder.config.exists():
        what = "awq is calibrated on the job's training rows, which do not lie on this machine"
        raise ProviderError(what, fix="int8 needs none: --quantize int8", retry="no")
    config = TrainConfig.read(folder.config)
    for row in read_rows(folder.rows("train"), "train", config, tokenizer, stop_tokens(tokenizer, model.generation_config), None).sequences:
        if hasattr(row, "input_ids"):
            yield row.input_ids
        else:
            yield row.prompt_ids + getattr(row, "chosen_ids", getattr(row, "completion_ids", []))


def _divergence(wanted: Any, got: Any) -> float:
    """Mean Kullback-Leibler divergence of next-token distributions, in nats per token."""
    return max(0.0, float((wanted.exp() * (wanted - got)).sum(-1).mean()))  # rounding can bring it below


def main(arguments: list[str]) -> int:
    """Entry point. stdout carries the reply only: whatever the libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    with out:
        try:
            made, notes = export(
                Path(settings["adapter"]), Path(settings["out"]), merge=settings["merge"], gguf=settings["gguf"],
                quantize=settings["quantize"], job=Path(settings["job"]) if settings["job"] else None, trust=settings["trust_remote_code"],
            )  # fmt: skip
        except TuneportError as error:
            out.write(json.dumps({"fault": error.what, "kind": type(error).__name__, "fix": error.fix}) + "\n")
            return error.exit_code
        except Exception as error:
            if not disk_full(error):
                raise
            fix = "free it, then export again: nothing half-written is kept"
            out.write(json.dumps({"fault": f"the disk that holds {settings['out']} is full", "kind": "ProviderError", "fix": fix}) + "\n")
            return ProviderError.exit_code
        out.write(json.dumps({"files": [str(path) for path in made], "notes": notes}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
