"""LoCon: LoRA of a convolution with a middle factor (CP decomposition)."""

import torch

from lorasmith.adapters.kinds.base import Tensors
from lorasmith.adapters.kinds.lora import DOWN, UP
from lorasmith.adapters.kinds.lycoris import LycorisLayer, tucker_product

MID = "lora_mid.weight"


class LoconLayer(LycorisLayer):
    """up x (mid x down), with mid ``[r, r, k, k]``."""

    required_suffixes = frozenset({DOWN, UP, MID})

    @property
    def kind(self) -> str:
        return "LoCon"

    @property
    def rank(self) -> int:
        return len(self.parts[DOWN])

    def unscaled_delta(self, parts: Tensors) -> torch.Tensor:
        return tucker_product(parts[MID], parts[UP].flatten(1).T, parts[DOWN].flatten(1))
