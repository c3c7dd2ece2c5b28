"""Algebra of LoRA layers, all of it about the dense change of the weight that they mean.

A LoRA layer is the matrix D = (alpha / r) B A; a convolution's kernel counts as ``[out, in k k]``.
Sums are exact: they concatenate the factors. Lower ranks come from the singular value
decomposition, whose first k directions are the best approximation of rank k (Eckart, Young 1936);
its energy is the sum of the squared singular values, which is the squared norm of D. Everything is
computed in float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lorasmith.adapters.kinds.lora import LoraLayer

_NOTHING = 1e-12
"""Singular values below this share of the largest are rounding errors of float64 products."""


@dataclass(frozen=True)
class Spectrum:
    """A matrix by its singular values: ``left @ diag(values) @ right``, all float64."""

    left: torch.Tensor
    """``[out, k]``."""
    values: torch.Tensor
    """``[k]``, falling."""
    right: torch.Tensor
    """``[k, in k k]``."""
    row_shape: torch.Size
    """Shape of one row of the weight: ``[in]`` or ``[in, k, k]``."""

    @property
    def energy(self) -> float:
        """Squared norm of the matrix."""
        return float(self.values.square().sum())

    @property
    def rank(self) -> int:
        """Singular values that are more than rounding errors; at least 1."""
        return max(1, int((self.values > _NOTHING * self.values[0]).sum()))

    def rank_for(self, share: float) -> int:
        """Return the smallest rank that keeps a share, 0 to 1, of the energy."""
        reached = self.values.square().cumsum(0)
        enough = reached >= share * reached[-1] * (1 - _NOTHING)
        return min(self.rank, 1 + int((~enough).sum()))

    def truncate(self, rank: int) -> LoraLayer:
        """Return the best approximation of at most a rank as a layer of float32, alpha = rank."""
        count = min(rank, len(self.values))
        roots = self.values[:count].sqrt()
        down = (roots[:, None] * self.right[:count]).reshape(count, *self.row_shape)
        up = (self.left[:, :count] * roots).reshape(-1, count, *[1] * (len(self.row_shape) - 1))
        return LoraLayer(down.float(), up.float(), float(count))


def spectrum_of_matrix(delta: torch.Tensor) -> Spectrum:
    """Return the spectrum of a dense change ``[out, in]`` or ``[out, in, k, k]``."""
    left, values, right = torch.linalg.svd(delta.double().flatten(1), full_matrices=False)
    return Spectrum(left, values, right, delta.shape[1:])


def spectrum_of_layer(layer: LoraLayer) -> Spectrum:
    """Return the spectrum of B A without making the product.

    With B = Q R and A^T = P S, only R S^T of size r x r is decomposed.
    """
    outer, upper = torch.linalg.qr(layer.up.double().flatten(1))
    inner, lower = torch.linalg.qr(layer.down.double().flatten(1).T)
    left, values, right = torch.linalg.svd(upper @ lower.T)
    values = values * abs(layer.alpha) / layer.rank
    sign = -1.0 if layer.alpha < 0 else 1.0
    k = len(values)
    return Spectrum(outer @ left[:, :k] * sign, values, right[:k] @ inner.T, layer.down.shape[1:])


def weighted_sum(terms: Sequence[tuple[LoraLayer, float]]) -> LoraLayer:
    """Return the layer whose dense change is exactly the weighted sum of other layers' changes.

    The factors are concatenated, each B times its weight and scale; alpha is the rank.

    Raises:
        ValueError: the shapes differ; the message names both.
    """
    first = terms[0][0]
    downs, ups = [], []
    for layer, weight in terms:
        down, up = _match_ndim(layer, first)
        downs.append(down.double())
        ups.append(up.double() * (weight * layer.alpha / layer.rank))
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    return LoraLayer(down.float(), up.float(), float(len(down)))


def _match_ndim(layer: LoraLayer, other: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors with as many dimensions as another layer's; only 1x1 kernels differ."""
    down, up = layer.down, layer.up
    if down.ndim != other.down.ndim and all(
        side == 1 for side in (*down.shape[2:], *other.down.shape[2:])
    ):
        extra = [1] * (other.down.ndim - 2)
        down, up = (factor.reshape(*factor.shape[:2], *extra) for factor in (down, up))
    if down.shape[1:] != other.down.shape[1:] or len(up) != len(other.up):
        raise ValueError(
            f"layers of {len(up)} x {list(down.shape[1:])} and of {len(other.up)} x "
            f"{list(other.down.shape[1:])} cannot be added; they are for different models"
        )
    return down, up


@dataclass(frozen=True)
class RetainedEnergy:
    """How much of the energy remains when ranks are truncated."""

    total: float
    """Energy of all layers before."""
    retained: float
    """Energy of all layers after."""

    @property
    def share(self) -> float:
        """The remaining share, 0 to 1."""
        return self.retained / self.total if self.total else 1.0


RankLimit = tuple[Literal["rank"], int] | tuple[Literal["energy"], float]
"""``("rank", 8)``: at most this rank. ``("energy", 0.95)``: the smallest rank of each layer that
retains this share of its energy."""


def truncate_rank(
    spectra: Mapping[str, Spectrum], limit: RankLimit
) -> tuple[dict[str, LoraLayer], RetainedEnergy]:
    """Return layers of lower rank, and the energy that they retain."""
    layers, total, retained = {}, 0.0, 0.0
    for name, spectrum in spectra.items():
        limit_rank = limit[1] if limit[0] == "rank" else spectrum.rank_for(limit[1])
        rank = min(int(limit_rank), spectrum.rank)
        layers[name] = spectrum.truncate(rank)
        total += spectrum.energy
        retained += float(spectrum.values[:rank].square().sum())
    return layers, RetainedEnergy(total, retained)


def inner_product(first: LoraLayer, second: LoraLayer) -> float:
    """Return the sum of the elementwise product of two changes, without making the matrices.

    Raises:
        ValueError: the shapes differ.
    """
    down, up = (factor.double().flatten(1) for factor in _match_ndim(first, second))
    second_down, second_up = second.down.double().flatten(1), second.up.double().flatten(1)
    scale = first.alpha / first.rank * second.alpha / second.rank
    if first.rank * second.rank > len(up) * down.shape[1]:
        return scale * float(((up @ down) * (second_up @ second_down)).sum())
    return scale * float(((up.T @ second_up) * (down @ second_down.T)).sum())


def unify_alpha(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
    """Return the same changes with one alpha, the largest rank, in all layers.

    diffusers looks for differing alphas of attention layers under wrong names.
    """
    alpha = float(max(layer.rank for layer in layers.values()))
    return {
        name: LoraLayer(layer.down, layer.up * (layer.alpha / alpha), alpha)
        for name, layer in layers.items()
    }
