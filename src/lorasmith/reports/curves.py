"""The mathematics of a run's curves: smoothing, and telling a trend from noise.

The loss of one diffusion step says next to nothing: it differs tenfold with the sampled noise
level. Every statement about a curve is therefore tested against its own noise, by shuffling it or
simulating it (with a fixed seed, so that a report is reproducible). Losses are compared as
logarithms, because their noise is multiplicative.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SHUFFLES = 500
_MAX_POINTS = 200
"""Longer curves are averaged down to this many points before they are tested or drawn."""
_BANDWIDTH = 0.05
"""Width of the smoothing kernel as a share of the curve's length."""
_LARGEST = 1e30
"""Larger values are as good as infinite."""
_MAD_SCALE = 0.6745
"""Median absolute deviation of the standard normal distribution."""


@dataclass(frozen=True)
class Curve:
    """Values over steps, float64 ``[N]`` each, in the order of the steps."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: float) -> "Curve":
        """Return the part after a step."""
        later = self.steps > step
        return Curve(self.steps[later], self.values[later])


def extract_curve(log: Iterable[Mapping[str, float]], key: str) -> Curve:
    """Return the values that the lines of a log have for a key, without infinities and NaN."""
    pairs = [(float(line["step"]), float(line[key])) for line in log if line.get(key) is not None]
    finite = sorted(pair for pair in pairs if abs(pair[1]) < _LARGEST)
    table = np.array(finite, dtype=np.float64).reshape(-1, 2)
    return Curve(table[:, 0], table[:, 1])


def downsample(curve: Curve, max_points: int = _MAX_POINTS) -> Curve:
    """Average neighbouring points so that at most ``max_points`` are left."""
    if len(curve) <= max_points:
        return curve
    bins = np.array_split(np.arange(len(curve)), max_points)
    steps = np.array([curve.steps[indices].mean() for indices in bins])
    return Curve(steps, np.array([curve.values[indices].mean() for indices in bins]))


def smooth(curve: Curve, bandwidth: float = _BANDWIDTH) -> Curve:
    """Return the curve's local linear fit under a Gaussian kernel, at the same steps.

    Local lines, unlike local means, do not flatten the steep start of a loss curve.

    Args:
        curve: at most a few hundred points (the cost is quadratic).
        bandwidth: the kernel's standard deviation as a share of the curve's length; at least one
            and a half points are used.
    """
    return Curve(curve.steps, _smoothing_matrix(len(curve), bandwidth) @ curve.values)


def _smoothing_matrix(count: int, bandwidth: float) -> Floats:
    """Return the matrix ``[N, N]`` of the local linear fit (Fan and Gijbels 1996, eq. 2.4)."""
    if count < 3:
        return np.eye(count)
    positions = np.arange(count, dtype=np.float64)
    distances = positions[None, :] - positions[:, None]
    kernel = np.exp(-0.5 * (distances / max(1.5, bandwidth * count)) ** 2)
    first = (kernel * distances).sum(axis=1, keepdims=True)
    second = (kernel * distances**2).sum(axis=1, keepdims=True)
    weights = kernel * (second - distances * first)
    matrix: Floats = weights / weights.sum(axis=1, keepdims=True)
    return matrix


@dataclass(frozen=True)
class Trend:
    """A change of a loss curve, and whether noise alone explains it."""

    share: float
    """How large it is, as a share of the level it started from; 0.2 is 20%."""
    p_value: float
    """How often noise alone gives a change as large."""

    def is_significant(self, level: float) -> bool:
        """Return whether noise alone rarely gives it."""
        return self.p_value < level


def measure_fall(losses: Curve) -> Trend:
    """Measure how far a loss has fallen, between the two parts that differ most.

    The statistic is the largest standardised difference of the means before and after a split,
    over all splits (a CUSUM test), so that a fall within the first lines counts as much as a slow
    one. Its distribution under noise alone comes from shuffled curves.
    """
    logs = _logarithms(losses)
    shuffled_statistics, _ = _split_statistic(_shuffle(logs))
    statistics, drops = _split_statistic(logs[None, :])
    p_value = float((shuffled_statistics >= statistics[0]).mean())
    return Trend(1.0 - float(np.exp(-drops[0])), p_value)


def _split_statistic(logs: Floats) -> tuple[Floats, Floats]:
    """Return each row's largest standardised fall and that fall, for logarithms ``[K, N]``."""
    count = logs.shape[1]
    before = np.arange(1, count, dtype=np.float64)
    sums = np.cumsum(logs, axis=1)
    drops = sums[:, :-1] / before - (sums[:, -1:] - sums[:, :-1]) / (count - before)
    scaled = drops / np.sqrt(1.0 / before + 1.0 / (count - before))
    best = scaled.argmax(axis=1)
    rows = np.arange(len(logs))
    return scaled[rows, best], drops[rows, best]


def measure_rise(losses: Curve) -> Trend:
    """Measure the largest rise of the smoothed loss from any earlier low.

    A loss that falls, however noisily, has no rise that noise does not explain; one that
    oscillates or diverges has. It is compared with curves that never rise (isotonic regression)
    under normal noise of the same strength from line to line.
    """
    logs = _logarithms(losses)
    matrix = _smoothing_matrix(len(logs), _BANDWIDTH)
    draws = np.random.default_rng(0).standard_normal((_SHUFFLES, len(logs)))
    simulated = isotonic_decreasing(logs) + estimate_noise(losses) * draws
    rises = _largest_rise(simulated @ matrix.T)
    rise = float(_largest_rise((matrix @ logs)[None, :])[0])
    return Trend(float(np.exp(rise)) - 1.0, float((rises >= rise).mean()))


def _largest_rise(logs: Floats) -> Floats:
    lows = np.minimum.accumulate(logs, axis=1)
    rises: Floats = (logs - lows).max(axis=1)
    return rises


def estimate_noise(losses: Curve) -> float:
    """Return the standard deviation of the logarithms from line to line; 0 for fewer than 3 lines.

    Estimated from first differences, whose variance is twice that of independent noise, by their
    median (Rice 1984, made robust): neither a slow trend nor a steep start counts as noise.
    """
    if len(losses) < 3:
        return 0.0
    return float(np.median(np.abs(np.diff(_logarithms(losses)))) / _MAD_SCALE / np.sqrt(2.0))


def isotonic_decreasing(values: Floats) -> Floats:
    """Return the nearest sequence that never rises (pool adjacent violators), float64 ``[N]``."""
    levels: list[float] = []
    counts: list[int] = []
    for value in values.tolist():
        level, count = value, 1
        while levels and levels[-1] < level:
            level = (levels[-1] * counts[-1] + level * count) / (counts[-1] + count)
            count += counts[-1]
            levels.pop()
            counts.pop()
        levels.append(level)
        counts.append(count)
    return np.repeat(np.array(levels), counts)


def estimate_jitter(values: Floats) -> float:
    """Return the noise of a short, otherwise smooth sequence, from its second differences.

    Their variance is 6 times that of independent noise; for a straight line they are zero. Returns
    0 for fewer than 6 values, which are too few to estimate it.
    """
    if len(values) < 6:
        return 0.0
    return float(np.median(np.abs(np.diff(values, 2))) / _MAD_SCALE / np.sqrt(6.0))


def _logarithms(losses: Curve) -> Floats:
    logs: Floats = np.log(np.maximum(losses.values, 1e-12))
    return logs


def _shuffle(values: Floats) -> Floats:
    """Return the values in many random orders, ``[K, N]``."""
    rng = np.random.default_rng(0)
    return rng.permuted(np.tile(values, (_SHUFFLES, 1)), axis=1)
