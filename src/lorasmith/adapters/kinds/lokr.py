"""LoKr: a Kronecker product, each side full or in factors (LyCORIS, arXiv:2309.14859)."""

import torch

from lorasmith.adapters.kinds.base import Tensors
from lorasmith.adapters.kinds.lycoris import LycorisLayer, tucker_product


class LokrLayer(LycorisLayer):
    """The Kronecker product of W1 and W2; of a convolution, W2 carries the kernel."""

    optional_suffixes = frozenset(
        f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")
    )

    @classmethod
    def find_gap(cls, suffixes: frozenset[str]) -> str:
        for side in ("lokr_w1", "lokr_w2"):
            factors = {f"{side}_a", f"{side}_b"} & suffixes
            if (side in suffixes) == bool(factors) or len(factors) == 1:
                return f"has no {side}, or only parts of it"
        return ""

    @property
    def kind(self) -> str:
        return "LoKr"

    @property
    def rank(self) -> int:
        factors = [self.parts[key] for key in ("lokr_w2_b", "lokr_w1_b") if key in self.parts]
        return len(factors[0]) if factors else 0

    def unscaled_delta(self, parts: Tensors) -> torch.Tensor:
        first, second = _kronecker_side(parts, "1"), _kronecker_side(parts, "2")
        kernel = second.shape[2:]
        blocks = first.reshape(len(first), 1, -1, 1, *[1] * len(kernel)) * second[None, :, None]
        return blocks.reshape(len(first) * len(second), -1, *kernel)


def _kronecker_side(parts: Tensors, index: str) -> torch.Tensor:
    full = parts.get(f"lokr_w{index}")
    if full is not None:
        return full
    left, right = parts[f"lokr_w{index}_a"], parts[f"lokr_w{index}_b"]
    core = parts.get(f"lokr_t{index}")
    return left @ right if core is None else tucker_product(core, left, right)
