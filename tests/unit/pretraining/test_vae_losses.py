from typing import cast

import pytest
import torch
from torch import nn

from lorasmith.config.pretrain import VaeLossConfig
from lorasmith.models.vision.conv_encoder import ConvImageEncoder
from lorasmith.pretraining.loop import PretrainLoop
from lorasmith.pretraining.perceptual.loss import PerceptualLoss
from lorasmith.pretraining.vae import ReconstructionLoss
from lorasmith.pretraining.vae_losses import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    image_gradient_loss,
)


def random_images(seed: int, *size: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(*(size or (2, 3, 16, 16)), generator=rng) * 2 - 1


@pytest.fixture
def perceptual() -> PerceptualLoss:
    torch.manual_seed(0)
    return PerceptualLoss(ConvImageEncoder((8, 16), (1, 1), 8))


def test_perceptual_distance_is_zero_only_for_equal_images(perceptual: PerceptualLoss) -> None:
    first, second = random_images(0), random_images(1)
    assert float(perceptual(first, first.clone())) == pytest.approx(0.0, abs=1e-10)
    assert float(perceptual(first, second)) == pytest.approx(
        float(perceptual(second, first)), rel=1e-5
    )
    assert float(perceptual(first, 0.9 * first + 0.1 * second)) < 0.5 * float(
        perceptual(first, second)
    )


def test_perceptual_distance_is_that_of_plain_loops(perceptual: PerceptualLoss) -> None:
    first, second = random_images(0, 1, 3, 8, 8), random_images(1, 1, 3, 8, 8)
    stages = []
    for a, b in zip(
        perceptual.encoder.feature_maps(first), perceptual.encoder.feature_maps(second), strict=True
    ):
        positions = []
        for y in range(a.shape[2]):
            for x in range(a.shape[3]):
                u, v = a[0, :, y, x], b[0, :, y, x]
                positions.append(float((u / u.norm() - v / v.norm()).square().sum()))
        stages.append(sum(positions) / len(positions))
    assert float(perceptual(first, second)) == pytest.approx(sum(stages) / len(stages), rel=1e-4)


def test_perceptual_loss_has_gradients_for_images_only(perceptual: PerceptualLoss) -> None:
    output = random_images(1).requires_grad_()
    perceptual(random_images(0), output).backward()
    assert float(output.grad.abs().sum()) > 0
    assert all(p.grad is None for p in perceptual.parameters())


def test_image_gradient_loss_equals_its_formula() -> None:
    first = random_images(0)
    assert float(image_gradient_loss(first, first)) == 0.0
    assert float(image_gradient_loss(first, first + 0.3)) == pytest.approx(0.0, abs=1e-6)
    # A horizontal ramp of 0.1 a pixel: 0.1 at full size, 0.2 at half, 0.4 at a quarter.
    ramp = (0.1 * torch.arange(16.0)).expand(1, 3, 16, 16)
    flat = torch.zeros(1, 3, 16, 16)
    assert float(image_gradient_loss(ramp, flat, scales=1)) == pytest.approx(0.1, rel=1e-5)
    assert float(image_gradient_loss(flat, ramp)) == pytest.approx(0.7 / 3, rel=1e-5)
    assert float(image_gradient_loss(ramp.mT, flat)) == pytest.approx(0.7 / 3, rel=1e-5)


def test_hinge_losses_equal_their_formula() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(
        0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    )
    assert float(hinge_generator_loss(fake)) == pytest.approx(-1 / 3)


def test_discriminator_judges_patches() -> None:
    discriminator = PatchDiscriminator(8)
    assert discriminator(torch.zeros(2, 3, 32, 24)).shape == (2, 1, 4, 3)
    assert sum(isinstance(layer, nn.GroupNorm) for layer in discriminator.layers) == 2


@pytest.mark.parametrize("strength", [1e-3, 1.0, 50.0])
def test_adaptive_weight_gives_both_losses_equal_gradients(strength: float) -> None:
    output = random_images(0).requires_grad_()
    reconstruction = (output - random_images(1)).abs().mean()
    adversarial = strength * output.square().mean()
    factor = adaptive_weight(reconstruction, adversarial, output)
    assert not factor.requires_grad
    (reconstruction_grad,) = torch.autograd.grad(reconstruction, output, retain_graph=True)
    (adversarial_grad,) = torch.autograd.grad(factor * adversarial, output)
    assert float(adversarial_grad.norm()) == pytest.approx(
        float(reconstruction_grad.norm()), rel=1e-3
    )


def test_adaptive_weight_is_bounded() -> None:
    output = random_images(0).requires_grad_()
    assert float(adaptive_weight(output.sum(), 0.0 * output.sum(), output)) == 1e4


@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_squared_error_is_added_with_its_weight(weight: float) -> None:
    images, reconstruction = random_images(0), random_images(1)
    settings = VaeLossConfig(mse_weight=weight, perceptual_weight=0.0, adversarial_weight=0.0)
    loss = ReconstructionLoss(settings, cast(PretrainLoop, None))  # only networks need the loop
    difference = images - reconstruction
    expected = difference.abs().mean() + weight * difference.square().mean()
    assert float(loss.compute(images, reconstruction)) == pytest.approx(float(expected))
