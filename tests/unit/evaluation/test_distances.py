"""Kernel distances, compared with torchmetrics, loops and known distributions."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.evaluation.metrics import distances


def normal(count: int, seed: int, size: int = 8, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator) + shift


def cubic(a: torch.Tensor, b: torch.Tensor) -> float:
    return (float(a @ b) / len(a) + 1.0) ** 3


def by_loops(x: torch.Tensor, y: torch.Tensor) -> float:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    inside = [
        mean([cubic(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
        for z in (x, y)
    ]
    return sum(inside) - 2.0 * mean([cubic(a, b) for a in x for b in y])


@given(st.integers(3, 6), st.integers(3, 6), st.integers(0, 99))
def test_kid_and_its_interval_equal_a_loop_over_left_out_images(m: int, n: int, seed: int) -> None:
    x, y = normal(m, seed).double(), normal(n, seed + 100, shift=0.3).double()
    result = distances.kid(x, y)
    assert result is not None
    assert result.value == pytest.approx(by_loops(x, y), rel=1e-9, abs=1e-9)
    without_x = [by_loops(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(m)]
    without_y = [by_loops(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(n)]
    variance = sum(
        (len(values) - 1) * statistics.pvariance(values) for values in (without_x, without_y)
    )
    assert result.high - result.value == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert result.value - result.low == pytest.approx(result.high - result.value)


def test_kid_and_fid_are_those_of_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = normal(30, 0), normal(30, 1, shift=0.5)
    theirs = KernelInceptionDistance(distances._GivenFeatures(8), subsets=1, subset_size=30)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    ours = distances.kid(x, y)
    assert ours is not None
    assert ours.value == pytest.approx(float(theirs.compute()[0]), rel=1e-4)

    samples, shifted = normal(2001, 0), normal(2001, 1, shift=0.5)
    assert distances.fid(samples, shifted) == pytest.approx(
        8 * 0.25, rel=0.1
    )  # |mean difference|^2
    assert distances.fid(samples[:2000], shifted) is None


def test_cmmd_is_a_thousand_times_the_distance_under_its_gaussian() -> None:
    x, y = (F.normalize(normal(7 - k, k, shift=0.5 * k), dim=1).double() for k in (0, 1))

    def gaussian(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / 200.0)

    inside = [
        statistics.mean(gaussian(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
        for z in (x, y)
    ]
    between = statistics.mean(gaussian(a, b) for a in x for b in y)
    result = distances.cmmd(x, y)
    assert result is not None
    assert result.value == pytest.approx(1000 * (sum(inside) - 2 * between), rel=1e-9)
    assert result.low < result.value < result.high


def test_intervals_cover_zero_for_equal_distributions_and_not_for_others() -> None:
    covered = 0
    for seed in range(60):
        result = distances.kid(normal(20, seed), normal(30, 1000 + seed))
        assert result is not None
        covered += result.low <= 0.0 <= result.high
    assert covered >= 52  # 57 expected
    shifted = distances.kid(normal(20, 0), normal(30, 1, shift=1.0))
    assert shifted is not None
    assert shifted.low > 0.0


def test_too_few_images_give_no_distance() -> None:
    assert distances.kid(normal(2, 0), normal(9, 1)) is None
    assert distances.cmmd(normal(9, 0), normal(2, 1)) is None
