import numpy as np
import pytest
from cutouts import cut_out, line_drawing, recolor
from PIL import Image, ImageDraw

from helpers.world_samples import draw_disk


def disk_coverage(side=128):
    mask = Image.new("L", (side * 4, side * 4), 0)
    edge = side * 0.8
    ImageDraw.Draw(mask).ellipse((edge, edge, 4 * side - edge, 4 * side - edge), 255)
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX)) / 255


def crop(array):
    rows, columns = np.nonzero(array > 8 / 255)
    return array[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.mark.parametrize("color", ["red", "blue", "green"])
def test_opacity_of_edges_is_that_of_the_drawing(color):
    alpha = np.asarray(cut_out(draw_disk(color)))[..., 3] / 255
    expected = crop(disk_coverage())
    assert alpha.shape == expected.shape
    assert np.abs(alpha - expected).max() < 0.08
    assert np.abs(alpha - expected).mean() < 0.005


def test_edges_keep_no_white():
    cut = np.asarray(cut_out(draw_disk("blue")))
    seen = cut[cut[..., 3] > 20]
    assert np.abs(seen[:, :3].astype(int) - (50, 120, 220)).max() <= 8


def test_white_around_is_transparent_and_white_inside_stays():
    picture = draw_disk("red").copy()
    picture[56:72, 56:72] = 255
    cut = np.asarray(cut_out(picture))
    middle = cut[cut.shape[0] // 2, cut.shape[1] // 2]
    assert tuple(middle) == (255, 255, 255, 255)
    assert cut[0, 0, 3] == cut[-1, -1, 3] == 0


def test_white_in_a_bay_is_outside_and_behind_a_wall_inside():
    picture = np.full((40, 40, 3), 255, np.uint8)
    picture[5:35, 5:35] = (50, 120, 220)
    picture[10:30, 10:14] = picture[26:30, 10:30] = picture[16:30, 26:30] = 255  # winding
    closed = np.asarray(cut_out(picture))[..., 3]
    assert closed.min() == 255
    picture[20:24, :12] = 255  # opened to the left
    opened = np.asarray(cut_out(picture))[..., 3]
    assert opened[14, 22] == 0
    assert opened[7, 15] == 255


def test_recolored_thing_keeps_shape_and_brightness():
    image = cut_out(draw_disk("red"))
    turned = np.asarray(recolor(image, 85))
    assert np.array_equal(turned[..., 3], np.asarray(image)[..., 3])
    middle = turned[turned.shape[0] // 2, turned.shape[1] // 2]
    assert middle[1] > middle[0] > 0
    assert middle[1] > middle[2]


def test_line_drawing_is_gray_with_a_dark_edge_and_white_inside():
    drawing = np.asarray(line_drawing(cut_out(draw_disk("red")))).astype(int)
    middle = drawing.shape[0] // 2
    assert drawing[middle, middle, 0] > 245
    assert drawing[middle, :6, 0].min() < 60
    assert drawing[middle, -6:, 0].min() < 60
    assert np.ptp(drawing[..., :3], axis=-1).max() == 0
