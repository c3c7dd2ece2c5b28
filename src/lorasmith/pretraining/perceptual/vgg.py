"""The features of VGG-16 and VGG-19 (arXiv:1409.1556), with torchvision's layer names."""

from collections.abc import Collection

import torch
from torch import nn

from lorasmith.models.vision.base import FeatureNetwork
from lorasmith.pretraining.perceptual.normalize import Normalization, Normalize

_STAGE_WIDTHS = (64, 128, 256, 512, 512)
_STAGE_DEPTHS = {"VGG-16": (2, 2, 3, 3, 3), "VGG-19": (2, 2, 4, 4, 4)}


class VggFeatures(FeatureNetwork):
    """VGG up to its last convolution; the layers are the last ReLU before each pooling."""

    def __init__(self, name: str, normalization: Normalization) -> None:
        super().__init__()
        self.normalize = Normalize(normalization)
        layers: list[nn.Module] = []
        self.layer_channels = {}
        self.ends: list[int] = []
        before = 3
        for stage, depth in enumerate(_STAGE_DEPTHS[name]):
            width = _STAGE_WIDTHS[stage]
            layers += [nn.MaxPool2d(2, 2)] if stage else []
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.layer_channels[f"relu{stage + 1}_{depth}"] = width
            self.ends.append(len(layers))
        self.default_layers = tuple(self.layer_channels)
        self.features = nn.Sequential(*layers)

    def feature_maps(self, images: torch.Tensor, depth: int | None = None) -> list[torch.Tensor]:
        """Return the stages' outputs for images ``[B, 3, H, W]`` in -1..1."""
        maps, x, start = [], self.normalize(images), 0
        layers = list(self.features)
        for end in self.ends[:depth]:
            for layer in layers[start:end]:
                x = layer(x)
            maps.append(x)
            start = end
        return maps


def recognize_vgg(keys: Collection[str]) -> str | None:
    """Return which VGG the convolutions of a file are, by their places; None if it is none."""
    places = {key for key in keys if key.startswith("features.") and key.endswith(".weight")}
    for name in _STAGE_DEPTHS:
        if places == {f"features.{place}.weight" for place in _conv_places(name)}:
            return name
    return None


def _conv_places(name: str) -> list[int]:
    """Return where torchvision's `features` has convolutions: each has a ReLU after it."""
    places, place = [], 0
    for depth in _STAGE_DEPTHS[name]:
        places += [place + 2 * k for k in range(depth)]
        place += 2 * depth + 1
    return places
