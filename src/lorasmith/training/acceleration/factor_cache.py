"""Copies of trained adapters' factors, cast to the dtype of the layers that they belong to."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from lorasmith.adapters.nn.lora import LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops.fused_lora import StackedFactors
from lorasmith.training.acceleration.qkv_groups import iter_qkv_groups

TrainedLayer = tuple[LoraWrapper, tuple[LoraLinear, ...]]
"""A linear layer, and those of its adapters that are trained, in the order in which they divide
the rows of a batch."""


class _CachedLayer(NamedTuple):
    layer: LoraWrapper
    adapters: tuple[LoraLinear, ...]
    factors: StackedFactors


class FactorCastCache:
    """Copies of the factors of trained adapters, all refreshed together.

    The layers use them only between ``refresh`` and ``clear``, so that they are never out of date.
    """

    def __init__(self, groups: Collection[Sequence[TrainedLayer]]) -> None:
        """Allocate the copies.

        Args:
            groups: layers that read the same input; most groups have one layer.
        """
        self._layers = [
            _CachedLayer(layer, adapters, factors)
            for group in groups
            for (layer, adapters), factors in zip(group, _allocate(group), strict=True)
        ]
        self._adapters = [adapter for layer in self._layers for adapter in layer.adapters]
        downs, ups = [], []
        for _, adapters, factors in self._layers:
            for index, adapter in enumerate(adapters):
                downs.append(factors.down[index, : adapter.rank])
                ups.append(factors.up[index, :, : adapter.rank])
        self._copies = [*downs, *ups]

    def __len__(self) -> int:
        return len(self._layers)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current factors, and let the layers use the copies."""
        for layer, adapters, factors in self._layers:
            scales = tuple(adapter.strength * adapter.scale for adapter in adapters)
            layer.use_fused_factors(factors._replace(scales=scales), adapters)
        if not self._adapters:
            return
        downs = [adapter.down for adapter in self._adapters]
        ups: list[torch.Tensor] = [adapter.up for adapter in self._adapters]
        all_scales = [adapter.strength * adapter.scale for adapter in self._adapters]
        if any(scale != 1.0 for scale in all_scales):
            ups = list(torch._foreach_mul(ups, all_scales))
        torch._foreach_copy_(self._copies, [*downs, *ups])

    def clear(self) -> None:
        """Let the layers use their adapters' own factors again."""
        for layer, _, _ in self._layers:
            layer.clear_fused_factors()


def _allocate(group: Sequence[TrainedLayer]) -> list[StackedFactors]:
    """Return zeros for the factors of layers that read the same input; all A share one tensor."""
    counts = {len(adapters) for _, adapters in group}
    if len(group) > 1 and len(counts) > 1:
        return [factors for layer in group for factors in _allocate([layer])]
    count, layers = counts.pop(), len(group)
    rank = max(adapter.rank for _, adapters in group for adapter in adapters)
    weight = group[0][0].weight
    shared_down = weight.new_zeros(count, layers * rank, weight.shape[1])
    return [
        StackedFactors(
            down=down,
            up=layer.weight.new_zeros(count, len(layer.weight), rank),
            scales=(1.0,) * count,
            shared_down=shared_down if layers > 1 else None,
        )
        for (layer, _), down in zip(group, shared_down.chunk(layers, 1), strict=True)
    ]


def build_factor_cache(network: nn.Module, adapters: Collection[nn.Module]) -> FactorCastCache:
    """Return copies for all layers of a network whose adapters can be fused with them.

    Those are linear layers on a CUDA GPU whose trained adapters have no dropout and no initial
    product that is subtracted.

    Args:
        network: the network.
        adapters: the trained adapters.
    """
    trained_ids = {id(adapter) for adapter in adapters}
    fusable: dict[nn.Module, TrainedLayer] = {}
    for layer in network.modules():
        if not isinstance(layer, LoraWrapper) or not isinstance(layer.base, nn.Linear):
            continue
        trained = tuple(adapter for adapter in layer.adapters if id(adapter) in trained_ids)
        if trained and _is_on_gpu(layer) and all(is_fusable(adapter) for adapter in trained):
            fusable[layer] = layer, cast("tuple[LoraLinear, ...]", trained)
    groups = [
        [fusable.pop(layer) for layer in layers]
        for layers in iter_qkv_groups(network)
        if len(layers) > 1 and all(layer in fusable for layer in layers)
    ]
    return FactorCastCache([*groups, *([layer] for layer in fusable.values())])


def _is_on_gpu(layer: LoraWrapper) -> bool:
    """Return whether a layer is on a device where one operation is faster than several."""
    return bool(layer.weight.is_cuda)


def is_fusable(adapter: nn.Module) -> bool:
    """Return whether an adapter adds its product and nothing else."""
    return isinstance(adapter, LoraLinear) and adapter.down0 is None and not adapter.dropout
