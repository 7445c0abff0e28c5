"""Training and validation by the packed pass: the same rows make each optimiser step, cut into micro-batches by memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from trl import SFTTrainer

from tuneport.core.errors import ProviderError
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.models import shape_from_config
from tuneport.local_backend.packed import Packed, PackedDecoder, packed_decoder
from tuneport.local_backend.packing import pack, parts
from tuneport.local_backend.planned import Planned
from tuneport.local_backend.room import MARGIN, Keep, Room, choose_room, footprint
from tuneport.local_backend.schedule import batches, total_steps

if TYPE_CHECKING:
    from tuneport.local_backend.chat import Encoded
    from tuneport.local_backend.trainer import Run

STATE_BYTES = 12
"""Of gradient and optimiser for each trained parameter, beside the parameter itself."""
WIDEST_HEAD = 256
"""Of torch's FlashAttention; widths are multiples of 8."""
SHRINK = 0.75
"""What is left of the plan's memory after each time that it ran out."""


@dataclass(frozen=True, slots=True)
class FastPass:
    """The packed pass of one run and the memory that it may take."""

    decoder: PackedDecoder
    room: Room

    def loss(self, batch: Packed, device: str) -> torch.Tensor:
        """Sum of the losses in nats."""
        keep = self.room.keep(batch.tokens) if torch.is_grad_enabled() else Keep(0, 0)
        return self.decoder.loss(batch.to(device), keep)


def order(lengths: Sequence[int], config: TrainConfig) -> list[list[int]]:
    """The rows of each step, by index."""
    steps = total_steps(len(lengths), config.batch_size, config.epochs, config.steps)
    return batches(lengths, config.batch_size, steps, config.seed, alike=False)


def fast_pass(model: Any, config: TrainConfig, rows: Sequence[Encoded], shortages: int = 0) -> FastPass | str:
    """The packed pass of this run on the GPU, or why there is none. ``shortages``: how often memory ran out before."""
    if config.dtype != "bf16":
        return f"the base is in {config.dtype}"
    if torch.version.cuda is None or find_spec("triton") is None:
        return "its kernels need an NVIDIA GPU and triton, which is not installed"
    if torch.cuda.get_device_capability() < (8, 0):
        return "this GPU is older than Ampere, which the attention kernels need"
    decoder = packed_decoder(model)
    if isinstance(decoder, str):
        return decoder
    if decoder.head_width > WIDEST_HEAD or decoder.head_width % 8:
        return f"its attention heads are {decoder.head_width} wide, which the attention kernels do not take"
    lengths = [len(row.input_ids) for row in rows]
    largest = max(sum(lengths[i] for i in step) for step in order(lengths, config))
    print_ = footprint(shape_from_config(model.get_base_model().config.to_dict()), rank=config.adapter.rank or 0, four_bit=decoder.four_bit)
    if print_ is None:
        return "its shape is unknown"
    budget = free_memory() * MARGIN - STATE_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)
    room = choose_room(print_, budget * SHRINK**shortages, max(lengths), largest)
    if room is None:
        needed, there = print_.least(max(lengths)) / 2**30, max(0.0, budget) * SHRINK**shortages / 2**30
        raise ProviderError(
            f"a row of {max(lengths)} tokens needs about {needed:.1f} GiB beside the model, and {there:.1f} GiB are there",
            fix="shorten the rows, use tuning.kind qlora, choose a smaller model or a larger GPU",
        )
    return FastPass(decoder, room)


def free_memory() -> float:
    """Bytes that this process may still allocate on the GPU."""
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_reserved()
    share = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # absent from older versions
    allowed = total * (share() if share else 1.0)
    return float(min(free + held, allowed) - torch.cuda.memory_allocated())


class PackedTrainer(Planned, SFTTrainer):
    """SFTTrainer whose step is a list of micro-batches for the packed pass."""

    def __init__(self, run: Run, fast: FastPass, **settings: Any) -> None:
        self.run = run
        self.fast = fast
        super().__init__(**settings)

    def get_train_dataloader(self) -> Any:
        config, rows = self.run.config, self.run.train
        lengths = [len(row.input_ids) for row in rows]

        def step(indices: list[int]) -> list[Packed]:
            cut = parts([lengths[i] for i in indices], self.fast.room.tokens, config.micro_batch_size)
            return [pack([rows[indices[i]] for i in part]) for part in cut]

        return DataLoader(range(len(rows)), batch_sampler=order(lengths, config), collate_fn=step)

    def training_step(self, _model: Any, inputs: list[Packed], *_: Any, **__: Any) -> torch.Tensor:
        """Gradients of the mean loss over the step's labelled tokens."""
        labelled = sum(len(part.targets) for part in inputs)
        losses = [torch.zeros((), device=self.run.device)]
        for part in (part for part in inputs if len(part.targets)):
            loss = self.fast.loss(part, self.run.device) / labelled
            loss.backward()
            losses.append(loss.detach())
            self.tokens += part.tokens
        return torch.stack(losses).sum()

    def floating_point_ops(self, *_: Any) -> int:
        """Not counted."""
        return 0


def packed_validation_loss(run: Run, fast: FastPass) -> float:
    """Mean loss over all labelled tokens of the validation rows, in nats."""
    lengths = [len(row.input_ids) for row in run.validation]
    total, count = torch.zeros((), device=run.device), 0
    with torch.no_grad():
        for part in parts(lengths, fast.room.tokens, len(lengths)):
            batch = pack([run.validation[i] for i in part])
            if len(batch.targets):
                total += fast.loss(batch, run.device)
                count += len(batch.targets)
    return float(total) / count
