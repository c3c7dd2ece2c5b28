"""Rules about images that look worse in training than in the folder, and about too few of them."""

from collections.abc import Iterator

from lorasmith.data.images.buckets import BucketAssignment
from lorasmith.data.rules.facts import DatasetFacts, Finding, image_keys, images_are, pluralize

MAX_SCALE_FACTOR = 1.5
"""Images that are enlarged more look blurred, and the LoRA learns the blur."""
MAX_CROPPED_SHARE = 0.25
MIN_IMAGES = 10
"""A LoRA usually memorises fewer images."""


def find_tiny_images(facts: DatasetFacts) -> Iterator[Finding]:
    pairs = zip(facts.images, facts.assignments, strict=True)
    factors = [(image, scale_factor(assignment)) for image, assignment in pairs]
    tiny = [(image, factor) for image, factor in factors if factor > MAX_SCALE_FACTOR]
    if tiny:
        worst, factor = max(tiny, key=lambda pair: pair[1])
        yield Finding(
            "tiny", "warning",
            f"{images_are(len(tiny))} too small for this resolution and enlarged, "
            f"{worst.row.key} ({worst.size[0]}x{worst.size[1]}) {factor:.1f} times: that looks "
            "blurred, and the LoRA learns the blur; use larger images or a lower resolution",
            image_keys([image for image, _ in tiny]),
        )  # fmt: skip


def find_cropped_images(facts: DatasetFacts) -> Iterator[Finding]:
    pairs = zip(facts.images, facts.assignments, strict=True)
    shares = [(image, cropped_share(assignment)) for image, assignment in pairs]
    cropped = [(image, share) for image, share in shares if share > MAX_CROPPED_SHARE]
    if cropped:
        worst, share = max(cropped, key=lambda pair: pair[1])
        yield Finding(
            "cropped", "warning",
            f"{pluralize(len(cropped), 'image fits', 'images fit')} no bucket; more than "
            f"{MAX_CROPPED_SHARE:.0%} is cropped away, {share:.0%} of {worst.row.key} "
            f"({worst.size[0]}x{worst.size[1]}); crop by hand to what matters, or get more shapes "
            "from a higher resolution or data.max_aspect_ratio",
            image_keys([image for image, _ in cropped]),
        )  # fmt: skip


def find_blank_images(facts: DatasetFacts) -> Iterator[Finding]:
    blank = [image for image in facts.images if image.is_blank]
    if blank:
        yield Finding(
            "blank", "warning",
            f"{images_are(len(blank))} one even colour; delete what shows nothing",
            image_keys(blank),
        )  # fmt: skip


def find_transparent_images(facts: DatasetFacts) -> Iterator[Finding]:
    transparent = [image for image in facts.images if image.has_transparency]
    if transparent:
        yield Finding(
            "transparent", "advice",
            f"{images_are(len(transparent))} transparent in places; the LoRA learns the colour "
            "under it too (data.background_color, white by default)",
            image_keys(transparent),
        )  # fmt: skip


def check_image_count(facts: DatasetFacts) -> Iterator[Finding]:
    count = len(facts.images)
    if 0 < count < MIN_IMAGES:
        yield Finding(
            "few-images", "advice",
            f"{images_are(count)} few, which a LoRA memorises easily; 10 to 20 for a subject and "
            "20 to 50 for a style, as different as possible, work better",
        )  # fmt: skip


def scale_factor(assignment: BucketAssignment) -> float:
    """Return by how much an image is enlarged; below 1 it is scaled down."""
    (width, height), (new_width, new_height) = assignment.original_size, assignment.resized_size
    return max(new_width / width, new_height / height)


def cropped_share(assignment: BucketAssignment) -> float:
    """Return the share of an image that is cropped away."""
    width, height = assignment.resized_size
    return 1.0 - assignment.bucket.area / (width * height)
