"""Disk cache of tensors that are expensive to compute.

A folder holds shards: safetensors files that are written once and never changed. An entry's key
hashes everything that its values depend on, so an entry is never out of date. Damaged entries are
computed again.

Several processes may use a folder at once: shards are written atomically, and at worst two
processes compute the same entry.
"""

import hashlib
import json
import os
import stat
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lorasmith.core.errors import LorasmithWarning, OutputError
from lorasmith.core.files import temporary_target
from lorasmith.core.safetensors_io import save_tensors

Entry = dict[str, torch.Tensor]
"""The tensors of one key, on the CPU."""
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Names, dtypes and shapes of an entry's tensors."""
Compute = Callable[[list[int]], Iterator[Entry]]
"""Gets positions in the list of keys and yields their entries in that order."""

CACHE_VARIABLE = "LORASMITH_CACHE"

METADATA_MARK = "lorasmith_cache"
"""A key of every shard's metadata, which also map entry keys to checksums."""
_VERSION = "1"
SHARD_NAME = "entries-{}.safetensors"
"""The name of a shard."""
_MAX_SHARD_BYTES = 64 * 2**20
_MAX_TEMPORARY_SECONDS = 24 * 3600.0
_TOUCH_SECONDS = 3600.0
"""A hit updates a shard's time at most this often."""


def default_cache_dir() -> Path:
    """Return the cache folder: ``LORASMITH_CACHE``, or one in the user's cache folder."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lorasmith"


def cache_key(facts: Mapping[str, object]) -> str:
    """Return the key of an entry: a hex SHA-256 over everything that its values depend on.

    Args:
        facts: values that JSON can hold.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class TensorCache:
    """The entries of one folder; without a folder nothing is stored."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get_or_compute(
        self,
        keys: Sequence[str],
        layouts: Sequence[Layout],
        compute: Compute,
        advance: Callable[[int], None],
    ) -> list[Entry]:
        """Return the entry of every key, from disk where possible, otherwise computed.

        Computed entries are stored even when a later one fails.

        Args:
            keys: from ``cache_key``; equal keys share one entry.
            layouts: dtypes and shapes of the entries, one per key.
            compute: called once with the positions of missing keys, unless there are none.
            advance: called with the number of keys that are done, for a progress bar.
        """
        layout_of = dict(zip(keys, layouts, strict=True))
        entries = self._read(layout_of)
        advance(sum(key in entries for key in keys))
        counts = Counter(keys)
        first_position = {key: position for position, key in reversed(list(enumerate(keys)))}
        missing = sorted(first_position[key] for key in layout_of if key not in entries)
        if missing:
            writer = _ShardWriter(self)
            try:
                for position, entry in zip(missing, compute(missing), strict=True):
                    key = keys[position]
                    entries[key] = entry
                    writer.add(key, entry)
                    advance(counts[key])
            finally:
                writer.flush()
        return [entries[key] for key in keys]

    def _read(self, layout_of: Mapping[str, Layout]) -> dict[str, Entry]:
        """Return the valid entries that are on disk."""
        entries: dict[str, Entry] = {}
        for path in self._list_shards():
            missing = {key: layout for key, layout in layout_of.items() if key not in entries}
            if not missing:
                break
            try:
                hits = _read_shard(path, missing)
                entries |= hits
                if hits:
                    _touch(path)
            except (SafetensorError, OSError, ValueError):
                _remove(path)  # damaged: its entries are computed again
        return entries

    def _list_shards(self) -> list[Path]:
        """Return the shards, newest first: a replaced entry is newer than the original."""
        if self._folder is None or not self._folder.is_dir():
            return []
        try:
            _remove_stale_files(self._folder)
            paths = list(self._folder.glob(SHARD_NAME.format("*")))
        except OSError as error:
            self._turn_off(f"{self._folder}: cannot be read ({error.strerror})")
            return []
        shards = []
        for path in paths:
            with suppress(OSError):  # another process has just removed it
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    shards.append((status.st_mtime_ns, path.name, path))
                else:  # opening a pipe would wait for ever
                    _warn(f"{path}: is not a file, as files of the cache are; remove it")
        return [path for _, _, path in sorted(shards, reverse=True)]

    def _write(self, entries: Mapping[str, Entry]) -> None:
        """Write a shard. A write error only turns this cache off, with a warning."""
        if self._folder is None:
            return
        # Equal entries get an equal name, so that processes that compute them at the same time
        # do not leave two copies.
        name = hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()[:32]
        tensors = {
            f"{key}/{part}": value
            for key, entry in entries.items()
            for part, value in entry.items()
        }
        checks = {key: _checksum(entry) for key, entry in entries.items()}
        try:
            save_tensors(
                self._folder / SHARD_NAME.format(name), tensors, {METADATA_MARK: _VERSION, **checks}
            )
        except OutputError as error:
            self._turn_off(str(error))

    def _turn_off(self, reason: str) -> None:
        _warn(
            f"{reason}; going on without this cache. `data.cache_dir` or the variable "
            f"{CACHE_VARIABLE} puts it elsewhere"
        )
        self._folder = None


@dataclass
class _ShardWriter:
    """Collects computed entries and writes them as shards."""

    cache: TensorCache
    entries: dict[str, Entry] = field(default_factory=dict)
    size: int = 0

    def add(self, key: str, entry: Entry) -> None:
        self.entries[key] = entry
        self.size += sum(tensor.nbytes for tensor in entry.values())
        if self.size >= _MAX_SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.entries:
            self.cache._write(self.entries)
        self.entries, self.size = {}, 0


def _read_shard(path: Path, layout_of: Mapping[str, Layout]) -> dict[str, Entry]:
    """Return the valid entries of a shard among those with a layout."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get(METADATA_MARK) != _VERSION:
            return {}  # another program's file, or a later version's: left alone
        names = set(file.keys())
        entries = {}
        for key in layout_of.keys() & metadata.keys():
            parts = layout_of[key].keys()
            if not all(f"{key}/{part}" in names for part in parts):
                continue
            entry = {part: file.get_tensor(f"{key}/{part}") for part in parts}
            if _checksum(entry) == metadata[key] and _is_valid(entry, layout_of[key]):
                entries[key] = entry
        return entries


def _is_valid(entry: Entry, layout: Layout) -> bool:
    actual = {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in entry.items()}
    return actual == dict(layout) and all(bool(t.isfinite().all()) for t in entry.values())


def _checksum(entry: Entry) -> str:
    value = 0
    for part in sorted(entry):
        # As plain bytes: NumPy knows no bfloat16.
        content = entry[part].contiguous().flatten().view(torch.uint8).numpy()
        value = zlib.crc32(content.data, zlib.crc32(part.encode(), value))
    return f"{value:08x}"


def _remove_stale_files(folder: Path) -> None:
    """Remove unfinished shards of killed processes: those of running ones are recent."""
    for path in folder.iterdir():
        if not fnmatch(temporary_target(path) or "", SHARD_NAME.format("*")):
            continue
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _MAX_TEMPORARY_SECONDS:
                _remove(path)


def _touch(path: Path) -> None:
    """Set a shard's time to now; cleaning up removes shards with old times."""
    with suppress(OSError):  # gone, or a read-only cache
        if time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
            os.utime(path)


def _remove(path: Path) -> None:
    """Remove a file that may be gone, a folder, or open in another process on Windows."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _warn(message: str) -> None:
    warnings.warn(message, LorasmithWarning, stacklevel=4)
