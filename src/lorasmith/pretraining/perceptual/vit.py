"""The features of a ViT with timm's layer names, such as `vit_small_patch16_224`."""

import math
import re
from collections.abc import Mapping

import torch

from lorasmith.models.vision.base import FeatureNetwork
from lorasmith.models.vision.vision_transformer import VisionTransformer, VitSizes
from lorasmith.pretraining.perceptual.normalize import Normalization, Normalize

HEAD_WIDTH = 64
"""Channels of an attention head in all of timm's tiny, small, base and large ViTs."""
_NUM_DEFAULT_LAYERS = 4
_BLOCK = re.compile(r"blocks\.(\d{1,3})\.attn\.qkv\.weight")

Shapes = Mapping[str, tuple[int, ...]]


class VitFeatures(FeatureNetwork):
    """A ViT without its classifier; the layers are its blocks, at the image's own grid of patches.

    By default four blocks are compared, evenly spaced, the last one among them.
    """

    def __init__(self, sizes: VitSizes, normalization: Normalization) -> None:
        super().__init__()
        self.normalize = Normalize(normalization)
        self.transformer = VisionTransformer(sizes)
        count = sizes.num_hidden_layers
        self.layer_channels = {f"blocks.{k}": sizes.hidden_size for k in range(count)}
        chosen = min(count, _NUM_DEFAULT_LAYERS)
        self.default_layers = tuple(
            f"blocks.{(k + 1) * count // chosen - 1}" for k in range(chosen)
        )

    def feature_maps(self, images: torch.Tensor, depth: int | None = None) -> list[torch.Tensor]:
        """Return the blocks' outputs at the patches for images ``[B, 3, H, W]`` in -1..1."""
        return self.transformer.feature_maps(self.normalize(images), depth)


def recognize_vit(shapes: Shapes) -> VitSizes | None:
    """Return the sizes of a file's ViT, by the shapes of its tensors; None if it is none."""
    patches = shapes.get("patch_embed.proj.weight", ())
    positions = shapes.get("pos_embed", ())
    hidden = shapes.get("blocks.0.mlp.fc1.weight", ())
    if (len(patches), len(positions), len(hidden)) != (4, 3, 2) or "cls_token" not in shapes:
        return None
    width, patch = patches[0], patches[-1]
    grid = math.isqrt(max(0, positions[1] - 1))
    numbers = [int(match[1]) for match in map(_BLOCK.fullmatch, shapes) if match]
    if not numbers or width % HEAD_WIDTH or 0 in (width, patch, grid):
        return None
    return VitSizes(
        image_size=grid * patch,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=max(numbers) + 1,
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=hidden[0],
    )
