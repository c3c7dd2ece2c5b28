"""Symbolic links in a dataset: those that stay inside its folder are followed.

A dataset that somebody else packed may link to any file of this machine. Captions end up in the
metadata of the LoRA, so a caption from outside would be published.
"""

import os
from pathlib import Path

FOLLOW_SETTING = "data.follow_links = true"


class LinkPolicy:
    """Which links of a dataset are followed."""

    def __init__(self, root: Path, follow_outside: bool = False) -> None:
        """Take the dataset's folder, which may itself be a link or lie behind one."""
        self._root = Path(os.path.realpath(root))
        self._follow_outside = follow_outside

    def refuses(self, path: Path) -> bool:
        """Whether a path inside the dataset is a link out of it that is not followed."""
        return path.is_symlink() and not self.allows_target(path)

    def allows_target(self, path: Path) -> bool:
        """Whether what a path leads to, through links anywhere in it, may be read."""
        return self._follow_outside or self.is_inside(path)

    def is_inside(self, path: Path) -> bool:
        """Whether what a path leads to lies inside the dataset's folder."""
        return Path(os.path.realpath(path)).is_relative_to(self._root)


def list_entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of a folder's subfolders and of everything else, both sorted.

    Links to folders count as subfolders, links to nothing and loops of links as something else.

    Raises:
        OSError: the folder cannot be read.
    """
    subfolders: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            (subfolders if _is_folder(entry) else others).append(entry.name)
    return sorted(subfolders), sorted(others)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
