import importlib.util

import numpy as np
import pytest
from catalogue import Bitmap
from PIL import Image, ImageDraw
from render import (
    MARGIN,
    SIZE,
    content_box,
    content_extent,
    draw,
    is_faint,
    place_in_canvas,
    rasterise,
    svg_document,
)

from helpers.emoji_samples import square

needs_resvg = pytest.mark.skipif(
    importlib.util.find_spec("resvg_py") is None, reason="resvg_py, the SVG renderer, is missing"
)


def sheet(box, size=256, fill=(200, 0, 0, 255)):
    """A transparent square with a filled rectangle (inclusive corners)."""
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle(box, fill=fill)
    return image


def inked(picture):
    """Left, top, right, bottom of what is not white; right and bottom exclusive."""
    rows, columns = np.where((picture < 240).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def framed(image):
    return place_in_canvas(image, content_box(image))


def test_centred_content_stays_where_it_is():
    assert inked(framed(sheet((64, 64, 191, 191)))) == (32, 32, 96, 96)


def test_content_is_pulled_most_of_the_way_to_the_centre():
    left, top, right, bottom = inked(framed(sheet((20, 64, 147, 191))))
    assert (top, bottom) == (32, 96)
    # Its frame puts it 22 pixels left of the centred 32; 60% of that is taken back.
    assert left == pytest.approx(32 - 22 * 0.4, abs=1)
    assert right - left == pytest.approx(64, abs=1)


def test_content_at_the_edge_keeps_the_margin():
    left, top, _, _ = inked(framed(sheet((0, 0, 229, 229))))
    assert left >= MARGIN
    assert top >= MARGIN


def test_content_larger_than_the_image_is_reduced_to_fit():
    left, top, right, bottom = inked(framed(sheet((0, 60, 299, 239), size=300)))
    assert (left, right) == (MARGIN, SIZE - MARGIN)
    assert (bottom - top) / (right - left) == pytest.approx(180 / 300, abs=0.02)
    assert (top + bottom) / 2 == pytest.approx(SIZE / 2, abs=1)


def test_ground_is_white_and_shadows_blend_into_it():
    picture = framed(sheet((64, 64, 191, 191), fill=(0, 0, 0, 128)))
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[64, 64].tolist() == pytest.approx([127, 127, 127], abs=1)


def test_transparent_sheet_has_no_content():
    assert content_box(Image.new("RGBA", (32, 32), (255, 0, 0, 5))) is None


def test_bitmaps_are_drawn_like_vectors(tmp_path):
    path = tmp_path / "sticker.webp"
    sheet((64, 64, 191, 191)).save(path, lossless=True)
    assert content_extent(Bitmap(path)) == pytest.approx(0.5, abs=0.03)
    left, top, right, bottom = inked(draw(Bitmap(path), 120))
    assert (left + right) / 2 == pytest.approx(SIZE / 2, abs=1)
    assert (top + bottom) / 2 == pytest.approx(SIZE / 2, abs=1)
    assert right - left == pytest.approx(60, abs=2)


def test_faint_images_are_recognised():
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    assert is_faint(white)
    dark = white.copy()
    dark[30:90, 30:90] = 0
    assert not is_faint(dark)


def test_svg_document_shows_the_rectangle_of_the_icon():
    document = svg_document(square())
    assert 'viewBox="0 0 32 32" width="32" height="32"' in document
    assert square().body in document


@needs_resvg
def test_drawn_icon_lands_centred_with_margins():
    picture = draw(square(x=0, y=4, side=24), 120)
    left, top, right, bottom = inked(picture)
    assert right - left == pytest.approx(90, abs=1)
    assert bottom - top == pytest.approx(90, abs=1)
    # Vertically centred in its own frame; horizontally only pulled towards the centre.
    assert top == pytest.approx(19, abs=1)
    assert left == pytest.approx(4 + (19 - 4) * 0.6, abs=1)
    assert picture[64, 64].tolist() == [204, 0, 0]


@needs_resvg
def test_longer_side_has_the_wanted_pixels():
    assert rasterise(square(), 200).size == (200, 200)
    assert content_extent(square(side=16)) == pytest.approx(0.5, abs=0.02)


@needs_resvg
def test_empty_icon_is_blank():
    assert draw(square(side=0), 120) is None
