"""A frozen linear layer together with its adapters as one operation, for training on a GPU.

Written down as separate operations, an adapter costs more in passes over activations and in kernel
launches than in arithmetic: its sum with the layer's output, the sum of two gradients of the
input, four casts of the factors. As one operation both sums happen inside matrix products, and the
factors' gradients come out in float32 unrounded. A compiler sees it as a whole and leaves it so.

Several adapters share the layer's own product: the rows of a batch are divided among them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Stack(NamedTuple):
    """The factors of G adapters of one layer, in its dtype, narrower ones filled up with zeros."""

    down: torch.Tensor
    """``[G, r, in]``."""
    up: torch.Tensor
    """``[G, out, r]``, times each adapter's scale."""
    scales: tuple[float, ...]
    """What each adapter's product is multiplied by."""


def fused(
    x: torch.Tensor,
    layer: nn.Linear,
    stack: Stack,
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Return W x + b + s_g B_g A_g x, ``[N, ..., out]``, for an input ``[N, ..., in]``.

    Args:
        x: in the layer's dtype; its N rows are divided evenly among the G adapters, in order.
        layer: the frozen layer.
        stack: the factors that are computed with.
        downs: A of each adapter ``[r, in]``; they only receive gradients.
        ups: B of each adapter ``[out, r]``, likewise.
    """
    y: torch.Tensor = _forward(
        x, layer.weight, layer.bias, list(downs), list(ups), stack.down, stack.up, stack.scales
    )[0]
    return y


@torch.library.custom_op("lorasmith::adapted_linear", mutates_args=())
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output, and A_g x ``[G, T, r]``."""
    flat = x.flatten(0, -2)
    y = F.linear(flat, weight, bias)
    inner = _product(_grouped(flat, len(down)), down.transpose(1, 2))
    _add_product(_grouped(y, len(down)), inner, up.transpose(1, 2))
    return y.view(*x.shape[:-1], len(weight)), inner


@_forward.register_fake
def _forward_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    groups, rank = down.shape[:2]
    tokens = x.numel() // x.shape[-1] // groups
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(groups, tokens, rank)


@torch.library.custom_op("lorasmith::adapted_linear_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
    wants_x: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of the input, of all A ``[G, r, in]`` and of all B ``[G, out, r]``.

    With g the output's and B' = s B: g_h = g B', dB = s g^T h, dA = g_h^T x, dx = g W + g_h A.
    """
    flat = grad.flatten(0, -2)
    own = _grouped(flat, len(down))
    grad_inner = _product(own, up)
    grad_up = _wide_product(own.transpose(1, 2), inner)
    if any(scale != 1.0 for scale in scales):
        for part, scale in zip(grad_up, scales, strict=True):
            part.mul_(scale)
    grad_down = _wide_product(grad_inner.transpose(1, 2), _grouped(x.flatten(0, -2), len(down)))
    if not wants_x:
        return x.new_empty(0), grad_down, grad_up
    grad_x = flat @ weight
    _add_product(_grouped(grad_x, len(down)), grad_inner, down)
    return grad_x.view(x.shape), grad_down, grad_up


@_backward.register_fake
def _backward_shape(
    grad: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
    wants_x: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad_x = x.new_empty(x.shape) if wants_x else x.new_empty(0)
    return grad_x, down.new_empty(down.shape, dtype=wide), up.new_empty(up.shape, dtype=wide)


# --- products of matrices [G, n, k] and [G, k, m]; one pair has faster kernels than a batch ------


def _grouped(flat: torch.Tensor, groups: int) -> torch.Tensor:
    return flat.view(groups, -1, flat.shape[-1])


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[0] @ b[0]).unsqueeze(0) if len(a) == 1 else torch.bmm(a, b)


def _add_product(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    if len(a) == 1:
        to[0].addmm_(a[0], b[0])
    else:
        to.baddbmm_(a, b)


def _wide_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product in float32 without rounding to fewer bits in between."""
    if a.dtype not in (torch.float16, torch.bfloat16):
        return _product(a, b)
    if not a.is_cuda:
        return _product(a.float(), b.float())
    if len(a) == 1:
        return torch.mm(a[0], b[0], out_dtype=torch.float32).unsqueeze(0)
    return torch.bmm(a, b, out_dtype=torch.float32)


def _keep(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
    x, weight, _, downs, _, down, up, scales = inputs
    ctx.save_for_backward(x, output[1], weight, down, up)
    ctx.scales, ctx.ranks = scales, [len(one) for one in downs]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, ...]:
    count = len(ctx.ranks)
    if grad is None:
        return None, None, None, [None] * count, [None] * count, None, None, None
    x, inner, weight, down, up = ctx.saved_tensors
    wants_x = bool(ctx.needs_input_grad[0])
    grad_x, grad_down, grad_up = _backward(grad, x, inner, weight, down, up, ctx.scales, wants_x)
    downs = [part[:rank] for part, rank in zip(grad_down.unbind(), ctx.ranks, strict=True)]
    ups = [part[:, :rank] for part, rank in zip(grad_up.unbind(), ctx.ranks, strict=True)]
    return (grad_x if wants_x else None), None, None, downs, ups, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
