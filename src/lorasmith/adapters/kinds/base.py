"""The interface of adapter kinds: what the adapter of one layer is in a LoRA file.

To add a kind, write a frozen dataclass that inherits from `AdapterLayer` (or from
`lorasmith.adapters.kinds.lycoris.LycorisLayer`, which holds any tensors) and register the class in
`lorasmith.registries.ADAPTER_KINDS`. Its ``required_suffixes`` and ``optional_suffixes`` say which
keys of a file it reads, and ``delta`` what it adds to a weight; reading, info, convert, merge and
image generation follow from these.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import nn

from lorasmith.adapters.nn.lora import Adapter, Factors, layer_weight
from lorasmith.adapters.nn.weight_delta import make_delta_adapter

MAX_DELTA_ELEMENTS = 2**27
"""Adapters that declare a larger change of one weight are refused: small factors may declare any
size. The largest weight of SDXL has 29 million elements."""
MAX_KERNEL_SIDE = 7
"""Sides of convolution kernels are smaller than or equal to this; those of SDXL have 3."""

Tensors = Mapping[str, torch.Tensor]
"""Tensors of one layer by the end of their key in kohya's format, such as ``lora_up.weight``."""


class AdapterLayer(ABC):
    """The adapter of one layer. Subclasses are frozen dataclasses with a field ``alpha``."""

    required_suffixes: ClassVar[frozenset[str]] = frozenset()
    """Key endings, without the dot in front, of the tensors that the kind must have."""
    optional_suffixes: ClassVar[frozenset[str]] = frozenset()
    """Key endings of the tensors that it may have."""
    is_modifier: ClassVar[bool] = False
    """Whether the kind only changes how the layer's other tensors act, which are of another kind
    (DoRA). The class then has `wrap` instead of `from_tensors`."""
    needs_base_weight: ClassVar[bool] = False
    """Whether the change depends on the weight of the base model, so that `delta` raises."""

    alpha: float
    """The scale is alpha / rank, or 1 for a kind without a rank."""

    # --- reading -----------------------------------------------------------------------------

    @classmethod
    def find_gap(cls, suffixes: frozenset[str]) -> str:
        """Return what is missing among optional tensors that belong together; empty if nothing."""
        return ""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Tensors, alpha: float) -> Self:
        """Return the layer that a file's tensors mean, by suffix and without alpha."""

    @classmethod
    def wrap(cls, inner: "AdapterLayer", tensors: Tensors) -> "AdapterLayer":
        """Return the modifier of another adapter of the same layer.

        Raises:
            ValueError: the tensors do not fit ``inner``.
        """
        raise NotImplementedError(f"{cls.__name__} is no modifier")

    def check_shapes(self) -> None:
        """Check that the tensors fit each other; called on the meta device.

        Raises:
            ValueError: they are impossible.
            RuntimeError: torch cannot combine them.
        """
        require_possible_shape(self.delta_shape)

    # --- what it holds -----------------------------------------------------------------------

    @property
    @abstractmethod
    def kind(self) -> str:
        """The kind's usual name: LoRA, LoHa, ..."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Inner width of the factors; 0 if there are none."""

    @property
    def scale(self) -> float:
        """alpha / rank, or 1 without a rank."""
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def delta_shape(self) -> tuple[int, ...]:
        """Shape of `delta`, found on the meta device, without computing it."""
        tensors = {suffix: tensor.to("meta") for suffix, tensor in self.tensors().items()}
        return tuple(type(self).from_tensors(tensors, self.alpha).delta().shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Height and width of the matrix that is added; a kernel counts as ``[out, in k k]``."""
        rows, *others = self.delta_shape
        return rows, math.prod(others)

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by suffix, without alpha."""

    def with_alpha(self, alpha: float) -> Self:
        """Return the layer with another alpha, and therefore another scale."""
        return replace(self, alpha=alpha)  # type: ignore[type-var]

    def to(self, dtype: torch.dtype) -> "AdapterLayer":
        """Return the layer with its tensors in another dtype."""
        return type(self).from_tensors(
            {suffix: tensor.to(dtype) for suffix, tensor in self.tensors().items()}, self.alpha
        )

    # --- what it does ------------------------------------------------------------------------

    @abstractmethod
    def delta(self) -> torch.Tensor:
        """Return the change of the weight at strength 1, float32.

        The shape is ``[out, in]``, ``[out, in, k, k]`` or, where the tensors do not show the
        kernel, ``[out, in k k]``.

        Raises:
            RuntimeError: the tensors do not fit each other.
        """

    def delta_for(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the change at strength 1 of a given weight, float32, in its shape.

        Raises:
            ValueError: the shapes differ; the message names both.
        """
        if self.matrix_shape != (len(weight), weight[0].numel()):
            raise ValueError(
                f"{self.kind} of shape {list(self.delta_shape)} does not fit a layer of shape "
                f"{list(weight.shape)}"
            )
        return self.delta().to(weight.device).reshape(weight.shape)

    def make_module(self, base: nn.Module) -> Adapter:
        """Return a module that adds the change to a layer's output, in the layer's dtype.

        Raises:
            ValueError: the shapes differ.
            WeightsError: the shapes differ, or such layers cannot have adapters.
        """
        weight = layer_weight(base)
        return make_delta_adapter(base, self.delta_for(weight).to(weight.dtype))

    @property
    def direction(self) -> "AdapterLayer":
        """The adapter without its modifier: of DoRA, what changes the weight's direction."""
        return self

    def lora_factors(self) -> Factors | None:
        """Return the two factors if the change is alpha / rank times their product.

        No matrix is needed then; `lorasmith.adapters.kinds.lora.as_lora` makes a layer of them.
        """
        return None

    def peft_factors(self) -> tuple[Factors, torch.Tensor | None] | None:
        """Return factors and DoRA's magnitude as PEFT stores them; None if PEFT has no such kind.

        The magnitude is ``[out]``, of convolutions ``[1, out, 1, 1]``.
        """
        factors = self.lora_factors()
        return None if factors is None else (factors, None)

    def delta_norm(self) -> float:
        """Return the Frobenius norm of the change; of DoRA, of the change of the direction."""
        return float(self.delta().double().norm())

    def is_zero(self) -> bool:
        """Return whether the adapter changes nothing."""
        return not bool(self.delta().any())

    def rounding_errors(self, dtype: torch.dtype) -> list[tuple[float, float]]:
        """Return what storing the tensors in a dtype does: pairs (squared error, squared norm).

        The first pair is about the change of the weight. Further pairs are about tensors that are
        judged apart from it. Overflow gives an error that is infinite or not a number.
        """
        exact = self.delta().double()
        error = self.to(dtype).delta().double() - exact
        return [(float(error.square().sum()), float(exact.square().sum()))]


def require_possible_shape(shape: Sequence[int]) -> None:
    """Refuse changes that no layer has, by their shape.

    Raises:
        ValueError: not two or four dimensions, or more elements than any layer has.
    """
    if len(shape) not in (2, 4) or any(side > MAX_KERNEL_SIDE for side in shape[2:]):
        raise ValueError("impossible shapes")
    if math.prod(shape) > MAX_DELTA_ELEMENTS:
        raise ValueError(
            f"a change of {' x '.join(map(str, shape))} elements, more than any layer has"
        )
