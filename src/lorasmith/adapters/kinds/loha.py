"""LoHa: the elementwise product of two low-rank products (FedPara, arXiv:2108.06098)."""

import torch

from lorasmith.adapters.kinds.base import Tensors
from lorasmith.adapters.kinds.lycoris import LycorisLayer, tucker_product


class LohaLayer(LycorisLayer):
    """(A1 B1) * (A2 B2); of a convolution each product may have a core."""

    required_suffixes = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
    optional_suffixes = frozenset({"hada_t1", "hada_t2"})

    @classmethod
    def find_gap(cls, suffixes: frozenset[str]) -> str:
        has_one_core = ("hada_t1" in suffixes) != ("hada_t2" in suffixes)
        return "has only one of hada_t1 and hada_t2" if has_one_core else ""

    @property
    def kind(self) -> str:
        return "LoHa"

    @property
    def rank(self) -> int:
        return len(self.parts["hada_w1_b"])

    def unscaled_delta(self, parts: Tensors) -> torch.Tensor:
        first, second = _factor_product(parts, "1"), _factor_product(parts, "2")
        if first.shape != second.shape:
            raise RuntimeError(f"factors of {list(first.shape)} and of {list(second.shape)}")
        return first * second


def _factor_product(parts: Tensors, index: str) -> torch.Tensor:
    left, right = parts[f"hada_w{index}_a"], parts[f"hada_w{index}_b"]
    core = parts.get(f"hada_t{index}")
    if core is None:
        return left @ right.flatten(1)
    return tucker_product(core, left, right)
