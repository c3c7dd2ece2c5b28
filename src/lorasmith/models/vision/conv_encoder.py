"""A small residual convolutional image encoder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.config.pretrain import IMAGE_ENCODER_NORM_GROUPS
from lorasmith.models.vision.base import ImageEncoder

INPUT_SIDE = 128


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation before each, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(IMAGE_ENCODER_NORM_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(IMAGE_ENCODER_NORM_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C, H, W]`` to the same shape."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))  # type: ignore[no-any-return]


class ConvImageEncoder(ImageEncoder):
    """Convolutions; stage k works at 1 / 2^(k+1) of the image's side, whatever that is."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], embedding: int) -> None:
        super().__init__()
        self.config = {
            "kind": "conv",
            "channels": list(channels),
            "blocks": list(blocks),
            "embedding": embedding,
        }
        self.layer_channels = {f"stages.{k}": width for k, width in enumerate(channels)}
        self.default_layers = tuple(self.layer_channels)
        self.input_side = INPUT_SIDE
        stages, before = [], 3
        for width, depth in zip(channels, blocks, strict=True):
            down = nn.Conv2d(before, width, 3, stride=2, padding=1)
            stages.append(nn.Sequential(down, *(ResidualBlock(width) for _ in range(depth))))
            before = width
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(before)
        self.projection = nn.Linear(before, embedding, bias=False)

    def feature_maps(self, images: torch.Tensor, depth: int | None = None) -> list[torch.Tensor]:
        """Return each stage's output."""
        maps, x = [], images
        for stage in list(self.stages)[:depth]:
            x = stage(x)
            maps.append(x)
        return maps

    def pool(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last stage's mean over positions, normalised."""
        pooled: torch.Tensor = self.norm(self.feature_maps(images)[-1].mean(dim=(2, 3)))
        return pooled
