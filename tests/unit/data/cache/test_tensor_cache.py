"""Cached tensors: computed once, and right whatever is done to the files."""

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
    draws = torch.Generator().manual_seed(sum(map(ord, key)))
    half = torch.randn(4, generator=draws).bfloat16()
    return {"mean": torch.randn(2, 3, generator=draws), "half": half}


def same(found: list[Entry], keys: list[str]) -> bool:
    return all(
        one.keys() == entry_of(key).keys()
        and all(torch.equal(one[part], value) for part, value in entry_of(key).items())
        for one, key in zip(found, keys, strict=True)
    )


class Bench:
    """A cache folder, and a record of what was computed."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.computed: list[str] = []
        self.advanced = 0

    def fetch(self, keys: list[str], layout: Layout = LAYOUT, fail_at: str = "") -> list[Entry]:
        self.computed, self.advanced = [], 0

        def compute(positions: list[int]) -> Iterator[Entry]:
            for place in positions:
                if keys[place] == fail_at:
                    raise RuntimeError("stop")
                self.computed.append(keys[place])
                yield entry_of(keys[place])

        def advance(count: int) -> None:
            self.advanced += count

        return TensorCache(self.folder).get_or_compute(keys, [layout] * len(keys), compute, advance)

    @property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


KEYS = ["a", "b", "c"]


def test_entries_are_computed_once(bench: Bench) -> None:
    assert same(bench.fetch(KEYS), KEYS)
    assert bench.computed == KEYS
    assert bench.advanced == 3
    assert same(bench.fetch(KEYS[::-1]), KEYS[::-1])
    assert bench.computed == []
    assert bench.advanced == 3


def test_only_missing_entries_are_computed(bench: Bench) -> None:
    bench.fetch(["b"])
    assert same(bench.fetch(["x", "b", "a"]), ["x", "b", "a"])
    assert bench.computed == ["x", "a"]
    assert len(bench.shards) == 2


def test_equal_keys_share_an_entry(bench: Bench) -> None:
    keys = ["a", "b", "a", "a"]
    assert same(bench.fetch(keys), keys)
    assert bench.computed == ["a", "b"]
    assert bench.advanced == 4


def test_without_a_folder_nothing_is_kept() -> None:
    bench = Bench(None)
    bench.fetch(KEYS)
    assert same(bench.fetch(KEYS), KEYS)
    assert bench.computed == KEYS


def test_entries_computed_before_a_failure_are_kept(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        bench.fetch(KEYS, fail_at="c")
    bench.fetch(KEYS)
    assert bench.computed == ["c"]


def test_many_entries_make_several_shards(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_MAX_SHARD_BYTES", 64)  # two entries of 32 bytes
    keys = list("abcde")
    bench.fetch(keys)
    assert len(bench.shards) == 3
    assert same(bench.fetch(keys), keys)
    assert bench.computed == []


# --- files that are not what they should be -------------------------------------------------


def test_file_cut_off_anywhere_is_rebuilt(bench: Bench) -> None:
    bench.fetch(KEYS)
    (shard,) = bench.shards
    whole = shard.read_bytes()
    for length in range(0, len(whole), 7):
        shard.write_bytes(whole[:length])
        assert same(bench.fetch(KEYS), KEYS)
        assert bench.computed == KEYS
        assert [path.name for path in bench.shards] == [shard.name]
        bench.fetch(KEYS)
        assert bench.computed == []


def test_entry_with_a_flipped_bit_is_rebuilt(bench: Bench) -> None:
    bench.fetch(KEYS)
    (shard,) = bench.shards
    whole = shard.read_bytes()
    rebuilt = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        for path in bench.shards:
            path.unlink()
        shard.write_bytes(damaged)
        assert same(bench.fetch(KEYS), KEYS)
        rebuilt += bool(bench.computed)
        bench.fetch(KEYS)
        assert bench.computed == []
    # All but flips in names of entries that nobody asks for, in padding and the like.
    assert rebuilt > 0.9 * len(whole)


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors at all", b"\xff" * 64, b"PK\x03\x04zip"]
)
def test_files_of_another_kind_are_replaced(bench: Bench, content: bytes) -> None:
    bench.fetch(KEYS)
    bench.shards[0].write_bytes(content)
    assert same(bench.fetch(KEYS), KEYS)
    assert bench.computed == KEYS
    bench.fetch(KEYS)
    assert bench.computed == []


def test_foreign_safetensors_files_are_left_alone(bench: Bench) -> None:
    bench.fetch(["b"])
    foreign = bench.folder / "entries-foreign.safetensors"
    save_file({"a/mean": torch.ones(2, 3), "a/half": torch.ones(4).bfloat16()}, foreign)
    before = foreign.read_bytes()
    assert same(bench.fetch(["a"]), ["a"])
    assert bench.computed == ["a"]
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
def test_sound_files_with_unfit_entries_are_rebuilt(bench: Bench, other: Entry) -> None:
    """The file and its checksum are fine; what stands in it is not what is wanted."""
    bench.fetch(["a"])
    checks = {"lorasmith_cache": "1", "a": cache_module._checksum(other)}
    save_file({f"a/{part}": value for part, value in other.items()}, bench.shards[0], checks)
    assert same(bench.fetch(["a"]), ["a"])
    assert bench.computed == ["a"]
    bench.fetch(["a"])
    assert bench.computed == []


def test_damaged_entry_does_not_lose_the_others(bench: Bench) -> None:
    bench.fetch(KEYS)
    (shard,) = bench.shards
    whole = bytearray(shard.read_bytes())
    whole[-1] ^= 1
    shard.write_bytes(whole)
    os.utime(shard, (time.time() + 5, time.time() + 5))  # even if it looks newer than the repair
    assert same(bench.fetch(KEYS), KEYS)
    assert len(bench.computed) == 1
    assert same(bench.fetch(KEYS), KEYS)
    assert bench.computed == []


def test_unwritable_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    bench = Bench(tmp_path / "file" / "cache")
    with pytest.warns(
        LorasmithWarning, match="going on without this cache.*LORASMITH_CACHE"
    ) as reported:
        assert same(bench.fetch(KEYS), KEYS)
    assert len(reported) == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_leftovers_of_killed_processes_are_swept(bench: Bench) -> None:
    bench.fetch(["a"])
    old, young = (bench.folder / f".lorasmith-tmp-{n}-entries-x.safetensors" for n in (1, 2))
    old.write_text("half")
    young.write_text("half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    bench.fetch(["a"])
    assert not old.exists()
    assert young.exists()


# --- several processes ----------------------------------------------------------------------


def _work(folder: Path, keys: list[str], start: "multiprocessing.Barrier", result) -> None:
    torch.set_num_threads(1)
    bench = Bench(folder)
    start.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.put(same(bench.fetch(keys), keys))


def test_several_processes_may_write_at_once(bench: Bench) -> None:
    several = multiprocessing.get_context("fork")
    shares = [KEYS, KEYS, KEYS[::-1], ["c", "d"], ["d", "e", "a"]]
    start, result = several.Barrier(len(shares)), several.Queue()
    workers = [
        several.Process(target=_work, args=(bench.folder, keys, start, result)) for keys in shares
    ]
    for worker in workers:
        worker.start()
    assert [result.get(timeout=60) for _ in workers] == [True] * len(shares)
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * len(shares)
    assert list(bench.folder.glob(".lorasmith-tmp-*")) == []
    every = list("abcde")
    assert same(bench.fetch(every), every)
    assert bench.computed == []


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
