"""Copies of adapters' factors in the number format of the layers that they are on."""

from collections.abc import Collection, Iterator, Sequence
from typing import cast

import torch
from torch import nn

from lorasmith.adapters.nn.lora import LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.adapters.targeting.qkv_groups import iter_qkv_groups
from lorasmith.ops.fused_lora import StackedFactors

TrainedLayer = tuple[LoraWrapper, tuple[LoraLinear, ...]]
"""A linear layer, and those of its adapters that are trained, in the order in which they divide
the rows of a batch."""


class FactorCastCache:
    """Copies of the factors of adapters in training, all renewed at once.

    The layers have them only between ``renew`` and ``drop``, so that none is ever out of date.
    """

    def __init__(self, families: Collection[Sequence[TrainedLayer]]) -> None:
        """Make room for the copies.

        Args:
            families: layers that read the same input, most of them alone.
        """
        self._layers = [
            (*learner, room)
            for family in families
            for learner, room in zip(family, _rooms(family), strict=True)
        ]

    def __len__(self) -> int:
        return len(self._layers)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the factors as they are now, and give the copies to the layers."""
        copies: list[torch.Tensor] = []
        downs: list[torch.Tensor] = []
        ups: list[torch.Tensor] = []
        scales: list[float] = []
        for layer, adapters, room in self._layers:
            for number, one in enumerate(adapters):
                downs.append(one.down)
                ups.append(one.up)
                scales.append(one.strength * one.scale)
                copies.append(room.down[number, : one.rank])
            copies += [room.up[number, :, : one.rank] for number, one in enumerate(adapters)]
            layer.use_fused_factors(room._replace(scales=tuple(scales[-len(adapters) :])), adapters)
        if not copies:
            return
        if any(scale != 1.0 for scale in scales):
            ups = list(torch._foreach_mul(ups, scales))
        torch._foreach_copy_(copies, list(_in_turn(downs, ups, self._layers)))

    def clear(self) -> None:
        """Take the copies back."""
        for layer, _, _ in self._layers:
            layer.clear_fused_factors()


def _in_turn(
    downs: list[torch.Tensor],
    ups: list[torch.Tensor],
    layers: list[tuple[LoraWrapper, tuple[LoraLinear, ...], StackedFactors]],
) -> Iterator[torch.Tensor]:
    """Yield the factors layer by layer, all down before all up."""
    first = 0
    for _, adapters, _ in layers:
        last = first + len(adapters)
        yield from downs[first:last]
        yield from ups[first:last]
        first = last


def _rooms(family: Sequence[TrainedLayer]) -> list[StackedFactors]:
    """Return room for the factors of layers that read the same input; A of all lie together."""
    counts = {len(adapters) for _, adapters in family}
    if len(family) > 1 and len(counts) > 1:
        return [room for one in family for room in _rooms([one])]
    count, layers = counts.pop(), len(family)
    rank = max(one.rank for _, adapters in family for one in adapters)
    first = family[0][0].weight
    shared = first.new_zeros(count, layers * rank, first.shape[1])
    return [
        StackedFactors(
            down,
            layer.weight.new_zeros(count, len(layer.weight), rank),
            (1.0,) * count,
            shared if layers > 1 else None,
        )
        for (layer, _), down in zip(family, shared.chunk(layers, 1), strict=True)
    ]


def build_factor_cache(network: nn.Module, adapters: Collection[nn.Module]) -> FactorCastCache:
    """Return copies for all layers of a network whose adapters can be fused with them.

    Those are linear layers on a CUDA GPU with adapters in training that have no dropout and no
    start that is subtracted.

    Args:
        network: the network.
        adapters: those in training.
    """
    trained = {id(one) for one in adapters}
    found: dict[nn.Module, TrainedLayer] = {}
    for layer in network.modules():
        if not isinstance(layer, LoraWrapper) or not isinstance(layer.base, nn.Linear):
            continue
        own = tuple(one for one in layer.adapters if id(one) in trained)
        if own and _is_on_gpu(layer) and all(is_fusable(one) for one in own):
            found[layer] = layer, cast("tuple[LoraLinear, ...]", own)
    families = [
        [found.pop(one) for one in layers]
        for layers in iter_qkv_groups(network)
        if len(layers) > 1 and all(one in found for one in layers)
    ]
    return FactorCastCache([*families, *([one] for one in found.values())])


def _is_on_gpu(layer: LoraWrapper) -> bool:
    """Tell whether a layer is where one operation is faster than several."""
    return bool(layer.weight.is_cuda)


def is_fusable(adapter: nn.Module) -> bool:
    """Tell whether an adapter's product is all that it does."""
    return isinstance(adapter, LoraLinear) and adapter.down0 is None and not adapter.dropout
