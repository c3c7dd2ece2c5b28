"""A frozen linear layer together with its adapter as one operation, for training on a GPU.

Written down as separate operations, an adapter costs more in passes over activations and in kernel
launches than in arithmetic: its sum with the layer's output, the sum of two gradients of the
input, four casts of the factors. As one operation both sums happen inside matrix products, and the
factors' gradients come out in float32 unrounded. A compiler sees it as a whole and leaves it so.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from lorasmith.adapters.layers import LoraLinear


class Cast(NamedTuple):
    """An adapter's factors in the dtype of its layer."""

    down: torch.Tensor
    """``[r, in]``."""
    up: torch.Tensor
    """``[out, r]``."""


def fused(x: torch.Tensor, layer: nn.Linear, adapter: "LoraLinear", cast: Cast) -> torch.Tensor:
    """Return W x + b + s B A x, ``[..., out]``, for an input ``[..., in]`` in W's dtype."""
    scale = adapter.weight * adapter.scale
    y: torch.Tensor = _forward(
        x, layer.weight, layer.bias, adapter.down, adapter.up, cast.down, cast.up, scale
    )[0]
    return y


@torch.library.custom_op("lorasmith::adapted_linear", mutates_args=())
def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    down_cast: torch.Tensor,
    up_cast: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and A x, ``[T, r]``. ``down`` and ``up`` only receive gradients."""
    flat = x.flatten(0, -2)
    y = F.linear(flat, weight, bias)
    inner = flat @ down_cast.t()
    y.addmm_(inner, up_cast.t(), alpha=scale)
    return y.view(*x.shape[:-1], len(weight)), inner


@_forward.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    down_cast: torch.Tensor,
    up_cast: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = x.numel() // x.shape[-1]
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(tokens, down.shape[0])


@torch.library.custom_op("lorasmith::adapted_linear_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down_cast: torch.Tensor,
    up_cast: torch.Tensor,
    scale: float,
    wants_x: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of the input, of A and of B.

    With g the output's: g_h = s g B, dB = s g^T h, dA = g_h^T x, dx = g W + g_h A.
    """
    flat = grad.flatten(0, -2)
    grad_inner, grad_up = flat @ up_cast, _wide_product(flat.t(), inner)
    if scale != 1.0:
        grad_inner.mul_(scale)
        grad_up.mul_(scale)
    grad_down = _wide_product(grad_inner.t(), x.flatten(0, -2))
    if not wants_x:
        return x.new_empty(0), grad_down, grad_up
    grad_x = flat @ weight
    grad_x.addmm_(grad_inner, down_cast)
    return grad_x.view(x.shape), grad_down, grad_up


@_backward.register_fake
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down_cast: torch.Tensor,
    up_cast: torch.Tensor,
    scale: float,
    wants_x: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad_x = x.new_empty(x.shape) if wants_x else x.new_empty(0)
    return (
        grad_x,
        x.new_empty(down_cast.shape, dtype=wide),
        x.new_empty(up_cast.shape, dtype=wide),
    )


def _wide_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a @ b in float32 without rounding to fewer bits in between."""
    if a.dtype in (torch.float16, torch.bfloat16):
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()
    return a @ b


def _keep(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
    x, weight, _, _, _, down_cast, up_cast, scale = inputs
    ctx.save_for_backward(x, output[1], weight, down_cast, up_cast)
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    x, inner, weight, down_cast, up_cast = ctx.saved_tensors
    wants_x = bool(ctx.needs_input_grad[0])
    grad_x, grad_down, grad_up = _backward(
        grad, x, inner, weight, down_cast, up_cast, ctx.scale, wants_x
    )
    return (grad_x if wants_x else None), None, None, grad_down, grad_up, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
