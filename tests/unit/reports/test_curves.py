import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.reports.noisy_curves import diverging, learning, level, losses, oscillating
from lorasmith.reports.curves import (
    Curve,
    downsample,
    estimate_jitter,
    estimate_noise,
    extract_curve,
    isotonic_decreasing,
    measure_fall,
    measure_rise,
    smooth,
)


def curve(values: list[float]) -> Curve:
    return Curve(np.arange(1.0, len(values) + 1), np.array(values))


def test_curve_is_read_from_the_lines_that_have_its_key() -> None:
    lines = [{"step": 20, "loss": 2.0}, {"step": 10, "loss": 1.0, "x": 5.0}, {"step": 30, "x": 4.0}]
    assert extract_curve(lines, "loss").steps.tolist() == [10, 20]
    assert extract_curve(lines, "x").values.tolist() == [5, 4]
    assert extract_curve([{"step": 1, "loss": float("nan")}], "loss").values.tolist() == []
    assert len(extract_curve([], "loss")) == 0


def test_downsampling_keeps_means_and_order() -> None:
    dense = curve(np.linspace(3, 1, 1000).tolist())
    sparse = downsample(dense, 100)
    assert len(sparse) == 100
    assert sparse.values.mean() == pytest.approx(2.0)
    assert (np.diff(sparse.steps) > 0).all()
    assert downsample(sparse, 100) is sparse


@given(st.integers(3, 60), st.floats(-5, 5), st.floats(-1, 1))
def test_smoothing_leaves_a_straight_line_alone(count: int, start: float, slope: float) -> None:
    line = curve([start + slope * k for k in range(count)])
    np.testing.assert_allclose(smooth(line).values, line.values, atol=1e-8)


def test_smoothing_removes_noise() -> None:
    noisy = losses(level, 1, steps=2000)
    assert smooth(noisy).values.std() < 0.4 * noisy.values.std()
    assert smooth(curve([1.0, 5.0])).values.tolist() == [1.0, 5.0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40))
def test_isotonic_fit_never_rises_and_is_the_projection(values: list[float]) -> None:
    fitted = isotonic_decreasing(np.array(values))
    assert (np.diff(fitted) <= 1e-9).all()
    assert fitted.mean() == pytest.approx(np.mean(values), abs=1e-9)
    # The projection's error is orthogonal to it (Robertson, Wright, Dykstra 1988, thm. 1.3.2).
    assert float((np.array(values) - fitted) @ fitted) == pytest.approx(0.0, abs=1e-6)


def test_noise_is_that_of_the_logarithms_without_the_trend() -> None:
    rng = np.random.default_rng(0)
    trend = np.exp(-np.linspace(0, 3, 400)) + 0.3
    noisy = trend * np.exp(rng.normal(0, 0.2, 400))
    assert estimate_noise(curve(noisy.tolist())) == pytest.approx(0.2, rel=0.15)
    assert estimate_noise(curve([1.0, 2.0])) == 0.0


def test_jitter_ignores_a_line_and_finds_noise() -> None:
    assert estimate_jitter(np.linspace(1, 0, 30)) == pytest.approx(0.0, abs=1e-12)
    rng = np.random.default_rng(0)
    assert estimate_jitter(rng.normal(0, 0.1, 2000)) == pytest.approx(0.1, rel=0.1)
    assert estimate_jitter(np.array([1.0, 9.0, 1.0])) == 0.0


def test_fall_is_measured_and_noise_is_no_fall() -> None:
    falls = [measure_fall(losses(learning, seed, steps=1000)) for seed in range(20)]
    assert all(trend.is_significant(0.05) for trend in falls)
    assert 0.25 < float(np.median([trend.share for trend in falls])) < 0.45
    # By definition of the test, a level curve falls with a chance of 5% or less in 1 of 20 cases.
    p_values = [measure_fall(losses(level, seed)).p_value for seed in range(100)]
    assert np.mean([p_value < 0.05 for p_value in p_values]) <= 0.12


def test_fall_within_the_first_lines_counts() -> None:
    values = np.r_[2.0, 1.4, np.ones(40)] * losses(level, 0, steps=420).values
    assert measure_fall(curve(values.tolist())).is_significant(0.05)


def test_rise_is_measured_and_noise_is_no_rise() -> None:
    for shape in (oscillating, diverging):
        rises = [measure_rise(losses(shape, seed, steps=1000)) for seed in range(10)]
        assert all(trend.is_significant(0.01) and trend.share > 0.5 for trend in rises)
    p_values = [measure_rise(losses(learning, seed)).p_value for seed in range(50)]
    assert np.mean([p_value < 0.01 for p_value in p_values]) <= 0.06


def test_same_curve_gets_the_same_answer() -> None:
    noisy = losses(level, 3)
    assert (measure_fall(noisy), measure_rise(noisy)) == (measure_fall(noisy), measure_rise(noisy))
