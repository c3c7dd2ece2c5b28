"""The distance of two images in a network's features."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.core.errors import ConfigError, did_you_mean
from lorasmith.models.vision.base import FeatureNetwork


class PerceptualLoss(nn.Module):
    """Distance between deep features, after LPIPS (arXiv:1801.03924, eq. 1).

    Features u and v of a layer l have unit length over channels:

      d = sum over l of w_l * mean over positions of sum over channels c of h_lc (u_c - v_c)^2

    Without heads h is 1 and w 1 / (number of layers); with the heads of LPIPS w is 1.
    """

    def __init__(
        self,
        encoder: FeatureNetwork,
        layer_weights: Mapping[str, float] | None = None,
        heads: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Take a network.

        Args:
            encoder: it is frozen.
            layer_weights: w by layer; layers that are not in it do not count.
            heads: h of each of the encoder's default layers, ``[C]``.

        Raises:
            ConfigError: the encoder has no such layer, a layer has no head, or nothing is left.
        """
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        default_layers = encoder.default_layers
        if not layer_weights:
            weight = 1.0 if heads else 1.0 / len(default_layers)
            layer_weights = dict.fromkeys(default_layers, weight)
        names = list(encoder.layer_channels)
        _check_names(layer_weights, names)
        self.weights = {
            k: layer_weights[name] for k, name in enumerate(names) if layer_weights.get(name)
        }
        if not self.weights:
            raise ConfigError("loss.perceptual_layer_weights: all layers have weight 0")
        self.heads: dict[int, torch.Tensor] = {}
        for name, head in zip(default_layers, heads or (), strict=bool(heads)):
            self._add_head(names.index(name), head)
        lacking = [names[k] for k in self.weights if heads and k not in self.heads]
        if lacking:
            raise ConfigError(
                f"loss.perceptual_layer_weights: there is no LPIPS head for {lacking[0]}; heads "
                f"are for {', '.join(default_layers)}"
            )

    def _add_head(self, layer: int, head: torch.Tensor) -> None:
        self.register_buffer(f"head_{layer}", head.float().view(1, -1, 1, 1))
        self.heads[layer] = head

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of two batches ``[B, 3, H, W]`` in -1..1."""
        both = torch.cat([images, others])
        maps = self.encoder.feature_maps(both, max(self.weights) + 1)
        distances = []
        for layer, weight in self.weights.items():
            first, second = F.normalize(maps[layer].float(), dim=1).chunk(2)
            difference = (first - second).square()
            if layer in self.heads:
                difference = difference * self.get_buffer(f"head_{layer}")
            distances.append(weight * difference.sum(dim=1).mean())
        return torch.stack(distances).sum()


def _check_names(layer_weights: Mapping[str, float], names: Sequence[str]) -> None:
    for name in layer_weights:
        if name not in names:
            raise ConfigError(
                f"loss.perceptual_layer_weights: the encoder has no layer {name!r}"
                f"{did_you_mean(name, names)}; its layers are {', '.join(names)}"
            )
