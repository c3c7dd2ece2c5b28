"""Cached tensors: computed once, and correct even after files are damaged."""

import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorasmith.core.errors import LorasmithWarning
from lorasmith.data.cache import tensor_cache as cache_module
from lorasmith.data.cache.tensor_cache import (
    Entry,
    Layout,
    TensorCache,
    cache_key,
    default_cache_dir,
)

LAYOUT: Layout = {"mean": (torch.float32, (2, 3)), "half": (torch.bfloat16, (4,))}


def entry_of(key: str) -> Entry:
    generator = torch.Generator().manual_seed(sum(map(ord, key)))
    half = torch.randn(4, generator=generator).bfloat16()
    return {"mean": torch.randn(2, 3, generator=generator), "half": half}


def equals_entries(entries: list[Entry], keys: list[str]) -> bool:
    return all(
        entry.keys() == entry_of(key).keys()
        and all(torch.equal(entry[part], value) for part, value in entry_of(key).items())
        for entry, key in zip(entries, keys, strict=True)
    )


class CacheFixture:
    """A cache folder, and a record of what was computed."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.computed: list[str] = []
        self.advanced = 0

    def fetch(self, keys: list[str], layout: Layout = LAYOUT, fail_at: str = "") -> list[Entry]:
        self.computed, self.advanced = [], 0

        def compute(positions: list[int]) -> Iterator[Entry]:
            for position in positions:
                if keys[position] == fail_at:
                    raise RuntimeError("stop")
                self.computed.append(keys[position])
                yield entry_of(keys[position])

        def advance(count: int) -> None:
            self.advanced += count

        return TensorCache(self.folder).get_or_compute(keys, [layout] * len(keys), compute, advance)

    @property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []


@pytest.fixture
def cache_fixture(tmp_path: Path) -> CacheFixture:
    return CacheFixture(tmp_path / "cache")


KEYS = ["a", "b", "c"]


def test_entries_are_computed_once(cache_fixture: CacheFixture) -> None:
    assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
    assert cache_fixture.computed == KEYS
    assert cache_fixture.advanced == 3
    assert equals_entries(cache_fixture.fetch(KEYS[::-1]), KEYS[::-1])
    assert cache_fixture.computed == []
    assert cache_fixture.advanced == 3


def test_only_missing_entries_are_computed(cache_fixture: CacheFixture) -> None:
    cache_fixture.fetch(["b"])
    assert equals_entries(cache_fixture.fetch(["x", "b", "a"]), ["x", "b", "a"])
    assert cache_fixture.computed == ["x", "a"]
    assert len(cache_fixture.shards) == 2


def test_equal_keys_share_an_entry(cache_fixture: CacheFixture) -> None:
    keys = ["a", "b", "a", "a"]
    assert equals_entries(cache_fixture.fetch(keys), keys)
    assert cache_fixture.computed == ["a", "b"]
    assert cache_fixture.advanced == 4


def test_without_a_folder_nothing_is_kept() -> None:
    cache_fixture = CacheFixture(None)
    cache_fixture.fetch(KEYS)
    assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
    assert cache_fixture.computed == KEYS


def test_entries_computed_before_a_failure_are_kept(cache_fixture: CacheFixture) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        cache_fixture.fetch(KEYS, fail_at="c")
    cache_fixture.fetch(KEYS)
    assert cache_fixture.computed == ["c"]


def test_many_entries_make_several_shards(
    cache_fixture: CacheFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_MAX_SHARD_BYTES", 64)  # two entries of 32 bytes
    keys = list("abcde")
    cache_fixture.fetch(keys)
    assert len(cache_fixture.shards) == 3
    assert equals_entries(cache_fixture.fetch(keys), keys)
    assert cache_fixture.computed == []


# --- damaged and foreign files ----------------------------------------------------------------


def test_file_cut_off_anywhere_is_rebuilt(cache_fixture: CacheFixture) -> None:
    cache_fixture.fetch(KEYS)
    (shard,) = cache_fixture.shards
    content = shard.read_bytes()
    for length in range(0, len(content), 7):
        shard.write_bytes(content[:length])
        assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
        assert cache_fixture.computed == KEYS
        assert [path.name for path in cache_fixture.shards] == [shard.name]
        cache_fixture.fetch(KEYS)
        assert cache_fixture.computed == []


def test_entry_with_a_flipped_bit_is_rebuilt(cache_fixture: CacheFixture) -> None:
    cache_fixture.fetch(KEYS)
    (shard,) = cache_fixture.shards
    content = shard.read_bytes()
    rebuilt = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        for path in cache_fixture.shards:
            path.unlink()
        shard.write_bytes(damaged)
        assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
        rebuilt += bool(cache_fixture.computed)
        cache_fixture.fetch(KEYS)
        assert cache_fixture.computed == []
    # All but flips in names of entries that nobody asks for, in padding and the like.
    assert rebuilt > 0.9 * len(content)


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors at all", b"\xff" * 64, b"PK\x03\x04zip"]
)
def test_files_of_another_kind_are_replaced(cache_fixture: CacheFixture, content: bytes) -> None:
    cache_fixture.fetch(KEYS)
    cache_fixture.shards[0].write_bytes(content)
    assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
    assert cache_fixture.computed == KEYS
    cache_fixture.fetch(KEYS)
    assert cache_fixture.computed == []


def test_foreign_safetensors_files_are_left_alone(cache_fixture: CacheFixture) -> None:
    cache_fixture.fetch(["b"])
    foreign = cache_fixture.folder / "entries-foreign.safetensors"
    save_file({"a/mean": torch.ones(2, 3), "a/half": torch.ones(4).bfloat16()}, foreign)
    before = foreign.read_bytes()
    assert equals_entries(cache_fixture.fetch(["a"]), ["a"])
    assert cache_fixture.computed == ["a"]
    assert foreign.read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        {"mean": torch.zeros(3, 2), "half": torch.zeros(4).bfloat16()},
        {"mean": torch.zeros(2, 3).double(), "half": torch.zeros(4).bfloat16()},
        {"mean": torch.zeros(2, 3)},
        {"mean": torch.full((2, 3), float("nan")), "half": torch.zeros(4).bfloat16()},
        {"mean": torch.zeros(2, 3), "half": torch.full((4,), float("inf")).bfloat16()},
    ],
    ids=["shape", "dtype", "missing part", "nan", "inf"],
)
def test_sound_files_with_unfit_entries_are_rebuilt(
    cache_fixture: CacheFixture, other: Entry
) -> None:
    """The file and its checksum are valid, but its entries are not the expected ones."""
    cache_fixture.fetch(["a"])
    checks = {"lorasmith_cache": "1", "a": cache_module._checksum(other)}
    save_file(
        {f"a/{part}": value for part, value in other.items()}, cache_fixture.shards[0], checks
    )
    assert equals_entries(cache_fixture.fetch(["a"]), ["a"])
    assert cache_fixture.computed == ["a"]
    cache_fixture.fetch(["a"])
    assert cache_fixture.computed == []


def test_damaged_entry_does_not_lose_the_others(cache_fixture: CacheFixture) -> None:
    cache_fixture.fetch(KEYS)
    (shard,) = cache_fixture.shards
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    os.utime(shard, (time.time() + 5, time.time() + 5))  # even if it looks newer than the repair
    assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
    assert len(cache_fixture.computed) == 1
    assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
    assert cache_fixture.computed == []


def test_unwritable_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache_fixture = CacheFixture(tmp_path / "file" / "cache")
    with pytest.warns(
        LorasmithWarning, match="going on without this cache.*LORASMITH_CACHE"
    ) as reported:
        assert equals_entries(cache_fixture.fetch(KEYS), KEYS)
    assert len(reported) == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_leftovers_of_killed_processes_are_swept(cache_fixture: CacheFixture) -> None:
    cache_fixture.fetch(["a"])
    old, recent = (
        cache_fixture.folder / f".lorasmith-tmp-{n}-entries-x.safetensors" for n in (1, 2)
    )
    old.write_text("half")
    recent.write_text("half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    cache_fixture.fetch(["a"])
    assert not old.exists()
    assert recent.exists()


# --- several processes ----------------------------------------------------------------------


def _work(folder: Path, keys: list[str], start: "multiprocessing.Barrier", result) -> None:
    torch.set_num_threads(1)
    cache_fixture = CacheFixture(folder)
    start.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.put(equals_entries(cache_fixture.fetch(keys), keys))


def test_several_processes_may_write_at_once(cache_fixture: CacheFixture) -> None:
    several = multiprocessing.get_context("fork")
    shares = [KEYS, KEYS, KEYS[::-1], ["c", "d"], ["d", "e", "a"]]
    start, result = several.Barrier(len(shares)), several.Queue()
    workers = [
        several.Process(target=_work, args=(cache_fixture.folder, keys, start, result))
        for keys in shares
    ]
    for worker in workers:
        worker.start()
    assert [result.get(timeout=60) for _ in workers] == [True] * len(shares)
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * len(shares)
    assert list(cache_fixture.folder.glob(".lorasmith-tmp-*")) == []
    all_keys = list("abcde")
    assert equals_entries(cache_fixture.fetch(all_keys), all_keys)
    assert cache_fixture.computed == []


# --- keys and folders -----------------------------------------------------------------------


@given(
    facts=st.dictionaries(st.text(), st.integers() | st.text(), min_size=1, max_size=4),
    other=st.integers() | st.text(),
)
def test_keys_differ_between_facts(facts: dict[str, object], other: object) -> None:
    assert cache_key(facts) == cache_key(dict(reversed(facts.items())))
    name = next(iter(facts))
    if facts[name] != other:
        assert cache_key(facts) != cache_key({**facts, name: other})
    assert cache_key(facts) != cache_key({**facts, "one more": 1}) or facts.get("one more") == 1


def test_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("LORASMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "lorasmith"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "lorasmith"
