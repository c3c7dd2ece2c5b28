"""Frozen linear layers and their LoRA adapters as one operation, for training on a GPU.

Written as separate operations, an adapter costs more in passes over activations and in kernel
launches than in arithmetic: its sum with the layer's output, the sum of two gradients of the
input, four casts of the factors. As one operation both sums happen inside matrix products, and the
gradients of the factors come out in float32, unrounded. A compiler treats it as opaque.

Layers that read the same input (q, k and v) share what depends on the input only: their products
with A are one product, and the gradients of the input are summed inside the products.

Adapters of several LoRAs share the layer's own product: the rows of a batch are divided among them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lorasmith.ops import fp8
from lorasmith.ops.fp8 import Fp8Weight
from lorasmith.ops.group_matmul import (
    add_group_matmul,
    group_matmul,
    group_matmul_fp32,
    split_groups,
)
from lorasmith.ops.streams import SideStream


class StackedFactors(NamedTuple):
    """The factors of G adapters of one layer in its dtype, smaller ranks padded with zeros."""

    down: torch.Tensor
    """A of all adapters, ``[G, r, in]``."""
    up: torch.Tensor
    """B of all adapters times their scales, ``[G, out, r]``."""
    scales: tuple[float, ...]
    """The scale of each adapter's product."""
    shared_down: torch.Tensor | None = None
    """``[G, L r, in]`` where L layers read the same input: A of all of them on top of each other;
    ``down`` is a view of it."""


class FusedLinearArgs(NamedTuple):
    """One layer's part of the operation."""

    weight: torch.Tensor
    """``[out, in]``."""
    bias: torch.Tensor | None
    """``[out]``."""
    factors: StackedFactors
    """What is computed with."""
    downs: Sequence[torch.Tensor]
    """The parameters A of each adapter, ``[r, in]``; they only receive gradients."""
    ups: Sequence[torch.Tensor]
    """The parameters B of each adapter, ``[out, r]``; they only receive gradients."""
    fp8_weight: Fp8Weight | None = None
    """The quantized weight, where one is used."""


def fused_lora_linear(x: torch.Tensor, layers: Sequence[FusedLinearArgs]) -> list[torch.Tensor]:
    """Return W x + b + s_g B_g A_g x, ``[N, ..., out]``, of each layer for one input.

    Args:
        x: ``[N, ..., in]`` in the layers' dtype; its N rows are divided evenly among the G
            adapters, in order.
        layers: the layers; if there are several, they have the same ``shared_down``.
    """
    outputs: list[torch.Tensor] = _forward(*op_arguments(x, layers))
    return outputs[: len(layers)]


def op_arguments(x: torch.Tensor, layers: Sequence[FusedLinearArgs]) -> tuple[Any, ...]:
    """Return the arguments of the custom operation."""
    first = layers[0].factors
    return (
        x,
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        [down for layer in layers for down in layer.downs],
        [up for layer in layers for up in layer.ups],
        first.down if len(layers) == 1 or first.shared_down is None else first.shared_down,
        [layer.factors.up for layer in layers],
        [scale for layer in layers for scale in layer.factors.scales],
        fp8.flatten_fp8_weights([layer.fp8_weight for layer in layers]),
    )


@torch.library.custom_op("lorasmith::lora_linears", mutates_args=())
def _forward(
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
    """Return each layer's output, and A_g x of all layers ``[G, T, L r]``."""
    outputs, inner = base_and_down_products(x, weights, biases, down, fp8_weights)
    for y, layer_inner, layer_up in zip(outputs, inner.chunk(len(weights), -1), up, strict=True):
        add_group_matmul(split_groups(y, len(down)), layer_inner, layer_up.transpose(1, 2))
    return [*(y.view(*x.shape[:-1], -1) for y in outputs), inner]


def base_and_down_products(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    down: torch.Tensor,
    fp8_weights: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return W x + b of each layer ``[T, out]``, and A_g x of all layers ``[G, T / G, L r]``."""
    flat = x.flatten(0, -2)
    with SideStream(0, x) as down_stream:
        inner = group_matmul(split_groups(flat, len(down)), down.transpose(1, 2))
    outputs = fp8.linear_products(flat, weights, biases, fp8_weights)
    down_stream.join()
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
    fp8_weights: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    groups, rank = down.shape[:2]
    tokens = x.numel() // x.shape[-1] // groups
    outputs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    return [*outputs, x.new_empty(groups, tokens, rank)]


@torch.library.custom_op("lorasmith::lora_linears_backward", mutates_args=())
def _backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    inner: torch.Tensor,
    weights: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    fp8_weights: Sequence[torch.Tensor],
    needs_x: bool,
) -> list[torch.Tensor]:
    """Return the gradients of the input, of all A ``[G, L r, in]``, of each B ``[G, out, r]``."""
    grad = fused_gradients(grads, x, inner, weights, down, up, scales, fp8_weights, needs_x)
    return [x.new_empty(0) if grad.x is None else grad.x, grad.down, *grad.ups]


class FusedGradients(NamedTuple):
    """The gradients of layers that read one input."""

    x: torch.Tensor | None
    """Of the input; without the adapters' share if that was left out."""
    inner: torch.Tensor
    """Of A_g x, ``[G, T, L r]``: times ``down`` it is the adapters' share of ``x``."""
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
    fp8_weights: Sequence[torch.Tensor],
    needs_x: bool,
    add_adapters: bool = True,
) -> FusedGradients:
    """Return the gradients.

    With g an output's and B' = s B: g_h = g B', dB = s g^T h, dA = g_h^T x, dx = g W + g_h A.

    Args:
        grads: of each layer's output, ``[..., out]``.
        x: the layers' input.
        inner: A_g x of all layers, h.
        weights: of each layer.
        down: A of all adapters.
        up: B of each layer's adapters, times their scales.
        scales: of all adapters, layer by layer.
        fp8_weights: the layers' flattened quantized weights, empty if they are not used.
        needs_x: whether the input needs a gradient.
        add_adapters: whether g_h A is added to it; otherwise the caller does that.
    """
    groups = len(down)
    flat_grads = [grad.flatten(0, -2) for grad in grads]
    grouped_grads = [split_groups(grad, groups) for grad in flat_grads]
    with SideStream(0, x) as down_stream:
        grad_inners = [group_matmul(g, b) for g, b in zip(grouped_grads, up, strict=True)]
        grad_inner = grad_inners[0] if len(grad_inners) == 1 else torch.cat(grad_inners, dim=-1)
        down_stream.mark()
        grouped_x = split_groups(x.flatten(0, -2), groups)
        grad_down = group_matmul_fp32(grad_inner.transpose(1, 2), grouped_x)
    with SideStream(1, x) as up_stream:
        grad_ups = _up_gradients(grouped_grads, inner, scales)
    grad_x = None
    if needs_x:
        grad_x = fp8.input_gradient(flat_grads, weights, fp8_weights).view(x.shape)
        if add_adapters:
            down_stream.wait()
            add_group_matmul(split_groups(grad_x.flatten(0, -2), groups), grad_inner, down)
    down_stream.join()
    up_stream.join()
    return FusedGradients(grad_x, grad_inner, grad_down, grad_ups)


def _up_gradients(
    grouped_grads: Sequence[torch.Tensor], inner: torch.Tensor, scales: Sequence[float]
) -> list[torch.Tensor]:
    """Return dB = s g^T h of each layer."""
    groups = len(inner)
    grad_ups = [
        group_matmul_fp32(grad.transpose(1, 2), layer_inner)
        for grad, layer_inner in zip(
            grouped_grads, inner.chunk(len(grouped_grads), -1), strict=True
        )
    ]
    for layer, grad_up in enumerate(grad_ups):
        for adapter, scale in enumerate(scales[layer * groups : (layer + 1) * groups]):
            if scale != 1.0:
                grad_up[adapter].mul_(scale)
    return grad_ups


@_backward.register_fake
def _backward_shape(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    inner: torch.Tensor,
    weights: Sequence[torch.Tensor],
    down: torch.Tensor,
    up: Sequence[torch.Tensor],
    scales: Sequence[float],
    fp8_weights: Sequence[torch.Tensor],
    needs_x: bool,
) -> list[torch.Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [
        x.new_empty(x.shape) if needs_x else x.new_empty(0),
        down.new_empty(down.shape, dtype=dtype),
        *(layer_up.new_empty(layer_up.shape, dtype=dtype) for layer_up in up),
    ]


def _setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
    x, weights, biases, downs, _, down, up, scales, fp8_weights = inputs
    ctx.none_grads = [none_grads(tensors) for tensors in (weights, biases, up, fp8_weights)]
    ctx.layers, ctx.scales, ctx.ranks = len(weights), scales, [len(down) for down in downs]
    ctx.output_shapes = [y.shape for y in output[:-1]]
    ctx.save_for_backward(x, output[-1], down, *weights, *up, *fp8_weights)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    layers = ctx.layers
    x, inner, down, *saved = ctx.saved_tensors
    weights, up, fp8_weights = saved[:layers], saved[layers : 2 * layers], saved[2 * layers :]
    output_grads = [
        x.new_zeros(shape) if grad is None else grad
        for grad, shape in zip(grads[:-1], ctx.output_shapes, strict=True)
    ]
    needs_x = bool(ctx.needs_input_grad[0])
    grad_x, grad_down, *grad_ups = _backward(
        output_grads, x, inner, weights, down, up, ctx.scales, fp8_weights, needs_x
    )
    downs, ups = split_grads(grad_down, grad_ups, ctx.ranks)
    no_weights, no_biases, no_up, no_fp8 = ctx.none_grads
    return (
        grad_x if needs_x else None,
        *(no_weights, no_biases, downs, ups, None, no_up, None, no_fp8),
    )


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def none_grads(tensors: Sequence[torch.Tensor | None]) -> list[None] | None:
    """Return the missing gradients of a list argument in the form that torch expects.

    That is one None for each tensor, or a single None if the list holds a None itself.
    """
    return [None] * len(tensors) if all(tensor is not None for tensor in tensors) else None


def split_grads(
    grad_down: torch.Tensor, grad_ups: Sequence[torch.Tensor], ranks: Sequence[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the gradients of each adapter's A and B, layer by layer, cut to its own rank."""
    padded = [grad for layer in grad_down.chunk(len(grad_ups), 1) for grad in layer.unbind()]
    downs = [grad[:rank] for grad, rank in zip(padded, ranks, strict=True)]
    padded = [grad for layer in grad_ups for grad in layer.unbind()]
    ups = [grad[:, :rank] for grad, rank in zip(padded, ranks, strict=True)]
    return downs, ups
