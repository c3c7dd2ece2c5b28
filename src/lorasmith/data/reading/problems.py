"""Problems of single dataset files, collected instead of raised."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

ProblemSeverity = Literal["error", "warning"]

ProblemKind = Literal[
    # errors: the image cannot be used for training as it is
    "no-caption", "bad-caption", "bad-line", "bad-name", "missing-file", "folder", "unreadable",
    "empty-file", "not-an-image", "damaged", "too-large", "bad-mask",
    # warnings: it can, but perhaps not as meant
    "animated", "folder-caption", "caption-mark", "unknown-kind", "unlisted", "lonely-mask",
    "many-repeats", "no-repeats", "color-profile", "caption-lines", "json-caption",
    "foreign-mask", "linked-outside", "link-loop", "misplaced-repeats", "shared-caption",
]  # fmt: skip

KIND_DESCRIPTIONS: dict[ProblemKind, str] = {
    "no-caption": "images have no caption",
    "bad-caption": "captions cannot be read",
    "bad-line": "lines cannot be used",
    "bad-name": "file names are not valid text",
    "missing-file": "listed images are missing",
    "folder": "folders are named like images",
    "unreadable": "files cannot be read",
    "empty-file": "files are empty",
    "not-an-image": "files are not images",
    "damaged": "images are damaged",
    "too-large": "images are too large",
    "bad-mask": "masks cannot be used",
    "animated": "images have several frames",
    "folder-caption": "images take their caption from the name of their folder",
    "caption-mark": "captions start with a byte order mark",
    "unknown-kind": "files are of a kind that is not read",
    "unlisted": "images are not in metadata.jsonl",
    "lonely-mask": "masks belong to no image",
    "many-repeats": "folders have large numbers",
    "misplaced-repeats": "folders with repeats are at the wrong depth",
    "shared-caption": "captions belong to several images",
    "caption-lines": "captions have several lines",
    "json-caption": "captions are JSON",
    "foreign-mask": "files are masks under another program's names",
    "linked-outside": "links lead out of the dataset",
    "link-loop": "links lead to folders that are read already",
    "color-profile": "colour profiles cannot be used",
    "no-repeats": "folders repeat their images 0 times",
}
"""What follows the number of problems of a kind in a message."""


@dataclass(frozen=True)
class Problem:
    """One problem of one file."""

    file: str
    """The image's key, or another file's path inside the dataset, perhaps with a line number."""
    kind: ProblemKind
    detail: str
    """What is wrong, and what to do."""
    severity: ProblemSeverity = "error"
    """Errors make the image unusable, warnings do not."""


def filter_by_severity(problems: Iterable[Problem], severity: ProblemSeverity) -> list[Problem]:
    return [problem for problem in problems if problem.severity == severity]


def group_by_kind(problems: Iterable[Problem]) -> dict[ProblemKind, list[Problem]]:
    """Group problems, kinds in the order in which they first occur."""
    groups: dict[ProblemKind, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.kind, []).append(problem)
    return groups


def summarize_kind(group: Sequence[Problem], image_count: int) -> str:
    """Return one clause on problems of one kind: how many, and the first of them.

    Args:
        group: at least one problem, all of one kind.
        image_count: how many images the dataset has, usable or not.
    """
    first = group[0]
    if first.kind == "no-caption":
        count = f"{len(group)} of {image_count} images have no caption"
        return f"{count}, first {first.file}; {first.detail}"
    if len(group) == 1:
        return f"{first.file}: {first.detail}"
    return f"{len(group)} {KIND_DESCRIPTIONS[first.kind]}, first {first.file}: {first.detail}"


def summarize(problems: Iterable[Problem], image_count: int) -> str:
    """Return one line on all problems, kind by kind."""
    groups = group_by_kind(problems).values()
    return "; ".join(summarize_kind(group, image_count) for group in groups)
