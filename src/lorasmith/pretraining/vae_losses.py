"""What an autoencoder is taught by besides plain pixel distance."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.models.image_encoder import ImageEncoder


class PerceptualLoss(nn.Module):
    """Distance between deep features, after LPIPS (arXiv:1801.03924, eq. 1, with w = 1).

    Features are unit-length over channels; squared differences are averaged over places and
    over the tower's stages. Any module with ``features(pictures) -> list[Tensor]`` will do.
    """

    def __init__(self, tower: ImageEncoder) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False).eval()

    def forward(self, pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of two batches ``[B, 3, H, W]`` in -1..1."""
        both = self.tower.feature_maps(torch.cat([pictures, others]))
        distances = []
        for maps in both:
            one, two = F.normalize(maps.float(), dim=1).chunk(2)
            distances.append((one - two).square().sum(dim=1).mean())
        return torch.stack(distances).mean()


def gradient_distance(
    pictures: torch.Tensor, others: torch.Tensor, scales: int = 3
) -> torch.Tensor:
    """Return the mean L1 distance between picture gradients at several scales.

    Args:
        pictures: ``[B, 3, H, W]``.
        others: the same shape.
        scales: 1 compares at full size, each further scale at half of the one before.
    """
    total = torch.zeros((), device=pictures.device)
    difference = pictures - others
    for _ in range(scales):
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total / scales


class PatchDiscriminator(nn.Module):
    """A PatchGAN (arXiv:1611.07004, app. 6.1.2): real or made-up, judged patch by patch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return logits ``[B, 1, H/8, W/8]``, high for real pictures."""
        logits: torch.Tensor = self.layers(pictures)
        return logits


def hinge_discriminator(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's hinge loss (arXiv:1705.02894)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())


def hinge_generator(made: torch.Tensor) -> torch.Tensor:
    """Return the generator's hinge loss."""
    return -made.mean()


def balance(
    reconstruction: torch.Tensor, adversarial: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """Return the factor that makes both losses pull equally hard at the output.

    After VQGAN (arXiv:2012.09841, eq. 7), measured at the picture instead of the last layer,
    which costs no second pass through the decoder.
    """
    (pull,) = torch.autograd.grad(reconstruction, output, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, output, retain_graph=True)
    share: torch.Tensor = pull.float().norm() / (push.float().norm() + 1e-8)
    return share.clamp(max=1e4).detach()
