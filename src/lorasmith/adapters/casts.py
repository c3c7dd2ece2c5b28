"""Copies of adapters' factors in the number format of the layers that they are on."""

from collections.abc import Iterable

import torch
from torch import nn

from lorasmith.adapters.fused import Cast
from lorasmith.adapters.layers import LoraLinear, LowRank


class Casts:
    """Copies of adapters' factors in their layers' dtype, all renewed at once.

    The adapters have them only between ``renew`` and ``drop``, so that none is ever out of date.
    """

    def __init__(self, pairs: Iterable[tuple[LoraLinear, nn.Linear]]) -> None:
        """Make room for the copies.

        Args:
            pairs: adapters and the layers that they belong to, on one device.
        """
        self._adapters: list[LoraLinear] = []
        self._copies: list[Cast] = []
        for adapter, layer in pairs:
            dtype = layer.weight.dtype
            self._adapters.append(adapter)
            self._copies.append(
                Cast(
                    torch.empty_like(adapter.down, dtype=dtype, requires_grad=False),
                    torch.empty_like(adapter.up, dtype=dtype, requires_grad=False),
                )
            )

    @torch.no_grad()
    def renew(self) -> None:
        """Copy the factors as they are now, and give the copies to the adapters."""
        if not self._adapters:
            return
        factors: list[torch.Tensor] = []
        for adapter in self._adapters:
            factors += [adapter.down, adapter.up]
        torch._foreach_copy_([one for pair in self._copies for one in pair], factors)
        for adapter, copy in zip(self._adapters, self._copies, strict=True):
            adapter.cast = copy

    def drop(self) -> None:
        """Take the copies back."""
        for adapter in self._adapters:
            adapter.cast = None


def casts_for(adapted: Iterable[tuple[LowRank, nn.Module]]) -> Casts | None:
    """Return copies for the adapters that can be fused with their layers; None where none can.

    Those are adapters of linear layers on a CUDA GPU, without dropout or a start that is
    subtracted.
    """
    pairs = [
        (adapter, layer)
        for adapter, layer in adapted
        if isinstance(adapter, LoraLinear)
        and isinstance(layer, nn.Linear)
        and layer.weight.is_cuda
        and adapter.down0 is None
        and not adapter.dropout
    ]
    return Casts(pairs) if pairs else None
