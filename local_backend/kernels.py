"""The steps of a decoder layer between its matrix products, forward and backward, in plain torch.

They define what ``kernels_cuda`` computes in one pass over memory each, under the same names. Underscore: writes into its arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(weight * x / rms(x), 1 / rms(x)) over the last dimension of a matrix; the quotient in fp32, as transformers does."""
    inverse = torch.rsqrt(x.float().pow(2).mean(-1) + epsilon)
    return weight * (x.float() * inverse[:, None]).to(x.dtype), inverse


def rms_norm_backward_(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    """Gradient for x, plus ``residual``. ``grad`` is replaced by the norm's output, which the layer behind needs again."""
    scaled = (grad * weight).float()
    unit = x.float() * inverse[:, None]
    result = (scaled - unit * (scaled * unit).mean(-1, keepdim=True)) * inverse[:, None]
    grad.copy_(weight * unit.to(x.dtype))
    return (result if residual is None else result + residual).to(x.dtype)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    """Rotary position embedding of (tokens, heads, width) by (tokens, width / 2) angles; ``back`` rotates the other way."""
    half = x.shape[-1] // 2
    cosine, sine = cos[:, None], -sin[:, None] if back else sin[:, None]
    first, second = x[..., :half].float(), x[..., half:].float()
    x.copy_(torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return silu(gate) * up


def gated_backward_(grad: Tensor, gate: Tensor, up: Tensor) -> None:
    """Replaces gate and up by their gradients, and ``grad`` by silu(gate) * up."""
    share = torch.sigmoid(gate.float())
    wide, active = grad.float(), gate.float() * share
    output = active * up.float()
    gate_grad = wide * up.float() * (share + active * (1 - share))
    up.copy_(wide * active)
    gate.copy_(gate_grad)
    grad.copy_(output)


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> tuple[Tensor, ...]:  # noqa: ARG001 - as in kernels_cuda
    """(output, what the backward pass needs). Causal attention within each document: tokens bounds[i] to bounds[i + 1].

    q is (tokens, heads, width); k and v may have fewer heads. ``longest``: tokens of the longest document.
    """
    return _attend(q, k, v, bounds), q.new_empty(0)


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,  # noqa: ARG001
    kept: tuple[Tensor, ...],  # noqa: ARG001
    bounds: Tensor,
    longest: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for q, k and v."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        result = _attend(inputs[0], inputs[1], inputs[2], bounds)
    one, two, three = torch.autograd.grad(result, inputs, grad)
    return one, two, three


def _attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    position = torch.arange(q.shape[0], device=q.device)
    document = torch.bucketize(position, bounds[1:], right=True)
    visible = (document[:, None] == document[None, :]) & (position[:, None] >= position[None, :])
    one, two, three = (x.transpose(0, 1)[None] for x in (q, k, v))
    result = scaled_dot_product_attention(one, two, three, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1])
    return result[0].transpose(0, 1).contiguous()


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each row in nats, fp32. The logits are replaced by the gradient of the losses' sum."""
    wide = logits.float()
    normaliser = torch.logsumexp(wide, -1)
    losses = normaliser - wide.gather(1, targets[:, None])[:, 0]
    wide.sub_(normaliser[:, None]).exp_()
    wide[torch.arange(len(targets), device=targets.device), targets] -= 1
    logits.copy_(wide)
    return losses


def unpack(packed: Tensor, state: Any) -> Tensor:
    """The matrix that bitsandbytes holds in 4 bits; ``state`` says how."""
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 - only for quantised bases

    unpacked: Tensor = dequantize_4bit(packed, state)
    return unpacked
