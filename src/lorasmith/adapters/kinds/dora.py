"""DoRA: another adapter, and the lengths that the changed weight is brought to.

W + V gets new lengths along one axis (arXiv:2402.09353), so what DoRA adds depends on the weight W
that it was made for.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch

from lorasmith.adapters.kinds.base import AdapterLayer, Tensors
from lorasmith.adapters.nn.lora import Factors

DORA_SCALE = "dora_scale"
"""Magnitudes along the axis that their shape tells: ``[out, 1]``, or ``[1, in]`` in files of early
LyCORIS and OneTrainer."""
MAGNITUDE = "magnitude"
"""Magnitudes as PEFT stores them: ``[out]``, of convolutions ``[1, out, 1, 1]``."""
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class DoraLayer(AdapterLayer):
    """m (W + V) / |W + V| - W, with V the change of another adapter."""

    optional_suffixes = frozenset({DORA_SCALE, MAGNITUDE})
    is_modifier = True
    needs_base_weight = True

    inner: AdapterLayer
    """The adapter that changes the direction."""
    magnitude: torch.Tensor
    """m, ``[out]``, or ``[in]`` if ``on_input``."""
    on_input: bool
    """Whether the magnitudes are lengths of columns (norms over all outputs)."""

    @classmethod
    def from_tensors(cls, tensors: Tensors, alpha: float) -> Self:
        raise TypeError("DoRA is a modifier; use wrap")

    @classmethod
    def wrap(cls, inner: AdapterLayer, tensors: Tensors) -> "DoraLayer":
        """Return DoRA of an adapter, with the axis of its magnitudes found by their shape."""
        if len(tensors) > 1:
            raise ValueError("has DoRA magnitudes in two key formats")
        ((suffix, magnitude),) = tensors.items()
        if suffix == DORA_SCALE and magnitude.ndim > 1 and magnitude.numel() > 1:
            return cls(inner, magnitude.flatten(), magnitude.shape[0] == 1)
        # A file of PEFT with [1, in] is one of LyCORIS whose keys were renamed.
        is_renamed = suffix == MAGNITUDE and magnitude.ndim == 2 and len(magnitude) == 1
        axis = _find_axis(inner, magnitude.numel(), (1, 0) if is_renamed else (0, 1))
        return cls(inner, magnitude.flatten(), axis == 1)

    @property
    def kind(self) -> str:
        return "DoRA" if self.inner.lora_factors() is not None else f"DoRA of {self.inner.kind}"

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def alpha(self) -> float:  # type: ignore[override]
        return self.inner.alpha

    @property
    def delta_shape(self) -> tuple[int, ...]:
        return self.inner.delta_shape

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors; ``dora_scale`` has the weight's dimensions, all 1 but its own."""
        tensors = self.inner.tensors()
        # LoHa's factors may be flat for a convolution; readers add the missing dimensions.
        extra = max(tensor.ndim for tensor in tensors.values()) - 2
        shape = (1, -1) if self.on_input else (-1, 1)
        return tensors | {DORA_SCALE: self.magnitude.reshape(*shape, *[1] * extra)}

    def with_alpha(self, alpha: float) -> Self:
        return replace(self, inner=self.inner.with_alpha(alpha))

    def to(self, dtype: torch.dtype) -> "DoraLayer":
        return DoraLayer(self.inner.to(dtype), self.magnitude.to(dtype), self.on_input)

    def delta(self) -> torch.Tensor:
        raise TypeError("the change that DoRA makes depends on the weight; use delta_for")

    def delta_for(self, weight: torch.Tensor) -> torch.Tensor:
        base = weight.detach().float()
        turned = base + self.inner.delta_for(weight)
        axis = 1 if self.on_input else 0
        if len(self.magnitude) != weight.shape[axis]:
            raise ValueError(
                f"{len(self.magnitude)} DoRA magnitudes do not fit a layer of shape "
                f"{list(weight.shape)}"
            )
        other_axes = [index for index in range(weight.ndim) if index != axis]
        lengths: torch.Tensor = torch.linalg.vector_norm(turned, dim=other_axes, keepdim=True)
        magnitude = self.magnitude.to(base).reshape(lengths.shape)
        stretched: torch.Tensor = turned * (magnitude / lengths.clamp_min(_TINY))
        return stretched - base

    @property
    def direction(self) -> AdapterLayer:
        return self.inner

    def peft_factors(self) -> tuple[Factors, torch.Tensor | None] | None:
        factors = self.inner.lora_factors()
        if factors is None or self.on_input:
            return None
        extra = factors.down.ndim - 2
        shape = (1, -1, *[1] * extra) if extra else (-1,)
        return factors, self.magnitude.reshape(shape)

    def delta_norm(self) -> float:
        return self.inner.delta_norm()

    def is_zero(self) -> bool:
        return False  # the magnitudes may change a weight whatever the inner adapter does

    def rounding_errors(self, dtype: torch.dtype) -> list[tuple[float, float]]:
        exact = self.magnitude.double()
        error = self.magnitude.to(dtype).double() - exact
        pair = float(error.square().sum()), float(exact.square().sum())
        return [*self.inner.rounding_errors(dtype), pair]


def _find_axis(inner: AdapterLayer, count: int, axes: tuple[int, int]) -> int:
    """Return the first of two axes of the weight that has ``count`` rows or columns."""
    rows, columns = inner.matrix_shape
    kernel = max(part[0, 0].numel() for part in inner.tensors().values() if part.ndim > 1)
    sizes = {0: (rows,), 1: (columns // kernel, columns)}
    for axis in axes:
        if count in sizes[axis]:
            return axis
    raise ValueError(f"has {count} DoRA magnitudes, and {rows} rows of {columns // kernel}")
