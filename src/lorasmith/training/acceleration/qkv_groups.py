"""Which layers of a network read the same input."""

from collections.abc import Iterator
from typing import Any

from torch import nn

_NAMES = ("to_q", "to_k", "to_v")


def iter_qkv_groups(network: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield the layers of each attention with a common input: q, k and v, or k and v of a text."""
    for module in network.modules():
        layers: list[Any] = [getattr(module, name, None) for name in _NAMES]
        if all(isinstance(layer, nn.Module) for layer in layers):
            yield layers[1:] if getattr(module, "is_cross_attention", False) else layers
