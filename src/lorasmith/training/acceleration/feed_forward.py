"""The feed-forward layers of diffusers' transformers with their adapters as one operation."""

from functools import cache
from typing import Any

import torch
from torch import nn

from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops import geglu
from lorasmith.ops.fused_feed_forward import fused_feed_forward
from lorasmith.training.acceleration.module_patch import ModulePatch


@cache
def geglu_patch() -> ModulePatch:
    """Return the patch of the gated activation ``GEGLU``."""
    from diffusers.models.activations import GEGLU

    class FusedGEGLU(GEGLU):  # type: ignore[misc]
        """A gated activation by one kernel, together with its linear layer's adapters."""

        def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """Return h * gelu(g)."""
            layer = (
                self.proj.fused_args(hidden_states) if isinstance(self.proj, LoraWrapper) else None
            )
            if layer is not None:
                return geglu.lora_geglu(hidden_states, layer)
            return geglu.geglu(self.proj(hidden_states))

    return ModulePatch(GEGLU, FusedGEGLU)


@cache
def feed_forward_patch() -> ModulePatch:
    """Return the patch of ``FeedForward``."""
    from diffusers.models.attention import FeedForward

    class FusedFeedForward(FeedForward):  # type: ignore[misc]
        """Two linear layers, a gated activation and all adapters in one operation."""

        def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """Return the output, ``[..., C]``."""
            first, second = self.net[0].proj, self.net[2]
            if isinstance(first, LoraWrapper) and isinstance(second, LoraWrapper):
                layers = first.fused_args(hidden_states), second.fused_args(hidden_states)
                if layers[0] is not None and layers[1] is not None:
                    return fused_feed_forward(hidden_states, layers[0], layers[1])
            y: torch.Tensor = second(self.net[0](hidden_states))
            return y

    return ModulePatch(FeedForward, FusedFeedForward, _is_plain)


def _is_plain(layer: Any) -> bool:
    """Return whether a layer is a gated activation, no dropout, and a linear layer."""
    from diffusers.models.activations import GEGLU

    net = layer.net
    if len(net) != 3 or type(net[0]) is not GEGLU:
        return False
    return isinstance(net[1], nn.Dropout) and (net[1].p == 0 or not net[1].training)
