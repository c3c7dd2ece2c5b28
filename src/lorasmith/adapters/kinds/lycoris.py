"""What the LyCORIS kinds share: a layer that keeps its file's tensors and has a formula."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch

from lorasmith.adapters.kinds.base import MAX_DELTA_ELEMENTS, AdapterLayer, Tensors


@dataclass(frozen=True, eq=False)
class LycorisLayer(AdapterLayer):
    """An adapter in the tensors that its file has (LyCORIS, arXiv:2309.14859)."""

    parts: Tensors
    """Its tensors by suffix, without alpha."""
    alpha: float

    @classmethod
    def from_tensors(cls, tensors: Tensors, alpha: float) -> Self:
        return cls(dict(tensors), alpha)

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.parts)

    def delta(self) -> torch.Tensor:
        return self.scale * self.unscaled_delta({k: part.float() for k, part in self.parts.items()})

    @abstractmethod
    def unscaled_delta(self, parts: Tensors) -> torch.Tensor:
        """Return the change without alpha / rank, from the tensors in float32."""


def tucker_product(core: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the kernel of a core ``[r, r, k, k]`` and factors ``[r, out]`` and ``[r, in]``.

    Raises:
        RuntimeError: their shapes do not fit each other, or would take more memory on the way than
            any layer has.
    """
    if core.ndim != 4 or left.ndim != 2 or left.shape[1] * core[0].numel() > MAX_DELTA_ELEMENTS:
        raise RuntimeError(f"a core of {list(core.shape)} and a factor of {list(left.shape)}")
    kernel: torch.Tensor = torch.einsum("ijkl,ip,jr->prkl", core, left, right)
    return kernel
