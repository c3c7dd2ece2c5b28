"""What rules are given, and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lorasmith.data.images.buckets import Bucket, BucketAssignment, assign_bucket
from lorasmith.data.reading.row import Row
from lorasmith.data.scan.inspect import ImageInfo
from lorasmith.data.scan.scan import ScanResult
from lorasmith.data.tags import contains_tag

Severity = Literal["error", "warning", "advice"]


@dataclass(frozen=True)
class Finding:
    """One thing that a rule has to say about a dataset."""

    rule: str
    """Name of the rule."""
    severity: Severity
    """Errors stop training, warnings are probably mistakes, advice may be ignored."""
    message: str
    """What it is and what to do, in plain words."""
    files: tuple[str, ...] = ()
    """The files that it is about."""


@dataclass(frozen=True)
class DatasetFacts:
    """A scanned dataset, and what it shall be used for."""

    scan: ScanResult
    """The dataset."""
    tag: str | None
    """The words that shall call the LoRA; None leaves the rules about them out."""
    buckets: Sequence[Bucket]
    """The sizes that pictures are brought to."""
    class_word: str = ""
    """What the pictures show without the tag."""
    max_chunks: int = 3
    """How many chunks of a caption are read at most."""

    @property
    def images(self) -> Sequence[ImageInfo]:
        """The usable pictures."""
        return self.scan.images

    @cached_property
    def assignments(self) -> list[BucketAssignment]:
        """How each usable picture is brought to a size."""
        return [assign_bucket(look.size, self.buckets) for look in self.images]

    @cached_property
    def tagged_rows(self) -> list[Row]:
        """The usable pictures whose captions name the tag."""
        tag = self.tag
        return [row for row in self.scan.rows if tag and contains_tag(row.caption, tag)]

    @cached_property
    def untagged_rows(self) -> list[Row]:
        """Those whose captions do not; none when there is no tag."""
        with_tag = {row.key for row in self.tagged_rows}
        return [row for row in self.scan.rows if self.tag and row.key not in with_tag]


def image_keys(looks: Sequence[ImageInfo]) -> tuple[str, ...]:
    """Return the names of pictures."""
    return tuple(look.row.key for look in looks)


def pluralize(number: int, one: str, many: str) -> str:
    """Return a number with the words for one thing or for several."""
    return f"{number} {one if number == 1 else many}"


def images_are(number: int) -> str:
    """Return ``1 picture is`` or ``3 pictures are``."""
    return pluralize(number, "picture is", "pictures are")


def captions_have(number: int) -> str:
    """Return ``1 caption has`` or ``3 captions have``."""
    return pluralize(number, "caption has", "captions have")
