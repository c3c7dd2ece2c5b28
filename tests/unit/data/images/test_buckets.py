"""Buckets and placements, as properties over all sizes."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.data.images.buckets import (
    Bucket,
    assign_bucket,
    choose_bucket_step,
    find_nearest_bucket,
    make_buckets,
)

SIDES = st.integers(1, 24)
STEPS = st.sampled_from([1, 8, 32, 64, 100])
ASPECTS = st.floats(1.0, 6.0)
LENGTHS = st.integers(1, 20_000)


@given(times=SIDES, step=STEPS, max_aspect=ASPECTS)
def test_buckets_have_the_area_of_the_square(times: int, step: int, max_aspect: float) -> None:
    side = times * step
    buckets = make_buckets(side, step, max_aspect)
    assert Bucket(side, side) in buckets
    for bucket in buckets:
        short, long = sorted((bucket.width, bucket.height))
        assert bucket.width % step == bucket.height % step == 0
        assert abs(short * long - side * side) <= step * short / 2
        assert long <= max_aspect * short


@given(times=SIDES, step=STEPS, max_aspect=ASPECTS)
def test_buckets_go_from_tall_to_wide_and_lie_symmetrically(
    times: int, step: int, max_aspect: float
) -> None:
    buckets = make_buckets(times * step, step, max_aspect)
    assert all(a.aspect < b.aspect for a, b in itertools.pairwise(buckets))
    assert {(b.height, b.width) for b in buckets} == {(b.width, b.height) for b in buckets}


@given(times=SIDES, step=STEPS, max_aspect=ASPECTS)
def test_no_shorter_side_is_left_out(times: int, step: int, max_aspect: float) -> None:
    """Each multiple of the step whose best partner is not too long makes a bucket."""
    side = times * step
    shorts = {min(b.width, b.height) for b in make_buckets(side, step, max_aspect)}
    for short in range(step, side + 1, step):
        exact = side * side / short
        possible = [math.floor(exact / step) * step, math.ceil(exact / step) * step]
        best = min(abs(long * short - side * side) for long in possible)
        longs = [x for x in possible if abs(x * short - side * side) == best]
        if min(longs) <= max_aspect * short:
            assert short in shorts


@given(
    width=LENGTHS,
    height=LENGTHS,
    times=SIDES,
    step=STEPS,
    max_aspect=ASPECTS,
)
def test_every_image_is_scaled_to_cover_a_bucket_and_cropped_inside(
    width: int, height: int, times: int, step: int, max_aspect: float
) -> None:
    buckets = make_buckets(times * step, step, max_aspect)
    placed = assign_bucket((width, height), buckets)
    bucket, (wide, tall) = placed.bucket, placed.resized_size
    left, top, right, bottom = placed.crop_box

    assert bucket in buckets
    assert placed.original_size == (width, height)
    # Covers the bucket, and no more than needed: one side fits exactly.
    assert wide >= bucket.width
    assert tall >= bucket.height
    assert wide == bucket.width or tall == bucket.height
    # Scaled without distortion, up to the rounding of the other side.
    scale = max(bucket.width / width, bucket.height / height)
    assert abs(wide - width * scale) <= 0.5 + 1e-6
    assert abs(tall - height * scale) <= 0.5 + 1e-6
    # The crop has the bucket's size, lies inside, and is central to a pixel.
    assert (right - left, bottom - top) == (bucket.width, bucket.height)
    assert 0 <= left <= right <= wide
    assert 0 <= top <= bottom <= tall
    assert 0 <= (wide - right) - left <= 1
    assert 0 <= (tall - bottom) - top <= 1
    assert placed.crop_slack == (wide - bucket.width, tall - bucket.height)


@given(width=LENGTHS, height=LENGTHS, times=SIDES, max_aspect=ASPECTS)
def test_bucket_is_the_nearest_in_aspect(
    width: int, height: int, times: int, max_aspect: float
) -> None:
    buckets = make_buckets(times * 64, 64, max_aspect)
    chosen = assign_bucket((width, height), buckets).bucket

    def distance(bucket: Bucket) -> float:
        return abs(math.log(bucket.width * height / (bucket.height * width)))

    assert distance(chosen) <= min(map(distance, buckets)) + 1e-9


@given(width=LENGTHS, height=LENGTHS, times=SIDES)
def test_turning_an_image_turns_its_distance(width: int, height: int, times: int) -> None:
    buckets = make_buckets(times * 64, 64, 2.0)
    upright, turned = (
        assign_bucket((width, height), buckets),
        assign_bucket((height, width), buckets),
    )
    # Both ways are equally near; which of two equally near ones is taken may differ.
    assert math.isclose(
        abs(math.log(upright.bucket.aspect * height / width)),
        abs(math.log(turned.bucket.aspect * width / height)),
        abs_tol=1e-9,
    )


def test_buckets_of_common_resolutions_are_known() -> None:
    sizes = [str(bucket) for bucket in make_buckets(512, 64, 2.0)]
    assert sizes == ["384x704", "448x576", "512x512", "576x448", "704x384"]
    assert [str(b) for b in make_buckets(128, 64, 2.0)] == ["128x128"]
    # 128 x 256 and 128 x 320 are equally near to 192 x 192.
    assert [str(b) for b in make_buckets(192, 64, 3.0)] == ["128x256", "192x192", "256x128"]
    assert [str(b) for b in make_buckets(1024, 64, 1.0)] == ["1024x1024"]


def test_images_of_common_sizes_get_known_buckets() -> None:
    buckets = make_buckets(512, 64, 2.0)
    photo = assign_bucket((3000, 2000), buckets)
    # 1.5 lies between 576/448 = 1.286 and 704/384 = 1.833, nearer the first in logarithms.
    assert str(photo.bucket) == "576x448"
    assert photo.resized_size == (672, 448)
    assert photo.crop_box == (48, 0, 624, 448)
    line = assign_bucket((9000, 10), buckets)
    assert str(line.bucket) == "704x384"
    assert line.resized_size == (9000 * 384 // 10, 384)
    assert find_nearest_bucket((1, 1), buckets) == 2


@given(
    times=st.integers(1, 40), expected=st.integers(1, 300), multiple=st.sampled_from([8, 32, 64])
)
def test_steps_fit_the_model_and_the_square(times: int, expected: int, multiple: int) -> None:
    side = times * multiple
    step = choose_bucket_step(side, expected, multiple)
    assert step % multiple == 0
    assert side % step == 0
    if expected % multiple == 0 and side % expected == 0:
        assert step == expected
    assert make_buckets(side, step, 2.0)


def test_sides_that_are_not_multiples_are_refused() -> None:
    with pytest.raises(ValueError, match="100 is not a positive multiple of the step 64"):
        make_buckets(100, 64, 2.0)
    with pytest.raises(ValueError, match="0 is not a positive"):
        make_buckets(0, 64, 2.0)
