import io

import numpy as np
import pytest
from PIL import Image

from lorasmith.core.errors import DataError
from lorasmith.data import picture
from lorasmith.data.picture import decode, square


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize(
    ("orientation", "corner"),  # where the left upper pixel of the file belongs
    [(1, (0, 0)), (2, (2, 0)), (3, (2, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)), (8, (0, 2))],
)
def test_pictures_stand_upright(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode(encoded(image, exif=exif), "x")
    assert upright.size == ((3, 2) if orientation < 5 else (2, 3))
    assert pixel(upright, *corner) == (255, 0, 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\1\0"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_orientation_does_no_harm(exif: bytes) -> None:
    assert decode(encoded(Image.new("RGB", (3, 2)), "JPEG", exif=exif), "x").size == (3, 2)


def test_transparency_lies_on_the_background() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (9, 9, 9, 0))
    shown = decode(encoded(half), "x")
    assert pixel(shown) == pytest.approx((255, 127, 127), abs=1)
    assert pixel(shown, 1) == (255, 255, 255)
    assert pixel(decode(encoded(half), "x", background=(0, 0, 255)), 1) == (0, 0, 255)
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixel(decode(encoded(grey), "x")) == (255, 255, 255)


def test_transparency_of_a_palette() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    shown = decode(encoded(image, transparency=1), "x")
    assert (pixel(shown), pixel(shown, 1)) == ((200, 0, 0), (255, 255, 255))
    shown = decode(encoded(image, "GIF", transparency=0), "x")
    assert (pixel(shown), pixel(shown, 1)) == ((255, 255, 255), (0, 200, 0))


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    wide = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        shown = decode(encoded(Image.fromarray(wide), kind), "x")
        assert [pixel(shown, x) for x in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3]


def test_other_modes_become_rgb() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert pixel(decode(cmyk, "x")) == pytest.approx((254, 0, 0), abs=3)
    for mode in ("1", "L"):
        assert pixel(decode(encoded(Image.new(mode, (1, 1), 255)), "x")) == (255, 255, 255)
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(decode(moving, "x")) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_cut_file_is_named(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for part in (data[: len(data) // 2], data[:20], b""):
        with pytest.raises(DataError, match=r"cat\.x: cannot be decoded"):
            decode(part, "cat.x")


def test_a_picture_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_PIXELS", 99)
    decode(encoded(Image.new("RGB", (9, 11))), "x")
    with pytest.raises(DataError, match="x: 10 x 10 pixels is too large"):
        decode(encoded(Image.new("RGB", (10, 10))), "x")


def test_a_square_is_the_scaled_centre() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    pixels = square(image, 5)
    assert pixels.shape == (5, 5, 3)
    assert pixels.dtype == np.uint8
    assert pixels[:, 1:4] == pytest.approx(np.broadcast_to((0, 0, 255), (5, 3, 3)), abs=16)
    assert pixels[:, 0] != pytest.approx(np.broadcast_to((255, 0, 0), (5, 3)), abs=60)
    same = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8))
    assert np.array_equal(square(same, 6), np.asarray(same))
