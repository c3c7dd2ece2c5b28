"""The gated activation of diffusers' transformers, h * gelu(g), in one pass each way on a GPU.

Done by separate kernels it is the largest elementwise cost of a training step: the activations of
these layers are eight times as wide as the others. For the same reason the product of the layer's
adapter is added in that pass too. The kernels are written in Triton, which comes with torch where
it can use a CUDA GPU on Linux; elsewhere diffusers' own code is used.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops.fused_lora import (
    FusedLinearArgs,
    add_group_matmul,
    base_and_down_products,
    fused_gradients,
    none_grads,
    op_arguments,
    split_grads,
    split_groups,
)
from lorasmith.training.acceleration.module_patch import exchange, put_back


def is_gated(layer: nn.Module) -> bool:
    """Tell whether a layer is a gated activation, exchanged or not."""
    return type(layer) in _classes()


def use_kernels(network: nn.Module) -> None:
    """Make a network's gated activations use the kernels; ``use_own`` takes that back."""
    exchange(network, *_classes())


def use_own(network: nn.Module) -> None:
    """Let a network's gated activations run as they are written again."""
    put_back(network, *_classes())


@cache
def _classes() -> tuple[Any, Any]:
    """Return diffusers' class, and one of the same layers that calls the kernels."""
    from diffusers.models.activations import GEGLU

    class FastGEGLU(GEGLU):  # type: ignore[misc]
        """A layer with the same parameters."""

        def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """Return h * gelu(g)."""
            work = (
                self.proj.fused_args(hidden_states) if isinstance(self.proj, LoraWrapper) else None
            )
            if work is not None:
                return lora_geglu(hidden_states, work)
            return geglu(self.proj(hidden_states))

    return GEGLU, FastGEGLU


def geglu(both: torch.Tensor) -> torch.Tensor:
    """Return h * gelu(g), ``[..., n]``, for h and g side by side, ``[..., 2 n]``, on a GPU."""
    y: torch.Tensor = _gated(both)
    return y


def geglu_reference(both: torch.Tensor) -> torch.Tensor:
    """Return the same by torch's own operations, anywhere."""
    hidden, gate = both.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


@torch.library.custom_op("lorasmith::gated", mutates_args=())
def _gated(both: torch.Tensor) -> torch.Tensor:
    return _outputs(both.contiguous())


@_gated.register_fake
def _gated_shape(both: torch.Tensor) -> torch.Tensor:
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


@torch.library.custom_op("lorasmith::gated_backward", mutates_args=())
def _gated_backward(grad: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    return _slopes(grad.contiguous(), both.contiguous())


@_gated_backward.register_fake
def _gated_backward_shape(grad: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(both, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _differentiate(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _gated_backward(grad, *ctx.saved_tensors)
    return found


_gated.register_autograd(_differentiate, setup_context=_keep)

_BLOCK, _WARPS = 512, 2
"""Values of the output that one program makes, and its threads by 32: eight values for each."""


def _outputs(both: torch.Tensor) -> torch.Tensor:
    """Return h * gelu(g)."""
    if not both.is_cuda:
        return geglu_reference(both)
    y = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
    _kernels().forward[_grid(y)](both, y, y.shape[-1], block=_BLOCK, num_warps=_WARPS)
    return y


def _slopes(grad: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """Return the gradients of both halves."""
    if not both.is_cuda:
        return _reference_slopes(grad, both)
    out = torch.empty_like(both)
    _kernels().backward[_grid(grad)](
        grad, both, out, grad.shape[-1], block=_BLOCK, num_warps=_WARPS
    )
    return out


def _grid(output: torch.Tensor) -> tuple[int, int]:
    width = output.shape[-1]
    return output.numel() // width, -(-width // _BLOCK)


def _kernels() -> Any:
    """Import the kernels, which need Triton already to be defined."""
    from lorasmith.ops import geglu_triton

    return geglu_triton


# --- with adapters ------------------------------------------------------------------------------


def lora_geglu(x: torch.Tensor, work: FusedLinearArgs) -> torch.Tensor:
    """Return h * gelu(g), ``[N, ..., n]``, for h and g the halves of an adapted layer's output."""
    y: torch.Tensor = _adapted_gated(*op_arguments(x, [work]))[0]
    return y


@torch.library.custom_op("lorasmith::adapted_gated", mutates_args=())
def _adapted_gated(
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
    """Return the output, both halves ``[T, 2 n]``, and A_g x ``[G, T / G, r]``."""
    (both,), inner = base_and_down_products(x, weights, biases, down, eights)
    return [add_lora_and_geglu(both, inner, up[0]).view(*x.shape[:-1], -1), both, inner]


def add_lora_and_geglu(both: torch.Tensor, inner: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Add adapters' products to both halves, in place; return h * gelu(g) ``[T, n]`` of the sums.

    Args:
        both: ``[T, 2 n]``.
        inner: A_g x, ``[G, T / G, r]``.
        up: B, ``[G, 2 n, r]``.
    """
    if both.is_cuda and _fits(inner):
        y = both.new_empty(len(both), both.shape[1] // 2)
        _kernels().forward_adapted[_tiles(y, len(inner))](
            both, inner, up, y, *_sizes(y, inner), **_TILE, wide=_padded(inner)
        )
        return y
    add_group_matmul(split_groups(both, len(inner)), inner, up.transpose(1, 2))
    return _outputs(both)


@_adapted_gated.register_fake
def _adapted_gated_shape(
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
    tokens, width = x.numel() // x.shape[-1], weights[0].shape[0]
    return [
        x.new_empty(*x.shape[:-1], width // 2),
        x.new_empty(tokens, width),
        x.new_empty(groups, tokens // groups, rank),
    ]


@torch.library.custom_op("lorasmith::adapted_gated_backward", mutates_args=())
def _adapted_gated_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    both: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
    eights: Sequence[torch.Tensor],
    wants_x: bool,
) -> list[torch.Tensor]:
    """Return the gradients of the input, of all A and of all B."""
    slopes = _slopes(grad.flatten(0, -2).contiguous(), both)
    found = fused_gradients([slopes], x, inner, [weight], down, [up], scales, eights, wants_x)
    return [x.new_empty(0) if found.x is None else found.x, found.down, *found.ups]


def add_lora_and_geglu_backward(
    grad: torch.Tensor, inner: torch.Tensor, down: torch.Tensor, both: torch.Tensor
) -> torch.Tensor:
    """Return the gradients of both halves ``[T, 2 n]``, from the output's without what adapters
    behind it add to that.

    Args:
        grad: ``[T, n]``.
        inner: the gradient of A_g y of these adapters, ``[G, T / G, r]``.
        down: their A, ``[G, r, n]``.
        both: the halves.
    """
    if not (both.is_cuda and _fits(inner)):
        add_group_matmul(split_groups(grad, len(inner)), inner, down)
        return _slopes(grad, both)
    out = torch.empty_like(both)
    _kernels().backward_adapted[_tiles(grad, len(inner))](
        grad, inner, down, both, out, *_sizes(grad, inner), **_TILE, wide=_padded(inner)
    )
    return out


@_adapted_gated_backward.register_fake
def _adapted_gated_backward_shape(
    grad: torch.Tensor,
    x: torch.Tensor,
    both: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
    eights: Sequence[torch.Tensor],
    wants_x: bool,
) -> list[torch.Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [
        x.new_empty(x.shape) if wants_x else x.new_empty(0),
        down.new_empty(down.shape, dtype=wide),
        up.new_empty(up.shape, dtype=wide),
    ]


def _keep_adapted(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
    x, weights, biases, downs, _, down, up, scales, eights = inputs
    ctx.nothing = [none_grads(one) for one in (weights, biases, up, eights)]
    ctx.scales, ctx.ranks = scales, [len(one) for one in downs]
    ctx.save_for_backward(x, output[1], output[2], weights[0], down, up[0], *eights)
    ctx.set_materialize_grads(False)


def _differentiate_adapted(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    no_weights, no_biases, no_up, no_eights = ctx.nothing
    if grads[0] is None:
        none = [None] * len(ctx.ranks)
        return None, no_weights, no_biases, none, none, None, no_up, None, no_eights
    x, both, inner, weight, down, up, *eights = ctx.saved_tensors
    wants_x = bool(ctx.needs_input_grad[0])
    grad_x, grad_down, grad_up = _adapted_gated_backward(
        grads[0], x, both, inner, weight, down, up, ctx.scales, eights, wants_x
    )
    downs, ups = split_grads(grad_down, [grad_up], ctx.ranks)
    own = grad_x if wants_x else None
    return own, no_weights, no_biases, downs, ups, None, no_up, None, no_eights


_adapted_gated.register_autograd(_differentiate_adapted, setup_context=_keep_adapted)

_TILE: dict[str, int] = {"rows": 16, "block": 128, "num_warps": 4}
"""What one program makes."""
_WIDEST = 128
"""Rank up to which a tile has room for the factors."""


def _tiles(output: torch.Tensor, groups: int) -> tuple[int, int, int]:
    tokens, width = len(output) // groups, output.shape[1]
    return -(-tokens // _TILE["rows"]), -(-width // _TILE["block"]), groups


def _sizes(output: torch.Tensor, inner: torch.Tensor) -> tuple[int, int, int]:
    return inner.shape[1], output.shape[1], inner.shape[2]


def _fits(inner: torch.Tensor) -> bool:
    """Tell whether a tile's factors fit into what a GPU has for one program, and its matrix units
    multiply them (float32 they round).
    """
    return inner.element_size() == 2 and _padded(inner) <= _WIDEST


def _padded(inner: torch.Tensor) -> int:
    """Return the rank as kernels want it: a power of two, at least 16."""
    return max(16, 1 << (inner.shape[2] - 1).bit_length())


def _reference_slopes(grad: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """Return the gradients of both halves by torch's own operations."""
    hidden, gate = both.chunk(2, dim=-1)
    share = 0.5 * (1.0 + torch.erf(gate * 0.5**0.5))
    slope = share + gate * torch.exp(-0.5 * gate * gate) * (2.0 * torch.pi) ** -0.5
    return torch.cat([grad * gate * share, grad * hidden * slope], dim=-1)
