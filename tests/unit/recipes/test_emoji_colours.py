import numpy as np
import pytest
from colours import COLOURS, main_colours, to_lab


def painted(*bands):
    """A white image with horizontal bands of 32 rows in the given colours."""
    picture = np.full((128, 128, 3), 255, np.uint8)
    for i, colour in enumerate(bands):
        picture[32 * i : 32 * (i + 1)] = colour
    return picture


@pytest.mark.parametrize("name", [name for name in COLOURS if name != "white"])
def test_every_colour_is_named_correctly(name):
    assert main_colours(painted(COLOURS[name])) == [name]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((200, 20, 20), "red"), ((0, 120, 0), "green"), ((10, 10, 10), "black")],
)
def test_nearby_colours_take_the_nearest_name(rgb, name):
    assert main_colours(painted(rgb)) == [name]


def test_two_colours_at_most_the_larger_first():
    picture = painted(COLOURS["green"], COLOURS["green"], COLOURS["red"], COLOURS["blue"])
    names = main_colours(picture)
    assert len(names) == 2
    assert names[0] == "green"


def test_small_patch_is_no_main_colour():
    picture = painted(COLOURS["blue"], COLOURS["blue"])
    picture[:8, :8] = COLOURS["red"]
    assert main_colours(picture) == ["blue"]


def test_nearly_empty_image_is_white():
    assert main_colours(painted()) == ["white"]


def test_lab_of_white_and_black():
    np.testing.assert_allclose(to_lab([255, 255, 255]), [100, 0, 0], atol=0.1)
    np.testing.assert_allclose(to_lab([0, 0, 0]), [0, 0, 0], atol=1e-6)
