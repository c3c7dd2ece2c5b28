"""A vision transformer (arXiv:2010.11929) with the layer names of timm."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

_EPS = 1e-6
"""Of the layer normalisation, as in timm."""
_INIT_STD = 0.02


@dataclass(frozen=True)
class VitSizes:
    """The sizes of a vision transformer, in the words of transformers' ViTConfig."""

    image_size: int
    """Side in pixels of the images that its position embeddings are made for."""
    patch_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.proj(attended.transpose(1, 2).reshape(x.shape))
        return projected


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mapped


class _Block(nn.Module):
    def __init__(self, sizes: VitSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = _Attention(width, sizes.num_attention_heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = _FeedForward(width, sizes.intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _PatchEmbedding(nn.Module):
    def __init__(self, sizes: VitSizes) -> None:
        super().__init__()
        patch = sizes.patch_size
        self.proj = nn.Conv2d(3, sizes.hidden_size, patch, stride=patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.proj(images)
        return embedded


class VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm transformer blocks.

    Images of any size are taken: sides that are not a multiple of the patch are scaled to the
    nearest one, and position embeddings are interpolated (bicubic, as timm does).
    """

    def __init__(self, sizes: VitSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, self.grid = sizes.hidden_size, sizes.image_size // sizes.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.patch_embed = _PatchEmbedding(sizes)
        self.blocks = nn.Sequential(*(_Block(sizes) for _ in range(sizes.num_hidden_layers)))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=_INIT_STD)
        nn.init.normal_(self.cls_token, std=_INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)

    def block_outputs(
        self, images: torch.Tensor, depth: int | None = None
    ) -> tuple[list[torch.Tensor], tuple[int, int]]:
        """Return the tokens ``[B, 1 + h w, C]`` after each block, and h and w.

        Args:
            images: ``[B, 3, H, W]``, normalised as the weights expect.
            depth: how many blocks are computed; None computes all.
        """
        patches = self.patch_embed(_fit_to_patches(images, self.sizes.patch_size))
        height, width = patches.shape[-2:]
        x = torch.cat(
            [self.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        x = x + self._positions(height, width)
        outputs = []
        for block in list(self.blocks)[:depth]:
            x = block(x)
            outputs.append(x)
        return outputs, (height, width)

    def feature_maps(self, images: torch.Tensor, depth: int | None = None) -> list[torch.Tensor]:
        """Return the patches' features after each block, ``[B, C, h, w]``."""
        outputs, grid = self.block_outputs(images, depth)
        return [_to_grid(x[:, 1:], grid) for x in outputs]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class token after the last norm, ``[B, C]``."""
        pooled: torch.Tensor = self.norm(self.block_outputs(images)[0][-1][:, 0])
        return pooled

    def _positions(self, height: int, width: int) -> torch.Tensor:
        """Return position embeddings ``[1, 1 + height * width, C]``."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        table = _to_grid(self.pos_embed[:, 1:], (self.grid, self.grid))
        table = F.interpolate(
            table, (height, width), mode="bicubic", align_corners=False, antialias=True
        )
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)


def _fit_to_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Scale images so that their sides are multiples of the patch."""
    height, width = (max(1, round(side / patch)) * patch for side in images.shape[-2:])
    if (height, width) == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


def _to_grid(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Turn tokens ``[B, h w, C]`` into a map ``[B, C, h, w]``."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
