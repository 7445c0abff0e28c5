"""The training worker: ``python -m tuneport.local_backend.train JOBDIR``, a process of its own that outlives its starter.

It holds the job's lock while it lives, writes state and events, and ends as succeeded, failed or cancelled. Killed at any
moment, the next worker goes on from the last whole checkpoint and reaches the same losses. Asked to cancel or
pause, or told so by SIGTERM, it finishes the step in hand, saves a checkpoint and ends.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.core.errors import DataError, ProviderError, TuneportError, UsageError
from tuneport.core.secrets import redact
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.jobdir import JobDir, WorkerState, disk_full
from tuneport.local_backend.libraries import loading, not_needed
from tuneport.local_backend.models import (
    base_fingerprint,
    check_base,
    check_vocabulary,
    choose_device,
    load_model,
    load_tokenizer,
    locate,
    prepare,
    require_training_stack,
)
from tuneport.local_backend.process import ATTEMPT_VARIABLE, LOCK_VARIABLE
from tuneport.local_backend.turns import Place, gpu_name, leave, take_turn

if TYPE_CHECKING:
    from tuneport.local_backend.packed_trainer import FastPass
    from tuneport.local_backend.trainer import Run

STATE_PAUSE = 0.5
"""Seconds between two writes of the state at least, so that fast steps do not wait for the disk."""


class _Stopped(BaseException):
    """The user, or the system by SIGTERM, ended the run early. No Exception: libraries catch those, and go on or say what is not true."""


class Worker:
    """One attempt at one job."""

    def __init__(self, job: JobDir, *, alone: bool = False) -> None:
        """``alone``: the process is this worker's own, and may load what this job needs only."""
        self.job = job
        self._alone = alone
        self._terminated = False
        self._interruptible = False
        self._state = WorkerState("preparing", attempt=int(os.environ.pop(ATTEMPT_VARIABLE, "1")))
        self._written = 0.0
        self._turn: int | None = None  # holds the GPU
        self._shortages = 0  # times that memory ran out

    def terminate(self, *_: Any) -> None:
        """The SIGTERM handler: ends loading at once, and training after the step in hand."""
        self._terminated = True
        if self._interruptible:
            self._interruptible = False
            raise _Stopped

    def stopping(self) -> bool:
        """Must the run end early?"""
        return self._terminated or self.job.asked() is not None

    def run(self) -> int:
        """Do the whole job; the exit status is 0 when it succeeded or was cancelled."""
        signal.signal(signal.SIGTERM, self.terminate)
        self.job.mend_events()
        try:
            if self.job.finished():
                told = self.job.state() or self._state
                done = "the adapter was there already; nothing was trained again"
                self._state = replace(told, attempt=self._state.attempt, message=done)
            else:
                self._set("preparing", "loading the training libraries")
                self._work()
        except _Stopped:
            return self._end(*self._stopped())
        except TuneportError as error:
            return self._end("failed", str(error))
        except Exception as error:  # noqa: BLE001 - the process ends here; whatever it was must reach the job's state and log
            traceback.print_exc()
            return self._end("failed", self._explain(error))
        return self._end("succeeded", self._state.message)

    # -- the phases ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        config = TrainConfig.read(self.job.config)
        require_training_stack()
        self._load_libraries(config)
        while True:
            try:
                self._attempt(config)
            except Exception as error:
                smaller = _smaller(config)
                if smaller is None or not _out_of_memory(error):
                    raise
            else:
                return
            config = smaller  # outside the handler, which would keep the failed attempt's memory
            _release_memory()
            self._shortages += 1
            rows = f"{config.micro_batch_size} row{'s' if config.micro_batch_size > 1 else ''}"
            message = f"out of memory; going on with micro-batches of at most {rows}, the same {config.batch_size} rows per step"
            self._note(message, level="warning")

    def _load_libraries(self, config: TrainConfig) -> None:
        self._interruptible = True
        self._stop_if_asked()
        with loading(not_needed(config)) if self._alone else nullcontext():
            from tuneport.local_backend import card, checkpoint, methods  # noqa: F401, PLC0415 - these import torch and its kin
        _quieten()

    def _attempt(self, config: TrainConfig) -> None:
        """From the last checkpoint, if there is one, to the finished adapter."""
        self.job.remove_partial()
        self._interruptible = True
        self._stop_if_asked()
        run = self._prepare(config)
        self._interruptible = False
        from tuneport.local_backend.best import BestAdapter  # noqa: PLC0415 - these import torch
        from tuneport.local_backend.card import save_result  # noqa: PLC0415
        from tuneport.local_backend.checkpoint import check_checkpoint, history_of  # noqa: PLC0415
        from tuneport.local_backend.methods import train  # noqa: PLC0415
        from tuneport.local_backend.story import ended_by  # noqa: PLC0415
        from tuneport.local_backend.tracking import tracked  # noqa: PLC0415

        found = self.job.last_checkpoint()
        step, checkpoint = found or (0, None)
        stopped = ""
        if found:
            check_checkpoint(found[1])
            stopped = ended_by(config, history_of(found[1]))
            self._note(f"resumed from the checkpoint at step {step} of {run.steps}")
        else:
            message = f"training {run.steps} steps of {config.batch_size} rows by {config.method} on {run.device}"
            self._note(message, metrics={"sequences": float(len(run.train))})
        self._set("training", "", step=step, total_steps=run.steps)
        best = BestAdapter(self.job.best)
        if step < run.steps and not stopped:  # one that was cut off between its last step and its result trains no further
            with tracked(config, self.job, step):
                stopped = train(run, best, checkpoint)
                if self._state.phase == "stopping":
                    raise _Stopped  # in here: a tracker is not to hear that all went well
        if stopped:
            self._note(f"stopped early: {stopped}")
        self._set("saving", "writing the result", step=self._state.step, seconds_left=None)
        summary = save_result(run, best)
        self._set("saving", summary)
        self._note(summary)

    def _prepare(self, config: TrainConfig) -> Run:
        from tuneport.local_backend.card import versions  # noqa: PLC0415 - these import torch
        from tuneport.local_backend.chat import stop_tokens  # noqa: PLC0415
        from tuneport.local_backend.decode import check_virtual  # noqa: PLC0415
        from tuneport.local_backend.methods import SUPERVISED  # noqa: PLC0415
        from tuneport.local_backend.sequences import longest_row, read_rows  # noqa: PLC0415
        from tuneport.local_backend.trainer import Run  # noqa: PLC0415

        self._set("preparing", f"loading {config.model}")
        device = choose_device(config.device)
        gpu = gpu_name(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if device == "cuda":
            self._wait_for(gpu)
            _hold_memory(config.gpu_memory_gib)
        else:
            leave(gpu, self.job)
        source = locate(config.model)
        self._stop_if_asked()
        folder = prepare(source)
        template = self.job.chat_template if self.job.chat_template.exists() else None
        tokenizer = load_tokenizer(folder, template, chats=config.method != "cpt", trust=config.trust_remote_code)
        if tokenizer.pad_token_id is None and config.method not in SUPERVISED:  # nor an end token, which would serve
            what = f"the tokenizer of {folder} has neither a padding nor an end token, and {config.method} needs one"
            raise ProviderError(what, fix="name the one that it has in its tokenizer_config.json (pad_token)", retry="no")
        full = config.adapter.kind == "full"
        # Full tuning learns in fp32 weights: steps of a usual learning rate vanish in the rounding of bf16.
        dtype = "fp32" if full else config.dtype
        four_bit, trust = config.adapter.kind == "qlora", config.trust_remote_code
        model = load_model(folder, dtype=dtype, device=device, training=True, four_bit=four_bit, trust=trust)
        check_vocabulary(tokenizer, model)
        if config.adapter.virtual_tokens:
            check_virtual(model)
        self._stop_if_asked()
        today = {"the date in the chat template": str(date.today())} if "strftime_now" in str(tokenizer.chat_template) else {}
        self._compare(folder, versions() | today | {"the device": device})
        self._set("preparing", "tokenizing the rows")
        stops = stop_tokens(tokenizer, model.generation_config)
        limit = longest_row(config, getattr(model.config.get_text_config(), "max_position_embeddings", None))
        if config.method == "cpt" and limit is not None and limit < (config.max_seq_length or 0):
            self._note(f"documents are cut into pieces of {limit} tokens, the most that the model reads", level="warning")
        rows: dict[str, list[Any]] = {}
        for role in ("train", "validation"):
            read = read_rows(self.job.rows(role), role, config, tokenizer, stops, limit)
            rows[role] = read.sequences
            for level, message in read.notes:
                self._note(message, level=level)
        rows["train"] = _share(rows["train"], config.train_share, config.seed)
        if not rows["train"]:
            raise DataError("the job has no training rows", fix="check data.train")
        if config.method in SUPERVISED or config.parent:
            model = self._adapted(model, config, folder)
        packs = config.method in SUPERVISED and device == "cuda" and config.adapter.low_rank
        fast = self._fast_pass(model, config, rows["train"]) if packs else None
        return Run(
            config=config,
            job=self.job,
            model=model,
            folder=folder,
            tokenizer=tokenizer,
            stops=stops,
            device=device,
            train=rows["train"],
            validation=rows["validation"],
            checkpointing=fast is None and _needs_checkpointing(device, model, config, rows["train"]),
            mixed=full and config.dtype == "bf16",
            stopping=self.stopping,
            progress=self._progress,
            fast=fast,
        )

    def _compare(self, folder: str, settings: dict[str, str]) -> None:
        """With what the checkpoints that are there were made with. Raises ProviderError when the base is another by now."""
        now = {"base": base_fingerprint(folder), "settings": settings}
        before = self.job.beginning() if self.job.whole_checkpoints() else None
        if before is None:
            self.job.set_beginning(now)
            return
        if before["base"] != now["base"]:
            what = f"the weights in {folder} have changed since the run began"
            raise ProviderError(what, fix="put the earlier ones back, or submit anew", retry="no")
        was = before["settings"]
        changed = [f"{name} was {was.get(name)} and is {settings.get(name)}" for name in {**was, **settings}
                   if was.get(name) != settings.get(name)]  # fmt: skip
        if changed:
            self._note(f"the losses may differ from those of a run that was never cut off: {', '.join(changed)}", level="warning")

    def _fast_pass(self, model: Any, config: TrainConfig, rows: list[Any]) -> FastPass | None:
        """The packed pass where it exists; the job's story says which pass it is, and why."""
        from tuneport.local_backend.packed_trainer import fast_pass  # noqa: PLC0415 - imports torch

        fast = fast_pass(model, config, rows, self._shortages)
        if isinstance(fast, str):
            self._note(f"rows are padded, not packed: {fast}")
            return None
        self._note(f"rows are packed into micro-batches of up to {fast.room.tokens:,} tokens; {fast.room.words()}")
        return fast

    def _wait_for(self, device: str) -> None:
        """Stand in line for the device; it is held until the worker ends."""
        told: Place | None = None

        def waiting(place: Place) -> None:
            nonlocal told
            self._stop_if_asked()
            if place != told:
                told = place
                self._note(f"queued: {place.words()}", metrics={"place": float(place.number)})
                self._set("queued", place.words())

        if self._turn is None:
            self._turn = take_turn(device, self.job, waiting)

    def _adapted(self, model: Any, config: TrainConfig, folder: str) -> Any:
        from tuneport.local_backend.lora import speed_up  # noqa: PLC0415 - these import torch
        from tuneport.local_backend.methods import SUPERVISED  # noqa: PLC0415
        from tuneport.local_backend.norm import speed_up_norms  # noqa: PLC0415
        from tuneport.local_backend.tuning import adapt  # noqa: PLC0415

        parent = self.job.parent if config.parent else None
        if parent is not None:
            check_base(parent, folder)
        model = adapt(model, config.adapter, config.seed, parent)
        fused = speed_up(model) + speed_up_norms(model) if config.method in SUPERVISED else 0
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        start = f", trained further from {config.parent.path}" if config.parent else ""
        self._note(f"{trainable:,} trainable parameters ({config.adapter.kind}{start}); {fused} fused layers")
        return model

    # -- what the others see -------------------------------------------------------------------------------------------

    def _progress(self, step: int, of: int, seconds_left: float | None) -> None:
        phase = "stopping" if self.stopping() and step < of else "training"
        self._state = replace(self._state, phase=phase, step=step, total_steps=of, seconds_left=seconds_left, message="")
        if time.monotonic() - self._written >= STATE_PAUSE or step == of:
            self._write()

    def _set(self, phase: str, message: str, **changes: Any) -> None:
        self._state = replace(self._state, phase=phase, message=message, **changes)
        self._write()

    def _write(self) -> None:
        self.job.set_state(self._state)
        self._written = time.monotonic()

    def _note(self, message: str, level: str = "info", metrics: dict[str, float] | None = None) -> None:
        self.job.add_event(message, level=level, metrics=metrics)

    def _end(self, phase: str, message: str) -> int:
        message = redact(message)
        with suppress(OSError):
            self.job.remove_partial()  # first, since it makes room for the last words on a full disk
            self._note(f"{phase}: {message}" if message else phase, level="error" if phase == "failed" else "info")
        self._state = replace(self._state, phase=phase, message=message, seconds_left=None)
        self.job.set_state(self._state, last=True)
        return 1 if phase == "failed" else 0

    def _stop_if_asked(self) -> None:
        if self.stopping():
            raise _Stopped

    def _stopped(self) -> tuple[str, str]:
        """(phase, message) of a run that ended early."""
        found = self.job.last_checkpoint()
        where = f"the last checkpoint is of step {found[0]}" if found else "before any checkpoint"
        if self.job.asked() == "cancel":
            return "cancelled", f"cancelled by the user; {where}"
        return "paused", f"{'paused by the user' if self.job.asked() else 'stopped by SIGTERM'}; {where}; go on with: tuneport resume"

    def _explain(self, error: Exception) -> str:
        """One sentence for the job's state. Memory is the usual reason, and has a remedy."""
        text = str(error)
        if _out_of_memory(error):
            return (
                "out of memory; raise training.gradient_accumulation (smaller micro-batches, same result), shorten the rows, "
                "lower tuning.rank, or choose a smaller model"
            )
        if disk_full(error):
            return f"the disk is full ({self.job.path}); free it, then resume: nothing half-written is kept"
        if isinstance(error, OSError) and error.errno is not None:
            return f"{error.strerror or text} ({error.filename or self.job.path}); free the disk or mend the permission, then resume"
        first = text.strip().splitlines()
        return f"{type(error).__name__}: {first[0] if first else 'no message'}; the whole story is in {self.job.log}"


def _out_of_memory(error: Exception) -> bool:
    """Did memory run out, on the GPU or off it?"""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _smaller(config: TrainConfig) -> TrainConfig | None:
    """The same run in micro-batches of half the rows or fewer; None when they hold one row."""
    size = config.micro_batch_size
    fewest = 2 if config.method == "kto" else 1  # kto compares rows of a micro-batch with each other
    rows = next((n for n in range(size // 2, fewest - 1, -1) if config.batch_size % n == 0), None)
    if rows is None:
        return None
    return config.model_copy(update={"micro_batch_size": rows, "gradient_accumulation": config.batch_size // rows})


def _share(rows: list[Any], share: float, seed: int) -> list[Any]:
    """A random share of the rows, in their order; a smaller share of the same seed is part of a larger one."""
    if share >= 1:
        return rows
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311 - reproducible choice, not secrecy
    return [rows[i] for i in sorted(order[: max(1, round(len(rows) * share))])]


def _hold_memory(gib: float | None) -> None:
    """Let this process allocate at most so much on the GPU."""
    import torch  # noqa: PLC0415

    if gib is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / torch.cuda.get_device_properties(0).total_memory))


def _release_memory() -> None:
    import torch  # noqa: PLC0415

    gc.collect()
    torch.cuda.empty_cache()  # nothing happens without a GPU


def _quieten() -> None:
    """The log keeps the libraries' warnings, not their progress bars."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    from datasets import disable_progress_bars  # noqa: PLC0415

    disable_progress_bars()


def _needs_checkpointing(device: str, model: Any, config: TrainConfig, rows: list[Any]) -> bool:
    """Would activations without recomputation crowd the GPU? By the component model of ``estimate``."""
    from tuneport.local_backend.estimate import memory_bytes  # noqa: PLC0415
    from tuneport.local_backend.fit import padded, recomputes  # noqa: PLC0415
    from tuneport.local_backend.models import shape_from_config  # noqa: PLC0415
    from tuneport.local_backend.packed_trainer import free_memory  # noqa: PLC0415

    if device == "cpu" or not recomputes(config):
        return False
    try:
        shape = shape_from_config(model.config.to_dict())
    except (KeyError, TypeError, ValueError):  # a model of another build
        return True
    need = memory_bytes(padded(config, shape, _learning(model, config), max(row.tokens for row in rows), loaded=True))
    return need is None or need.high > free_memory()


def _learning(model: Any, config: TrainConfig) -> int:
    """Parameters that will learn. An adapter that the trainer will add is taken for one on all linear layers, the most it can be."""
    from torch.nn import Linear  # noqa: PLC0415

    from tuneport.local_backend.methods import SUPERVISED  # noqa: PLC0415

    if config.method in SUPERVISED or config.parent:
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
    if config.adapter.kind == "full":
        return sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and layer is not head]
    return int(sum(layer.in_features + layer.out_features for layer in layers)) * (config.adapter.rank or 0)


def main(arguments: list[str]) -> int:
    """Entry point. Raises ProviderError when another worker holds the job."""
    if len(arguments) != 1:
        raise UsageError("the worker takes one argument, the job's folder", fix="start it through LocalProvider")
    job = JobDir(Path(arguments[0]))
    inherited = os.environ.pop(LOCK_VARIABLE, None)
    lock = int(inherited) if inherited is not None else job.take_lock()
    if lock is None:
        raise ProviderError(f"another worker holds {job.path}", fix="wait for it, or cancel it")
    os.set_inheritable(lock, False)
    try:
        return Worker(job, alone=True).run()
    finally:
        os.close(lock)  # before the interpreter winds down, which takes a while with torch


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except TuneportError as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)
