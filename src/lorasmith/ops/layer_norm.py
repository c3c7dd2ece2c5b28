"""A transformer's sums and the norms behind them, in one pass each way on a GPU.

A block adds what a layer gives to what the layer was given, and normalises the sum for the next
layer. The gradient of the sum comes from both sides, and is summed in the same pass too.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x ``[..., n]`` again and its norm; use the returned x for what follows."""
    total, y = _Normalised.apply(x, None, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return total, y


def add_layer_norm(
    x: torch.Tensor, added: torch.Tensor, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + added, ``[..., n]``, and the norm of this sum.

    The norm's own weights are frozen: they get no gradient.
    """
    total, y = _Normalised.apply(x, added, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return total, y


def is_supported(norm: Any) -> bool:
    """Tell whether a norm is one that these functions compute."""
    if type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None:
        return False
    return len(norm.normalized_shape) == 1 and not (
        norm.weight.requires_grad or norm.bias.requires_grad
    )


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        added: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        total, y, means, scales = _normalise(x, added, weight, bias, eps)
        ctx.save_for_backward(total, means, scales, weight)
        ctx.adds = added is not None
        return total, y

    @staticmethod
    def backward(ctx: Any, beside: torch.Tensor | None, grad: torch.Tensor | None) -> Any:
        total, means, scales, weight = ctx.saved_tensors
        found = beside
        if grad is not None:
            found = _differentiate(grad, beside, total, means, scales, weight)
        return found, (found if ctx.adds else None), None, None, None


def _normalise(
    x: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sum, its norm, and each row's mean and 1 / deviation ``[rows]``."""
    if not x.is_cuda:
        return _reference(x, added, weight, bias, eps)
    flat = x.contiguous()
    rows, width = flat.numel() // flat.shape[-1], flat.shape[-1]
    total = flat if added is None else torch.empty_like(flat)
    y = torch.empty_like(flat)
    means, scales = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    grid, shape = _shape(rows, width)
    _kernels().normalise[grid](
        flat, flat if added is None else added.contiguous(), total, y, means, scales, weight, bias,
        rows, width, eps, adds=added is not None, **shape,
    )  # fmt: skip
    return (x if added is None else total), y, means, scales


def _reference(
    x: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the same by torch's own operations."""
    total = x if added is None else x + added
    y = F.layer_norm(total, weight.shape, weight, bias, eps)
    variances, means = torch.var_mean(total.flatten(0, -2), dim=-1, correction=0)
    return total, y, means, (variances + eps).rsqrt()


def _differentiate(
    grad: torch.Tensor,
    beside: torch.Tensor | None,
    total: torch.Tensor,
    means: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of the sum, from its norm's gradient and from its own, if it has one."""
    if not grad.is_cuda:
        return _reference_slopes(grad, beside, total, means, scales, weight)
    grad, flat = grad.contiguous(), total.contiguous()
    rows, width = flat.numel() // flat.shape[-1], flat.shape[-1]
    out = torch.empty_like(flat)
    grid, shape = _shape(rows, width)
    _kernels().differentiate[grid](
        grad, grad if beside is None else beside.contiguous(), flat, out, means, scales, weight,
        rows, width, adds=beside is not None, **shape,
    )  # fmt: skip
    return out


def _reference_slopes(
    grad: torch.Tensor,
    beside: torch.Tensor | None,
    total: torch.Tensor,
    means: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Return the same by torch's own operations."""
    z = (total.flatten(0, -2) - means[:, None]) * scales[:, None]
    g = grad.flatten(0, -2) * weight
    dx = g - g.mean(-1, keepdim=True) - z * (g * z).mean(-1, keepdim=True)
    dx = (scales[:, None] * dx).view_as(total).to(total.dtype)
    return dx if beside is None else dx + beside


def _shape(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Return how many programs there are, and what one of them has: 16 values for each thread."""
    block = 1 << (width - 1).bit_length()
    each = max(1, 2048 // block)
    return (-(-rows // each),), {"each": each, "block": block, "num_warps": 4}


@cache
def _kernels() -> Any:
    """Import the kernels, which need Triton already to be defined."""
    from lorasmith.ops import layer_norm_triton

    return layer_norm_triton
