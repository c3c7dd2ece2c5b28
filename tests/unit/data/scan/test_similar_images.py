import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorasmith.data.scan import similar_images
from lorasmith.data.scan.similar_images import label_similar

Labels = NDArray[np.int64]


def by_definition(bits: NDArray[np.uint64], colors: NDArray[np.uint8]) -> Labels:
    """Compare every pair, and walk through chains of similar ones."""
    n = len(bits)
    differing = np.bitwise_count(bits[:, None] ^ bits[None]).sum(axis=2)
    distance = np.empty((n, n))
    for i in range(n):
        squares = np.square(colors.astype(float) - colors[i])
        distance[i] = np.sqrt(squares.mean(axis=(1, 2, 3)))
    is_similar = (differing <= 20) & (distance <= 10.0)
    labels = np.full(n, -1)
    for start in range(n):
        waiting = [start] if labels[start] < 0 else []
        while waiting:
            image = waiting.pop()
            if labels[image] < 0:
                labels[image] = start
                waiting += np.flatnonzero(is_similar[image]).tolist()
    return labels


def partition(labels: Labels) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}


def make_set(seed: int, families: int, size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Return fingerprints of families whose members are near the limits of similarity."""
    draw = np.random.default_rng(seed)
    bits, colors = [], []
    for _ in range(families):
        hash_bits, grid = draw.integers(0, 2, 128), draw.integers(40, 216, (16, 16, 3))
        for _ in range(size):
            changed = hash_bits.copy()
            changed[draw.choice(128, draw.integers(0, 13), replace=False)] ^= 1
            shift = draw.integers(-16, 17) + draw.integers(-7, 8, grid.shape)
            bits.append(np.packbits(changed.astype(np.uint8)).view(np.uint64))
            colors.append((grid + shift).clip(0, 255).astype(np.uint8))
    order = draw.permutation(len(bits))
    return np.stack(bits)[order], np.stack(colors)[order]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 12))
def test_groups_are_those_of_every_pair_compared(seed: int, families: int, size: int) -> None:
    bits, colors = make_set(seed, families, size)
    expected = partition(by_definition(bits, colors))
    assert partition(label_similar(bits, colors, 20, 10.0)) == expected


def test_groups_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, colors = make_set(3, 24, 5)
    expected = partition(label_similar(bits, colors, 20, 10.0))
    assert 30 < len(expected) < 110
    monkeypatch.setattr(similar_images, "_ROWS", 7)
    monkeypatch.setattr(similar_images, "_COLUMNS", 5)
    assert partition(label_similar(bits, colors, 20, 10.0)) == expected


@pytest.mark.parametrize(("shift", "groups"), [(10, 1), (11, 2)])
def test_limit_of_colours_is_exact(shift: int, groups: int) -> None:
    colors = np.full((2, 16, 16, 3), 100, dtype=np.uint8)
    colors[1] += shift
    labels = label_similar(np.zeros((2, 2), dtype=np.uint64), colors, 20, 10.0)
    assert len(set(labels.tolist())) == groups


@pytest.mark.parametrize(("count", "groups"), [(20, 1), (21, 2)])
def test_limit_of_bits_is_exact(count: int, groups: int) -> None:
    bits = np.array([[0, 0], [2**count - 1, 0]], dtype=np.uint64)
    colors = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    assert len(set(label_similar(bits, colors, 20, 10.0).tolist())) == groups


def test_frames_of_a_long_video_are_compared_in_seconds() -> None:
    draw = np.random.default_rng(0)
    frames = 8000
    flips = np.zeros((frames, 128), dtype=np.uint8)
    flips[np.arange(frames), draw.integers(0, 128, frames)] = 1
    hashes = np.packbits(np.cumsum(flips, axis=0) % 2, axis=1).view(np.uint64)
    grid = draw.integers(60, 196, (16, 16, 3))
    wave = 40 * np.sin(np.arange(frames) / 50)[:, None, None, None]
    colors = (grid + wave).astype(np.uint8)
    start = time.monotonic()
    labels = label_similar(hashes, colors, 20, 10.0)
    assert time.monotonic() - start < 10  # every pair one by one took 68 s
    assert set(labels.tolist()) == {labels[0]}
