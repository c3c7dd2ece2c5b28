"""Low-rank adapters and the module that adds them to a frozen layer.

An adapter is the product of two thin matrices, y += w * (alpha / rank) * B A x (Hu et al. 2021,
arXiv:2106.09685). ``A`` is called *down* and ``B`` *up*, as in LoRA files. ``Adapted`` stands in
for a frozen layer and adds any number of adapters to its output.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.core.errors import WeightsError

Init = Literal["gaussian", "kaiming"]


class LowRank(nn.Module):
    """One adapter of one layer: two factors, a scale and a weight.

    The factors may be wider than what they are applied to (float32 while they are trained, over
    a bf16 layer): they are cast to the input's dtype in every call, and gradients flow back
    through the cast.
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.alpha = float(alpha)
        self.weight = 1.0
        """Multiplier w. At 0 the layer's output is the base's, bit for bit."""

    @property
    def rank(self) -> int:
        """Inner width of the product."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """alpha / rank, the constant part of the multiplier."""
        return self.alpha / self.rank

    def delta_weight(self) -> torch.Tensor:
        """Return (alpha / rank) * B A in the shape of the layer's weight, without ``weight``."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return (self.scale * product).reshape(len(self.up), *self.down.shape[1:])


class LoraLinear(LowRank):
    """An adapter of a linear layer: down ``[r, in]``, up ``[out, r]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output, ``[..., out]``, for an input ``[..., in]``."""
        # The multiplier goes where the tensor is thinnest.
        inner = F.linear(x, self.down.to(x.dtype)) * (self.weight * self.scale)
        return F.linear(inner, self.up.to(x.dtype))


class LoraConv2d(LowRank):
    """An adapter of a convolution: down ``[r, in, k, k]``, up ``[out, r, 1, 1]``."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor, alpha: float, base: nn.Conv2d) -> None:
        super().__init__(down, up, alpha)
        self.stride, self.padding, self.dilation = base.stride, base.padding, base.dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output, ``[B, out, h, w]``, for a ``[B, in, H, W]`` input."""
        down = self.down.to(x.dtype)
        inner = F.conv2d(x, down, None, self.stride, self.padding, self.dilation)
        return F.conv2d(inner * (self.weight * self.scale), self.up.to(x.dtype))


class Adapted(nn.Module):
    """Stands in for a frozen layer: its output plus that of every adapter that is on."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleList()

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight; libraries look at it for its dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output, untouched where every adapter's weight is 0."""
        y: torch.Tensor = self.base(x)
        for adapter in self.adapters:
            if adapter.weight != 0:
                y = y + adapter(x)
        return y


def new_adapter(
    base: nn.Module, rank: int, alpha: float, init: Init, draws: torch.Generator
) -> LowRank:
    """Return an untrained adapter for a layer: a random down-matrix, a zero up-matrix.

    Its factors are float32 on the layer's device; the numbers are drawn on the CPU.

    Args:
        base: a linear or convolution layer.
        rank: inner width, at least 1.
        alpha: the scale is alpha / rank.
        init: ``gaussian`` draws from N(0, 1/rank^2); ``kaiming`` uniformly within
            +-1/sqrt(fan in), as in the LoRA paper's code.
        draws: a CPU generator.

    Raises:
        WeightsError: adapters of this kind of layer are not supported.
    """
    width = layer_weight(base)
    down = torch.empty(rank, *width.shape[1:], dtype=torch.float32)
    if init == "gaussian":
        down.normal_(0.0, 1.0 / rank, generator=draws)
    else:
        bound = 1.0 / math.sqrt(width[0].numel())
        down.uniform_(-bound, bound, generator=draws)
    up = torch.zeros(width.shape[0], rank, *[1] * (width.ndim - 2))
    return make_adapter(base, down.to(width.device), up.to(width.device), alpha)


def make_adapter(
    base: nn.Module, down: torch.Tensor, up: torch.Tensor, alpha: float
) -> LoraLinear | LoraConv2d:
    """Return an adapter with given factors, which must have the layer's shape.

    The factors of a linear layer may come as 1x1 kernels and the other way round, because the
    same block is one in SD 1.x and the other in SD 2.x exports.

    Raises:
        WeightsError: the shapes do not fit the layer; both are named.
    """
    weight = layer_weight(base)
    if down.ndim != weight.ndim and all(side == 1 for side in (*down.shape[2:], *weight.shape[2:])):
        extra = [1] * (weight.ndim - 2)
        down, up = (factor.reshape(*factor.shape[:2], *extra) for factor in (down, up))
    fits = (
        down.shape[1:] == weight.shape[1:]
        and up.shape[:2] == (weight.shape[0], down.shape[0])
        and up.shape[2:] == torch.Size([1] * (weight.ndim - 2))
    )
    if not fits:
        raise WeightsError(
            f"down {list(down.shape)} and up {list(up.shape)} do not fit a layer of shape "
            f"{list(weight.shape)}"
        )
    if isinstance(base, nn.Conv2d):
        return LoraConv2d(down, up, alpha, base)
    return LoraLinear(down, up, alpha)


def layer_weight(base: nn.Module) -> torch.Tensor:
    """Return a layer's weight, ``[out, in]`` or ``[out, in, k, k]``.

    Raises:
        WeightsError: not a linear layer or an ungrouped, zero-padded convolution.
    """
    if isinstance(base, nn.Linear):
        return base.weight
    if isinstance(base, nn.Conv2d) and base.groups == 1 and base.padding_mode == "zeros":
        return base.weight
    raise WeightsError(f"a LoRA on a layer like {base} is not supported")
