"""Listing the cache folder, and removing what has long been unused.

Only shards are ever removed: files with a shard's name, two levels down (``latents/HASH``,
``texts/HASH``), that are not links or below links, and whose metadata mark them as shards. A
damaged file with a shard's name counts as a shard, as it does on lookup.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lorasmith.core.errors import OutputError
from lorasmith.data.cache.tensor_cache import METADATA_MARK, SHARD_NAME

KINDS = ("latents", "texts")
"""The folders of the cache; each has a folder for each network."""


@dataclass(frozen=True)
class Shard:
    """A file of the cache."""

    path: Path
    size: int
    """Bytes on disk."""
    last_used: float
    """Time of the last write or hit, in seconds since 1970."""
    entry_count: int
    """Latents or texts in it; 0 where it is damaged."""

    @property
    def kind(self) -> str:
        """Which of `LAYER_TYPES` it belongs to."""
        return self.path.parent.parent.name


def list_shards(root: Path) -> list[Shard]:
    """Return the shards of a cache, the longest unused first; none without a cache."""
    shards = [shard for path in _find_candidates(root) if (shard := _read_shard(path))]
    return sorted(shards, key=lambda shard: (shard.last_used, shard.path))


def remove_unused_shards(root: Path, max_idle_seconds: float) -> list[Shard]:
    """Remove shards that have been unused for long, and folders that this empties.

    Args:
        root: the cache's folder.
        seconds: 0 removes all.

    Returns:
        the removed shards.

    Raises:
        OutputError: one cannot be removed.
    """
    latest = time.time() - max_idle_seconds
    unused = [
        shard for shard in list_shards(root) if max_idle_seconds == 0 or shard.last_used < latest
    ]
    for shard in unused:
        try:
            shard.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {shard.path}: {error.strerror or error}") from error
    for folder in {shard.path.parent for shard in unused}:
        if not any(folder.iterdir()):
            folder.rmdir()
    return unused


def count_other_bytes(root: Path, shards: list[Shard]) -> int:
    """Return the size of everything else in the folder, links not followed."""
    known = {shard.path for shard in shards}
    total = 0
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            if path not in known:
                total += path.lstat().st_size
    return total


def _find_candidates(root: Path) -> Iterator[Path]:
    """Yield the files with a shard's name in a shard's folder."""
    for kind in KINDS:
        for folder in _list_folders(root / kind):
            for path in folder.glob(SHARD_NAME.format("*")):
                if path.is_file() and not path.is_symlink():
                    yield path


def _list_folders(parent: Path) -> list[Path]:
    if parent.is_symlink() or not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]


def _read_shard(path: Path) -> Shard | None:
    """Describe a shard; None where the file is not one, or gone."""
    try:
        stat = path.stat()
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError):
        return Shard(path, stat.st_size, stat.st_mtime, 0)
    if METADATA_MARK not in metadata:
        return None
    return Shard(path, stat.st_size, stat.st_mtime, len(metadata) - 1)
