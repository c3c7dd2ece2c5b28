"""The feed-forward layers of diffusers' transformers with their adapters as one operation.

Between the two linear layers activations are four and eight times as wide as elsewhere. What the
second layer's adapter adds to their gradient is added in the pass of the gated activation, as what
the first layer's adapter adds to its output.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import geglu
from lorasmith.ops.fused_lora import (
    FusedLinearArgs,
    add_group_matmul,
    base_and_down_products,
    fused_gradients,
    op_arguments,
    split_grads,
    split_groups,
)
from lorasmith.training.acceleration.module_patch import exchange, put_back


def use_kernels(network: nn.Module) -> None:
    """Make a network's feed-forward layers use it where they can; ``use_own`` takes that back."""
    exchange(network, *_classes(), _is_plain)


def use_own(network: nn.Module) -> None:
    """Let a network's feed-forward layers run as they are written again."""
    put_back(network, *_classes())


@cache
def _classes() -> tuple[Any, Any]:
    """Return diffusers' class, and one of the same layers that does all at once."""
    from diffusers.models.attention import FeedForward

    class FastFeedForward(FeedForward):  # type: ignore[misc]
        """A layer with the same parameters."""

        def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """Return the output, ``[..., C]``."""
            first, second = self.net[0].proj, self.net[2]
            if isinstance(first, LoraWrapper) and isinstance(second, LoraWrapper):
                works = first.fused_args(hidden_states), second.fused_args(hidden_states)
                if works[0] is not None and works[1] is not None:
                    return feed_forward(hidden_states, works[0], works[1])
            y: torch.Tensor = second(self.net[0](hidden_states))
            return y

    return FeedForward, FastFeedForward


def _is_plain(layer: Any) -> bool:
    """Tell whether it is a gated activation, no dropout, and a linear layer."""
    net = layer.net
    if len(net) != 3 or not geglu.is_gated(net[0]):
        return False
    return isinstance(net[1], nn.Dropout) and (net[1].p == 0 or not net[1].training)


def feed_forward(x: torch.Tensor, first: FusedLinearArgs, second: FusedLinearArgs) -> torch.Tensor:
    """Return what both layers give for an input ``[N, ..., C]``, whose rows as many adapters divide
    among them in both layers.
    """
    factors = [*first.downs, *first.ups, *second.downs, *second.ups]
    y: torch.Tensor = _FeedForward.apply(x, first, second, *factors)  # type: ignore[no-untyped-call]
    return y


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, first: FusedLinearArgs, second: FusedLinearArgs, *_: torch.Tensor
    ) -> torch.Tensor:
        (both,), inner = _products(x, first)
        hidden = geglu.add_lora_and_geglu(both, inner, first.factors.up)
        (y,), last = _products(hidden, second)
        add_group_matmul(split_groups(y, len(last)), last, second.factors.up.transpose(1, 2))
        ctx.save_for_backward(x, both, inner, hidden, last)
        ctx.works = first, second
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, both, inner, hidden, last = ctx.saved_tensors
        first, second = ctx.works
        flat = grad.flatten(0, -2).contiguous()
        behind = _gradients(flat, hidden, last, second, wants_x=True, whole=False)
        slopes = geglu.add_lora_and_geglu_backward(behind.x, behind.inner, second.factors.down, both)
        before = _gradients(slopes, x, inner, first, wants_x=ctx.needs_input_grad[0])
        found = []
        for own, work in ((before, first), (behind, second)):
            downs, ups = split_grads(own.down, own.ups, [len(one) for one in work.downs])
            found += [*downs, *ups]
        return before.x, None, None, *found


def _products(x: torch.Tensor, work: FusedLinearArgs) -> tuple[list[torch.Tensor], torch.Tensor]:
    _, weights, biases, _, _, down, _, _, eights = op_arguments(x, [work])
    return base_and_down_products(x, weights, biases, down, eights)


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, inner: torch.Tensor, work: FusedLinearArgs, **how: bool
) -> Any:
    _, weights, _, _, _, down, up, scales, eights = op_arguments(x, [work])
    return fused_gradients([grad], x, inner, weights, down, up, scales, eights, **how)
