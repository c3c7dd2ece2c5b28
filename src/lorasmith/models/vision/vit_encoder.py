"""A vision transformer as the image half of CLIP."""

from dataclasses import asdict

import torch
from torch import nn

from lorasmith.models.vision.base import ImageEncoder
from lorasmith.models.vision.vision_transformer import VisionTransformer, VitSizes


class VitImageEncoder(ImageEncoder):
    """A ViT whose class token is the embedding, as in CLIP (arXiv:2103.00020)."""

    def __init__(self, sizes: VitSizes, embedding: int) -> None:
        super().__init__()
        self.config = {"kind": "vit", **asdict(sizes), "embedding": embedding}
        layers = range(sizes.num_hidden_layers)
        self.layer_channels = {f"blocks.{k}": sizes.hidden_size for k in layers}
        self.default_layers = tuple(self.layer_channels)
        self.input_side = sizes.image_size
        self.transformer = VisionTransformer(sizes)
        self.projection = nn.Linear(sizes.hidden_size, embedding, bias=False)

    def feature_maps(self, images: torch.Tensor, depth: int | None = None) -> list[torch.Tensor]:
        """Return each block's output at the patches."""
        return self.transformer.feature_maps(images, depth)

    def pool(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class token after the last norm."""
        pooled: torch.Tensor = self.transformer(images)
        return pooled
