"""How a network's weights expect the pixels of its images."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorasmith.core.errors import WeightsError
from lorasmith.models.read_json import read_json

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of torchvision's networks. LPIPS' scaling layer is the same."""
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Those of timm's `vit_*_patch16_224`."""

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


class Normalize(nn.Module):
    """Maps pixels in -1..1 to (pixel in 0..1 - mean) / std."""

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in normalization)
        self.register_buffer("shift", 2.0 * mean - 1.0, persistent=False)
        self.register_buffer("scale", 2.0 * std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``[B, 3, H, W]`` to the same shape."""
        return (images - self.get_buffer("shift")) / self.get_buffer("scale")


def read_normalization(weights: Path, default: Normalization) -> Normalization:
    """Return mean and standard deviation of the `config.json` that timm saves beside weights.

    Args:
        weights: the safetensors file.
        default: what counts without such a config.

    Raises:
        WeightsError: they are not three numbers each.
    """
    config = weights.with_name("config.json")
    entries = read_json(config.parent, config.name) if config.is_file() else {}
    pretrained = entries.get("pretrained_cfg")
    if not isinstance(pretrained, dict) or not {"mean", "std"} <= pretrained.keys():
        return default
    mean, std = pretrained["mean"], pretrained["std"]
    if not (_is_per_channel(mean, 0.0) and _is_per_channel(std, 1e-3)):
        raise WeightsError(f"{config}: mean and std of pretrained_cfg are not three numbers each")
    return tuple(map(float, mean)), tuple(map(float, std))


def _is_per_channel(values: Any, lowest: float) -> bool:
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(type(value) in (int, float) and lowest <= value <= 255.0 for value in values)
    )
