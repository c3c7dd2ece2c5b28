"""The gated activation of diffusers' transformers, h * gelu(g), in one pass each way on a GPU.

Computed by separate kernels it is the largest elementwise cost of a training step: the activations
of these layers are eight times as wide as the others. For the same reason the product of the
layer's adapters is added in the same pass. The kernels are written in Triton
(``lorasmith.ops.triton_kernels.geglu``); on a CPU torch's own operations are used.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from lorasmith.ops.fused_lora import (
    FusedLinearArgs,
    base_and_down_products,
    fused_gradients,
    none_grads,
    op_arguments,
    split_grads,
)
from lorasmith.ops.group_matmul import add_group_matmul, split_groups


def geglu(halves: torch.Tensor) -> torch.Tensor:
    """Return h * gelu(g), ``[..., n]``, for h and g side by side, ``[..., 2 n]``."""
    y: torch.Tensor = _geglu(halves)
    return y


def geglu_reference(halves: torch.Tensor) -> torch.Tensor:
    """Return the same with torch's own operations."""
    hidden, gate = halves.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


def _backward_reference(grad: torch.Tensor, halves: torch.Tensor) -> torch.Tensor:
    """Return the gradients of both halves with torch's own operations."""
    hidden, gate = halves.chunk(2, dim=-1)
    cdf = 0.5 * (1.0 + torch.erf(gate * 0.5**0.5))
    slope = cdf + gate * torch.exp(-0.5 * gate * gate) * (2.0 * torch.pi) ** -0.5
    return torch.cat([grad * gate * cdf, grad * hidden * slope], dim=-1)


@torch.library.custom_op("lorasmith::geglu", mutates_args=())
def _geglu(halves: torch.Tensor) -> torch.Tensor:
    return _compute(halves.contiguous())


@_geglu.register_fake
def _geglu_shape(halves: torch.Tensor) -> torch.Tensor:
    return halves.new_empty(*halves.shape[:-1], halves.shape[-1] // 2)


@torch.library.custom_op("lorasmith::geglu_backward", mutates_args=())
def _geglu_backward(grad: torch.Tensor, halves: torch.Tensor) -> torch.Tensor:
    return _compute_backward(grad.contiguous(), halves.contiguous())


@_geglu_backward.register_fake
def _geglu_backward_shape(grad: torch.Tensor, halves: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(halves, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _differentiate(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    grad_halves: torch.Tensor = _geglu_backward(grad, *ctx.saved_tensors)
    return grad_halves


_geglu.register_autograd(_differentiate, setup_context=_setup_context)

_BLOCK, _WARPS = 512, 2
"""Output values of one program, and its warps: eight values for each thread."""


def _compute(halves: torch.Tensor) -> torch.Tensor:
    """Return h * gelu(g) of contiguous halves."""
    if not halves.is_cuda:
        return geglu_reference(halves)
    y = halves.new_empty(*halves.shape[:-1], halves.shape[-1] // 2)
    _kernels().forward[_grid(y)](halves, y, y.shape[-1], block=_BLOCK, num_warps=_WARPS)
    return y


def _compute_backward(grad: torch.Tensor, halves: torch.Tensor) -> torch.Tensor:
    """Return the gradients of both halves."""
    if not halves.is_cuda:
        return _backward_reference(grad, halves)
    out = torch.empty_like(halves)
    _kernels().backward[_grid(grad)](
        grad, halves, out, grad.shape[-1], block=_BLOCK, num_warps=_WARPS
    )
    return out


def _grid(output: torch.Tensor) -> tuple[int, int]:
    width = output.shape[-1]
    return output.numel() // width, -(-width // _BLOCK)


@cache
def _kernels() -> Any:
    """Import the kernels on first use: they can be defined only where Triton is installed."""
    from lorasmith.ops.triton_kernels import geglu as geglu_triton

    return geglu_triton


# --- with adapters ------------------------------------------------------------------------------


def lora_geglu(x: torch.Tensor, layer: FusedLinearArgs) -> torch.Tensor:
    """Return h * gelu(g), ``[N, ..., n]``; h and g are the halves of the adapted layer's output."""
    y: torch.Tensor = _lora_geglu(*op_arguments(x, [layer]))[0]
    return y


@torch.library.custom_op("lorasmith::lora_geglu", mutates_args=())
def _lora_geglu(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    fp8_weights: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Return the output, both halves ``[T, 2 n]``, and A_g x ``[G, T / G, r]``."""
    (halves,), inner = base_and_down_products(x, weights, biases, down, fp8_weights)
    return [add_lora_and_geglu(halves, inner, up[0]).view(*x.shape[:-1], -1), halves, inner]


def add_lora_and_geglu(halves: torch.Tensor, inner: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Add the adapters' products to both halves, in place; return h * gelu(g) of the sums.

    Args:
        halves: ``[T, 2 n]``.
        inner: A_g x, ``[G, T / G, r]``.
        up: B, ``[G, 2 n, r]``.

    Returns:
        ``[T, n]``.
    """
    if halves.is_cuda and _kernel_supports(inner):
        y = halves.new_empty(len(halves), halves.shape[1] // 2)
        _kernels().forward_lora[_lora_grid(y, len(inner))](
            halves, inner, up, y, *_sizes(y, inner), **_TILE, padded_rank=_padded_rank(inner)
        )
        return y
    add_group_matmul(split_groups(halves, len(inner)), inner, up.transpose(1, 2))
    return _compute(halves)


@_lora_geglu.register_fake
def _lora_geglu_shape(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    fp8_weights: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    groups, rank = down.shape[:2]
    tokens, width = x.numel() // x.shape[-1], weights[0].shape[0]
    return [
        x.new_empty(*x.shape[:-1], width // 2),
        x.new_empty(tokens, width),
        x.new_empty(groups, tokens // groups, rank),
    ]


@torch.library.custom_op("lorasmith::lora_geglu_backward", mutates_args=())
def _lora_geglu_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    halves: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
    fp8_weights: Sequence[torch.Tensor],
    needs_x: bool,
) -> list[torch.Tensor]:
    """Return the gradients of the input, of all A and of all B."""
    grad_halves = _compute_backward(grad.flatten(0, -2).contiguous(), halves)
    grads = fused_gradients(
        [grad_halves], x, inner, [weight], down, [up], scales, fp8_weights, needs_x
    )
    return [x.new_empty(0) if grads.x is None else grads.x, grads.down, *grads.ups]


def add_lora_and_geglu_backward(
    grad: torch.Tensor, grad_inner: torch.Tensor, down: torch.Tensor, halves: torch.Tensor
) -> torch.Tensor:
    """Return the gradients of both halves ``[T, 2 n]``.

    The output y goes into an adapted layer; the share of its gradient that this layer's adapters
    contribute is added here.

    Args:
        grad: the gradient of y without that share, ``[T, n]``.
        grad_inner: the gradient of A_g y of those adapters, ``[G, T / G, r]``.
        down: A of those adapters, ``[G, r, n]``.
        halves: ``[T, 2 n]``.
    """
    if not (halves.is_cuda and _kernel_supports(grad_inner)):
        add_group_matmul(split_groups(grad, len(grad_inner)), grad_inner, down)
        return _compute_backward(grad, halves)
    out = torch.empty_like(halves)
    _kernels().backward_lora[_lora_grid(grad, len(grad_inner))](
        grad, grad_inner, down, halves, out, *_sizes(grad, grad_inner),
        **_TILE, padded_rank=_padded_rank(grad_inner),
    )  # fmt: skip
    return out


@_lora_geglu_backward.register_fake
def _lora_geglu_backward_shape(
    grad: torch.Tensor,
    x: torch.Tensor,
    halves: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
    fp8_weights: Sequence[torch.Tensor],
    needs_x: bool,
) -> list[torch.Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [
        x.new_empty(x.shape) if needs_x else x.new_empty(0),
        down.new_empty(down.shape, dtype=dtype),
        up.new_empty(up.shape, dtype=dtype),
    ]


def _setup_lora_context(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
    x, weights, biases, downs, _, down, up, scales, fp8_weights = inputs
    ctx.none_grads = [none_grads(tensors) for tensors in (weights, biases, up, fp8_weights)]
    ctx.scales, ctx.ranks = scales, [len(down) for down in downs]
    ctx.save_for_backward(x, output[1], output[2], weights[0], down, up[0], *fp8_weights)
    ctx.set_materialize_grads(False)


def _differentiate_lora(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    no_weights, no_biases, no_up, no_fp8 = ctx.none_grads
    if grads[0] is None:
        no_factors = [None] * len(ctx.ranks)
        return None, no_weights, no_biases, no_factors, no_factors, None, no_up, None, no_fp8
    x, halves, inner, weight, down, up, *fp8_weights = ctx.saved_tensors
    needs_x = bool(ctx.needs_input_grad[0])
    grad_x, grad_down, grad_up = _lora_geglu_backward(
        grads[0], x, halves, inner, weight, down, up, ctx.scales, fp8_weights, needs_x
    )
    downs, ups = split_grads(grad_down, [grad_up], ctx.ranks)
    return (
        grad_x if needs_x else None,
        *(no_weights, no_biases, downs, ups, None, no_up, None, no_fp8),
    )


_lora_geglu.register_autograd(_differentiate_lora, setup_context=_setup_lora_context)

_TILE: dict[str, int] = {"rows": 16, "block": 128, "num_warps": 4}
"""The part of the output that one program computes."""
_MAX_RANK = 128
"""Rank up to which a tile has room for the factors."""


def _lora_grid(output: torch.Tensor, groups: int) -> tuple[int, int, int]:
    tokens, width = len(output) // groups, output.shape[1]
    return -(-tokens // _TILE["rows"]), -(-width // _TILE["block"]), groups


def _sizes(output: torch.Tensor, inner: torch.Tensor) -> tuple[int, int, int]:
    """Return tokens of a group, width and rank."""
    return inner.shape[1], output.shape[1], inner.shape[2]


def _kernel_supports(inner: torch.Tensor) -> bool:
    """Return whether a tile's factors fit into a program's memory and its matrix units (tensor
    cores) multiply them exactly; they would round float32.
    """
    return inner.element_size() == 2 and _padded_rank(inner) <= _MAX_RANK


def _padded_rank(inner: torch.Tensor) -> int:
    """Return the rank as kernels need it: a power of two, at least 16."""
    return max(16, 1 << (inner.shape[2] - 1).bit_length())
