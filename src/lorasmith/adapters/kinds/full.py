"""Full: the change of a weight itself, without factors (LyCORIS writes it as ``diff``)."""

import torch

from lorasmith.adapters.kinds.base import Tensors
from lorasmith.adapters.kinds.lycoris import LycorisLayer


class FullLayer(LycorisLayer):
    """The change ``[out, in]`` or ``[out, in, k, k]``; it has no rank, and alpha does not count."""

    required_suffixes = frozenset({"diff"})

    @property
    def kind(self) -> str:
        return "full"

    @property
    def rank(self) -> int:
        return 0

    def unscaled_delta(self, parts: Tensors) -> torch.Tensor:
        return parts["diff"]
