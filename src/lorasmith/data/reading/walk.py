"""Walking through a dataset's folders: what other systems left there is not looked at."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorasmith.data.reading.links import FOLLOW_SETTING, LinkPolicy, list_entries
from lorasmith.data.reading.listing import DatasetListing
from lorasmith.data.reading.row import IMAGE_SUFFIXES

_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
     "$recycle.bin", "system volume information", "lost+found", "network trash folder",
     "temporary items", "__pycache__"}
)  # fmt: skip
"""What macOS, Windows and network disks put beside files, in lower case. Hidden ones, such as
``.AppleDouble`` and ``.ipynb_checkpoints``, are left out anyway."""


_Place = tuple[Path, tuple[str, ...]]
"""A folder, and the real paths of those around it and of itself."""


def walk_folders(
    root: Path, links: LinkPolicy, listing: DatasetListing
) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder of a dataset with the names of its visible files, sorted.

    Args:
        root: the dataset's folder, which comes first.
        links: which links are followed. A folder is reached through one link only.
        listing: gets the problems of folders.
    """
    yield from _Walk(root, links, listing).visit_all()


@dataclass
class _Walk:
    root: Path
    links: LinkPolicy
    listing: DatasetListing
    linked: set[str] = field(default_factory=set)
    """Real paths that links have led to."""

    def visit_all(self) -> Iterator[tuple[Path, list[str]]]:
        waiting: list[_Place] = [(self.root, (os.path.realpath(self.root),))]
        while waiting:
            folder, around = waiting.pop()
            try:
                subfolders, files = list_entries(folder)
            except OSError as error:
                detail = f"this folder cannot be read ({error.strerror})"
                self.listing.add_problem(self._key(folder), "unreadable", detail)
                continue
            yield folder, [name for name in files if is_visible(name)]
            entered = [
                (folder / name, (*around, self._real_path(folder / name, around)))
                for name in subfolders
                if is_visible(name) and self._is_entered(folder / name, around)
            ]
            waiting += reversed(entered)

    @staticmethod
    def _real_path(path: Path, around: tuple[str, ...]) -> str:
        is_link = path.is_symlink()
        return os.path.realpath(path) if is_link else os.path.join(around[-1], path.name)  # noqa: PTH118

    def _is_entered(self, path: Path, around: tuple[str, ...]) -> bool:
        """Whether a subfolder is walked through; a problem says why not."""
        if path.suffix.lower() in IMAGE_SUFFIXES:
            detail = "is a folder that is named like an image; rename it"
            self.listing.add_problem(self._key(path), "folder", detail)
            return False
        return not path.is_symlink() or self._is_followed(path, around)

    def _is_followed(self, link: Path, around: tuple[str, ...]) -> bool:
        target = os.path.realpath(link)
        if self.links.refuses(link):
            detail = (
                "is a link to a folder outside of the dataset and left out; copy that folder, or "
                f"follow the link with {FOLLOW_SETTING}"
            )
            self.listing.add_problem(self._key(link), "linked-outside", detail, "warning")
            return False
        if target in around:
            detail = "is a link to a folder that it lies in; it is not followed"
            self.listing.add_problem(self._key(link), "link-loop", detail, "warning")
            return False
        if target in self.linked:
            detail = "is a second link to a folder, which is read only once; remove one"
            self.listing.add_problem(self._key(link), "link-loop", detail, "warning")
            return False
        self.linked.add(target)
        return True

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def is_visible(name: str) -> bool:
    """Whether a file or folder is neither hidden nor another system's."""
    return not name.startswith(".") and name.lower() not in _SYSTEM_FOLDERS
