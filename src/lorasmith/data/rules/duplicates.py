"""Rules about images that occur twice: the same file, or nearly the same image."""

from collections.abc import Iterator, Sequence

import numpy as np

from lorasmith.data.rules.facts import DatasetFacts, Finding, image_keys, pluralize
from lorasmith.data.scan.image_inspection import ImageInfo
from lorasmith.data.scan.similar_images import label_similar

MAX_BIT_DISTANCE = 20
"""Of the 128 bits of the difference hash. Unrelated photographs differ in about 60 bits, scaled
and compressed copies in up to 15."""
MAX_COLOR_DISTANCE = 10.0
"""Root mean square difference of the colours on a coarse grid, in 0..255."""


def find_duplicates(facts: DatasetFacts) -> Iterator[Finding]:
    groups = group_equal_files(facts.images)
    if groups:
        extra = sum(len(group) - 1 for group in groups)
        yield Finding(
            "duplicates", "warning",
            f"{pluralize(extra, 'file is a copy', 'files are copies')} of others, such as "
            f"{_join_keys(groups[0])}: the LoRA learns these images more than the rest; "
            "delete the copies, or repeat on purpose with a 10_name folder",
            tuple(key for group in groups for key in image_keys(group)),
        )  # fmt: skip


def find_near_duplicates(facts: DatasetFacts) -> Iterator[Finding]:
    groups = group_similar_images(facts.images)
    if groups:
        count = sum(len(group) for group in groups)
        yield Finding(
            "near-duplicates", "warning",
            f"{count} images look nearly like others, such as {_join_keys(groups[0])}: the LoRA "
            f"learns what they show more than the rest; keep the best image of "
            f"each group ({pluralize(len(groups), 'group', 'groups')})",
            tuple(key for group in groups for key in image_keys(group)),
        )  # fmt: skip


def group_equal_files(images: Sequence[ImageInfo]) -> list[list[ImageInfo]]:
    """Group images whose files are equal; only groups of two and more."""
    groups: dict[str, list[ImageInfo]] = {}
    for image in images:
        groups.setdefault(image.content_hash, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def group_similar_images(images: Sequence[ImageInfo]) -> list[list[ImageInfo]]:
    """Group images that look nearly the same, without equal files and blank images.

    Two images are in one group when a chain of similar ones joins them.
    """
    distinct = list({image.content_hash: image for image in images if not image.is_blank}.values())
    if len(distinct) < 2:
        return []
    labels = label_similar(
        np.stack([image.fingerprint.bits for image in distinct]),
        np.stack([image.fingerprint.colors for image in distinct]),
        MAX_BIT_DISTANCE,
        MAX_COLOR_DISTANCE,
    )
    groups: dict[int, list[ImageInfo]] = {}
    for image, label in zip(distinct, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def _join_keys(group: Sequence[ImageInfo]) -> str:
    keys = image_keys(group)
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
