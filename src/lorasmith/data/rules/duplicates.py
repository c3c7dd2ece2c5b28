"""Pictures that are there twice: the same file, or nearly the same picture."""

from collections.abc import Iterator, Sequence

import numpy as np

from lorasmith.data.rules.facts import DatasetFacts, Finding, image_keys, pluralize
from lorasmith.data.scan.inspect import ImageInfo
from lorasmith.data.scan.perceptual_hash import bit_distances, color_distances

BITS = 20
"""Of 128 bits of the difference hash so many may differ. Unlike photographs differ in about 60;
scaled and compressed ones in up to 15."""
COLOURS = 10.0
"""Shades of 256 by which the colours of a coarse grid may differ, root mean square."""


def find_duplicates(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell files that are the same byte for byte."""
    groups = group_equal_files(facts.images)
    if groups:
        extra = sum(len(group) - 1 for group in groups)
        yield Finding(
            "duplicates", "warning",
            f"{pluralize(extra, 'file is a copy', 'files are copies')} of others, such as "
            f"{_joined(groups[0])}: their pictures are learned more than the rest; delete what is "
            "too many, or repeat on purpose with a 10_name folder",
            tuple(key for group in groups for key in image_keys(group)),
        )  # fmt: skip


def find_near_duplicates(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell pictures that look nearly the same."""
    groups = group_similar_images(facts.images)
    if groups:
        count = sum(len(group) for group in groups)
        yield Finding(
            "near-duplicates", "warning",
            f"{count} pictures look nearly like others, such as {_joined(groups[0])}: what they "
            f"show is learned more than the rest; keep the best of each of the "
            f"{pluralize(len(groups), 'group', 'groups')}",
            tuple(key for group in groups for key in image_keys(group)),
        )  # fmt: skip


def group_equal_files(looks: Sequence[ImageInfo]) -> list[list[ImageInfo]]:
    """Group pictures whose files are equal; only groups of two and more."""
    groups: dict[str, list[ImageInfo]] = {}
    for look in looks:
        groups.setdefault(look.content_hash, []).append(look)
    return [group for group in groups.values() if len(group) > 1]


def group_similar_images(looks: Sequence[ImageInfo]) -> list[list[ImageInfo]]:
    """Group pictures that look nearly the same, equal files and even colours left out.

    Two pictures are in one group when a chain of similar ones joins them.
    """
    different = list({look.content_hash: look for look in looks if not look.is_blank}.values())
    if len(different) < 2:
        return []
    bits = np.stack([look.fingerprint.bits for look in different])
    colours = np.stack([look.fingerprint.colors for look in different])
    parent = list(range(len(different)))
    for one in range(len(different) - 1):
        close = one + 1 + np.flatnonzero(bit_distances(bits[one], bits[one + 1 :]) <= BITS)
        near = close[color_distances(colours[one], colours[close]) <= COLOURS]
        for other in near.tolist():
            parent[_root(parent, other)] = _root(parent, one)
    groups: dict[int, list[ImageInfo]] = {}
    for number, look in enumerate(different):
        groups.setdefault(_root(parent, number), []).append(look)
    return [group for group in groups.values() if len(group) > 1]


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _joined(group: Sequence[ImageInfo]) -> str:
    keys = image_keys(group)
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
