"""Low-rank adapters (LoRA) of linear and convolution layers.

A LoRA adds the product of two thin matrices to a layer, y += w s B A x with s = alpha / rank (Hu et
al. 2021, arXiv:2106.09685). LoRA files call A *down* and B *up*. If both factors start at non-zero
values A0 and B0, that start is subtracted: y += w s (B A - B0 A0) x.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.adapters.gating.gate import Gate
from lorasmith.core.errors import WeightsError

_MERGE_FACTOR = 4
"""During training a layer is merged with its adapter if its weight has at most this many times as
many elements as the factors. Operations alone would give 3; merging also saves kernel calls."""


class Factors(NamedTuple):
    """Two factors whose scaled product is added to a layer's weight."""

    down: torch.Tensor
    """``[r, in]`` or ``[r, in, k, k]``."""
    up: torch.Tensor
    """``[out, r]`` or ``[out, r, 1, 1]``."""


class Adapter(nn.Module, ABC):
    """A module that adds something to the output of one frozen layer.

    Attributes:
        strength: multiplier w; at 0 the layer's output equals the base's bit for bit.
        gate: selects the rows of a batch that the adapter applies to; shared by all layers of a
            LoRA.
        reads_text: whether the layer's input are text tokens ``[B, L, C]``, so that the gate may
            select among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.strength = 1.0
        self.gate = Gate()
        self.reads_text = False

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``strength`` times the change of the layer's output for its input ``x``."""

    def add_to_output(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the layer's output ``y`` for its input ``x`` plus the adapter's output."""
        change: torch.Tensor = self(x)
        return y + change

    @abstractmethod
    def delta_weight(self) -> torch.Tensor:
        """Return the change of the layer's weight, in its shape, at strength 1."""


class LoraAdapter(Adapter):
    """Two trainable factors of one layer.

    The factors may have a wider dtype than the layer (float32 in training, over a bf16 layer). Each
    call casts them to the input's dtype, and gradients flow back through the cast.
    """

    down0: torch.Tensor | None
    up0: torch.Tensor | None

    def __init__(
        self,
        factors: Factors,
        alpha: float,
        start: Factors | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Create an adapter.

        Args:
            factors: the trainable A and B.
            alpha: the scale is alpha / rank.
            start: A0 and B0, whose product is subtracted. Not trained, part of the state dict.
            dropout: share of the input's elements set to zero in training mode.
        """
        super().__init__()
        self.down = nn.Parameter(factors.down)
        self.up = nn.Parameter(factors.up)
        self.register_buffer("down0", start.down if start else None)
        self.register_buffer("up0", start.up if start else None)
        self.alpha = float(alpha)
        self.dropout = float(dropout)

    @property
    def rank(self) -> int:
        """Inner width of the trained product."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def factors(self) -> Factors:
        """Return the factors of the full change: A and B, or with a start twice as many rows.

        B A - B0 A0 = B (A - A0) + (B - B0) A0. In this form nothing cancels: both terms are exactly
        zero at the start, and casting the factors to fewer bits loses little.
        """
        if self.down0 is None or self.up0 is None:
            return Factors(self.down, self.up)
        return Factors(
            torch.cat([self.down - self.down0, self.down0]),
            torch.cat([self.up, self.up - self.up0], dim=1),
        )

    def delta_weight(self) -> torch.Tensor:
        """Return (alpha / rank) B A, minus its start, in the shape of the layer's weight."""
        down, up = self.factors()
        product = up.flatten(1) @ down.flatten(1)
        return (self.scale * product).reshape(len(up), *down.shape[1:])

    def _apply_dropout(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class LoraLinear(LoraAdapter):
    """An adapter of a linear layer: down ``[r, in]``, up ``[out, r]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the change of the output, ``[..., out]``, for an input ``[..., in]``."""
        down, up = self.factors()
        # Scale the tensor with the fewest elements.
        inner = F.linear(self._apply_dropout(x), down.to(x.dtype)) * (self.strength * self.scale)
        return F.linear(inner, up.to(x.dtype))

    def add_to_output(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return ``y`` plus the change, with the second product and the sum in one operation."""
        down, up = (factor.to(x.dtype) for factor in self.factors())
        inner = F.linear(self._apply_dropout(x), down).flatten(0, -2)
        scale = self.strength * self.scale
        return torch.addmm(y.flatten(0, -2), inner, up.t(), alpha=scale).view_as(y)

    def merge_into(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a layer's weight ``[out, in]`` plus w s B A."""
        down, up = self.factors()
        return torch.addmm(weight, up, down, alpha=self.strength * self.scale)

    def is_cheaper_merged(self, weight: torch.Tensor) -> bool:
        """Return whether training costs less with W + w s B A than with two thin products.

        The thin products cost 6 T r (in + out) operations for T tokens, forward and backward. The
        gradient of the full weight costs 2 T in out, in a third of the kernel calls. Only float32
        and float64 weights are merged: a small change is lost when half-precision weights round.
        """
        is_small = weight.numel() <= _MERGE_FACTOR * self.rank * sum(weight.shape)
        is_exact = weight.dtype == self.down.dtype and weight.dtype in (
            torch.float32,
            torch.float64,
        )
        return is_small and is_exact


class LoraConv2d(LoraAdapter):
    """An adapter of a convolution: down ``[r, in, k, k]``, up ``[out, r, 1, 1]``."""

    def __init__(
        self,
        base: nn.Conv2d,
        factors: Factors,
        alpha: float,
        start: Factors | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Create an adapter with the stride and padding of ``base``; see `LoraAdapter`."""
        super().__init__(factors, alpha, start, dropout)
        self.stride, self.padding, self.dilation = base.stride, base.padding, base.dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the change of the output, ``[B, out, h, w]``, for an input ``[B, in, H, W]``."""
        down, up = (factor.to(x.dtype) for factor in self.factors())
        inner = F.conv2d(
            self._apply_dropout(x), down, None, self.stride, self.padding, self.dilation
        )
        return F.conv2d(inner * (self.strength * self.scale), up)


def make_adapter(
    base: nn.Module,
    factors: Factors,
    alpha: float,
    start: Factors | None = None,
    dropout: float = 0.0,
) -> LoraLinear | LoraConv2d:
    """Return an adapter with the given factors, which must have the layer's shape.

    Factors of a linear layer may be 1x1 kernels and vice versa, because some layers are linear in
    SD 2.x and 1x1 convolutions in SD 1.x.

    Args:
        base: a linear or convolution layer.
        factors: A and B.
        alpha: the scale is alpha / rank.
        start: A0 and B0, shaped like the factors.
        dropout: see `LoraAdapter`.

    Raises:
        WeightsError: the shapes do not fit the layer; the message names both.
    """
    weight = layer_weight(base)
    factors = _match_shape(factors, weight)
    start = _match_shape(start, weight) if start else None
    if isinstance(base, nn.Conv2d):
        return LoraConv2d(base, factors, alpha, start, dropout)
    return LoraLinear(factors, alpha, start, dropout)


def _match_shape(factors: Factors, weight: torch.Tensor) -> Factors:
    """Return the factors with as many dimensions as the layer's weight."""
    down, up = factors
    if down.ndim != weight.ndim and all(side == 1 for side in (*down.shape[2:], *weight.shape[2:])):
        extra = [1] * (weight.ndim - 2)
        down, up = (factor.reshape(*factor.shape[:2], *extra) for factor in (down, up))
    is_match = (
        down.shape[1:] == weight.shape[1:]
        and up.shape[:2] == (weight.shape[0], down.shape[0])
        and up.shape[2:] == torch.Size([1] * (weight.ndim - 2))
    )
    if not is_match:
        raise WeightsError(
            f"down {list(down.shape)} and up {list(up.shape)} do not fit a layer of shape "
            f"{list(weight.shape)}"
        )
    return Factors(down, up)


def layer_weight(base: nn.Module) -> torch.Tensor:
    """Return a layer's weight, ``[out, in]`` or ``[out, in, k, k]``.

    Raises:
        WeightsError: the layer is not linear and not an ungrouped, zero-padded convolution.
    """
    if isinstance(base, nn.Linear):
        return base.weight
    if isinstance(base, nn.Conv2d) and base.groups == 1 and base.padding_mode == "zeros":
        return base.weight
    raise WeightsError(f"a LoRA on a layer like {base} is not supported")
