import pytest
import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.pretraining.augment import color_jitter, random_shift_and_zoom


def make_rng(count: int = 8) -> BatchRng:
    return BatchRng(torch.Generator().manual_seed(0), count)


def dark_squares() -> torch.Tensor:
    """White images with a dark square in the middle."""
    images = torch.ones(8, 3, 32, 32)
    images[:, :, 12:20, 12:20] = -1.0
    return images


@pytest.mark.parametrize("augment", [random_shift_and_zoom, color_jitter])
def test_amount_of_zero_changes_nothing(augment) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    assert augment(images, 0.0, make_rng(4)) is images


def test_each_image_is_shifted_and_zoomed_differently() -> None:
    result = random_shift_and_zoom(dark_squares(), 0.2, make_rng())
    dark = (result[:, 0] < 0).float()
    area = dark.sum(dim=(1, 2))
    shift = (dark * torch.arange(32.0)).sum(dim=(1, 2)) / area - 15.5
    assert float(area.min()) >= 64 / 1.2**2 - 12
    assert float(area.max()) <= 64 / 0.8**2 + 20
    assert float(shift.abs().max()) <= 0.2 * 16 / 0.8 + 1
    assert len({round(x, 2) for x in shift.tolist()}) > 4
    assert float(result[:, :, 0].min()) > 0.999  # the border is repeated outwards


def test_tiny_amount_keeps_the_image() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    augmented = random_shift_and_zoom(images, 1e-9, make_rng(4))
    torch.testing.assert_close(augmented, images, atol=1e-5, rtol=0.0)


def test_colors_change_within_the_amount() -> None:
    gray = torch.full((8, 3, 4, 4), 0.2)
    result = color_jitter(gray, 0.1, make_rng())
    assert float((result - gray).abs().max()) <= 0.1 * 1.2 + 1e-6
    assert len(result[:, 0, 0, 0].unique()) == 8
    assert (result == result[:, :1, :1, :1]).all()
    bright = color_jitter(dark_squares(), 0.5, make_rng())
    assert float(bright.abs().max()) <= 1.0
