"""FP8 products for the large frozen linear layers of a network."""

from collections.abc import Iterator

import torch
from torch import nn

from lorasmith.ops import fp8
from lorasmith.ops.fp8 import Fp8Weight
from lorasmith.training.acceleration.module_patch import ModulePatch
from lorasmith.training.acceleration.qkv_groups import iter_qkv_groups

_TEXT_LAYERS = 2
"""Layers of a cross-attention that read a text: k and v. A text has too few tokens for FP8."""


class Fp8Linear(nn.Linear):
    """A frozen linear layer with a quantized copy of its weight."""

    fp8_weight: Fp8Weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return W x + b."""
        return fp8.fp8_linear(input, self.weight, self.bias, self.fp8_weight)


def fp8_patch(network: nn.Module) -> ModulePatch:
    """Return a patch that makes the large frozen linear layers of a network compute in FP8.

    Their weights are quantized here once; the copies take as much memory as bf16 weights do.
    """
    weights = {layer: fp8.quantize_weight(layer.weight.detach()) for layer in _layers(network)}
    return ModulePatch(
        nn.Linear,
        Fp8Linear,
        predicate=lambda layer: layer in weights,
        attributes=lambda layer: {"fp8_weight": weights[layer]},
    )


def _layers(network: nn.Module) -> Iterator[nn.Linear]:
    """Yield the layers for which FP8 pays off, each once."""
    seen: set[nn.Linear] = set()
    for group in (*_single_layers(network), *_qkv_groups(network)):
        if sum(layer.weight.numel() for layer in group) < fp8.MIN_WEIGHTS:
            continue
        for layer in group:
            is_usable = not layer.weight.requires_grad and fp8.is_supported_shape(layer.weight)
            if is_usable and layer not in seen:
                seen.add(layer)
                yield layer


def _single_layers(network: nn.Module) -> Iterator[list[nn.Linear]]:
    """Yield each linear layer except embeddings of times and sizes, whose input is one row."""
    for name, module in network.named_modules():
        if type(module) is nn.Linear and "embedding" not in name:
            yield [module]


def _qkv_groups(network: nn.Module) -> Iterator[list[nn.Linear]]:
    """Yield q, k and v of each self-attention, which may be large enough only together."""
    for layers in iter_qkv_groups(network):
        bases = [getattr(layer, "base", layer) for layer in layers]
        linears = [base for base in bases if type(base) is nn.Linear]
        if len(linears) == len(layers) > _TEXT_LAYERS:
            yield linears
