import pytest
import torch
from torch import nn

from lorasmith.models.image_encoder import ImageEncoder
from lorasmith.pretraining.vae_losses import (
    PatchDiscriminator,
    PerceptualLoss,
    balance,
    gradient_distance,
    hinge_discriminator,
    hinge_generator,
)


def pictures(seed: int, *size: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(*(size or (2, 3, 16, 16)), generator=draws) * 2 - 1


@pytest.fixture
def perceptual() -> PerceptualLoss:
    torch.manual_seed(0)
    return PerceptualLoss(ImageEncoder((8, 16), (1, 1), 8))


def test_perceptual_distance_is_zero_for_equal_pictures_alone(perceptual: PerceptualLoss) -> None:
    one, two = pictures(0), pictures(1)
    assert float(perceptual(one, one.clone())) == pytest.approx(0.0, abs=1e-10)
    assert float(perceptual(one, two)) == pytest.approx(float(perceptual(two, one)), rel=1e-5)
    assert float(perceptual(one, 0.9 * one + 0.1 * two)) < 0.5 * float(perceptual(one, two))


def test_perceptual_distance_is_that_of_plain_loops(perceptual: PerceptualLoss) -> None:
    one, two = pictures(0, 1, 3, 8, 8), pictures(1, 1, 3, 8, 8)
    stages = []
    for a, b in zip(
        perceptual.tower.feature_maps(one), perceptual.tower.feature_maps(two), strict=True
    ):
        places = []
        for y in range(a.shape[2]):
            for x in range(a.shape[3]):
                u, v = a[0, :, y, x], b[0, :, y, x]
                places.append(float((u / u.norm() - v / v.norm()).square().sum()))
        stages.append(sum(places) / len(places))
    assert float(perceptual(one, two)) == pytest.approx(sum(stages) / len(stages), rel=1e-4)


def test_the_perceptual_loss_teaches_the_pictures_not_the_tower(perceptual: PerceptualLoss) -> None:
    made = pictures(1).requires_grad_()
    perceptual(pictures(0), made).backward()
    assert float(made.grad.abs().sum()) > 0
    assert all(p.grad is None for p in perceptual.parameters())


def test_gradient_distance() -> None:
    one = pictures(0)
    assert float(gradient_distance(one, one)) == 0.0
    assert float(gradient_distance(one, one + 0.3)) == pytest.approx(0.0, abs=1e-6)
    # A ramp of 0.1 a pixel to the right: 0.1 at full size, 0.2 at half, 0.4 at a quarter.
    ramp = (0.1 * torch.arange(16.0)).expand(1, 3, 16, 16)
    flat = torch.zeros(1, 3, 16, 16)
    assert float(gradient_distance(ramp, flat, scales=1)) == pytest.approx(0.1, rel=1e-5)
    assert float(gradient_distance(flat, ramp)) == pytest.approx(0.7 / 3, rel=1e-5)
    assert float(gradient_distance(ramp.mT, flat)) == pytest.approx(0.7 / 3, rel=1e-5)


def test_hinge_losses() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert float(hinge_discriminator(real, made)) == pytest.approx(
        0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    )
    assert float(hinge_generator(made)) == pytest.approx(-1 / 3)


def test_the_discriminator_judges_patches() -> None:
    judge = PatchDiscriminator(8)
    assert judge(torch.zeros(2, 3, 32, 24)).shape == (2, 1, 4, 3)
    assert sum(isinstance(layer, nn.GroupNorm) for layer in judge.layers) == 2


@pytest.mark.parametrize("strength", [1e-3, 1.0, 50.0])
def test_balance_lets_both_losses_pull_equally(strength: float) -> None:
    made = pictures(0).requires_grad_()
    reconstruction = (made - pictures(1)).abs().mean()
    adversarial = strength * made.square().mean()
    factor = balance(reconstruction, adversarial, made)
    assert not factor.requires_grad
    (pull,) = torch.autograd.grad(reconstruction, made, retain_graph=True)
    (push,) = torch.autograd.grad(factor * adversarial, made)
    assert float(push.norm()) == pytest.approx(float(pull.norm()), rel=1e-3)


def test_balance_is_bounded() -> None:
    made = pictures(0).requires_grad_()
    assert float(balance(made.sum(), 0.0 * made.sum(), made)) == 1e4
