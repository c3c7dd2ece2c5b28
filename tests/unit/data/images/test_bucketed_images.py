"""Images in their buckets, and random augmentation."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lorasmith.core.device import make_generator
from lorasmith.core.errors import DataError
from lorasmith.data.images.augment import Augmentation, apply_color_jitter, draw_augmentation
from lorasmith.data.images.bucketed_images import (
    BucketedImages,
    CropBox,
    croppable_box,
    read_image_header,
    resize_and_crop,
)
from lorasmith.data.images.buckets import Bucket, assign_bucket, make_buckets
from lorasmith.data.images.decode import decode_image
from lorasmith.data.reading.row import Row

SQUARE = (Bucket(32, 32),)
BUCKETS = make_buckets(64, 8, 2.0)


def ramp(width: int, height: int) -> Image.Image:
    """Red tells how far right, green how far down a pixel is."""
    right = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    return Image.fromarray(np.stack([right, down, right * 0], axis=2).round().astype(np.uint8))


def saved(path: Path, image: Image.Image, **more) -> Row:
    image.save(path, **more)
    return Row(path.name, ("a",), {}, path)


def encoded(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


# --- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_decoded_image(kind: str, orientation: int) -> None:
    stored = encoded(ramp(40, 20), kind, orientation)
    assert read_image_header(stored, "x").size == decode_image(stored, "x").size


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_sizes_of_formats_without_orientation_are_read(kind: str) -> None:
    stream = io.BytesIO()
    ramp(31, 17).save(stream, kind)
    assert read_image_header(stream.getvalue(), "x").size == (31, 17)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_sizes_of_images_with_damaged_exif_are_read(kind: str) -> None:
    stream = io.BytesIO()
    ramp(40, 20).save(stream, kind, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff\xff")
    stored = stream.getvalue()
    assert read_image_header(stored, "x").size == decode_image(stored, "x").size == (40, 20)


def test_other_files_are_named() -> None:
    with pytest.raises(DataError, match="x\\.png: cannot be decoded"):
        read_image_header(b"<html>", "x.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_one_scene_give_equal_crops(tmp_path: Path, orientation: int) -> None:
    """The eight ways to store one upright scene end in the same bucket and pixels."""
    scene = ramp(96, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = scene.transpose(undo[orientation]) if orientation > 1 else scene
    path = tmp_path / "a.png"
    path.write_bytes(encoded(stored, "PNG", orientation))
    placed = assign_bucket(read_image_header(path.read_bytes(), "a").size, BUCKETS)
    assert placed == assign_bucket((96, 64), BUCKETS)
    pictures = BucketedImages([Row("a", ("a",), {}, path)], [placed], (255, 255, 255))
    plain = BucketedImages([saved(tmp_path / "b.png", scene)], [placed], (255, 255, 255))
    assert torch.equal(pictures.load_center_crop(0), plain.load_center_crop(0))


# --- cutting --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(8, 300),
    height=st.integers(8, 300),
    across=st.floats(0, 1),
    down=st.floats(0, 1),
)
def test_crop_is_a_piece_of_the_resized_image(
    width: int, height: int, across: float, down: float
) -> None:
    image, placed = ramp(width, height), assign_bucket((width, height), BUCKETS)
    resized = np.asarray(
        image.resize(placed.resized_size, Image.Resampling.LANCZOS), dtype=np.int64
    )
    bucket = placed.bucket
    left, top = round(across * placed.crop_slack[0]), round(down * placed.crop_slack[1])
    piece = resize_and_crop(image, placed, CropBox(left, top, bucket.width, bucket.height))
    assert piece.shape == (bucket.height, bucket.width, 3)
    expected = resized[top : top + bucket.height, left : left + bucket.width]
    # Pillow rounds its filter's place to 1/256 of a pixel or so.
    steepest = 255 / (min(placed.resized_size) - 1)
    assert np.abs(piece - expected).max() <= 2 + 0.1 * steepest


def test_image_of_its_buckets_size_is_unchanged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    row = saved(tmp_path / "a.png", Image.fromarray(noise))
    pictures = BucketedImages([row], [assign_bucket((32, 32), SQUARE)], (0, 0, 0))
    assert np.array_equal(pictures.load_center_crop(0).permute(1, 2, 0).numpy(), noise)


def test_crops_lie_where_they_were_asked_for(tmp_path: Path) -> None:
    row = saved(tmp_path / "a.png", ramp(96, 32))
    placed = assign_bucket((96, 32), SQUARE)
    assert placed.crop_slack == (64, 0)
    for edge in (1.0, 0.0):
        pictures = BucketedImages([row], [placed], (0, 0, 0), edge)
        for _ in range(2):
            result, masks = pictures.load_crops([0, 0, 0], [(0, 0), (64, 0), (32, 0)])
            reds = result[:, 0, 0].float()
            assert result.shape == (3, 3, 32, 32)
            assert float(reds[0, 0]) == 0.0
            assert float(reds[1, -1]) == 255.0
            assert torch.equal(result[2], pictures.load_center_crop(0))
            assert bool((masks == 255).all())
        assert bool(pictures._areas) == bool(edge)


def test_masks_are_cropped_with_their_images(tmp_path: Path) -> None:
    right_half = np.zeros((32, 96), dtype=np.uint8)
    right_half[:, 48:] = 255
    Image.fromarray(right_half).save(tmp_path / "a.mask.png")
    ramp(96, 32).save(tmp_path / "a.png")
    row = Row("a.png", ("a",), {}, tmp_path / "a.png", mask_path=tmp_path / "a.mask.png")
    pictures = BucketedImages([row], [assign_bucket((96, 32), SQUARE)], (0, 0, 0))
    _, masks = pictures.load_crops([0, 0, 0], [(0, 0), (64, 0), (32, 0)])
    assert masks.shape == (3, 1, 32, 32)
    assert [float(mask.float().mean()) for mask in masks] == [0.0, 255.0, 127.5]
    centre = pictures.load_center_mask(0)
    assert centre is not None
    assert torch.equal(centre, masks[2])


def test_transparent_images_lie_on_the_background(tmp_path: Path) -> None:
    row = saved(tmp_path / "a.png", Image.new("RGBA", (32, 32), (9, 9, 9, 0)))
    pictures = BucketedImages([row], [assign_bucket((32, 32), SQUARE)], (1, 20, 255))
    assert pictures.load_center_crop(0)[:, 0, 0].tolist() == [1, 20, 255]


def test_extremely_long_images_are_never_fully_scaled(tmp_path: Path) -> None:
    row = saved(tmp_path / "a.png", ramp(30_000, 2))
    placed = assign_bucket((30_000, 2), SQUARE)
    assert placed.resized_size == (480_000, 32)
    frame = croppable_box(placed)
    assert (frame.width, frame.height) == (8 * 32, 32)
    pictures = BucketedImages([row], [placed], (0, 0, 0))
    result, _ = pictures.load_crops([0], [(frame.left, 0)])
    assert result.shape == (1, 3, 32, 32)
    assert abs(float(result[0, 0].float().mean()) - 127.5) < 2.0  # from the middle


# --- augmentation -----------------------------------------------------------------------------


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    seed=st.integers(0, 99),
    jitter=st.floats(0, 0.9),
    flip=st.booleans(),
    random_crop=st.booleans(),
)
def test_augmentations_stay_inside(
    width: int, height: int, seed: int, jitter: float, flip: bool, random_crop: bool
) -> None:
    placed = assign_bucket((width, height), BUCKETS)
    view = draw_augmentation(placed, random_crop, flip, jitter, make_generator(seed))
    assert view == draw_augmentation(placed, random_crop, flip, jitter, make_generator(seed))
    for corner in (view.crop_corner, view.visible_corner(placed)):
        assert 0 <= corner[0] <= placed.crop_slack[0]
        assert 0 <= corner[1] <= placed.crop_slack[1]
    assert all(1 - jitter <= factor <= 1 + jitter for factor in view.color_factors)
    if not random_crop:
        assert view.crop_corner == placed.crop_box[:2]
    assert flip or not view.is_flipped


def test_one_setting_does_not_change_what_another_does() -> None:
    placed = assign_bucket((300, 100), SQUARE)
    all_augmentations = draw_augmentation(placed, True, True, 0.5, make_generator(1))
    assert (
        draw_augmentation(placed, True, False, 0.0, make_generator(1)).crop_corner
        == all_augmentations.crop_corner
    )
    assert (
        draw_augmentation(placed, False, True, 0.0, make_generator(1)).is_flipped
        == all_augmentations.is_flipped
    )
    assert (
        draw_augmentation(placed, False, False, 0.5, make_generator(1)).color_factors
        == all_augmentations.color_factors
    )


def test_augmentations_cover_their_full_range() -> None:
    placed = assign_bucket((34, 32), SQUARE)
    views = [draw_augmentation(placed, True, True, 0.3, make_generator(0, n)) for n in range(600)]
    lefts = [view.crop_corner[0] for view in views]
    assert {lefts.count(n) > 150 for n in range(3)} == {True}
    assert 0.4 < sum(view.is_flipped for view in views) / 600 < 0.6
    lights = torch.tensor([view.color_factors for view in views])
    assert float(lights.min()) < 0.72
    assert float(lights.max()) > 1.28
    assert abs(float(lights.mean()) - 1.0) < 0.02


def test_corner_of_a_flipped_view_is_counted_from_the_other_side() -> None:
    placed = assign_bucket((96, 32), SQUARE)
    assert Augmentation((10, 0), False).visible_corner(placed) == (10, 0)
    assert Augmentation((10, 0), True).visible_corner(placed) == (54, 0)


# --- colours --------------------------------------------------------------------------------


def test_color_jitter_equals_that_of_pillow() -> None:
    from PIL import ImageEnhance

    noise = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pictures = torch.from_numpy(noise.copy()).permute(2, 0, 1)[None].float() / 255
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index, kind in enumerate(kinds):
        for factor in (0.5, 1.0, 1.4):
            factors = torch.ones(1, 3)
            factors[0, index] = factor
            result = apply_color_jitter(pictures, factors)[0].permute(1, 2, 0) * 255
            expected = torch.from_numpy(np.asarray(kind(image).enhance(factor)).copy()).float()
            assert float((result - expected).abs().max()) <= 2.0  # Pillow rounds to whole numbers


def test_augmentation_factors_differ_between_images() -> None:
    pictures = torch.full((2, 3, 4, 4), 0.25)
    factors = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]])
    result = apply_color_jitter(pictures, factors)
    assert torch.allclose(result[0], pictures[0], atol=1e-6)
    assert torch.allclose(result[1], pictures[1] * 2, atol=1e-6)
    assert float(apply_color_jitter(pictures, factors * 9).max()) == 1.0
