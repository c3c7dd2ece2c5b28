"""What rules get and what they report.

A rule is a function from ``DatasetFacts`` to ``Finding``s; ``registries.DATASET_RULES`` holds the
rules by name.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lorasmith.core.text.trigger_word import contains_tag
from lorasmith.data.images.buckets import Bucket, BucketAssignment, assign_bucket
from lorasmith.data.reading.row import Row
from lorasmith.data.scan.image_inspection import ImageInfo
from lorasmith.data.scan.scan import ScanResult

Severity = Literal["error", "warning", "advice"]


@dataclass(frozen=True)
class Finding:
    """One result of a rule."""

    rule: str
    severity: Severity
    """Errors stop training, warnings are probably mistakes, advice may be ignored."""
    message: str
    """What is wrong and what to do, in plain words."""
    files: tuple[str, ...] = ()
    """The files concerned."""


@dataclass(frozen=True)
class DatasetFacts:
    """A scanned dataset, and what it is used for."""

    scan: ScanResult
    tag: str | None
    """The trigger word of the LoRA; None skips the rules about it."""
    buckets: Sequence[Bucket]
    """The sizes that images are resized and cropped to."""
    class_word: str = ""
    """What the images show without the tag."""
    max_chunks: int = 3
    """How many chunks of 75 tokens the text encoder reads of a caption at most."""

    @property
    def images(self) -> Sequence[ImageInfo]:
        """The usable images."""
        return self.scan.images

    @cached_property
    def assignments(self) -> list[BucketAssignment]:
        """How each usable image is resized and cropped."""
        return [assign_bucket(image.size, self.buckets) for image in self.images]

    @cached_property
    def tagged_rows(self) -> list[Row]:
        """Rows of the usable images whose captions contain the tag."""
        tag = self.tag
        return [row for row in self.scan.rows if tag and contains_tag(row.caption, tag)]

    @cached_property
    def untagged_rows(self) -> list[Row]:
        """Rows of those whose captions do not; none without a tag."""
        tagged_keys = {row.key for row in self.tagged_rows}
        return [row for row in self.scan.rows if self.tag and row.key not in tagged_keys]


DatasetRule = Callable[[DatasetFacts], Iterable[Finding]]


def image_keys(images: Sequence[ImageInfo]) -> tuple[str, ...]:
    return tuple(image.row.key for image in images)


def pluralize(count: int, singular: str, plural: str) -> str:
    """Return a count with the words for one or for several."""
    return f"{count} {singular if count == 1 else plural}"


def images_are(count: int) -> str:
    """Return ``1 image is`` or ``3 images are``."""
    return pluralize(count, "image is", "images are")


def captions_have(count: int) -> str:
    """Return ``1 caption has`` or ``3 captions have``."""
    return pluralize(count, "caption has", "captions have")
