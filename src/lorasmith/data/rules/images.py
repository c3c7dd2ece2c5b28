"""Pictures that will look worse in training than they do in the folder, and too few of them."""

from collections.abc import Iterator

from lorasmith.data.images.buckets import BucketAssignment
from lorasmith.data.rules.facts import DatasetFacts, Finding, image_keys, images_are, pluralize

ENLARGED = 1.5
"""Pictures that are scaled up by more look blurred, and that is learned too."""
CUT_OFF = 0.25
"""Share of a picture that may be cropped away in silence."""
FEW = 10
"""Fewer pictures are usually learnt by heart."""


def find_tiny_images(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell pictures that have to be enlarged a lot."""
    pairs = zip(facts.images, facts.assignments, strict=True)
    small = [(look, scale_factor(placed)) for look, placed in pairs if _is_tiny(placed)]
    if small:
        worst, factor = max(small, key=lambda pair: pair[1])
        yield Finding(
            "tiny", "warning",
            f"{images_are(len(small))} too small for this resolution and enlarged, "
            f"{worst.row.key} ({worst.size[0]}x{worst.size[1]}) {factor:.1f} times: that looks "
            "blurred, and blur is learned; use larger pictures or a lower resolution",
            image_keys([look for look, _ in small]),
        )  # fmt: skip


def find_cropped_images(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell pictures of which much is cropped away."""
    pairs = zip(facts.images, facts.assignments, strict=True)
    cut = [
        (look, cropped_share(placed)) for look, placed in pairs if cropped_share(placed) > CUT_OFF
    ]
    if cut:
        worst, share = max(cut, key=lambda pair: pair[1])
        yield Finding(
            "cropped", "warning",
            f"{pluralize(len(cut), 'picture fits', 'pictures fit')} none of the sizes; more than "
            f"{CUT_OFF:.0%} is cropped away, {share:.0%} of {worst.row.key} ({worst.size[0]}x"
            f"{worst.size[1]}); crop by hand to what matters, or get more shapes from a higher "
            "resolution or data.max_aspect_ratio",
            image_keys([look for look, _ in cut]),
        )  # fmt: skip


def find_blank_images(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell pictures of one colour."""
    empty = [look for look in facts.images if look.is_blank]
    if empty:
        yield Finding(
            "blank", "warning",
            f"{images_are(len(empty))} one even colour; delete what is nothing",
            image_keys(empty),
        )  # fmt: skip


def find_transparent_images(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell pictures that get a background."""
    through = [look for look in facts.images if look.has_transparency]
    if through:
        yield Finding(
            "transparent", "advice",
            f"{images_are(len(through))} transparent in places; the colour "
            "under it is learned too (data.background_color, white by default)",
            image_keys(through),
        )  # fmt: skip


def check_image_count(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell sets that are too small."""
    count = len(facts.images)
    if 0 < count < FEW:
        yield Finding(
            "few-images", "advice",
            f"{images_are(count)} few, easily learnt by heart; 10 to 20 for a subject and 20 to "
            "50 for a style, as different as possible, work better",
        )  # fmt: skip


def scale_factor(placed: BucketAssignment) -> float:
    """Return by how much a picture is scaled up; below 1 it is scaled down."""
    return max(
        placed.resized_size[0] / placed.original_size[0],
        placed.resized_size[1] / placed.original_size[1],
    )


def cropped_share(placed: BucketAssignment) -> float:
    """Return the share of a picture that is cropped away."""
    kept = placed.bucket.width * placed.bucket.height
    return 1.0 - kept / (placed.resized_size[0] * placed.resized_size[1])


def _is_tiny(placed: BucketAssignment) -> bool:
    return scale_factor(placed) > ENLARGED
