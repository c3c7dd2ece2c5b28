"""How untrained adapters start. All of them leave the layer's output as it is."""

import math

import torch
from torch import nn

from lorasmith.adapters.nn.lora import Factors, LoraAdapter, layer_weight, make_adapter
from lorasmith.config.lora import Init

_OVERSAMPLING = 8
_POWER_STEPS = 6


def init_adapter(
    base: nn.Module,
    rank: int,
    alpha: float,
    init: Init,
    generator: torch.Generator,
    dropout: float = 0.0,
) -> LoraAdapter:
    """Return an untrained adapter for a layer, which adds exactly zero.

    Its factors are float32 on the layer's device; the numbers are drawn on the CPU. The layer's
    weight is read (by ``pissa``) and never changed.

    Args:
        base: a linear or convolution layer.
        rank: inner width, at least 1.
        alpha: the scale is alpha / rank.
        init: ``gaussian`` draws the down-matrix from N(0, 1/rank^2), ``kaiming`` uniformly within
            +-1/sqrt(fan in), as in the LoRA paper's code; the up-matrix is zero. ``compensated``
            draws both, with rows and columns of about unit length, and subtracts their product.
            ``pissa`` (arXiv:2404.02948) takes the strongest singular directions of the weight,
            so that s B A is the weight's best approximation of this rank, and subtracts that.
        draws: a CPU generator.
        dropout: share of the input's values set to zero in training mode.

    Raises:
        WeightsError: adapters of this kind of layer are not supported.
    """
    weight = layer_weight(base)
    factors = _factors(weight, rank, alpha / rank, init, generator)
    factors = Factors(*(factor.to(weight.device) for factor in factors))
    start = Factors(*(f.clone() for f in factors)) if init in ("compensated", "pissa") else None
    return make_adapter(base, factors, alpha, start, dropout)


def _factors(
    weight: torch.Tensor, rank: int, scale: float, init: Init, draws: torch.Generator
) -> Factors:
    down = torch.empty(rank, *weight.shape[1:], dtype=torch.float32)
    up = torch.zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2))
    fan_in = weight[0].numel()
    if init == "gaussian":
        down.normal_(0.0, 1.0 / rank, generator=draws)
    elif init == "kaiming":
        bound = 1.0 / math.sqrt(fan_in)
        down.uniform_(-bound, bound, generator=draws)
    elif init == "compensated":
        down.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=draws)
        up.normal_(0.0, 1.0 / math.sqrt(len(up)), generator=draws)
    else:
        # Rows beyond the weight's own rank start as those of `compensated` without a partner.
        down.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=draws)
        left, strengths, right = randomized_svd(weight, rank, draws)
        root = (strengths / scale).sqrt().cpu()
        down[: len(root)] = (root[:, None] * right.cpu()).reshape(len(root), *weight.shape[1:])
        up[:, : len(root)] = (left.cpu() * root).reshape(len(up), len(root), *up.shape[2:])
    return Factors(down, up)


@torch.no_grad()
def randomized_svd(
    weight: torch.Tensor, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the strongest singular directions of a weight, by randomised subspace iteration.

    Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithms 4.4 and 5.1: much cheaper than a
    full decomposition of a large layer, and exact for one that is narrower than the subspace.

    Args:
        weight: ``[out, ...]``, flattened to a matrix; any dtype.
        rank: how many.
        draws: a CPU generator.

    Returns:
        U ``[out, k]``, S ``[k]`` (falling) and V^T ``[k, in]``, float32, with k the smaller of
        ``rank`` and the sides of the matrix.
    """
    matrix = weight.detach().flatten(1).float()
    sides = min(matrix.shape)
    width = min(rank + _OVERSAMPLING, sides)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, strengths, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    kept = min(rank, sides)
    return (basis @ left)[:, :kept], strengths[:kept], right[:kept]
