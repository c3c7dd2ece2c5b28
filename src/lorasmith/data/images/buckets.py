"""Aspect-ratio buckets: a few sizes for all images, so that batches can be formed.

Every bucket has about as many pixels as the square of the resolution. An image goes to the bucket
with the nearest aspect ratio, is scaled until it covers it, and cropped to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, order=True)
class Bucket:
    """One image size, in pixels."""

    width: int
    height: int

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height

    @property
    def area(self) -> int:
        """Pixels."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class BucketAssignment:
    """How one image is resized and cropped to its bucket."""

    bucket: Bucket
    original_size: Size
    """Size of the upright image."""
    resized_size: Size
    """Size after scaling: one side equals the bucket's, the other is at least as long."""
    crop_box: tuple[int, int, int, int]
    """The centre crop: left, top, right and bottom in the resized image."""

    @property
    def crop_slack(self) -> Size:
        """By how much the resized image is wider and taller than the bucket."""
        return self.resized_size[0] - self.bucket.width, self.resized_size[1] - self.bucket.height


def choose_bucket_step(side: int, step: int, multiple: int) -> int:
    """Return the step between bucket sides that is possible at ``side``.

    The step is rounded up to what the model needs, and shorter only where ``side`` would not be a
    multiple of it.

    Args:
        side: side of the square bucket, a multiple of ``multiple``.
        step: as in ``data.bucket_reso_steps``.
        multiple: all sides must be multiples of this.
    """
    rounded_up = -(-step // multiple) * multiple
    return math.gcd(side, rounded_up)


def make_buckets(side: int, step: int, max_aspect: float) -> tuple[Bucket, ...]:
    """Return the buckets around a square of ``side``, from the tallest to the widest.

    For each shorter side the longer one is the multiple of ``step`` with which the area comes
    nearest to ``side`` squared: it differs by at most half a step times the shorter side.

    Args:
        side: side of the square bucket.
        step: every side is a multiple of it, and ``side`` must be one.
        max_aspect: longer side over shorter side of the longest buckets, at least 1.

    Raises:
        ValueError: ``side`` is not a positive multiple of ``step``.
    """
    if step < 1 or side < step or side % step:
        raise ValueError(f"a side of {side} is not a positive multiple of the step {step}")
    buckets = set()
    for short in range(step, side + 1, step):
        # Halves are rounded down: of two equally near areas the smaller costs less memory.
        long = (2 * side * side + short * step - 1) // (2 * short * step) * step
        if long <= max_aspect * short:
            buckets |= {Bucket(short, long), Bucket(long, short)}
    return tuple(sorted(buckets, key=lambda bucket: bucket.aspect))


def find_nearest_bucket(size: Size, buckets: Sequence[Bucket]) -> int:
    """Return the index of the bucket whose aspect is nearest, measured by its logarithm.

    Twice as wide and twice as tall are equally far from a square; of equally near buckets the
    first wins.
    """
    log_aspect = math.log(size[0] / size[1])
    return min(range(len(buckets)), key=lambda i: abs(math.log(buckets[i].aspect) - log_aspect))


def assign_bucket(size: Size, buckets: Sequence[Bucket]) -> BucketAssignment:
    """Find an image's bucket, and how the image is resized and cropped to fill it.

    Args:
        size: width and height of the upright image, at least 1.
        buckets: at least one.
    """
    width, height = size
    bucket = buckets[find_nearest_bucket(size, buckets)]
    # Integer arithmetic: the side that decides the scale fits without rounding.
    if bucket.width * height >= bucket.height * width:
        resized = (bucket.width, max(bucket.height, _divide_rounded(height * bucket.width, width)))
    else:
        resized = (max(bucket.width, _divide_rounded(width * bucket.height, height)), bucket.height)
    left = (resized[0] - bucket.width) // 2
    top = (resized[1] - bucket.height) // 2
    return BucketAssignment(
        bucket, size, resized, (left, top, left + bucket.width, top + bucket.height)
    )


def _divide_rounded(total: int, by: int) -> int:
    """Divide and round to the nearest whole number, halves up."""
    return (2 * total + by) // (2 * by)
