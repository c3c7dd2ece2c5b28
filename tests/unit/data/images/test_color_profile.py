import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from helpers.dataset_files import encoded, scene, write_image
from helpers.icc_profiles import ADOBE_RGB, P3, SRGB, cmyk_profile, grey_profile, matrix_profile
from lorasmith.core.errors import LorasmithWarning
from lorasmith.data.images.bucketed_images import read_image_header
from lorasmith.data.images.color_profile import convert_to_srgb
from lorasmith.data.images.decode import decode_image, decode_mask, decode_with_details, to_rgb
from lorasmith.data.scan.scan import scan_dataset
from lorasmith.inference.init_image import InitImage
from lorasmith.training.data.vae_encoding import hash_content

FORMATS = ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"]


def by_formula(rgb: tuple[int, int, int], primaries: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """Convert a colour to sRGB by the definitions of both spaces."""
    xyz = np.array(primaries).T @ (np.array(rgb) / 255) ** 2.2
    linear = (np.linalg.inv(np.array(SRGB).T) @ xyz).clip(0, 1)
    low, high = linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055
    return 255 * np.where(linear <= 0.0031308, low, high)


@pytest.mark.parametrize("primaries", [P3, ADOBE_RGB], ids=["P3", "AdobeRGB"])
@pytest.mark.parametrize("color", [(200, 60, 40), (60, 200, 80), (128, 128, 128), (255, 255, 255)])
def test_wide_gamut_colours_become_srgb(
    primaries: tuple[tuple[float, ...], ...], color: tuple[int, int, int]
) -> None:
    file = encoded(Image.new("RGB", (4, 4), color), icc_profile=matrix_profile(primaries))
    decoded = decode_with_details(file, "x")
    assert decoded.is_converted
    assert decoded.image.getpixel((0, 0)) == pytest.approx(by_formula(color, primaries), abs=2)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_with_a_profile_is_converted(kind: str) -> None:
    image = scene(1, (32, 32))
    plain = np.asarray(decode_image(encoded(image, kind), "x"), int)
    profile = matrix_profile(P3)
    wide = decode_with_details(encoded(image, kind, icc_profile=profile), "x")
    expected = ImageCms.profileToProfile(
        Image.fromarray(plain.astype(np.uint8)),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
    )
    assert wide.is_converted
    assert np.array_equal(np.asarray(wide.image), np.asarray(expected))
    assert read_image_header(encoded(image, kind, icc_profile=profile), "x") == ((32, 32), True)


@pytest.mark.parametrize("kind", FORMATS)
def test_srgb_profile_changes_no_pixel(kind: str) -> None:
    image = scene(2, (32, 32))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = encoded(image, kind, icc_profile=srgb)
    assert decode_image(file, "x").tobytes() == decode_image(encoded(image, kind), "x").tobytes()
    assert not read_image_header(file, "x").is_converted


def test_grey_is_converted_by_its_gamma() -> None:
    ramp = np.arange(0, 256, 15, dtype=np.uint8)[None]
    profile = grey_profile(1.0)
    linear = (ramp[0] / 255).astype(float)
    expected = 255 * np.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    for stored in (ramp, ramp.astype(np.uint16) * 257):
        decoded = decode_with_details(encoded(Image.fromarray(stored), icc_profile=profile), "x")
        assert decoded.is_converted
        assert np.asarray(decoded.image)[0, :, 0] == pytest.approx(expected, abs=2)


def test_transparency_survives_the_conversion() -> None:
    profile, color = matrix_profile(P3), (60, 200, 80)
    clear = Image.new("RGBA", (2, 1), (*color, 255))
    clear.putpixel((1, 0), (9, 9, 9, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*color, 1, 1, 1])
    palette.putpixel((1, 0), 1)
    keyed = Image.new("RGB", (2, 1), color)
    keyed.putpixel((1, 0), (9, 8, 7))
    for file in (
        encoded(clear, icc_profile=profile),
        encoded(palette, icc_profile=profile, transparency=1),
        encoded(keyed, icc_profile=profile, transparency=(9, 8, 7)),
    ):
        decoded = decode_with_details(file, "x", (1, 2, 3))
        assert decoded.has_transparency
        assert decoded.image.getpixel((0, 0)) == pytest.approx(by_formula(color, P3), abs=2)
        assert decoded.image.getpixel((1, 0)) == (1, 2, 3)


def test_cmyk_is_converted_by_its_profile() -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    decoded = decode_with_details(encoded(ink, "TIFF", icc_profile=cmyk_profile()), "x")
    assert decoded.profile_problem == ""
    red, green, blue = decoded.image.getpixel((0, 0))
    assert max(red, green, blue) - min(red, green, blue) <= 3  # this printer has only grey inks
    without = decode_image(encoded(ink, "TIFF"), "x").getpixel((0, 0))
    assert without == (255, 0, 0)


@pytest.mark.parametrize(
    ("profile", "mode"),
    [
        (b"garbage", "RGB"),
        (matrix_profile(P3)[:150], "RGB"),
        (matrix_profile(P3) + bytes(5 << 20), "RGB"),
        (grey_profile(1.0), "RGB"),
        (cmyk_profile(), "RGB"),
        (matrix_profile(P3), "CMYK"),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), "RGB"),
    ],
    ids=["garbage", "cut", "huge", "grey", "cmyk", "rgb-for-cmyk", "lab"],
)
def test_profile_that_cannot_be_used_is_a_warning(
    profile: bytes, mode: str, tmp_path: Path
) -> None:
    image = scene(3).convert(mode)
    file = encoded(image, "TIFF", icc_profile=profile)
    assert decode_image(file, "x").tobytes() == image.convert("RGB").tobytes()
    path = write_image(tmp_path / "a.tif", file)
    (problem,) = scan_dataset(tmp_path).problems
    assert (problem.file, problem.kind, problem.severity) == ("a.tif", "color-profile", "warning")
    assert "its colour profile cannot be used (" in problem.detail
    assert "\n" not in problem.detail
    with pytest.warns(LorasmithWarning, match=r"a\.tif: its colour profile cannot be used"):
        InitImage.load(path)
    assert not read_image_header(file, "x").is_converted


def test_rgb_profile_is_used_for_grey() -> None:
    file = encoded(Image.new("L", (4, 4), 100), icc_profile=matrix_profile(P3, gamma=1.0))
    decoded = decode_with_details(file, "x")
    assert decoded.is_converted
    assert decoded.image.getpixel((0, 0)) == pytest.approx((168, 168, 168), abs=3)


def test_values_of_a_mask_are_not_converted() -> None:
    mask = Image.new("L", (4, 4), 100)
    file = encoded(mask, icc_profile=grey_profile(1.0))
    assert decode_mask(file, "m", (4, 4)).getpixel((0, 0)) == 100


def test_images_in_memory_are_converted() -> None:
    file = encoded(Image.new("RGB", (4, 4), (60, 200, 80)), icc_profile=matrix_profile(P3))
    assert to_rgb(Image.open(io.BytesIO(file))).tobytes() == decode_image(file, "x").tobytes()


def test_only_converted_images_get_another_cache_key() -> None:
    assert hash_content(b"x", is_converted=True) != hash_content(b"x")
    assert hash_content(b"x") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_image_without_a_profile_stays_the_same_object() -> None:
    image = Image.new("RGB", (2, 2))
    assert convert_to_srgb(image).image is image


def test_any_damage_to_a_profile_leaves_an_image() -> None:
    draw = random.Random(1)
    profiles = [(matrix_profile(P3), "RGB"), (grey_profile(1.0), "L"), (cmyk_profile(), "CMYK")]
    outcomes = set()
    for _ in range(150):
        profile, mode = draw.choice(profiles)
        damaged = bytearray(profile)
        for _ in range(draw.choice((1, 5, 20))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        image = scene(0, (8, 8)).convert(mode)
        decoded = decode_with_details(encoded(image, "TIFF", icc_profile=bytes(damaged)), "x")
        assert (decoded.image.mode, decoded.image.size) == ("RGB", (8, 8))
        outcomes.add((decoded.is_converted, bool(decoded.profile_problem)))
    assert outcomes >= {(True, False), (False, True)}
