"""The mathematics of a run's curves: smoothing, and telling a movement from noise.

The loss of one diffusion step says next to nothing: it differs tenfold with the noise level that
was drawn. What is claimed here about a curve is therefore tested against its own noise, by
shuffling it or drawing it again (with a fixed seed, so that a report repeats itself). Losses are
compared as logarithms: their noise is a factor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SHUFFLES = 500
_MOST_POINTS = 200
"""Curves are averaged down to so many points before they are tested or drawn."""
_BANDWIDTH = 0.05
"""Width of the smoothing kernel as a share of the curve."""


@dataclass(frozen=True)
class Curve:
    """Values over steps, float64 ``[N]`` each, steps rising."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: float) -> "Curve":
        """Return the part behind a step."""
        later = self.steps > step
        return Curve(self.steps[later], self.values[later])


def extract_curve(records: Iterable[Mapping[str, float]], key: str) -> Curve:
    """Return what the lines of a log have under a key; values that are not finite are left out."""
    pairs = [(float(r["step"]), float(r[key])) for r in records if r.get(key) is not None]
    finite = sorted(pair for pair in pairs if np.isfinite(pair[1]))
    table = np.array(finite, dtype=np.float64).reshape(-1, 2)
    return Curve(table[:, 0], table[:, 1])


def downsample(curve: Curve, max_points: int = _MOST_POINTS) -> Curve:
    """Average neighbouring points so that at most ``most`` are left."""
    if len(curve) <= max_points:
        return curve
    parts = np.array_split(np.arange(len(curve)), max_points)
    steps = np.array([curve.steps[part].mean() for part in parts])
    return Curve(steps, np.array([curve.values[part].mean() for part in parts]))


def smooth(curve: Curve, bandwidth: float = _BANDWIDTH) -> Curve:
    """Return the curve's local linear fit under a Gaussian kernel, at the same steps.

    Local lines, unlike local means, do not flatten the steep start of a loss curve.

    Args:
        curve: at most a few hundred points (the fit is quadratic in them).
        bandwidth: the kernel's standard deviation as a share of the curve's length, at least one
            and a half points.
    """
    return Curve(curve.steps, _smoother(len(curve), bandwidth) @ curve.values)


def _smoother(count: int, bandwidth: float) -> Floats:
    """Return the matrix ``[N, N]`` of the local linear fit (Fan and Gijbels 1996, eq. 2.4)."""
    if count < 3:
        return np.eye(count)
    place = np.arange(count, dtype=np.float64)
    away = place[None, :] - place[:, None]
    kernel = np.exp(-0.5 * (away / max(1.5, bandwidth * count)) ** 2)
    first = (kernel * away).sum(axis=1, keepdims=True)
    second = (kernel * away**2).sum(axis=1, keepdims=True)
    weights = kernel * (second - away * first)
    smoother: Floats = weights / weights.sum(axis=1, keepdims=True)
    return smoother


@dataclass(frozen=True)
class Trend:
    """A movement of a loss curve, and whether its noise explains it."""

    share: float
    """How much, as a share of the level it started from; 0.2 is 20%."""
    p_value: float
    """How often noise alone looks like that."""

    def is_significant(self, limit: float) -> bool:
        """Tell whether noise alone hardly does it."""
        return self.p_value < limit


def measure_fall(losses: Curve) -> Trend:
    """Measure how far a loss has fallen: the most telling split into an earlier and a later part.

    The statistic is the largest standardised difference of the two means over all splits (a CUSUM
    test), so that a fall within the first lines counts as much as a slow one.
    """
    logs = _logs(losses)
    share_shuffled = _split_statistic(_shuffled(logs))
    statistics, drops = _split_statistic(logs[None, :])
    chance = float((share_shuffled[0] >= statistics[0]).mean())
    return Trend(1.0 - float(np.exp(-drops[0])), chance)


def _split_statistic(logs: Floats) -> tuple[Floats, Floats]:
    """Return each row's largest standardised fall and the fall itself, for logs ``[K, N]``."""
    count = logs.shape[1]
    before = np.arange(1, count, dtype=np.float64)
    sums = np.cumsum(logs, axis=1)
    drops = sums[:, :-1] / before - (sums[:, -1:] - sums[:, :-1]) / (count - before)
    scaled = drops / np.sqrt(1.0 / before + 1.0 / (count - before))
    best = scaled.argmax(axis=1)
    rows = np.arange(len(logs))
    return scaled[rows, best], drops[rows, best]


def measure_rise(losses: Curve) -> Trend:
    """Measure the largest climb of the smoothed loss from any earlier low.

    A loss that falls, however noisily, has none that noise does not explain; one that swings in
    waves or runs away has. It is compared with curves that never rise (isotonic regression) under
    normal noise of the same strength from line to line.
    """
    logs = _logs(losses)
    smoother = _smoother(len(logs), _BANDWIDTH)
    draws = np.random.default_rng(0).standard_normal((_SHUFFLES, len(logs)))
    imagined = isotonic_decreasing(logs) + estimate_noise(losses) * draws
    climbs = _largest_climb(imagined @ smoother.T)
    climb = float(_largest_climb((smoother @ logs)[None, :])[0])
    return Trend(float(np.exp(climb)) - 1.0, float((climbs >= climb).mean()))


def _largest_climb(logs: Floats) -> Floats:
    lows = np.minimum.accumulate(logs, axis=1)
    climbs: Floats = (logs - lows).max(axis=1)
    return climbs


def estimate_noise(losses: Curve) -> float:
    """Return the standard deviation of the logarithms from line to line; 0 for fewer than 3 lines.

    From first differences, whose variance is twice that of independent noise, by their median
    (Rice 1984, made robust): neither a slow movement nor a steep start counts as noise.
    """
    if len(losses) < 3:
        return 0.0
    return float(np.median(np.abs(np.diff(_logs(losses)))) / 0.6745 / np.sqrt(2.0))


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

    Their variance is 6 times that of independent noise; a straight line has none. Needs 6 values
    to say anything, and returns 0 for fewer.
    """
    if len(values) < 6:
        return 0.0
    return float(np.median(np.abs(np.diff(values, 2))) / 0.6745 / np.sqrt(6.0))


def _logs(losses: Curve) -> Floats:
    logs: Floats = np.log(np.maximum(losses.values, 1e-12))
    return logs


def _shuffled(values: Floats) -> Floats:
    """Return the values in many random orders, ``[K, N]``."""
    draws = np.random.default_rng(0)
    return draws.permuted(np.tile(values, (_SHUFFLES, 1)), axis=1)
