"""The module that replaces a frozen layer and adds its adapters to the output."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.adapters.nn.lora import Adapter, LoraLinear
from lorasmith.ops.fp8 import fp8_weight_of
from lorasmith.ops.fused_lora import FusedLinearArgs, StackedFactors, fused_lora_linear


class LoraWrapper(nn.Module):
    """Replaces a frozen layer: returns its output plus that of every active adapter.

    Attributes:
        base: the frozen layer.
        adapters: any number of `Adapter`, applied in order.
        fused_factors: see `use_fused_factors`; None otherwise.
        fused_adapters: the adapters that ``fused_factors`` are copies of.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleList()
        self.fused_factors: StackedFactors | None = None
        self.fused_adapters: tuple[LoraLinear, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight; diffusers and transformers read its dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output, unchanged if every adapter has strength 0 or a closed gate."""
        if isinstance(self.base, nn.Linear) and torch.is_grad_enabled():
            fused_args = self.fused_args(x)
            if fused_args is not None:
                return fused_lora_linear(x, [fused_args])[0]
            sole = self.sole_trainable_adapter()
            if sole is not None and sole.is_cheaper_merged(self.base.weight):
                return F.linear(x, sole.merge_into(self.base.weight), self.bias)
        y: torch.Tensor = self.base(x)
        for adapter in cast("Iterable[Adapter]", self.adapters):
            if adapter.strength != 0:
                y = adapter.gate.apply(adapter, x, y)
        return y

    def use_fused_factors(self, factors: StackedFactors, adapters: Sequence[LoraLinear]) -> None:
        """Compute the base and these adapters as one operation until `clear_fused_factors`.

        The caller refreshes ``factors`` whenever the adapters' parameters change.

        Args:
            factors: the adapters' factors, in the dtype of the base layer.
            adapters: trainable adapters that divide the rows of a batch evenly, in this order.
        """
        self.fused_factors, self.fused_adapters = factors, tuple(adapters)

    def clear_fused_factors(self) -> None:
        """Compute the base and the adapters as separate operations again."""
        self.fused_factors, self.fused_adapters = None, ()

    def fused_args(self, x: torch.Tensor) -> FusedLinearArgs | None:
        """Return the arguments of the fused operation for an input; None if it does not apply."""
        if self.fused_factors is None or not torch.is_grad_enabled():
            return None
        if not self.is_evenly_divided(x):
            return None
        downs, ups = zip(
            *((adapter.down, adapter.up) for adapter in self.fused_adapters), strict=True
        )
        base = cast("nn.Linear", self.base)
        return FusedLinearArgs(
            base.weight, base.bias, self.fused_factors, downs, ups, fp8_weight_of(base)
        )

    def is_evenly_divided(self, x: torch.Tensor) -> bool:
        """Return whether ``fused_adapters`` each apply to an equal share of the rows of ``x``,
        in order, and no other adapter is active.
        """
        count, rows = len(self.fused_adapters), len(x)
        if rows % count or x.dtype != self.weight.dtype:
            return False
        share = rows // count
        for index, adapter in enumerate(self.fused_adapters):
            span = (index * share, index * share + share)
            if not adapter.training or adapter.strength == 0 or adapter.gate.row_span(rows) != span:
                return False
        return all(
            adapter.gate.is_closed or adapter.strength == 0
            for adapter in cast("Iterable[Adapter]", self.adapters)
            if not any(adapter is fused_adapter for fused_adapter in self.fused_adapters)
        )

    def sole_trainable_adapter(self) -> LoraLinear | None:
        """Return the adapter if it is the only one, is trained, and sees every row unchanged."""
        if len(self.adapters) != 1 or not torch.is_grad_enabled():
            return None
        adapter = self.adapters[0]
        if not isinstance(adapter, LoraLinear):
            return None
        if not adapter.training or not adapter.down.requires_grad or adapter.dropout:
            return None
        return adapter if adapter.strength != 0 and adapter.gate.is_fully_open else None


def forward_shared_input(x: torch.Tensor, layers: Sequence[nn.Module]) -> list[torch.Tensor]:
    """Return the outputs of layers that read the same input, in one operation where possible."""
    fused_args = [
        layer.fused_args(x) if isinstance(layer, LoraWrapper) else None for layer in layers
    ]
    available = [args for args in fused_args if args is not None]
    shared = available[0].factors.shared_down if available else None
    if (
        shared is not None
        and len(available) * available[0].factors.down.shape[1] == shared.shape[1]
        and len(available) == len(layers)
        and all(args.factors.shared_down is shared for args in available)
    ):
        return fused_lora_linear(x, available)
    return [
        layer(x) if args is None else fused_lora_linear(x, [args])[0]
        for layer, args in zip(layers, fused_args, strict=True)
    ]
