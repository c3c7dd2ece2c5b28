"""Tensors that are expensive to compute, kept on disk for the next run.

A folder holds shards, safetensors files that are written once and never changed. An entry's key
says everything that its values depend on, so an entry is never out of date: what changed has
another key. Entries that cannot be read, or are not what they should be, are computed again.

Several processes may use a folder at once: shards appear whole or not at all, and the worst that
can happen is that two processes compute the same entry.
"""

import hashlib
import json
import os
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lorasmith.core.errors import LorasmithWarning, OutputError
from lorasmith.core.files import TEMPORARY_PREFIX
from lorasmith.core.safetensors_io import save_tensors

Entry = dict[str, torch.Tensor]
"""The tensors of one key, on the CPU."""
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Names, dtypes and shapes that an entry must have."""
Compute = Callable[[list[int]], Iterator[Entry]]
"""Gets places in the list of keys and yields their entries in that order."""

CACHE_VARIABLE = "LORASMITH_CACHE"

METADATA_MARK = "lorasmith_cache"
"""What a shard's metadata have, beside an entry for each key."""
_VERSION = "1"
SHARD_NAME = "entries-{}.safetensors"
"""The name of a shard."""
_SHARD_BYTES = 64 * 2**20
_ORPHAN_SECONDS = 24 * 3600.0
_USED_SECONDS = 3600.0
"""Uses of a shard within this time after another are not noted."""


def default_cache_dir() -> Path:
    """Return where caches go unless a setting says otherwise."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lorasmith"


def cache_key(facts: Mapping[str, object]) -> str:
    """Return the key of an entry: a hex SHA-256 over all that its values depend on.

    Args:
        facts: what JSON can hold.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class TensorCache:
    """The entries of one folder; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get_or_compute(
        self,
        keys: Sequence[str],
        layouts: Sequence[Layout],
        compute: Compute,
        advance: Callable[[int], None],
    ) -> list[Entry]:
        """Return the entry of every key: from disk where it is there and sound, else computed.

        What was computed is kept even when a later entry fails.

        Args:
            keys: as ``key_of`` makes them; equal keys share one entry.
            layouts: what the entries must look like, one per key.
            compute: called once with the places that are missing, unless none is.
            advance: called with the number of keys that are done, for a progress bar.
        """
        wanted = dict(zip(keys, layouts, strict=True))
        found = self._read(wanted)
        advance(sum(key in found for key in keys))
        often = Counter(keys)
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        missing = sorted(first[key] for key in wanted if key not in found)
        if missing:
            waiting = _Waiting(self)
            try:
                for place, entry in zip(missing, compute(missing), strict=True):
                    found[keys[place]] = entry
                    waiting.add(keys[place], entry)
                    advance(often[keys[place]])
            finally:
                waiting.write()
        return [found[key] for key in keys]

    def _read(self, wanted: Mapping[str, Layout]) -> dict[str, Entry]:
        """Return the sound entries that are on disk."""
        found: dict[str, Entry] = {}
        for path in self._shards():
            left = {key: layout for key, layout in wanted.items() if key not in found}
            if not left:
                break
            try:
                there = _read_shard(path, left)
                found |= there
                if there:
                    _note_use(path)
            except (SafetensorError, OSError, ValueError):
                _remove(path)  # a shard by its name, but damaged: its entries are made anew
        return found

    def _shards(self) -> list[Path]:
        """Return the shards, an entry's replacement before what it replaces."""
        if self._folder is None or not self._folder.is_dir():
            return []
        _sweep(self._folder)
        ages = []
        for path in self._folder.glob(SHARD_NAME.format("*")):
            try:
                ages.append((path.stat().st_mtime_ns, path.name, path))
            except FileNotFoundError:  # another process has just removed it
                continue
        return [path for _, _, path in sorted(ages, reverse=True)]

    def _write(self, entries: Mapping[str, Entry]) -> None:
        """Write a shard. A disk that refuses costs the next run some time, and no more."""
        if self._folder is None:
            return
        # The same entries get the same name, so that processes that computed them at the same
        # time do not leave two copies.
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
            warnings.warn(
                f"{error}; going on without this cache. `data.cache_dir` or the variable "
                f"{CACHE_VARIABLE} puts it elsewhere",
                LorasmithWarning,
                stacklevel=2,
            )
            self._folder = None


@dataclass
class _Waiting:
    """Entries that are computed and not written yet."""

    cache: TensorCache
    entries: dict[str, Entry] = field(default_factory=dict)
    size: int = 0

    def add(self, key: str, entry: Entry) -> None:
        self.entries[key] = entry
        self.size += sum(tensor.nbytes for tensor in entry.values())
        if self.size >= _SHARD_BYTES:
            self.write()

    def write(self) -> None:
        if self.entries:
            self.cache._write(self.entries)
        self.entries, self.size = {}, 0


def _read_shard(path: Path, wanted: Mapping[str, Layout]) -> dict[str, Entry]:
    """Return the sound ones among the wanted entries of a shard."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
        if facts.get(METADATA_MARK) != _VERSION:
            return {}  # somebody else's file, or a later version's: left alone
        names = set(file.keys())
        found = {}
        for key in wanted.keys() & facts.keys():
            parts = wanted[key].keys()
            if not all(f"{key}/{part}" in names for part in parts):
                continue
            entry = {part: file.get_tensor(f"{key}/{part}") for part in parts}
            if _checksum(entry) == facts[key] and _fits(entry, wanted[key]):
                found[key] = entry
        return found


def _fits(entry: Entry, layout: Layout) -> bool:
    looks = {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in entry.items()}
    return looks == dict(layout) and all(bool(t.isfinite().all()) for t in entry.values())


def _checksum(entry: Entry) -> str:
    value = 0
    for part in sorted(entry):
        # As plain bytes: NumPy knows no bfloat16.
        content = entry[part].contiguous().flatten().view(torch.uint8).numpy()
        value = zlib.crc32(content.data, zlib.crc32(part.encode(), value))
    return f"{value:08x}"


def _sweep(folder: Path) -> None:
    """Remove temporary files that a killed process left; those of living ones are young."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime > _ORPHAN_SECONDS:
                _remove(path)
        except FileNotFoundError:
            continue


def _note_use(path: Path) -> None:
    """Give a shard the time of now, by which those are found that nobody uses any more."""
    with suppress(OSError):  # gone by now, or a cache that may only be read
        if time.time() - path.stat().st_mtime > _USED_SECONDS:
            os.utime(path)


def _remove(path: Path) -> None:
    """Remove a file that may be gone already, or that Windows still holds open elsewhere."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        return
