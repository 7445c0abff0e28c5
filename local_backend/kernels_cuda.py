"""The functions of ``kernels`` as one GPU kernel each: Triton, which comes with torch, and torch's own FlashAttention."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tuneport.local_backend import kernels

_POINTWISE = 2048
_VOCABULARY = 8192
_BYTES = 1024


@triton.jit
def _rms_norm(x, weight, out, inverse, width, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / width + epsilon)
    factor = tl.load(weight + column, mask=inside, other=0.0)
    unit = (values * scale).to(out.dtype.element_ty)
    tl.store(out + row * width + column, (unit * factor).to(out.dtype.element_ty), mask=inside)
    tl.store(inverse + row, scale)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out, inverse = torch.empty_like(x), torch.empty(rows, device=x.device, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    _rms_norm[(rows,)](x, weight, out, inverse, width, epsilon, BLOCK=block, num_warps=_warps(block))
    return out, inverse


@triton.jit
def _rms_norm_backward(grad, x, inverse, weight, residual, out, width, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    scale = tl.load(inverse + row)
    factor = tl.load(weight + column, mask=inside, other=0.0)
    unit = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale
    scaled = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32) * factor.to(tl.float32)
    result = (scaled - unit * (tl.sum(scaled * unit, 0) / width)) * scale
    if ADD:
        result += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
    tl.store(grad + place, (unit.to(grad.dtype.element_ty) * factor).to(grad.dtype.element_ty), mask=inside)


def rms_norm_backward_(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    rows, width = x.shape
    out, block = torch.empty_like(x), triton.next_power_of_2(width)
    other = grad if residual is None else residual
    _rms_norm_backward[(rows,)](
        grad, x, inverse, weight, other, out, width, ADD=residual is not None, BLOCK=block, num_warps=_warps(block)
    )
    return out


@triton.jit
def _rotate(x, cos, sin, heads, HALF: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK)[:, None]
    place = tl.arange(0, HALF)[None, :]
    cosine, sine = tl.load(cos + token * HALF + place), tl.load(sin + token * HALF + place)
    if BACK:
        sine = -sine
    inside = head < heads
    start = x + (token * heads + head) * (2 * HALF) + place
    first = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(start, (first * cosine - second * sine).to(x.dtype.element_ty), mask=inside)
    tl.store(start + HALF, (second * cosine + first * sine).to(x.dtype.element_ty), mask=inside)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    tokens, heads, width = x.shape
    _rotate[(tokens,)](x, cos, sin, heads, HALF=width // 2, BLOCK=triton.next_power_of_2(heads), BACK=back)


@triton.jit
def _gated(gate, up, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    one = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(up + place, mask=inside, other=0.0)
    active = (one * tl.sigmoid(one)).to(out.dtype.element_ty)
    tl.store(out + place, (active * two).to(out.dtype.element_ty), mask=inside)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(gate)
    _gated[(triton.cdiv(gate.numel(), _POINTWISE),)](gate, up, out, gate.numel(), BLOCK=_POINTWISE, num_warps=8)
    return out


@triton.jit
def _gated_backward(grad, gate, up, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    wide = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    one = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(one)
    active = one * share
    tl.store(gate + place, (wide * two * (share + active * (1 - share))).to(gate.dtype.element_ty), mask=inside)
    tl.store(up + place, (wide * active).to(up.dtype.element_ty), mask=inside)
    tl.store(grad + place, (active * two).to(grad.dtype.element_ty), mask=inside)


def gated_backward_(grad: Tensor, gate: Tensor, up: Tensor) -> None:
    _gated_backward[(triton.cdiv(gate.numel(), _POINTWISE),)](grad, gate, up, gate.numel(), BLOCK=_POINTWISE, num_warps=8)


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(q, k, v, bounds, bounds, longest, longest, 0.0, True, False)
    return result[:4]


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, kept: tuple[Tensor, ...], bounds: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    statistics, state, unused = kept
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, output, statistics, bounds, bounds, longest, longest, 0.0, True, state, unused
    )
    return result


@triton.jit
def _cross_entropy(logits, targets, losses, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * WIDTH
    column = tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    chosen = tl.load(start + target).to(tl.float32)
    highest, total = -float("inf"), 0.0
    for first in range(0, WIDTH, BLOCK):
        values = tl.load(start + first + column, mask=first + column < WIDTH, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(values, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(values - higher), 0)
        highest = higher
    normaliser = highest + tl.log(total)
    tl.store(losses + row, normaliser - chosen)
    tl.debug_barrier()
    for first in range(0, WIDTH, BLOCK):
        place = first + column
        values = tl.load(start + place, mask=place < WIDTH, other=-float("inf")).to(tl.float32)
        share = tl.exp(values - normaliser) - tl.where(place == target, 1.0, 0.0)
        tl.store(start + place, share.to(logits.dtype.element_ty), mask=place < WIDTH)


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    rows, width = logits.shape
    losses = torch.empty(rows, device=logits.device, dtype=torch.float32)
    _cross_entropy[(rows,)](logits, targets, losses, width, BLOCK=min(_VOCABULARY, triton.next_power_of_2(width)), num_warps=16)
    return losses


@triton.jit
def _unpack(packed, scales, groups, levels, scale_levels, offset, out, count, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    byte = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
    block = place // 32  # 64 weights share a scale, two to a byte
    scale = tl.load(scale_levels + tl.load(scales + block, mask=inside, other=0).to(tl.int32))
    scale = scale * tl.load(groups + block // GROUP, mask=inside, other=0.0) + tl.load(offset)
    first = tl.load(levels + (byte >> 4)) * scale
    second = tl.load(levels + (byte & 15)) * scale
    both = tl.interleave(first, second).to(out.dtype.element_ty)
    twice = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(out + twice, both, mask=twice < 2 * count)


def unpack(packed: Tensor, state: Any) -> Tensor:
    if not state.nested or state.blocksize != 64:
        return kernels.unpack(packed, state)
    out = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    scales, inner = state.absmax, state.state2
    _unpack[(triton.cdiv(packed.numel(), _BYTES),)](
        packed, scales, inner.absmax, state.code, inner.code, state.offset, out, packed.numel(), GROUP=inner.blocksize, BLOCK=_BYTES
    )
    return out


def _warps(block: int) -> Any:
    return min(16, max(1, block // 512))
