import pytest
import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.pretraining.augment import jitter_colours, shift_and_scale


def draws(count: int = 8) -> BatchRng:
    return BatchRng(torch.Generator().manual_seed(0), count)


def spots() -> torch.Tensor:
    """White pictures with a dark square in the middle."""
    pictures = torch.ones(8, 3, 32, 32)
    pictures[:, :, 12:20, 12:20] = -1.0
    return pictures


@pytest.mark.parametrize("change", [shift_and_scale, jitter_colours])
def test_a_share_of_zero_changes_nothing(change) -> None:
    torch.manual_seed(0)
    pictures = torch.rand(4, 3, 8, 8) * 2 - 1
    assert change(pictures, 0.0, draws(4)) is pictures


def test_pictures_move_and_scale_a_little_and_each_its_own_way() -> None:
    result = shift_and_scale(spots(), 0.2, draws())
    dark = (result[:, 0] < 0).float()
    area = dark.sum(dim=(1, 2))
    place = (dark * torch.arange(32.0)).sum(dim=(1, 2)) / area - 15.5
    assert float(area.min()) >= 64 / 1.2**2 - 12
    assert float(area.max()) <= 64 / 0.8**2 + 20
    assert float(place.abs().max()) <= 0.2 * 16 / 0.8 + 1
    assert len({round(x, 2) for x in place.tolist()}) > 4
    assert float(result[:, :, 0].min()) > 0.999  # the border goes on outwards


def test_no_zoom_and_no_shift_is_the_same_picture() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(4, 3, 8, 8) * 2 - 1
    nearly = shift_and_scale(pictures, 1e-9, draws(4))
    torch.testing.assert_close(nearly, pictures, atol=1e-5, rtol=0.0)


def test_colours_change_within_the_share() -> None:
    grey = torch.full((8, 3, 4, 4), 0.2)
    result = jitter_colours(grey, 0.1, draws())
    assert float((result - grey).abs().max()) <= 0.1 * 1.2 + 1e-6
    assert len(result[:, 0, 0, 0].unique()) == 8
    assert (result == result[:, :1, :1, :1]).all()
    bright = jitter_colours(spots(), 0.5, draws())
    assert float(bright.abs().max()) <= 1.0
