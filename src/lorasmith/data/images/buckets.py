"""Aspect-ratio buckets: the few sizes that pictures are brought to, so that batches can be formed.

Every size has about as many pixels as the wanted square. A picture goes to the bucket whose shape
is nearest its own, is scaled until it covers it, and what still overlaps is cropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, order=True)
class Bucket:
    """One size that pictures are trained at, in pixels."""

    width: int
    height: int

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height

    @property
    def area(self) -> int:
        """How many pixels it has."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class BucketAssignment:
    """How one picture is brought to its bucket."""

    bucket: Bucket
    """The size that is left."""
    original_size: Size
    """Size of the upright picture."""
    resized_size: Size
    """What it is scaled to: one side equals the bucket's, the other is at least as long."""
    crop_box: tuple[int, int, int, int]
    """The central part that is kept of it: left, top, right and bottom in the scaled picture."""

    @property
    def crop_slack(self) -> Size:
        """By how much the scaled picture is wider and taller than the bucket."""
        return self.resized_size[0] - self.bucket.width, self.resized_size[1] - self.bucket.height


def choose_bucket_step(side: int, wanted: int, multiple: int) -> int:
    """Return a step that the buckets around ``side`` can have.

    It is a multiple of what the model needs, as long as ``wanted`` where that is one too, and
    shorter only where ``side`` would not be a multiple of it.

    Args:
        side: side of the square bucket, a multiple of ``multiple``.
        wanted: the step that was asked for.
        multiple: what the model needs all sides to be multiples of.
    """
    raised = -(-wanted // multiple) * multiple
    return math.gcd(side, raised)


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
    found = set()
    for short in range(step, side + 1, step):
        # Halves are rounded down: of two equally near areas the smaller costs less memory.
        long = (2 * side * side + short * step - 1) // (2 * short * step) * step
        if long <= max_aspect * short:
            found |= {Bucket(short, long), Bucket(long, short)}
    return tuple(sorted(found, key=lambda bucket: bucket.aspect))


def find_nearest_bucket(size: Size, buckets: Sequence[Bucket]) -> int:
    """Return the number of the bucket whose aspect is nearest, measured by its logarithm.

    Twice as wide and twice as tall are equally far from a square; of equally near buckets the
    first is taken.
    """
    shape = math.log(size[0] / size[1])
    return min(range(len(buckets)), key=lambda k: abs(math.log(buckets[k].aspect) - shape))


def assign_bucket(size: Size, buckets: Sequence[Bucket]) -> BucketAssignment:
    """Find a picture's bucket, and how it is scaled and cropped to fill it.

    Args:
        size: width and height of the upright picture, at least 1.
        buckets: at least one.
    """
    width, height = size
    bucket = buckets[find_nearest_bucket(size, buckets)]
    # Whole-number arithmetic: the side that decides the scale fits without rounding.
    if bucket.width * height >= bucket.height * width:
        resized = (bucket.width, max(bucket.height, _divided(height * bucket.width, width)))
    else:
        resized = (max(bucket.width, _divided(width * bucket.height, height)), bucket.height)
    left = (resized[0] - bucket.width) // 2
    top = (resized[1] - bucket.height) // 2
    return BucketAssignment(
        bucket, size, resized, (left, top, left + bucket.width, top + bucket.height)
    )


def _divided(total: int, by: int) -> int:
    """Divide and round to the nearest whole number, halves up."""
    return (2 * total + by) // (2 * by)
