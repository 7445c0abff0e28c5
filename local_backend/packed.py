"""The fast training pass for decoders of the Llama family with LoRA: documents in one row, no padding, gradients by hand.

Documents lie one behind another; attention and positions stay within each, so the loss is that of each document alone. A
decoder layer is two autograd functions, attention and MLP. Each keeps its larger intermediate results for the backward pass,
or computes them again, as memory allows; frozen weights get no gradient; a 4-bit weight is unpacked once per pass and half.
The trained tensors are PEFT's own parameters in fp32; the products use copies of them in the base's precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from tuneport.local_backend import kernels
from tuneport.local_backend.room import FAMILIES, LOGITS_BYTES, Keep


@dataclass(slots=True)
class Packed:
    """Documents in one row. ``targets`` are the tokens to predict, at the positions ``predicting``."""

    input_ids: Tensor
    position_ids: Tensor
    bounds: Tensor  # int32: where each document begins, and the end
    longest: int
    predicting: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def to(self, device: str) -> Packed:
        """On the device, without waiting for it."""
        if device != "cuda":
            return self
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved |= {name: t.pin_memory().to(device, non_blocking=True) for name, t in moved.items() if isinstance(t, Tensor)}
        return Packed(**moved)


@dataclass(slots=True)
class _Pass:
    """What every layer of one pass needs."""

    kernels: ModuleType
    cos: Tensor
    sin: Tensor
    bounds: Tensor
    longest: int


class _Linear:
    """A frozen linear layer with or without a LoRA adapter."""

    def __init__(self, module: Any) -> None:
        adapted = isinstance(module, LoraLayer)
        self.base: Any = module.get_base_layer() if adapted else module
        self.bias: Tensor | None = self.base.bias
        self.rank = 0
        self.parameters: tuple[Tensor, ...] = ()
        if adapted:
            name = module.active_adapters[0]
            self.parameters = (module.lora_A[name].weight, module.lora_B[name].weight)
            self.rank, self.scale = self.parameters[0].shape[0], float(module.scaling[name])
            self.copy_b: Tensor = torch.empty_like(self.parameters[1], dtype=precision(self.base))


def precision(base: Any) -> torch.dtype:
    """The precision in which a linear layer computes."""
    state = getattr(base.weight, "quant_state", None)
    found: torch.dtype = base.weight.dtype if state is None else state.dtype
    return found


class _Weights:
    """The weights of one half of a layer during one pass; those held in 4 bits are unpacked once."""

    def __init__(self, ops: ModuleType) -> None:
        self._ops = ops
        self._unpacked: dict[int, Tensor] = {}

    def of(self, linear: _Linear) -> Tensor:
        weight: Tensor = linear.base.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight
        found = self._unpacked.get(id(linear))
        if found is None:
            found = self._unpacked[id(linear)] = self._ops.unpack(weight.data, state)
        return found

    def forget(self) -> None:
        self._unpacked.clear()


class _Group:
    """Linear layers that read the same input; their adapters' first factors are one matrix."""

    def __init__(self, *modules: Any) -> None:
        self.linears = [_Linear(module) for module in modules]
        first = self.linears[0].base
        rank = sum(linear.rank for linear in self.linears)
        device = first.weight.device
        self.copy_a = torch.empty(rank, first.in_features, device=device, dtype=precision(first))
        self.parameters = tuple(p for linear in self.linears for p in linear.parameters)

    def copies(self) -> list[tuple[Tensor, Tensor]]:
        """(copy, parameter) of every trained tensor."""
        pieces = self.copy_a.split([linear.rank for linear in self.linears])
        found = []
        for linear, piece in zip(self.linears, pieces, strict=True):
            if linear.rank:
                found += [(piece, linear.parameters[0]), (linear.copy_b, linear.parameters[1])]
        return found

    def forward(self, x: Tensor, weights: _Weights) -> tuple[list[Tensor], Tensor]:
        """(outputs, the adapters' inner activations)."""
        inner = x @ self.copy_a.t()
        outputs, start = [], 0
        for linear in self.linears:
            matrix = weights.of(linear).t()
            if linear.rank:  # the small product first: adding the large one to it costs no pass of its own
                output = inner[:, start : start + linear.rank] @ linear.copy_b.t()
                output.addmm_(x, matrix)
                start += linear.rank
            else:
                output = x @ matrix
            outputs.append(output if linear.bias is None else output.add_(linear.bias))
        return outputs, inner

    def input_gradient(self, grads: Sequence[Tensor], weights: _Weights) -> tuple[Tensor, Tensor]:
        """(gradient for the input, gradient for the inner activations)."""
        inner = torch.empty(grads[0].shape[0], self.copy_a.shape[0], device=grads[0].device, dtype=grads[0].dtype)
        start = 0
        for linear, grad in zip(self.linears, grads, strict=True):
            if linear.rank:
                torch.mm(grad, linear.copy_b, out=inner[:, start : start + linear.rank])
                start += linear.rank
        total = inner @ self.copy_a
        for linear, grad in zip(self.linears, grads, strict=True):
            total.addmm_(grad, weights.of(linear))
        return total, inner

    def adapter_gradients(self, x: Tensor, inner: Tensor, grads: Sequence[Tensor], inner_grad: Tensor) -> list[Tensor]:
        """Gradients for ``parameters``."""
        first = (inner_grad.t() @ x).float()
        found, start = [], 0
        for linear, grad in zip(self.linears, grads, strict=True):
            if linear.rank:
                piece = slice(start, start + linear.rank)
                second = (grad.t() @ inner[:, piece]).float().mul_(linear.scale)
                found += [first[piece], second]
                start += linear.rank
        return found


class _Attention:
    """x + attention(norm(x))."""

    def __init__(self, layer: Any) -> None:
        module = layer.self_attn
        self.norm, self.width = layer.input_layernorm, module.head_dim
        self.head_norms: tuple[Any, Any] = (getattr(module, "q_norm", None), getattr(module, "k_norm", None))
        self.qkv = _Group(module.q_proj, module.k_proj, module.v_proj)
        self.out = _Group(module.o_proj)
        self.groups = (self.qkv, self.out)
        self.parameters = self.qkv.parameters + self.out.parameters

    def start(self, x: Tensor, at: _Pass, weights: _Weights) -> tuple[Tensor, ...]:
        normed, inverse = at.kernels.rms_norm(x, self.norm.weight, self.norm.variance_epsilon)
        (q, k, v), inner = self.qkv.forward(normed, weights)
        extra: list[Tensor] = []
        if self.head_norms[0] is not None:  # rotated queries and keys are made again from these in the backward pass
            extra = [q, k]
        one, two, _ = self._rotated(q, k, at)
        three = v.view(-1, v.shape[1] // self.width, self.width)
        attended, *kept = at.kernels.attend(one, two, three, at.bounds, at.longest)
        flat = attended.view(len(attended), -1)
        return inverse, inner, *(extra or (q, k)), v, flat, *kept

    def _rotated(self, q: Tensor, k: Tensor, at: _Pass) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Queries and keys by heads with their positions, in place unless heads are normalised; and the norms' statistics."""
        inverses, found = [], []
        for x, norm in zip((q, k), self.head_norms, strict=True):
            if norm is not None:
                x, inverse = at.kernels.rms_norm(x.view(-1, self.width), norm.weight, norm.variance_epsilon)  # noqa: PLW2901
                inverses.append(inverse)
            heads = x.view(len(q), -1, self.width)
            at.kernels.rotate_(heads, at.cos, at.sin)
            found.append(heads)
        return found[0], found[1], inverses

    def finish(self, x: Tensor, kept: Sequence[Tensor], at: _Pass, weights: _Weights) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        attended = kept[5]
        (output,), inner = self.out.forward(attended, weights)
        return output.add_(x), inner

    def backward(
        self, grad: Tensor, x: Tensor, kept: Sequence[Tensor], out_inner: Tensor, at: _Pass, weights: _Weights
    ) -> tuple[Tensor, list[Tensor]]:
        inverse, inner, q, k, v, attended, *statistics = kept
        attended_grad, inner_grad = self.out.input_gradient([grad], weights)
        adapters = self.out.adapter_gradients(attended, out_inner, [grad], inner_grad)

        def heads(tensor: Tensor) -> Tensor:
            return tensor.view(len(tensor), -1, self.width)

        inverses: list[Tensor] = []
        one, two = heads(q), heads(k)
        if self.head_norms[0] is not None:
            one, two, inverses = self._rotated(q, k, at)
        grads = list(
            at.kernels.attend_backward(
                heads(attended_grad), one, two, heads(v), heads(attended), tuple(statistics), at.bounds, at.longest
            )
        )
        for i, raw in enumerate((q, k)):
            at.kernels.rotate_(grads[i], at.cos, at.sin, back=True)
            if inverses:
                flat, norm = raw.view(-1, self.width), self.head_norms[i]
                grads[i] = at.kernels.rms_norm_backward_(grads[i].view(-1, self.width), flat, inverses[i], norm.weight, None)
        flat_grads = [tensor.view(len(x), -1) for tensor in grads]
        normed, inner_grad = self.qkv.input_gradient(flat_grads, weights)
        x_grad = at.kernels.rms_norm_backward_(normed, x, inverse, self.norm.weight, grad)
        return x_grad, self.qkv.adapter_gradients(normed, inner, flat_grads, inner_grad) + adapters


class _Mlp:
    """x + down(silu(gate(n)) * up(n)) with n = norm(x)."""

    def __init__(self, layer: Any) -> None:
        self.norm = layer.post_attention_layernorm
        self.gate_up = _Group(layer.mlp.gate_proj, layer.mlp.up_proj)
        self.down = _Group(layer.mlp.down_proj)
        self.groups = (self.gate_up, self.down)
        self.parameters = self.gate_up.parameters + self.down.parameters

    def start(self, x: Tensor, at: _Pass, weights: _Weights) -> tuple[Tensor, ...]:
        normed, inverse = at.kernels.rms_norm(x, self.norm.weight, self.norm.variance_epsilon)
        (gate, up), inner = self.gate_up.forward(normed, weights)
        return inverse, inner, gate, up

    def finish(self, x: Tensor, kept: Sequence[Tensor], at: _Pass, weights: _Weights) -> tuple[Tensor, Tensor]:
        (output,), inner = self.down.forward(at.kernels.gated(kept[2], kept[3]), weights)
        return output.add_(x), inner

    def backward(
        self, grad: Tensor, x: Tensor, kept: Sequence[Tensor], out_inner: Tensor, at: _Pass, weights: _Weights
    ) -> tuple[Tensor, list[Tensor]]:
        inverse, inner, gate, up = kept
        middle, inner_grad = self.down.input_gradient([grad], weights)
        at.kernels.gated_backward_(middle, gate, up)
        adapters = self.down.adapter_gradients(middle, out_inner, [grad], inner_grad)
        del middle
        normed, inner_grad = self.gate_up.input_gradient([gate, up], weights)
        x_grad = at.kernels.rms_norm_backward_(normed, x, inverse, self.norm.weight, grad)
        return x_grad, self.gate_up.adapter_gradients(normed, inner, [gate, up], inner_grad) + adapters


class _Half(torch.autograd.Function):
    """One half of a layer. Its backward pass overwrites what was kept, so it runs once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Any, at: _Pass, keep: bool, *_: Tensor) -> Tensor:
        weights = _Weights(at.kernels)
        kept = half.start(x, at, weights)
        weights.forget()
        output: Tensor
        output, inner = half.finish(x, kept, at, weights)
        ctx.half, ctx.at = half, at
        ctx.save_for_backward(x, inner, *(kept if keep else ()))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, *kept = ctx.saved_tensors
        weights = _Weights(ctx.at.kernels)
        x_grad, grads = ctx.half.backward(grad, x, kept or ctx.half.start(x, ctx.at, weights), inner, ctx.at, weights)
        return x_grad, None, None, None, *grads


class _Head(torch.autograd.Function):
    """Sum of the losses at the predicting positions: last norm, vocabulary, cross-entropy; the logits a piece at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Any, norm: Any, batch: Packed, ops: ModuleType) -> Tensor:
        rows = x.index_select(0, batch.predicting)
        normed, inverse = ops.rms_norm(rows, norm.weight, norm.variance_epsilon)
        learning = ctx.needs_input_grad[0]
        total = torch.zeros((), device=x.device, dtype=torch.float32)
        piece = max(1, LOGITS_BYTES // (head.weight.shape[0] * x.element_size()))
        for start in range(0, len(rows), piece):
            part = normed[start : start + piece]
            logits = part @ head.weight.t()
            if head.bias is not None:
                logits += head.bias
            total += ops.cross_entropy_(logits, batch.targets[start : start + piece]).sum()
            if learning:
                torch.mm(logits, head.weight, out=part)  # the norm's output is not needed any more
        if learning:
            grads = ops.rms_norm_backward_(normed, rows, inverse, norm.weight, None)
            ctx.save_for_backward(torch.zeros_like(x).index_copy_(0, batch.predicting, grads))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (x_grad,) = ctx.saved_tensors
        return x_grad.mul_(grad), None, None, None, None


@dataclass(slots=True)
class PackedDecoder:
    """The fast pass of one model. Made by ``packed_decoder``."""

    model: Any  # the adapted model; its base is a causal language model
    halves: list[tuple[_Attention, _Mlp]]
    _copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _scaled: list[tuple[Tensor, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        groups = [group for pair in self.halves for half in pair for group in half.groups]
        self._copies = [pair for group in groups for pair in group.copies()]
        self._scaled = [(linear.copy_b, linear.scale) for group in groups for linear in group.linears if linear.rank]

    @property
    def four_bit(self) -> bool:
        """Are base weights held in 4 bits?"""
        return any(hasattr(linear.base.weight, "quant_state") for pair in self.halves for g in pair[0].groups for linear in g.linears)

    @property
    def head_width(self) -> int:
        """Numbers in each query of a head."""
        return int(self.halves[0][0].width)

    def loss(self, batch: Packed, keep: Keep) -> Tensor:
        """Sum of the losses in nats; may be differentiated once."""
        self._refresh()
        base = self.model.get_base_model()
        inner = base.model
        ops = _kernels(batch.input_ids.device)
        x = inner.embed_tokens(batch.input_ids)
        angles = torch.empty(0, device=x.device, dtype=torch.float32)  # asks for cosines and sines in fp32
        cos, sin = inner.rotary_emb(angles, batch.position_ids[None])
        half = cos.shape[-1] // 2
        at = _Pass(ops, cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous(), batch.bounds, batch.longest)
        for i, (attention, mlp) in enumerate(self.halves):
            x = _Half.apply(x, attention, at, i < keep.attention, *attention.parameters)
            x = _Half.apply(x, mlp, at, i < keep.mlp, *mlp.parameters)
        total: Tensor = _Head.apply(x, base.lm_head, inner.norm, batch, ops)
        return total

    @torch.no_grad()
    def _refresh(self) -> None:
        """The copies that the products use, from the trained parameters."""
        torch._foreach_copy_([copy for copy, _ in self._copies], [parameter for _, parameter in self._copies])
        torch._foreach_mul_([copy for copy, _ in self._scaled], [scale for _, scale in self._scaled])


def _kernels(device: torch.device) -> ModuleType:
    if device.type != "cuda":
        return kernels
    from tuneport.local_backend import kernels_cuda  # noqa: PLC0415 - needs triton

    return kernels_cuda


def packed_decoder(model: Any) -> PackedDecoder | str:
    """The fast pass of an adapted model, or why it has none."""
    base = model.get_base_model()
    name = type(base).__name__
    if name not in FAMILIES:
        return f"{name} is not of the Llama family"
    config = base.config
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if getattr(config, "attention_dropout", 0):
        return "its attention has dropout"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()) or _sliding(config):
        return "it uses sliding windows"
    trained = [name for name, p in model.named_parameters() if p.requires_grad and not ("lora_A" in name or "lora_B" in name)]
    if trained:
        return f"{trained[0]} is trained beside the LoRA adapters"
    layers = base.model.layers
    linear = {id(m) for layer in layers for m in layer.modules() if isinstance(m, LoraLayer)}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and (id(module) not in linear or not _plain(module)):
            return f"the adapter of {path} has dropout, a variant or a bias, or lies outside the layers"
    return PackedDecoder(model, [(_Attention(layer), _Mlp(layer)) for layer in layers])


def _sliding(config: Any) -> bool:
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def _plain(module: Any) -> bool:
    """A LoRA layer on a frozen linear base that is scale * B A and nothing else."""
    names = list(module.active_adapters)
    base = module.get_base_layer()
    return (
        (type(base) is nn.Linear or type(base).__name__ == "Linear4bit")
        and not base.weight.requires_grad
        and len(names) == 1
        and names[0] in module.lora_A
        and not module.merged
        and not getattr(module, "fan_in_fan_out", False)
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
        and not module.lora_variant
        and module.lora_A[names[0]].bias is None
        and module.lora_B[names[0]].bias is None
    )
