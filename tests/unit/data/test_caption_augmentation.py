from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.device import make_generator
from lorasmith.data.caption_augmentation import drop_caption, shuffle_caption

PARTS = st.lists(st.text("abcxyz ", min_size=1).filter(str.strip), min_size=1, max_size=8)


@given(parts=PARTS, keep=st.integers(0, 10), seed=st.integers(0, 99))
def test_shuffling_keeps_the_first_parts_and_loses_none(
    parts: list[str], keep: int, seed: int
) -> None:
    stripped = [part.strip() for part in parts]
    result = shuffle_caption(",".join(parts), keep, make_generator(seed)).split(", ")
    assert result[:keep] == stripped[:keep]
    assert Counter(result) == Counter(stripped)
    assert result == shuffle_caption(",".join(parts), keep, make_generator(seed)).split(", ")


def test_every_order_comes_about_equally_often() -> None:
    generator = make_generator(0)
    counts = Counter(shuffle_caption("a cat, x, y, z", 1, generator) for _ in range(1200))
    assert len(counts) == 6
    assert min(counts.values()) > 140
    assert all(text.startswith("a cat, ") for text in counts)


def test_empty_parts_are_left_out() -> None:
    assert shuffle_caption("a, , b,,", 2, make_generator(0)) == "a, b"
    assert shuffle_caption("", 1, make_generator(0)) == ""


def test_as_many_captions_are_dropped_as_asked() -> None:
    generator = make_generator(1)
    captions = [drop_caption("a cat", 0.3, generator) for _ in range(2000)]
    assert set(captions) == {"a cat", ""}
    assert captions.count("") / len(captions) == pytest.approx(0.3, abs=0.04)


def test_dropping_draws_one_number_whatever_happens() -> None:
    results = []
    for share in (0.0, 0.999999):
        generator = make_generator(2)
        text = drop_caption("a", share, generator)
        results.append((text, float(torch.rand((), generator=generator))))
    assert [text for text, _ in results] == ["a", ""]
    assert results[0][1] == results[1][1]
