"""Low-rank adapters and the module that adds them to a frozen layer.

An adapter is the product of two thin matrices, y += w * s * B A x with s = alpha / rank (Hu et al.
2021, arXiv:2106.09685). ``A`` is called *down* and ``B`` *up*, as in LoRA files. An adapter whose
factors both start at something else than zero has that start subtracted: y += w * s * (B A - B0
A0) x. ``Adapted`` stands in for a frozen layer and adds any number of adapters to its output.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.adapters.gating.gate import Gate
from lorasmith.core.errors import WeightsError
from lorasmith.ops.fused_lora import FusedLinearArgs, StackedFactors, fused_lora_linear

_MERGED_BELOW = 4
"""How many thin products of the adapter's rank a layer's weight may weigh to be merged with it:
three by operations alone, and calls cost something too."""


class Factors(NamedTuple):
    """Two factors whose product, scaled, is added to a layer's weight."""

    down: torch.Tensor
    """``[r, in]`` or ``[r, in, k, k]``."""
    up: torch.Tensor
    """``[out, r]`` or ``[out, r, 1, 1]``."""


class Adapter(nn.Module, ABC):
    """What is added to one layer's output: its multiplier, its gate, and the dense sum of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 1.0
        """Multiplier w. At 0 the layer's output is the base's, bit for bit."""
        self.gate = Gate()
        """Which rows of a batch it is at work for; all layers of a LoRA share one."""
        self.reads_text = False
        """Whether its input are a text's tokens, ``[B, L, C]``, which the gate may choose among."""

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the layer's output for its input ``x``, times ``weight``."""

    def onto(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the layer's output ``y`` for its input ``x``, with what is added to it."""
        added: torch.Tensor = self(x)
        return y + added

    @abstractmethod
    def delta_weight(self) -> torch.Tensor:
        """Return what is added to the layer's weight, in its shape; ``weight`` is left out."""


class LowRank(Adapter):
    """One adapter of one layer: two factors, a scale and a weight.

    The factors may be wider than what they are applied to (float32 while they are trained, over
    a bf16 layer): they are cast to the input's dtype in every call, and gradients flow back
    through the cast.
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
        """Make an adapter.

        Args:
            factors: the trainable A and B.
            alpha: the scale is alpha / rank.
            start: A0 and B0, whose product is subtracted; never trained, part of the state.
            dropout: share of the input's values set to zero in training mode.
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
        """alpha / rank, the constant part of the multiplier."""
        return self.alpha / self.rank

    def factors(self) -> Factors:
        """Return the factors of what is added: A and B, or where a start is subtracted twice as
        many rows.

        B A - B0 A0 = B (A - A0) + (B - B0) A0. Written this way nothing cancels: at the start both
        terms are exactly zero, and little is lost when the factors are cast to fewer bits.
        """
        if self.down0 is None or self.up0 is None:
            return Factors(self.down, self.up)
        return Factors(
            torch.cat([self.down - self.down0, self.down0]),
            torch.cat([self.up, self.up - self.up0], dim=1),
        )

    def delta_weight(self) -> torch.Tensor:
        """Return (alpha / rank) * B A, less its start, in the shape of the layer's weight.

        ``weight`` is left out.
        """
        down, up = self.factors()
        product = up.flatten(1) @ down.flatten(1)
        return (self.scale * product).reshape(len(up), *down.shape[1:])

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class LoraLinear(LowRank):
    """An adapter of a linear layer: down ``[r, in]``, up ``[out, r]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output, ``[..., out]``, for an input ``[..., in]``."""
        down, up = self.factors()
        # The multiplier goes where the tensor is thinnest.
        inner = F.linear(self._dropped(x), down.to(x.dtype)) * (self.weight * self.scale)
        return F.linear(inner, up.to(x.dtype))

    def onto(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return ``y`` with what is added, the second product and the sum in one operation."""
        down, up = (factor.to(x.dtype) for factor in self.factors())
        inner = F.linear(self._dropped(x), down).flatten(0, -2)
        scale = self.weight * self.scale
        return torch.addmm(y.flatten(0, -2), inner, up.t(), alpha=scale).view_as(y)

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a layer's weight ``[out, in]`` with what this adapter adds, w * s * B A."""
        down, up = self.factors()
        return torch.addmm(weight, up, down, alpha=self.weight * self.scale)

    def is_cheaper_merged(self, weight: torch.Tensor) -> bool:
        """Tell whether training takes less work by W + w s B A than by the two thin products.

        Those cost 6 T r (in + out) operations for T tokens, forward and backward; the gradient of
        a whole weight costs 2 T in out, and needs a third of the calls. Only where nothing is
        lost: a change would drown in the rounding of half a weight, and dropout and gates are
        about inputs.
        """
        thin = weight.numel() <= _MERGED_BELOW * self.rank * sum(weight.shape)
        exact = weight.dtype == self.down.dtype and weight.dtype in (torch.float32, torch.float64)
        return thin and exact


class LoraConv2d(LowRank):
    """An adapter of a convolution: down ``[r, in, k, k]``, up ``[out, r, 1, 1]``."""

    def __init__(
        self,
        base: nn.Conv2d,
        factors: Factors,
        alpha: float,
        start: Factors | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Make an adapter that strides and pads as ``base`` does; the rest as in `LowRank`."""
        super().__init__(factors, alpha, start, dropout)
        self.stride, self.padding, self.dilation = base.stride, base.padding, base.dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output, ``[B, out, h, w]``, for a ``[B, in, H, W]`` input."""
        down, up = (factor.to(x.dtype) for factor in self.factors())
        inner = F.conv2d(self._dropped(x), down, None, self.stride, self.padding, self.dilation)
        return F.conv2d(inner * (self.weight * self.scale), up)


class Adapted(nn.Module):
    """Stands in for a frozen layer: its output plus that of every adapter that is on."""

    stack: StackedFactors | None = None
    """The factors of ``learning`` in the layer's dtype, as long as a step is at work with them."""
    learning: tuple[LoraLinear, ...] = ()
    """Adapters in training that divide the rows of a batch among them, in their order."""

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
        """Return the base's output, untouched where all adapters have weight 0 or a shut gate."""
        if isinstance(self.base, nn.Linear) and torch.is_grad_enabled():
            work = self.work_for(x)
            if work is not None:
                return fused_lora_linear(x, [work])[0]
            alone = self.learning_alone()
            if alone is not None and alone.is_cheaper_merged(self.base.weight):
                return F.linear(x, alone.added_to(self.base.weight), self.bias)
        y: torch.Tensor = self.base(x)
        for adapter in cast("Iterable[Adapter]", self.adapters):
            if adapter.weight != 0:
                y = adapter.gate.add(adapter, x, y)
        return y

    def work_for(self, x: torch.Tensor) -> FusedLinearArgs | None:
        """Return what is to be done for an input as one operation, None where it cannot be."""
        if self.stack is None or not torch.is_grad_enabled() or not self.divided(x):
            return None
        downs, ups = zip(*((one.down, one.up) for one in self.learning), strict=True)
        return FusedLinearArgs(cast("nn.Linear", self.base), self.stack, downs, ups)

    def divided(self, x: torch.Tensor) -> bool:
        """Tell whether the adapters in ``learning`` are at work for equal parts of the rows of an
        input, one after the other and for all of them, and no other adapter is.
        """
        count, rows = len(self.learning), len(x)
        if rows % count or x.dtype != self.weight.dtype:
            return False
        each = rows // count
        for number, one in enumerate(self.learning):
            span = (number * each, number * each + each)
            if not one.training or one.weight == 0 or one.gate.span(rows) != span:
                return False
        return all(
            one.gate.shut or one.weight == 0
            for one in cast("Iterable[Adapter]", self.adapters)
            if not any(one is other for other in self.learning)
        )

    def learning_alone(self) -> "LoraLinear | None":
        """Return the adapter where there is one only, it learns, and from every row as it is."""
        if len(self.adapters) != 1 or not torch.is_grad_enabled():
            return None
        one = self.adapters[0]
        if not isinstance(one, LoraLinear) or not one.training or not one.down.requires_grad:
            return None
        return one if one.weight != 0 and not one.dropout and one.gate.wide_open else None


def outputs_of(x: torch.Tensor, layers: Sequence[nn.Module]) -> list[torch.Tensor]:
    """Return the outputs of layers that read the same input, at once where that can be."""
    works = [one.work_for(x) if isinstance(one, Adapted) else None for one in layers]
    own = [one for one in works if one is not None]
    shared = own[0].factors.shared if own else None
    if (
        shared is not None
        and len(own) * own[0].factors.down.shape[1] == shared.shape[1]
        and len(own) == len(layers)
        and all(one.factors.shared is shared for one in own)
    ):
        return fused_lora_linear(x, own)
    return [
        layer(x) if work is None else fused_lora_linear(x, [work])[0]
        for layer, work in zip(layers, works, strict=True)
    ]


def make_adapter(
    base: nn.Module,
    factors: Factors,
    alpha: float,
    start: Factors | None = None,
    dropout: float = 0.0,
) -> LoraLinear | LoraConv2d:
    """Return an adapter with given factors, which must have the layer's shape.

    The factors of a linear layer may come as 1x1 kernels and the other way round, because the
    same block is one in SD 1.x and the other in SD 2.x exports.

    Args:
        base: a linear or convolution layer.
        factors: A and B.
        alpha: the scale is alpha / rank.
        start: A0 and B0, shaped like the factors.
        dropout: see `LowRank`.

    Raises:
        WeightsError: the shapes do not fit the layer; both are named.
    """
    weight = layer_weight(base)
    factors = _shaped(factors, weight)
    start = _shaped(start, weight) if start else None
    if isinstance(base, nn.Conv2d):
        return LoraConv2d(base, factors, alpha, start, dropout)
    return LoraLinear(factors, alpha, start, dropout)


def _shaped(factors: Factors, weight: torch.Tensor) -> Factors:
    """Return the factors with as many dimensions as the layer's weight."""
    down, up = factors
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
    return Factors(down, up)


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
