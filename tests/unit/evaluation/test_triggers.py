"""Metrics of trigger words, compared with their formulas written as loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.evaluation.metrics import triggers


def units(count: int, seed: int, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, size, generator=generator), dim=1)


def nearest(a: torch.Tensor, b: torch.Tensor) -> float:
    best = [max(float(x.double() @ y.double()) for y in b) for x in a]
    return sum(best) / len(best)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_fidelity_is_the_mean_of_the_nearest(drawn: int, real: int, seed: int) -> None:
    a, b = units(drawn, seed), units(real, seed + 1)
    assert triggers.fidelity(a, b) == pytest.approx(nearest(a, b), abs=1e-9)


@given(st.integers(2, 7), st.integers(0, 99))
def test_ceiling_excludes_an_image_compared_with_itself(count: int, seed: int) -> None:
    real = units(count, seed)
    best = [nearest(real[i : i + 1], torch.cat([real[:i], real[i + 1 :]])) for i in range(count)]
    assert triggers.ceiling(real) == pytest.approx(sum(best) / count, abs=1e-9)
    identical = real[:1].expand(3, -1)
    assert triggers.ceiling(identical) == pytest.approx(1.0, abs=1e-6)


def test_gain_is_relative_to_base_and_ceiling() -> None:
    assert triggers.gain(0.6, 0.5, 0.9) == pytest.approx(0.25)
    assert triggers.gain(0.4, 0.5, 0.9) == pytest.approx(-0.25)
    assert triggers.gain(0.6, 0.5, 0.5) is None


def test_changes_are_relative_to_the_base() -> None:
    base = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])
    ours = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert triggers.changes(ours, base, "latent").tolist() == [0.0, 1.0]
    a, b = units(4, 0), units(4, 1)
    cosine = 1.0 - (a.double() * b.double()).sum(dim=1)
    assert triggers.changes(a, b, "image").tolist() == pytest.approx(cosine.tolist(), abs=1e-6)
    assert triggers.changes(a, a, "image").tolist() == [0.0] * 4


def test_leak_ratio_is_a_ratio_of_means() -> None:
    absent, present = torch.tensor([0.0, 0.2]), torch.tensor([1.0, 3.0, 2.0])
    assert triggers.leak_ratio(absent, present) == pytest.approx(0.05)
    assert triggers.leak_ratio(torch.zeros(3), present) == 0.0
    assert triggers.leak_ratio(absent, torch.zeros(2)) is None


def test_bleeding_matrix_and_share_are_means_of_distances() -> None:
    drawn, base = [units(3, 0), units(3, 1)], [units(3, 2), units(3, 3)]
    real = [units(4, 4), units(5, 5)]
    matrix = triggers.bleeding(drawn, base, real)
    for i in range(2):
        for j in range(2):
            expected = nearest(drawn[i], real[j]) - nearest(base[i], real[j])
            assert float(matrix[i, j]) == pytest.approx(expected, abs=1e-9)
    known = torch.tensor([[0.4, -0.1], [0.1, 0.2]], dtype=torch.float64)
    assert triggers.bleeding_share(known) == pytest.approx(0.5)
    assert triggers.bleeding_share(known[:1, :1]) is None
    assert triggers.bleeding_share(-known) is None


def test_forgetting_is_the_lost_share_of_the_gain() -> None:
    assert triggers.forgetting(0.7, 0.65, 0.5) == pytest.approx(0.25)
    assert triggers.forgetting(0.7, 0.75, 0.5) == pytest.approx(-0.25)
    assert triggers.forgetting(0.5, 0.4, 0.5) is None


@given(st.integers(0, 99), st.floats(0.1, 5.0))
def test_effects_that_add_up_do_not_interact(seed: int, strength: float) -> None:
    base, a, b, extra = (units(3, seed + k).double() for k in range(4))
    first, second = base + a, base + b
    assert triggers.interaction(base + a + b, first, second, base) == pytest.approx(0, abs=1e-9)
    combined = a + b + strength * extra
    expected = strength * math.sqrt(float(extra.square().sum())) / float(combined.norm())
    result = triggers.interaction(base + combined, first, second, base)
    assert result == pytest.approx(expected)
    assert triggers.interaction(base, first, second, base) is None


def test_clip_score_counts_no_negative_cosines() -> None:
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    assert triggers.text_alignment(pictures, texts) == pytest.approx(30.0)
