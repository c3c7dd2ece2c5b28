"""What all networks that look at images have in common."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class FeatureNetwork(nn.Module):
    """A network with named layers, whose features can be compared."""

    layer_channels: dict[str, int]
    """The names of the layers that `feature_maps` returns, in order, with their channels."""
    default_layers: tuple[str, ...]
    """The layers that a perceptual loss compares if nothing else is said."""

    def feature_maps(self, images: torch.Tensor, depth: int | None = None) -> list[torch.Tensor]:
        """Return the layers' outputs ``[B, C, h, w]`` for images ``[B, 3, H, W]`` in -1..1.

        Args:
            images: the images.
            depth: how many layers are computed; None computes all.
        """
        raise NotImplementedError


class ImageEncoder(FeatureNetwork):
    """Maps images to embeddings of length 1, and to the feature maps of its layers."""

    config: dict[str, Any]
    """What `config.json` says: `kind` and the sizes."""
    input_side: int
    """Side in pixels of the images that it is best at; others work too."""
    projection: nn.Linear
    """From the pooled features, normalised, to the embedding."""

    def pool(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised features ``[B, C]`` of images ``[B, 3, H, W]`` in -1..1."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit-length embeddings, float32 ``[B, embedding]``."""
        return F.normalize(self.projection(self.pool(images)).float(), dim=-1)
