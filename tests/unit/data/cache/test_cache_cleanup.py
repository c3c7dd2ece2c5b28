"""Listing and cleaning the cache folder: only the cache's files are touched."""

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorasmith.data.cache.cleanup import count_other_bytes, list_shards, remove_unused_shards
from lorasmith.data.cache.tensor_cache import Entry, TensorCache

DAY = 86400.0


def fill(folder: Path, keys: list[str]) -> list[Entry]:
    """Fetch entries, which computes the missing ones."""

    def compute(positions: list[int]):
        return ({"mean": torch.full((3,), float(position))} for position in positions)

    layout = {"mean": (torch.float32, (3,))}
    return TensorCache(folder).get_or_compute(keys, [layout] * len(keys), compute, lambda _: None)


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def unused_for(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two networks' entries, used 40 and 2 days ago."""
    root = tmp_path / "cache"
    fill(root / "latents" / "aa", ["one", "two", "three"])
    fill(root / "texts" / "bb", ["four"])
    unused_for(only_file(root / "latents" / "aa"), 40)
    unused_for(only_file(root / "texts" / "bb"), 2)
    return root


def test_shards_are_listed_the_oldest_first(root: Path) -> None:
    old, recent = list_shards(root)
    assert (old.kind, old.entry_count, recent.kind, recent.entry_count) == (
        "latents",
        3,
        "texts",
        1,
    )
    assert old.size == old.path.stat().st_size
    assert list_shards(root / "nothing") == []
    assert count_other_bytes(root, [old, recent]) == 0
    (root / "note.txt").write_text("12345")
    assert count_other_bytes(root, [old, recent]) == 5


def test_shards_unused_for_long_are_removed(root: Path) -> None:
    assert remove_unused_shards(root, 60 * DAY) == []
    (removed,) = remove_unused_shards(root, 30 * DAY)
    assert removed.kind == "latents"
    assert not removed.path.parent.exists()
    assert [shard.kind for shard in list_shards(root)] == ["texts"]
    fill(root / "latents" / "aa", ["one"])  # made anew


def test_read_shards_count_as_used(root: Path) -> None:
    before = only_file(root / "latents" / "aa").read_bytes()
    fill(root / "latents" / "aa", ["two"])
    assert remove_unused_shards(root, 30 * DAY) == []
    assert only_file(root / "latents" / "aa").read_bytes() == before
    unused_for(only_file(root / "texts" / "bb"), 50)
    fill(root / "texts" / "bb", ["another"])  # nothing of the old file
    assert [shard.entry_count for shard in remove_unused_shards(root, 30 * DAY)] == [1]


def test_nothing_else_is_touched(root: Path, tmp_path: Path) -> None:
    """Foreign files, wherever they are; links, and what is behind them."""
    name = only_file(root / "texts" / "bb").name
    outside = tmp_path / "outside"
    fill(outside / "cc", ["five"])
    other_files = [only_file(outside / "cc"), root / "latents" / "aa" / "entries-x.safetensors",
            root / "latents" / name, root / "mine" / "aa" / name,
            root / "latents" / "aa" / "notes.txt"]  # fmt: skip
    save_file(
        {"weight": torch.ones(2)}, other_files[1]
    )  # the same name pattern, but another program's
    for path in other_files[2:]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(only_file(root / "texts" / "bb").read_bytes())
    (root / "latents" / "link").symlink_to(outside / "cc")
    (root / "texts" / "bb" / "entries-link.safetensors").symlink_to(other_files[0])
    assert len(remove_unused_shards(root, 0)) == 2
    assert list_shards(root) == []
    assert all(path.is_file() for path in other_files)
    assert not (root / "texts" / "bb" / name).exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "latents").symlink_to(outside)
    assert remove_unused_shards(tmp_path / "other", 0) == []
    assert other_files[0].is_file()


def test_damaged_shards_are_removed_like_others(root: Path) -> None:
    only_file(root / "texts" / "bb").write_bytes(b"half")
    (damaged,) = (shard for shard in list_shards(root) if shard.kind == "texts")
    assert damaged.entry_count == 0
    assert len(remove_unused_shards(root, 0)) == 2
