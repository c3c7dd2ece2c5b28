"""Layer normalization together with the residual sum before it, in one pass each way on a GPU.

A transformer block adds a layer's output to that layer's input, and normalizes the sum for the next
layer. The two gradients of the sum are added in the same pass too.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x ``[..., n]`` itself and its norm.

    Use the returned x for the residual sum: its gradient is added in the norm's backward pass.
    """
    total, y = _LayerNorm.apply(x, None, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return total, y


def add_layer_norm(
    x: torch.Tensor, added: torch.Tensor, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + added, ``[..., n]``, and the norm of this sum.

    The norm's weights are frozen: they get no gradient.
    """
    total, y = _LayerNorm.apply(x, added, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return total, y


def is_supported(norm: Any) -> bool:
    """Return whether these functions compute what a norm does: frozen, with weight and bias."""
    if type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None:
        return False
    return len(norm.normalized_shape) == 1 and not (
        norm.weight.requires_grad or norm.bias.requires_grad
    )


class _LayerNorm(torch.autograd.Function):
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
        total, y, means, rstds = _forward(x, added, weight, bias, eps)
        ctx.save_for_backward(total, means, rstds, weight)
        ctx.has_added = added is not None
        return total, y

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor | None, grad: torch.Tensor | None) -> Any:
        total, means, rstds, weight = ctx.saved_tensors
        grad_x = grad_total
        if grad is not None:
            grad_x = _backward(grad, grad_total, total, means, rstds, weight)
        return grad_x, (grad_x if ctx.has_added else None), None, None, None


def _forward(
    x: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sum, its norm, and each row's mean and 1 / deviation ``[rows]``."""
    if not x.is_cuda:
        return _forward_reference(x, added, weight, bias, eps)
    flat = x.contiguous()
    rows, width = flat.numel() // flat.shape[-1], flat.shape[-1]
    total = flat if added is None else torch.empty_like(flat)
    y = torch.empty_like(flat)
    means, rstds = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    grid, tile = _grid_and_tile(rows, width)
    _kernels().forward[grid](
        flat, flat if added is None else added.contiguous(), total, y, means, rstds, weight, bias,
        rows, width, eps, has_added=added is not None, **tile,
    )  # fmt: skip
    return (x if added is None else total), y, means, rstds


def _forward_reference(
    x: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the same with torch's own operations."""
    total = x if added is None else x + added
    y = F.layer_norm(total, weight.shape, weight, bias, eps)
    variances, means = torch.var_mean(total.flatten(0, -2), dim=-1, correction=0)
    return total, y, means, (variances + eps).rsqrt()


def _backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    means: torch.Tensor,
    rstds: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Return the full gradient of the sum: through its norm, plus ``grad_total`` if given."""
    if not grad.is_cuda:
        return _backward_reference(grad, grad_total, total, means, rstds, weight)
    grad, flat = grad.contiguous(), total.contiguous()
    rows, width = flat.numel() // flat.shape[-1], flat.shape[-1]
    out = torch.empty_like(flat)
    grid, tile = _grid_and_tile(rows, width)
    _kernels().backward[grid](
        grad, grad if grad_total is None else grad_total.contiguous(), flat, out, means, rstds,
        weight, rows, width, has_grad_total=grad_total is not None, **tile,
    )  # fmt: skip
    return out


def _backward_reference(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    means: torch.Tensor,
    rstds: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Return the same with torch's own operations."""
    z = (total.flatten(0, -2) - means[:, None]) * rstds[:, None]
    g = grad.flatten(0, -2) * weight
    dx = g - g.mean(-1, keepdim=True) - z * (g * z).mean(-1, keepdim=True)
    dx = (rstds[:, None] * dx).view_as(total).to(total.dtype)
    return dx if grad_total is None else dx + grad_total


def _grid_and_tile(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Return the number of programs, and the tile of one: 16 values for each thread."""
    block = 1 << (width - 1).bit_length()
    rows_per_program = max(1, 2048 // block)
    tile = {"rows_per_program": rows_per_program, "block": block, "num_warps": 4}
    return (-(-rows // rows_per_program),), tile


@cache
def _kernels() -> Any:
    """Import the kernels on first use: they can be defined only where Triton is installed."""
    from lorasmith.ops.triton_kernels import layer_norm as layer_norm_triton

    return layer_norm_triton
