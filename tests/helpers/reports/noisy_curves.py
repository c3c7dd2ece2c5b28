"""Loss curves as diffusion training writes them: a trend under the noise of single steps."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lorasmith.reports.curves import Curve

LossTrend = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""The true loss over steps, in units of the base model's."""


def losses(
    trend: LossTrend,
    seed: int,
    steps: int = 250,
    batch: int = 8,
    line: int = 10,
    level: float = 0.1,
) -> Curve:
    """A log of training losses: means over the steps of each line.

    An image's loss depends on its noise level, tenfold from the middle levels to the noisiest and
    more to the cleanest, and on the image: measured on the embedded model, samples vary by 1.3
    times their mean, and so do these.
    """
    rng = np.random.default_rng(seed)
    levels = rng.uniform(0, 1, (steps, batch))
    by_level = 0.25 * np.exp(-7.0 * levels) + 0.02
    by_image = rng.lognormal(-0.18, 0.6, (steps, batch))
    samples = by_level * by_image / 0.0557
    single = level * trend(np.arange(steps) / steps) * samples.mean(axis=1)
    count = steps // line
    means = single[: count * line].reshape(count, line).mean(axis=1)
    return Curve(np.arange(1, count + 1) * float(line), means)


def learning(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fast to 55%, then slowly lower: a style that is learned."""
    return 0.45 + 0.1 * (1 - x) + 0.45 * np.exp(-x * 25)


def level(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Constant: nothing is learned."""
    return np.ones_like(x)


def oscillating(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Falls and rises in waves."""
    return 0.6 * np.exp(0.55 * np.sin(x * 2 * np.pi * 3))


def diverging(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Falls a little, then rises more and more."""
    return 0.7 + 1.8 * x**2


def jumping(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up and down from line to line."""
    return np.where((x * 25).astype(int) % 2 == 0, 0.45, 1.6)
