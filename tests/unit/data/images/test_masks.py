"""Random masks for inpainting."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.device import make_generator
from lorasmith.data.images.masks import FULL_MASK_PROBABILITY, draw_random_mask

sides = st.integers(min_value=16, max_value=200)


@given(width=sides, height=sides, seed=st.integers(0, 2**40))
def test_mask_is_black_and_white_and_not_black(width: int, height: int, seed: int) -> None:
    mask = draw_random_mask(width, height, make_generator(seed))
    assert mask.shape == (height, width)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    assert (mask == 255).mean() > 1 / 1000


@given(width=sides, height=sides, seed=st.integers(0, 2**40))
def test_mask_is_that_of_its_generator(width: int, height: int, seed: int) -> None:
    first, second = (draw_random_mask(width, height, make_generator(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@given(side=st.sampled_from([64, 96, 128]), scale=st.integers(2, 4), seed=st.integers(0, 2**40))
def test_mask_scales_with_its_image(side: int, scale: int, seed: int) -> None:
    """The same shapes in an image of the same aspect: only their edges differ."""
    small = draw_random_mask(side, side, make_generator(seed))
    large = draw_random_mask(side * scale, side * scale, make_generator(seed))[::scale, ::scale]
    assert (small != large).mean() < 0.2


def test_masks_are_as_varied_as_they_say() -> None:
    masks = [draw_random_mask(64, 48, make_generator(7, index)) for index in range(400)]
    shares = torch.tensor([float((mask == 255).mean()) for mask in masks])
    full = float((shares == 1.0).float().mean())
    assert full == pytest.approx(FULL_MASK_PROBABILITY, abs=0.07)  # three standard deviations
    partial_shares = shares[shares < 1.0]
    assert partial_shares.min() < 0.08
    assert partial_shares.max() > 0.75
    assert 0.25 < partial_shares.mean() < 0.55
    # Every place is painted anew by some and given by others.
    average = np.stack([m for m, share in zip(masks, shares, strict=True) if share < 1]).mean(0)
    assert average.min() > 255 * 0.05
    assert average.max() < 255 * 0.9
