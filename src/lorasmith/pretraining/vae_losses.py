"""Losses of an autoencoder besides the plain pixel distance."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def image_gradient_loss(
    images: torch.Tensor, others: torch.Tensor, scales: int = 3
) -> torch.Tensor:
    """Return the mean L1 distance between image gradients at several scales.

    Args:
        images: ``[B, 3, H, W]``.
        others: of the same shape.
        scales: 1 compares at full size, each further scale at half of the previous size.
    """
    total = torch.zeros((), device=images.device)
    difference = images - others
    for _ in range(scales):
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total / scales


class PatchDiscriminator(nn.Module):
    """A PatchGAN discriminator (arXiv:1611.07004, app. 6.1.2): judges each patch of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for inputs, outputs in pairwise(widths):
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride=2, padding=1),
                nn.GroupNorm(8, outputs),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``[B, 1, H/8, W/8]``, high for real images."""
        logits: torch.Tensor = self.layers(images)
        return logits


def hinge_discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's hinge loss (arXiv:1705.02894)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """Return the generator's hinge loss."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: torch.Tensor, adversarial: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """Return the weight of the adversarial loss that gives both losses equal gradients.

    The adaptive weight of VQGAN (arXiv:2012.09841, eq. 7), measured at the output image instead of
    the last layer, which needs no second pass through the decoder.
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction, output, retain_graph=True)
    (adversarial_grad,) = torch.autograd.grad(adversarial, output, retain_graph=True)
    ratio: torch.Tensor = reconstruction_grad.float().norm() / (
        adversarial_grad.float().norm() + 1e-8
    )
    return ratio.clamp(max=1e4).detach()
