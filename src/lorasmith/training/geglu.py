"""The gated activation of diffusers' transformers, h * gelu(g), in one pass each way on a GPU.

Done by separate kernels it is the largest elementwise cost of a training step: the activations of
these layers are eight times as wide as the others. The kernels are written in Triton, which comes
with torch where it can use a CUDA GPU on Linux; elsewhere diffusers' own code is used.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def gated_layers(network: nn.Module) -> Iterator[nn.Module]:
    """Yield a network's gated activations, those with the exact GELU."""
    return (one for one in network.modules() if type(one) in _classes())


def available(device: torch.device) -> bool:
    """Tell whether there are kernels for a device."""
    return device.type == "cuda" and has_triton()


def use_kernels(network: nn.Module) -> None:
    """Make a network's gated activations use the kernels; ``use_own`` takes that back."""
    own, fast = _classes()
    for layer in gated_layers(network):
        if type(layer) is own:
            layer.__class__ = fast


def use_own(network: nn.Module) -> None:
    """Let a network's gated activations run as they are written again."""
    own, fast = _classes()
    for layer in gated_layers(network):
        if type(layer) is fast:
            layer.__class__ = own


@cache
def _classes() -> tuple[Any, Any]:
    """Return diffusers' class, and one of the same layers that calls the kernels."""
    from diffusers.models.activations import GEGLU

    class FastGEGLU(GEGLU):  # type: ignore[misc]
        """A layer with the same parameters."""

        def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """Return h * gelu(g)."""
            return gated(self.proj(hidden_states))

    return GEGLU, FastGEGLU


def gated(both: torch.Tensor) -> torch.Tensor:
    """Return h * gelu(g), ``[..., n]``, for h and g side by side, ``[..., 2 n]``, on a GPU."""
    y: torch.Tensor = _gated(both)
    return y


def reference(both: torch.Tensor) -> torch.Tensor:
    """Return the same by torch's own operations, anywhere."""
    hidden, gate = both.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


@torch.library.custom_op("lorasmith::gated", mutates_args=())
def _gated(both: torch.Tensor) -> torch.Tensor:
    both = both.contiguous()
    y = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
    kernels = _kernels()
    kernels.forward[_grid(y)](both, y, y.shape[-1], block=_BLOCK, num_warps=_WARPS)
    return y


@_gated.register_fake
def _gated_shape(both: torch.Tensor) -> torch.Tensor:
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


@torch.library.custom_op("lorasmith::gated_backward", mutates_args=())
def _gated_backward(grad: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    grad, both = grad.contiguous(), both.contiguous()
    out = torch.empty_like(both)
    _kernels().backward[_grid(grad)](
        grad, both, out, grad.shape[-1], block=_BLOCK, num_warps=_WARPS
    )
    return out


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


def _grid(output: torch.Tensor) -> tuple[int, int]:
    width = output.shape[-1]
    return output.numel() // width, -(-width // _BLOCK)


@cache
def has_triton() -> bool:
    """Tell whether kernels can be compiled."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _kernels() -> Any:
    """Import the kernels, which need Triton already to be defined."""
    from lorasmith.training import geglu_kernels

    return geglu_kernels
