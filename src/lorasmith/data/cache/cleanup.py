"""What lies in the cache's folder, and removing what nobody has used for long.

Only shards are ever removed: files with a shard's name, two levels down (``latents/HASH``,
``texts/HASH``), that are no links, under no links, and say in their metadata what they are. A
shard that cannot be read counts as one, as when it is looked up.
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
"""The folders of the cache; each holds one for each network."""


@dataclass(frozen=True)
class Shard:
    """A file of the cache."""

    path: Path
    size: int
    """Bytes on disk."""
    last_used: float
    """When something was last written to it or found in it, in seconds since 1970."""
    entry_count: int
    """Latents or texts in it; 0 where it is damaged."""

    @property
    def kind(self) -> str:
        """Which of `LAYER_TYPES` it belongs to."""
        return self.path.parent.parent.name


def list_shards(root: Path) -> list[Shard]:
    """Return the shards of a cache, the longest unused first; none where there is no cache."""
    found = [shard for path in _candidates(root) if (shard := _shard(path)) is not None]
    return sorted(found, key=lambda one: (one.last_used, one.path))


def remove_unused_shards(root: Path, max_idle_seconds: float) -> list[Shard]:
    """Remove the shards that nobody has used for so long, and folders that this leaves empty.

    Args:
        root: the cache's folder.
        seconds: 0 removes all.

    Returns:
        what was removed.

    Raises:
        OutputError: one cannot be removed.
    """
    latest = time.time() - max_idle_seconds
    unused = [one for one in list_shards(root) if max_idle_seconds == 0 or one.last_used < latest]
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
    for place, _, names in os.walk(root):
        for path in (Path(place, name) for name in names):
            if path not in known:
                total += path.lstat().st_size
    return total


def _candidates(root: Path) -> Iterator[Path]:
    """Yield the files that have a shard's name and place."""
    for kind in KINDS:
        for folder in _folders(root / kind):
            for path in folder.glob(SHARD_NAME.format("*")):
                if path.is_file() and not path.is_symlink():
                    yield path


def _folders(kind: Path) -> list[Path]:
    if kind.is_symlink() or not kind.is_dir():
        return []
    return [one for one in kind.iterdir() if one.is_dir() and not one.is_symlink()]


def _shard(path: Path) -> Shard | None:
    """Look at a file; None where it is somebody else's, or gone by now."""
    try:
        told = path.stat()
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError):
        return Shard(path, told.st_size, told.st_mtime, 0)
    if METADATA_MARK not in facts:
        return None
    return Shard(path, told.st_size, told.st_mtime, len(facts) - 1)
