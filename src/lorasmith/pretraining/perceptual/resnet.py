"""The features of ResNet-18, -34 and -50 (arXiv:1512.03385), with torchvision's layer names."""

import re
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.models.vision.base import FeatureNetwork
from lorasmith.pretraining.perceptual.normalize import Normalization, Normalize

_STAGE_DEPTHS = {"ResNet-18": (2, 2, 2, 2), "ResNet-34": (3, 4, 6, 3), "ResNet-50": (3, 4, 6, 3)}
_BOTTLENECK = "ResNet-50"
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.conv([123])\.weight")


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = self.bn2(self.conv2(hidden))
        return F.relu(hidden + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        return F.relu(hidden + (x if self.downsample is None else self.downsample(x)))


class ResnetFeatures(FeatureNetwork):
    """ResNet without its classifier; the layers are the first ReLU and the four stages.

    Batch normalisation uses the file's running statistics.
    """

    def __init__(self, name: str, normalization: Normalization) -> None:
        super().__init__()
        self.normalize = Normalize(normalization)
        block = _Bottleneck if name == _BOTTLENECK else _BasicBlock
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer_channels = {"relu1": 64}
        before = 64
        for stage, depth in enumerate(_STAGE_DEPTHS[name]):
            width, blocks = 64 * 2**stage, []
            for index in range(depth):
                blocks.append(block(before, width, 2 if stage and not index else 1))
                before = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.layer_channels[f"layer{stage + 1}"] = before
        self.default_layers = tuple(self.layer_channels)
        self.eval()

    def feature_maps(self, images: torch.Tensor, depth: int | None = None) -> list[torch.Tensor]:
        """Return the layers' outputs for images ``[B, 3, H, W]`` in -1..1."""
        x = F.relu(self.bn1(self.conv1(self.normalize(images))))
        maps = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for name in self.default_layers[1:depth]:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return maps


def recognize_resnet(keys: Collection[str]) -> str | None:
    """Return which ResNet a file's blocks are; None if it is none."""
    if not {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= set(keys):
        return None
    matches = [match for match in map(_BLOCK.fullmatch, keys) if match]
    is_bottleneck = any(match[3] == "3" for match in matches)
    places = {(match[1], match[2]) for match in matches}
    depths = tuple(sum(stage == str(k) for stage, _ in places) for k in range(1, 5))
    for name, expected in _STAGE_DEPTHS.items():
        if depths == expected and is_bottleneck == (name == _BOTTLENECK):
            return name
    return None
