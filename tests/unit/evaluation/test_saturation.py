"""Saturation and two-tone share on images whose numbers are known."""

import pytest
from PIL import Image

from lorasmith.evaluation.metrics.saturation import measure_color


def flat(color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (4, 4), color)


@pytest.mark.parametrize(
    ("color", "saturation", "two_tone"),
    [
        ((255, 255, 255), 0.0, 1.0),
        ((0, 0, 0), 0.0, 1.0),
        ((128, 128, 128), 0.0, 0.0),
        ((255, 0, 0), 1.0, 0.0),
        ((51, 0, 0), 0.2, 1.0),
    ],
)
def test_flat_images_have_known_saturation(
    color: tuple[int, int, int], saturation: float, two_tone: float
) -> None:
    assert measure_color([flat(color)]) == pytest.approx((saturation, two_tone))


def test_images_are_averaged() -> None:
    half = flat((0, 0, 0))
    half.paste((0, 255, 0), (0, 0, 4, 2))
    assert measure_color([half, flat((255, 255, 255))]) == pytest.approx((0.25, 0.75))
