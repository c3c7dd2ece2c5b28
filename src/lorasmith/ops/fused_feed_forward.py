"""A transformer's gated feed-forward layer and its adapters as one operation.

Between its two linear layers activations are four and eight times as wide as elsewhere. The share
of their gradient that comes from the second layer's adapters is added in the pass of the gated
activation, like the first layer's adapters' share of its output.
"""

from typing import Any

import torch

from lorasmith.ops import geglu
from lorasmith.ops.fused_lora import (
    FusedGradients,
    FusedLinearArgs,
    base_and_down_products,
    fused_gradients,
    op_arguments,
    split_grads,
)
from lorasmith.ops.group_matmul import add_group_matmul, split_groups


def fused_feed_forward(
    x: torch.Tensor, first: FusedLinearArgs, second: FusedLinearArgs
) -> torch.Tensor:
    """Return the second layer's output for h * gelu(g), the halves of the first layer's output.

    Args:
        x: ``[N, ..., C]``; both layers have as many adapters, which divide its rows among them.
        first: the layer with two halves.
        second: the layer after the gated activation.
    """
    factors = [*first.downs, *first.ups, *second.downs, *second.ups]
    y: torch.Tensor = _FeedForward.apply(x, first, second, *factors)  # type: ignore[no-untyped-call]
    return y


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        first: FusedLinearArgs,
        second: FusedLinearArgs,
        *_: torch.Tensor,
    ) -> torch.Tensor:
        halves, first_inner = _products(x, first)
        hidden = geglu.add_lora_and_geglu(halves, first_inner, first.factors.up)
        y, second_inner = _products(hidden, second)
        add_group_matmul(
            split_groups(y, len(second_inner)), second_inner, second.factors.up.transpose(1, 2)
        )
        ctx.save_for_backward(x, halves, first_inner, hidden, second_inner)
        ctx.layers = first, second
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, halves, first_inner, hidden, second_inner = ctx.saved_tensors
        first, second = ctx.layers
        grad = grad.flatten(0, -2).contiguous()
        of_second = _gradients(grad, hidden, second_inner, second, add_adapters=False)
        grad_halves = geglu.add_lora_and_geglu_backward(
            of_second.x, of_second.inner, second.factors.down, halves
        )
        of_first = _gradients(grad_halves, x, first_inner, first, needs_x=ctx.needs_input_grad[0])
        factor_grads = []
        for grads, layer in ((of_first, first), (of_second, second)):
            downs, ups = split_grads(grads.down, grads.ups, [len(down) for down in layer.downs])
            factor_grads += [*downs, *ups]
        return of_first.x, None, None, *factor_grads


def _products(x: torch.Tensor, layer: FusedLinearArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W x + b, and A_g x."""
    _, weights, biases, _, _, down, _, _, fp8_weights = op_arguments(x, [layer])
    (y,), inner = base_and_down_products(x, weights, biases, down, fp8_weights)
    return y, inner


def _gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    layer: FusedLinearArgs,
    needs_x: bool = True,
    add_adapters: bool = True,
) -> Any:
    _, weights, _, _, _, down, up, scales, fp8_weights = op_arguments(x, [layer])
    grads: FusedGradients = fused_gradients(
        [grad], x, inner, weights, down, up, scales, fp8_weights, needs_x, add_adapters
    )
    return grads
