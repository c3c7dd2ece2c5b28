"""Initialisation of adapters. Every initialisation leaves the layer's output unchanged.

To add one, write an `AdapterInit` and register it in `lorasmith.registries.ADAPTER_INITS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, LoraAdapter, layer_weight, make_adapter
from lorasmith.registries import ADAPTER_INITS

_OVERSAMPLING = 8
_POWER_STEPS = 6


@dataclass(frozen=True)
class AdapterInit:
    """How an adapter's factors start; an item of `lorasmith.registries.ADAPTER_INITS`."""

    draw_factors: Callable[[torch.Tensor, int, float, torch.Generator], Factors]
    """Returns A and B, float32, for a layer's weight, the rank, alpha / rank and a CPU generator.
    It must not change the weight."""
    subtracts_start: bool = False
    """Whether B A is not zero at the start, so that the adapter subtracts it (`LoraAdapter`). Such
    an adapter has twice the rank in a LoRA file."""


def init_adapter(
    base: nn.Module,
    rank: int,
    alpha: float,
    init: str,
    generator: torch.Generator,
    dropout: float = 0.0,
) -> LoraAdapter:
    """Return an untrained adapter for a layer, whose output is exactly zero.

    Its factors are float32 on the layer's device; the random numbers are drawn on the CPU.

    Args:
        base: a linear or convolution layer, which is not changed.
        rank: inner width, at least 1.
        alpha: the scale is alpha / rank.
        init: a name in `lorasmith.registries.ADAPTER_INITS`.
        generator: a CPU generator.
        dropout: share of the input's elements set to zero in training mode.

    Raises:
        WeightsError: adapters of this kind of layer are not supported.
        ConfigError: there is no such initialisation.
    """
    adapter_init: AdapterInit = ADAPTER_INITS.get(init)
    weight = layer_weight(base)
    factors = adapter_init.draw_factors(weight, rank, alpha / rank, generator)
    factors = Factors(*(factor.to(weight.device) for factor in factors))
    start = Factors(*(f.clone() for f in factors)) if adapter_init.subtracts_start else None
    return make_adapter(base, factors, alpha, start, dropout)


def _draw_gaussian(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> Factors:
    down, up = _empty_factors(weight, rank)
    return Factors(down.normal_(0.0, 1.0 / rank, generator=generator), up)


def _draw_kaiming(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> Factors:
    down, up = _empty_factors(weight, rank)
    bound = 1.0 / math.sqrt(weight[0].numel())
    return Factors(down.uniform_(-bound, bound, generator=generator), up)


def _draw_compensated(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> Factors:
    down, up = _empty_factors(weight, rank)
    down.normal_(0.0, 1.0 / math.sqrt(weight[0].numel()), generator=generator)
    up.normal_(0.0, 1.0 / math.sqrt(len(up)), generator=generator)
    return Factors(down, up)


def _draw_pissa(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> Factors:
    down, up = _empty_factors(weight, rank)
    # Rows beyond the weight's own rank start like those of `compensated`, with zero columns of B.
    down.normal_(0.0, 1.0 / math.sqrt(weight[0].numel()), generator=generator)
    left, values, right = randomized_svd(weight, rank, generator)
    root = (values / scale).sqrt().cpu()
    count = len(root)
    down[:count] = (root[:, None] * right.cpu()).reshape(count, *weight.shape[1:])
    up[:, :count] = (left.cpu() * root).reshape(len(up), count, *up.shape[2:])
    return Factors(down, up)


def _empty_factors(weight: torch.Tensor, rank: int) -> Factors:
    """Return an uninitialised A and a zero B."""
    down = torch.empty(rank, *weight.shape[1:], dtype=torch.float32)
    return Factors(down, torch.zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2)))


GAUSSIAN = AdapterInit(_draw_gaussian)
"""A from N(0, 1/rank^2), B zero."""
KAIMING = AdapterInit(_draw_kaiming)
"""A uniform within +-1/sqrt(fan in), as in the LoRA paper's code; B zero."""
COMPENSATED = AdapterInit(_draw_compensated, subtracts_start=True)
"""Both random, with rows and columns of about unit length."""
PISSA = AdapterInit(_draw_pissa, subtracts_start=True)
"""The strongest singular directions of the weight, so that s B A is its best approximation of this
rank (PiSSA, arXiv:2404.02948)."""


@torch.no_grad()
def randomized_svd(
    weight: torch.Tensor, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the strongest singular directions of a weight, by randomised subspace iteration.

    Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithms 4.4 and 5.1: much cheaper than a
    full decomposition of a large layer, and exact if the layer is narrower than the subspace.

    Args:
        weight: ``[out, ...]``, flattened to a matrix; any dtype.
        rank: number of directions.
        generator: a CPU generator.

    Returns:
        U ``[out, k]``, S ``[k]`` (falling) and V^T ``[k, in]``, float32, with k the smaller of
        ``rank`` and the sides of the matrix.
    """
    matrix = weight.detach().flatten(1).float()
    smaller_side = min(matrix.shape)
    width = min(rank + _OVERSAMPLING, smaller_side)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    count = min(rank, smaller_side)
    return (basis @ left)[:, :count], values[:count], right[:count]
