"""What is wrong with single files of a dataset, collected instead of raised."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

Kind = Literal[
    # errors: the picture cannot be learned from as it is
    "no-caption", "bad-caption", "bad-line", "bad-name", "missing-file", "folder", "unreadable",
    "empty-file", "not-a-picture", "damaged", "too-large", "bad-mask",
    # warnings: it can, but perhaps not as meant
    "animated", "folder-caption", "caption-mark", "unknown-kind", "unlisted", "lonely-mask",
    "many-repeats", "no-repeats",
]  # fmt: skip

KIND_DESCRIPTIONS: dict[Kind, str] = {
    "no-caption": "pictures have no caption",
    "bad-caption": "captions cannot be read",
    "bad-line": "lines cannot be used",
    "bad-name": "file names are not valid text",
    "missing-file": "listed pictures are missing",
    "folder": "folders are named like pictures",
    "unreadable": "files cannot be read",
    "empty-file": "files are empty",
    "not-a-picture": "files are no pictures",
    "damaged": "pictures are damaged",
    "too-large": "pictures are too large",
    "bad-mask": "masks cannot be used",
    "animated": "pictures have several frames",
    "folder-caption": "pictures take the words of their folder as caption",
    "caption-mark": "captions start with a byte order mark",
    "unknown-kind": "files are of a kind that is not read",
    "unlisted": "pictures are not in metadata.jsonl",
    "lonely-mask": "masks belong to no picture",
    "many-repeats": "folders repeat their pictures very often",
    "no-repeats": "folders repeat their pictures 0 times",
}
"""What several problems of a kind are called, after their number."""


@dataclass(frozen=True)
class Problem:
    """One thing about one file."""

    file: str
    """The picture's key, or another file's path inside the dataset, perhaps with a line number."""
    kind: Kind
    """What sort of problem it is."""
    detail: str
    """What exactly, and what to do."""
    severity: Severity = "error"
    """Errors make the picture unusable, warnings do not."""


def filter_by_severity(problems: Iterable[Problem], severity: Severity) -> list[Problem]:
    """Return the problems of one severity."""
    return [problem for problem in problems if problem.severity == severity]


def group_by_kind(problems: Iterable[Problem]) -> dict[Kind, list[Problem]]:
    """Group problems, kinds in the order in which they first occur."""
    groups: dict[Kind, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.kind, []).append(problem)
    return groups


def summarize_kind(group: Sequence[Problem], pictures: int) -> str:
    """Say in one clause what problems of one kind there are: how many, and the first of them.

    Args:
        group: at least one problem, all of one kind.
        pictures: how many pictures the dataset has, usable or not.
    """
    first = group[0]
    if first.kind == "no-caption":
        some = f"{len(group)} of {pictures} pictures have no caption"
        return f"{some}, first {first.file}; {first.detail}"
    if len(group) == 1:
        return f"{first.file}: {first.detail}"
    return f"{len(group)} {KIND_DESCRIPTIONS[first.kind]}, first {first.file}: {first.detail}"


def summarize(problems: Iterable[Problem], pictures: int) -> str:
    """Say in one line what problems there are, kind by kind."""
    return "; ".join(summarize_kind(group, pictures) for group in group_by_kind(problems).values())
