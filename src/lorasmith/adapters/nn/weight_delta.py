"""Adapters that hold the full change of a layer's weight, such as that of DoRA, LoHa and LoKr."""

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.adapters.nn.lora import Adapter


class DeltaLinear(Adapter):
    """A change of a linear layer's weight, ``[out, in]``."""

    delta: torch.Tensor

    def __init__(self, delta: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("delta", delta)

    def delta_weight(self) -> torch.Tensor:
        """Return the change at strength 1."""
        return self.delta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the change of the output, ``[..., out]``, for an input ``[..., in]``."""
        return F.linear(x, self.delta.to(x.dtype)) * self.strength


class DeltaConv2d(DeltaLinear):
    """A change of a convolution's weight, ``[out, in, k, k]``."""

    def __init__(self, base: nn.Conv2d, delta: torch.Tensor) -> None:
        """Create an adapter with the stride and padding of ``base``."""
        super().__init__(delta)
        self.stride, self.padding, self.dilation = base.stride, base.padding, base.dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the change of the output, ``[B, out, h, w]``, for an input ``[B, in, H, W]``."""
        delta = self.delta.to(x.dtype)
        return F.conv2d(x, delta, None, self.stride, self.padding, self.dilation) * self.strength


def make_delta_adapter(base: nn.Module, delta: torch.Tensor) -> DeltaLinear:
    """Return an adapter that adds ``delta``, which has the shape of the layer's weight."""
    return DeltaConv2d(base, delta) if isinstance(base, nn.Conv2d) else DeltaLinear(delta)
