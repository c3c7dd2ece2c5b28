import io
import random

import numpy as np
import pytest
from PIL import Image

from lorasmith.core.errors import DataError
from lorasmith.data.images import decode as decode_module
from lorasmith.data.images.decode import crop_square, decode_image, decode_mask, decode_with_details


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
def test_images_stand_upright(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encoded(image, exif=exif), "x")
    assert upright.size == ((3, 2) if orientation < 5 else (2, 3))
    assert pixel(upright, *corner) == (255, 0, 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\1\0"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_orientation_is_ignored(exif: bytes) -> None:
    assert decode_image(encoded(Image.new("RGB", (3, 2)), "JPEG", exif=exif), "x").size == (3, 2)


def test_transparency_lies_on_the_background() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (9, 9, 9, 0))
    shown = decode_image(encoded(half), "x")
    assert pixel(shown) == pytest.approx((255, 127, 127), abs=1)
    assert pixel(shown, 1) == (255, 255, 255)
    assert pixel(decode_image(encoded(half), "x", background=(0, 0, 255)), 1) == (0, 0, 255)
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixel(decode_image(encoded(grey), "x")) == (255, 255, 255)


def test_transparency_of_a_palette_lies_on_the_background() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    shown = decode_image(encoded(image, transparency=1), "x")
    assert (pixel(shown), pixel(shown, 1)) == ((200, 0, 0), (255, 255, 255))
    shown = decode_image(encoded(image, "GIF", transparency=0), "x")
    assert (pixel(shown), pixel(shown, 1)) == ((255, 255, 255), (0, 200, 0))


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    wide = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        shown = decode_image(encoded(Image.fromarray(wide), kind), "x")
        assert [pixel(shown, x) for x in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3]


def test_sixteen_bit_grey_is_as_bright_as_its_eight_bit_twin() -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    eight_bit = np.asarray(
        decode_image(encoded(Image.fromarray((wide // 257).astype(np.uint8))), "x")
    )
    for kind in ("PNG", "TIFF"):
        mean = np.asarray(decode_image(encoded(Image.fromarray(wide), kind), "x")).mean()
        assert mean == pytest.approx(eight_bit.mean(), rel=0.01)


def test_transparent_shade_of_sixteen_bits_stays_hidden() -> None:
    wide = np.array([[5000, 40_000]], dtype=np.uint16)
    shown = decode_image(encoded(Image.fromarray(wide), transparency=5000), "x", (1, 2, 3))
    assert (pixel(shown), pixel(shown, 1)) == ((1, 2, 3), (156, 156, 156))


def test_transparent_colour_stays_hidden() -> None:
    for mode, color, other in (("RGB", (9, 8, 7), (9, 8, 6)), ("L", 9, 8)):
        image = Image.new(mode, (2, 1), color)
        image.putpixel((1, 0), other)
        decoded = decode_with_details(encoded(image, transparency=color), "x", (250, 0, 250))
        assert decoded.has_transparency
        assert pixel(decoded.image) == (250, 0, 250)
        assert pixel(decoded.image, 1) == (other if mode == "RGB" else (8, 8, 8))


def test_opaque_alpha_channel_is_not_reported() -> None:
    assert not decode_with_details(encoded(Image.new("RGBA", (2, 2), "red")), "x").has_transparency
    assert decode_with_details(
        encoded(Image.new("RGBA", (2, 2), (1, 1, 1, 254))), "x"
    ).has_transparency


@pytest.mark.parametrize("wide", [np.float32, np.int32])
def test_numbers_without_a_known_white_are_refused(wide: type) -> None:
    top = 1.0 if wide is np.float32 else 65535
    inside = Image.fromarray(np.array([[0, top]], dtype=wide))
    shown = decode_image(encoded(inside, "TIFF"), "x")
    assert (pixel(shown), pixel(shown, 1)) == ((0, 0, 0), (255, 255, 255))
    for value in (-1, top * 2):
        outside = Image.fromarray(np.array([[0, value]], dtype=wide))
        with pytest.raises(DataError, match=r"x: has values outside of 0\.\."):
            decode_image(encoded(outside, "TIFF"), "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_one_error(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind in ("GIF", "BMP") else {"exif": exif}
    full = encoded(Image.fromarray(noise), kind, **options)
    draw = random.Random(kind)
    outcomes = set()
    for _ in range(250):
        damaged = bytearray(full)
        for _ in range(draw.choice((1, 3, 20))):
            damaged[draw.randrange(draw.choice((60, len(damaged))))] = draw.randrange(256)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(damaged)) :]
        try:
            outcomes.add(decode_image(bytes(damaged), "x").mode)
        except DataError as error:
            outcomes.add(str(error)[:3])
    assert "x: " in outcomes
    assert outcomes <= {"RGB", "x: "}


def test_mask_has_its_images_size() -> None:
    half = Image.new("L", (20, 10), 0)
    half.paste(255, (10, 0, 20, 10))
    for image in (half, half.convert("RGB"), half.convert("1")):
        mask = decode_mask(encoded(image), "m", (20, 10))
        assert (mask.mode, mask.size, mask.getpixel((0, 0)), mask.getpixel((19, 9))) == (
            "L", (20, 10), 0, 255,
        )  # fmt: skip
    larger = decode_mask(encoded(half), "m", (61, 30))
    assert (larger.size, larger.getpixel((1, 1)), larger.getpixel((59, 28))) == ((61, 30), 0, 255)
    clear = Image.new("LA", (20, 10), (255, 0))
    assert decode_mask(encoded(clear), "m", (20, 10)).getextrema() == (0, 0)


@pytest.mark.parametrize("size", [(20, 12), (10, 20), (200, 80)])
def test_mask_of_another_shape_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"m: the mask is 20 x 10 and its image"):
        decode_mask(encoded(Image.new("L", (20, 10), 255)), "m", size)


def test_other_modes_become_rgb() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert pixel(decode_image(cmyk, "x")) == pytest.approx((254, 0, 0), abs=3)
    for mode in ("1", "L"):
        assert pixel(decode_image(encoded(Image.new(mode, (1, 1), 255)), "x")) == (255, 255, 255)
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(decode_image(moving, "x")) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_cut_file_is_named(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for part in (data[: len(data) // 2], data[:20], b""):
        with pytest.raises(DataError, match=r"cat\.x: cannot be decoded"):
            decode_image(part, "cat.x")


def test_image_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 99)
    decode_image(encoded(Image.new("RGB", (9, 11))), "x")
    with pytest.raises(DataError, match="x: 10 x 10 pixels is too large"):
        decode_image(encoded(Image.new("RGB", (10, 10))), "x")


def test_square_image_is_the_scaled_centre() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    pixels = crop_square(image, 5)
    assert pixels.shape == (5, 5, 3)
    assert pixels.dtype == np.uint8
    assert pixels[:, 1:4] == pytest.approx(np.broadcast_to((0, 0, 255), (5, 3, 3)), abs=16)
    assert pixels[:, 0] != pytest.approx(np.broadcast_to((255, 0, 0), (5, 3)), abs=60)
    unscaled = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8))
    assert np.array_equal(crop_square(unscaled, 6), np.asarray(unscaled))
