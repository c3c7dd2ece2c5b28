"""Frozen linear layers together with their adapters as one operation, for training on a GPU.

Written down as separate operations, an adapter costs more in passes over activations and in kernel
launches than in arithmetic: its sum with the layer's output, the sum of two gradients of the
input, four casts of the factors. As one operation both sums happen inside matrix products, and the
factors' gradients come out in float32 unrounded. A compiler sees it as a whole and leaves it so.

Several layers that read the same input (q, k and v) share what concerns the input: their thin
products are one, and the gradients of the input are summed inside the products.

Several adapters share the layer's own product: the rows of a batch are divided among them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lorasmith.ops import fp8
from lorasmith.ops.streams import SideStream


class StackedFactors(NamedTuple):
    """The factors of G adapters of one layer, in its dtype, narrower ones filled up with zeros."""

    down: torch.Tensor
    """``[G, r, in]``."""
    up: torch.Tensor
    """``[G, out, r]``, times each adapter's scale."""
    scales: tuple[float, ...]
    """What each adapter's product is multiplied by."""
    shared: torch.Tensor | None = None
    """``[G, L r, in]``, where L layers read the same input: all of their A, one above the other,
    of which ``down`` is a part."""


class FusedLinearArgs(NamedTuple):
    """A layer's part in the operation."""

    layer: nn.Linear
    factors: StackedFactors
    """What is computed with."""
    downs: Sequence[torch.Tensor]
    """A of each adapter ``[r, in]``; they only receive gradients."""
    ups: Sequence[torch.Tensor]
    """B of each adapter ``[out, r]``, likewise."""


def fused_lora_linear(x: torch.Tensor, works: Sequence[FusedLinearArgs]) -> list[torch.Tensor]:
    """Return W x + b + s_g B_g A_g x, ``[N, ..., out]``, of each layer, for an input
    ``[N, ..., in]``.

    Args:
        x: in the layers' dtype; its N rows are divided evenly among the G adapters, in order.
        works: what each of the layers does; with more than one they have ``shared`` in common.
    """
    outputs: list[torch.Tensor] = _forward(*op_arguments(x, works))
    return outputs[: len(works)]


def op_arguments(x: torch.Tensor, works: Sequence[FusedLinearArgs]) -> tuple[Any, ...]:
    """Return what the operation is called with."""
    first = works[0].factors
    return (
        x,
        [one.layer.weight for one in works],
        [one.layer.bias for one in works],
        [down for one in works for down in one.downs],
        [up for one in works for up in one.ups],
        first.down if len(works) == 1 or first.shared is None else first.shared,
        [one.factors.up for one in works],
        [scale for one in works for scale in one.factors.scales],
        fp8.flatten_fp8_weights([one.layer for one in works]),
    )


@torch.library.custom_op("lorasmith::adapted_linears", mutates_args=())
def _forward(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    eights: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Return each layer's output, and A_g x of all layers ``[G, T, L r]``."""
    outputs, inner = base_and_down_products(x, weights, biases, down, eights)
    for y, part, one in zip(outputs, inner.chunk(len(weights), -1), up, strict=True):
        add_group_matmul(split_groups(y, len(down)), part, one.transpose(1, 2))
    return [*(y.view(*x.shape[:-1], -1) for y in outputs), inner]


def base_and_down_products(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    down: torch.Tensor,
    eights: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return W x + b of each layer ``[T, out]``, and A_g x of all layers ``[G, T / G, L r]``."""
    flat = x.flatten(0, -2)
    with SideStream(0, x) as thin:
        inner = group_matmul(split_groups(flat, len(down)), down.transpose(1, 2))
    outputs = fp8.linear_products(flat, weights, biases, eights)
    thin.join()
    return outputs, inner


@_forward.register_fake
def _forward_shape(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    downs: Sequence[torch.Tensor],
    ups: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    eights: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    groups, rank = down.shape[:2]
    tokens = x.numel() // x.shape[-1] // groups
    outputs = [x.new_empty(*x.shape[:-1], one.shape[0]) for one in weights]
    return [*outputs, x.new_empty(groups, tokens, rank)]


@torch.library.custom_op("lorasmith::adapted_linears_backward", mutates_args=())
def _backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    inner: torch.Tensor,
    weights: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    eights: Sequence[torch.Tensor],
    wants_x: bool,
) -> list[torch.Tensor]:
    """Return the gradients of the input, of all A ``[G, L r, in]``, of each B ``[G, out, r]``."""
    found = fused_gradients(grads, x, inner, weights, down, up, scales, eights, wants_x)
    return [x.new_empty(0) if found.x is None else found.x, found.down, *found.ups]


class Gradients(NamedTuple):
    """The gradients of some layers with one input."""

    x: torch.Tensor | None
    """Of the input; without the adapters' part where that was left out."""
    inner: torch.Tensor
    """Of A_g x, ``[G, T, L r]``: times ``down`` it is the adapters' part of ``x``."""
    down: torch.Tensor
    """Of all A, ``[G, L r, in]``."""
    ups: list[torch.Tensor]
    """Of each layer's B, ``[G, out, r]``."""


def fused_gradients(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    inner: torch.Tensor,
    weights: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    eights: Sequence[torch.Tensor],
    wants_x: bool,
    whole: bool = True,
) -> Gradients:
    """Return the gradients.

    With g an output's and B' = s B: g_h = g B', dB = s g^T h, dA = g_h^T x, dx = g W + g_h A.

    Args:
        grads: of each layer's output, ``[..., out]``.
        x: the layers' input.
        inner: A_g x of all layers.
        weights: of each layer.
        down: A of all adapters.
        up: B of each layer's adapters, times their scales.
        scales: of all adapters, layer by layer.
        eights: the layers' weights in 8 bits, if they are to be used.
        wants_x: whether the input has a gradient.
        whole: whether that has the adapters' part; otherwise somebody else adds it.
    """
    groups = len(down)
    flats = [one.flatten(0, -2) for one in grads]
    owns = [split_groups(one, groups) for one in flats]
    with SideStream(0, x) as of_down:
        parts = [group_matmul(own, one) for own, one in zip(owns, up, strict=True)]
        grad_inner = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        of_down.mark()
        read = split_groups(x.flatten(0, -2), groups)
        grad_down = group_matmul_fp32(grad_inner.transpose(1, 2), read)
    with SideStream(1, x) as of_up:
        grad_ups = [
            group_matmul_fp32(own.transpose(1, 2), part)
            for own, part in zip(owns, inner.chunk(len(owns), -1), strict=True)
        ]
        for number, grad_up in enumerate(grad_ups):
            for part, scale in zip(grad_up, scales[number * groups :], strict=False):
                if scale != 1.0:
                    part.mul_(scale)
    grad_x = None
    if wants_x:
        grad_x = fp8.input_gradient(flats, weights, eights).view(x.shape)
        if whole:
            of_down.wait()
            add_group_matmul(split_groups(grad_x.flatten(0, -2), groups), grad_inner, down)
    of_down.join()
    of_up.join()
    return Gradients(grad_x, grad_inner, grad_down, grad_ups)


@_backward.register_fake
def _backward_shape(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    inner: torch.Tensor,
    weights: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    eights: Sequence[torch.Tensor],
    wants_x: bool,
) -> list[torch.Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [
        x.new_empty(x.shape) if wants_x else x.new_empty(0),
        down.new_empty(down.shape, dtype=wide),
        *(one.new_empty(one.shape, dtype=wide) for one in up),
    ]


def _keep(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
    x, weights, biases, downs, _, down, up, scales, eights = inputs
    ctx.nothing = [none_grads(one) for one in (weights, biases, up, eights)]
    ctx.layers, ctx.scales, ctx.ranks = len(weights), scales, [len(one) for one in downs]
    ctx.outputs = [one.shape for one in output[:-1]]
    ctx.save_for_backward(x, output[-1], down, *weights, *up, *eights)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    layers = ctx.layers
    x, inner, down, *rest = ctx.saved_tensors
    weights, up, eights = rest[:layers], rest[layers : 2 * layers], rest[2 * layers :]
    given = [
        x.new_zeros(shape) if one is None else one
        for one, shape in zip(grads[:-1], ctx.outputs, strict=True)
    ]
    wants_x = bool(ctx.needs_input_grad[0])
    grad_x, grad_down, *grad_ups = _backward(
        given, x, inner, weights, down, up, ctx.scales, eights, wants_x
    )
    downs, ups = split_grads(grad_down, grad_ups, ctx.ranks)
    no_weights, no_biases, no_up, no_eights = ctx.nothing
    own = grad_x if wants_x else None
    return own, no_weights, no_biases, downs, ups, None, no_up, None, no_eights


def none_grads(tensors: Sequence[torch.Tensor | None]) -> list[None] | None:
    """Return the gradients of a list whose tensors get none, as torch wants it: one for each,
    but one for the whole list where not all of it are tensors.
    """
    return [None] * len(tensors) if all(one is not None for one in tensors) else None


def split_grads(
    grad_down: torch.Tensor, grad_ups: Sequence[torch.Tensor], ranks: Sequence[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the gradients of every adapter's A and B, layer by layer, each of its own rank."""
    every = [part for one in grad_down.chunk(len(grad_ups), 1) for part in one.unbind()]
    downs = [part[:rank] for part, rank in zip(every, ranks, strict=True)]
    every = [part for one in grad_ups for part in one.unbind()]
    ups = [part[:, :rank] for part, rank in zip(every, ranks, strict=True)]
    return downs, ups


_forward.register_autograd(_differentiate, setup_context=_keep)


# --- products of matrices [G, n, k] and [G, k, m]; one pair has faster kernels than a batch ------


def split_groups(flat: torch.Tensor, groups: int) -> torch.Tensor:
    """Return rows ``[T, n]`` as ``[G, T / G, n]``."""
    return flat.view(groups, -1, flat.shape[-1])


def group_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the products of each pair."""
    return (a[0] @ b[0]).unsqueeze(0) if len(a) == 1 else torch.bmm(a, b)


def add_group_matmul(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add the products of each pair to ``to``."""
    if len(a) == 1:
        to[0].addmm_(a[0], b[0])
    else:
        to.baddbmm_(a, b)


def group_matmul_fp32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product in float32 without rounding to fewer bits in between."""
    if a.dtype not in (torch.float16, torch.bfloat16):
        return group_matmul(a, b)
    if not a.is_cuda:
        return group_matmul(a.float(), b.float())
    if len(a) == 1:
        return torch.mm(a[0], b[0], out_dtype=torch.float32).unsqueeze(0)
    return torch.bmm(a, b, out_dtype=torch.float32)
