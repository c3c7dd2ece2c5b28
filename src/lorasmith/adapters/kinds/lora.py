"""LoRA: two thin factors (Hu et al. 2021, arXiv:2106.09685)."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from lorasmith.adapters.kinds.base import AdapterLayer, Tensors, require_possible_shape
from lorasmith.adapters.nn.lora import Adapter, Factors, layer_weight, make_adapter

DOWN, UP = "lora_down.weight", "lora_up.weight"


@dataclass(frozen=True, eq=False)
class LoraLayer(AdapterLayer):
    """The two factors of one layer: the weight changes by (alpha / r) B A."""

    required_suffixes = frozenset({DOWN, UP})

    down: torch.Tensor
    """A, ``[r, in]`` or ``[r, in, k, k]``."""
    up: torch.Tensor
    """B, ``[out, r]`` or ``[out, r, 1, 1]``."""
    alpha: float

    @classmethod
    def from_tensors(cls, tensors: Tensors, alpha: float) -> Self:
        return cls(tensors[DOWN], tensors[UP], alpha)

    def check_shapes(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim != self.down.ndim:
            raise ValueError("impossible shapes")
        if self.down.shape[0] != self.up.shape[1] or self.down.shape[0] == 0:
            raise ValueError("factors of different rank")
        if any(side != 1 for side in self.up.shape[2:]):
            raise ValueError("impossible shapes")
        require_possible_shape(self.delta_shape)

    @property
    def kind(self) -> str:
        return "LoRA"

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def delta_shape(self) -> tuple[int, ...]:
        return len(self.up), *self.down.shape[1:]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {DOWN: self.down, UP: self.up}

    def delta(self) -> torch.Tensor:
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return (self.scale * product).reshape(len(self.up), *self.down.shape[1:])

    def make_module(self, base: nn.Module) -> Adapter:
        weight = layer_weight(base)
        down, up = (factor.to(weight.device, weight.dtype) for factor in (self.down, self.up))
        return make_adapter(base, Factors(down, up), self.alpha)

    def lora_factors(self) -> Factors:
        return Factors(self.down, self.up)

    def delta_norm(self) -> float:
        """Return the Frobenius norm of (alpha / r) B A, without making the product."""
        return float(_squared_norm(self).sqrt())

    def is_zero(self) -> bool:
        rows, columns = self.down.flatten(1).any(dim=1), self.up.flatten(1).any(dim=0)
        return not self.alpha or not bool((rows & columns).any())

    def rounding_errors(self, dtype: torch.dtype) -> list[tuple[float, float]]:
        """B' A' - B A = [B' - B, B] [A'; A' - A]: one product of twice the rank, no matrix."""
        down, up = (factor.double() for factor in (self.down, self.up))
        stored_down, stored_up = (factor.to(dtype).double() for factor in (self.down, self.up))
        error = LoraLayer(
            torch.cat([stored_down, stored_down - down]),
            torch.cat([stored_up - up, up], dim=1),
            2 * self.alpha,
        )
        return [(float(_squared_norm(error)), float(_squared_norm(self)))]


def as_lora(layer: AdapterLayer) -> LoraLayer | None:
    """Return a layer of any kind as LoRA if its change is the product of two factors."""
    factors = layer.lora_factors()
    return None if factors is None else LoraLayer(factors.down, factors.up, layer.alpha)


def as_peft(layer: AdapterLayer) -> tuple[LoraLayer, torch.Tensor | None] | None:
    """Return a layer as PEFT stores it: LoRA, and DoRA's magnitude; None if PEFT cannot hold it."""
    parts = layer.peft_factors()
    if parts is None:
        return None
    factors, magnitude = parts
    return LoraLayer(factors.down, factors.up, layer.alpha), magnitude


def _squared_norm(layer: LoraLayer) -> torch.Tensor:
    """Return |(alpha / r) B A|^2 = (alpha / r)^2 tr(B^T B A A^T), a float64 scalar.

    Of B A and B^T B, the smaller matrix is made: a file may declare any rank.
    """
    down, up = layer.down.flatten(1).double(), layer.up.flatten(1).double()
    if layer.rank**2 > len(up) * down.shape[1]:
        return (up @ down).square().sum() * layer.scale**2
    trace: torch.Tensor = ((up.T @ up) * (down @ down.T)).sum()
    return trace.clamp(min=0.0) * layer.scale**2
