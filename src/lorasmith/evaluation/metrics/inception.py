"""Inception v3 (arXiv:1512.00567) as a feature extractor, with the layer names of public weights.

Pools as in the network that FID and KID were published with: averages do not count the padding,
and the last block takes a maximum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 299
"""Side of the images that it takes, in pixels."""

Kernel = tuple[int, int]


class ConvSpec(NamedTuple):
    """One convolution of a branch."""

    name: str
    width: int
    kernel: Kernel = (1, 1)
    stride: int = 1
    padded: bool = True


class BranchSpec(NamedTuple):
    """Layers in sequence, then some in parallel."""

    chain: tuple[ConvSpec, ...]
    ends: tuple[ConvSpec, ...] = ()


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, layer: ConvSpec) -> None:
        super().__init__()
        height, width = layer.kernel
        padding = (height // 2, width // 2) if layer.padded else (0, 0)
        self.conv = nn.Conv2d(
            in_channels, layer.width, layer.kernel, layer.stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(layer.width, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C, H, W]`` to ``[B, width, H', W']``."""
        return F.relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Parallel branches and a pool, concatenated along the channels."""

    def __init__(
        self,
        in_channels: int,
        branches: Sequence[BranchSpec],
        pooled: int = 0,
        max_pool: bool = False,
    ) -> None:
        """Create a block.

        Args:
            in_channels: input channels.
            branches: the parallel branches.
            pooled: channels of the convolution after the pool; 0 for a block that halves the
                sides, which has a max pool without a convolution.
            max_pool: pool by maximum, not by mean.
        """
        super().__init__()
        self._branches, self._max_pool, self._halves = tuple(branches), max_pool, pooled == 0
        for chain, ends in branches:
            width = in_channels
            for layer in chain:
                self.add_module(layer.name, ConvBlock(width, layer))
                width = layer.width
            for layer in ends:
                self.add_module(layer.name, ConvBlock(width, layer))
        if pooled:
            self.branch_pool = ConvBlock(in_channels, ConvSpec("branch_pool", pooled))
        last = [layer for chain, ends in branches for layer in ends or chain[-1:]]
        self.width = sum(layer.width for layer in last) + (pooled or in_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, width, H', W']``."""
        outputs = []
        for chain, ends in self._branches:
            y = x
            for layer in chain:
                y = self.get_submodule(layer.name)(y)
            outputs += [self.get_submodule(layer.name)(y) for layer in ends] or [y]
        return torch.cat([*outputs, self._pool(x)], dim=1)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if self._halves:
            return F.max_pool2d(x, 3, 2)
        if self._max_pool:
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        output: torch.Tensor = self.branch_pool(pooled)
        return output


class InceptionV3(nn.Module):
    """The network up to its last pool."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for layer in _STEM:
            self.add_module(layer.name, ConvBlock(width, layer))
            width = layer.width
        for name, branches, pooled in _BLOCKS:
            block = InceptionBlock(width, branches, pooled, max_pool=name == "Mixed_7c")
            self.add_module(name, block)
            width = block.width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features, float32 ``[B, 2048]``, of images ``[B, 3, H, W]`` in -1..1."""
        x = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        for layer in _STEM:
            x = self.get_submodule(layer.name)(x)
            if layer.name in _POOLED:
                x = F.max_pool2d(x, 3, 2)
        for name, *_ in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


_THREE, _FIVE, _ROW, _COLUMN = (3, 3), (5, 5), (1, 7), (7, 1)


def _a(pooled: int) -> tuple[tuple[BranchSpec, ...], int]:
    """Fig. 5 of the paper: 1x1, 5x5 and two 3x3."""
    branches = (
        BranchSpec((ConvSpec("branch1x1", 64),)),
        BranchSpec((ConvSpec("branch5x5_1", 48), ConvSpec("branch5x5_2", 64, _FIVE))),
        BranchSpec(
            (
                ConvSpec("branch3x3dbl_1", 64),
                ConvSpec("branch3x3dbl_2", 96, _THREE),
                ConvSpec("branch3x3dbl_3", 96, _THREE),
            )
        ),
    )
    return branches, pooled


def _c(width: int) -> tuple[tuple[BranchSpec, ...], int]:
    """Fig. 6: 7x7 factorized into rows and columns."""
    branches = (
        BranchSpec((ConvSpec("branch1x1", 192),)),
        BranchSpec(
            (
                ConvSpec("branch7x7_1", width),
                ConvSpec("branch7x7_2", width, _ROW),
                ConvSpec("branch7x7_3", 192, _COLUMN),
            )
        ),
        BranchSpec(
            (
                ConvSpec("branch7x7dbl_1", width),
                ConvSpec("branch7x7dbl_2", width, _COLUMN),
                ConvSpec("branch7x7dbl_3", width, _ROW),
                ConvSpec("branch7x7dbl_4", width, _COLUMN),
                ConvSpec("branch7x7dbl_5", 192, _ROW),
            )
        ),
    )
    return branches, 192


def _e() -> tuple[tuple[BranchSpec, ...], int]:
    """Fig. 7: 3x3 that end in a parallel row and column."""

    def ends(name: str) -> tuple[ConvSpec, ConvSpec]:
        return ConvSpec(f"{name}a", 384, (1, 3)), ConvSpec(f"{name}b", 384, (3, 1))

    branches = (
        BranchSpec((ConvSpec("branch1x1", 320),)),
        BranchSpec((ConvSpec("branch3x3_1", 384),), ends("branch3x3_2")),
        BranchSpec(
            (ConvSpec("branch3x3dbl_1", 448), ConvSpec("branch3x3dbl_2", 384, _THREE)),
            ends("branch3x3dbl_3"),
        ),
    )
    return branches, 192


def _halving(name: str, width: int) -> ConvSpec:
    return ConvSpec(name, width, _THREE, stride=2, padded=False)


_HALVE_6 = (
    BranchSpec((_halving("branch3x3", 384),)),
    BranchSpec(
        (
            ConvSpec("branch3x3dbl_1", 64),
            ConvSpec("branch3x3dbl_2", 96, _THREE),
            _halving("branch3x3dbl_3", 96),
        )
    ),
)
_HALVE_7 = (
    BranchSpec((ConvSpec("branch3x3_1", 192), _halving("branch3x3_2", 320))),
    BranchSpec(
        (
            ConvSpec("branch7x7x3_1", 192),
            ConvSpec("branch7x7x3_2", 192, _ROW),
            ConvSpec("branch7x7x3_3", 192, _COLUMN),
            _halving("branch7x7x3_4", 192),
        )
    ),
)
_STEM = (
    _halving("Conv2d_1a_3x3", 32),
    ConvSpec("Conv2d_2a_3x3", 32, _THREE, padded=False),
    ConvSpec("Conv2d_2b_3x3", 64, _THREE),
    ConvSpec("Conv2d_3b_1x1", 80),
    ConvSpec("Conv2d_4a_3x3", 192, _THREE, padded=False),
)
_POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
"""Layers followed by a max pool."""
_BLOCKS: tuple[tuple[str, tuple[BranchSpec, ...], int], ...] = (
    ("Mixed_5b", *_a(32)),
    ("Mixed_5c", *_a(64)),
    ("Mixed_5d", *_a(64)),
    ("Mixed_6a", _HALVE_6, 0),
    ("Mixed_6b", *_c(128)),
    ("Mixed_6c", *_c(160)),
    ("Mixed_6d", *_c(160)),
    ("Mixed_6e", *_c(192)),
    ("Mixed_7a", _HALVE_7, 0),
    ("Mixed_7b", *_e()),
    ("Mixed_7c", *_e()),
)
