"""How far a set of generated images is from a set of real ones: KID, CMMD and FID.

KID (arXiv:1801.01401) and CMMD (arXiv:2401.09603) are squared maximum mean discrepancies with an
unbiased estimator (Gretton et al. 2012, JMLR 13): they may be below zero, and do not depend on the
sizes of the sets on average. FID (arXiv:1706.08500) is biased, and only computed where
both sets are large.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MIN_IMAGES = 3
"""Images that the jackknife needs in each set."""
FID_MIN_IMAGES = 2000
"""FID is computed for sets of more images than this."""
_Z = 1.959963984540054
"""97.5th percentile of the normal distribution."""
_SIGMA, _SCALE = 10.0, 1000.0
"""CMMD's bandwidth and the factor that makes its values readable, as published."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% confidence interval."""

    value: float
    low: float
    high: float


def kid(real: torch.Tensor, generated: torch.Tensor) -> Estimate | None:
    """Return the kernel distance with k(x, y) = (<x, y> / D + 1)^3.

    Args:
        real: features, ``[M, D]``.
        generated: features, ``[N, D]``; M and N may differ.

    Returns:
        None where a set has fewer than ``MIN_IMAGES`` images.
    """

    def cubic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    return _estimate(real, generated, cubic)


def cmmd(real: torch.Tensor, generated: torch.Tensor) -> Estimate | None:
    """Return 1000 times the kernel distance with k(x, y) = exp(-|x - y|^2 / (2 * 10^2)).

    Args:
        real: unit-length embeddings, ``[M, D]``.
        generated: likewise, ``[N, D]``.

    Returns:
        None where a set has fewer than ``MIN_IMAGES`` images.
    """

    def gaussian(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squares = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2.0 * (a @ b.T)
        return torch.exp(-squares / (2.0 * _SIGMA**2))

    estimate = _estimate(real, generated, gaussian)
    if estimate is None:
        return None
    return Estimate(_SCALE * estimate.value, _SCALE * estimate.low, _SCALE * estimate.high)


def fid(real: torch.Tensor, generated: torch.Tensor) -> float | None:
    """Return the Frechet distance of two normal distributions, by torchmetrics.

    Args:
        real: features, ``[M, D]``.
        generated: features, ``[N, D]``.

    Returns:
        None unless both sets have more than ``FID_MIN_IMAGES`` images: below, its bias is larger
        than the differences of interest.
    """
    if min(len(real), len(generated)) <= FID_MIN_IMAGES:
        return None
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_GivenFeatures(real.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


class _GivenFeatures(torch.nn.Identity):
    """Takes the place of torchmetrics' Inception network, as the features are given."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size


def _estimate(real: torch.Tensor, generated: torch.Tensor, kernel: Kernel) -> Estimate | None:
    if min(len(real), len(generated)) < MIN_IMAGES:
        return None
    x, y = real.double(), generated.double()
    value, deviation = squared_mmd(kernel(x, x), kernel(y, y), kernel(x, y))
    return Estimate(value, value - _Z * deviation, value + _Z * deviation)


def squared_mmd(xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> tuple[float, float]:
    """Return the unbiased estimate of a squared MMD, and its standard deviation.

    The value is the mean of k(x, x') over pairs of different x, plus that of the y, less twice
    the mean of k(x, y) (Gretton et al. 2012, JMLR 13, lemma 6). The deviation is the jackknife's
    for two samples (Arvesen 1969, Ann. Math. Stat. 40): sqrt of the sum over both samples of
    (n - 1) / n sum_i (v_-i - mean)^2, v_-i the value without image i. The bootstrap would not
    do: copies of an image are identical and bias the value upwards.

    Args:
        xx: kernel among M, ``[M, M]``; M and N at least `MIN_IMAGES`.
        yy: kernel among N, ``[N, N]``.
        xy: kernel between them, ``[M, N]``.
    """
    inside_x, inside_y = _rows_off_diagonal(xx), _rows_off_diagonal(yy)
    m, n = xy.shape
    mean_x, mean_y = inside_x.sum() / (m * (m - 1)), inside_y.sum() / (n * (n - 1))
    between = xy.sum()
    value = mean_x + mean_y - 2.0 * between / (m * n)
    without_x = (
        (inside_x.sum() - 2.0 * inside_x) / ((m - 1) * (m - 2))
        + mean_y
        - 2.0 * (between - xy.sum(dim=1)) / ((m - 1) * n)
    )
    without_y = (
        (inside_y.sum() - 2.0 * inside_y) / ((n - 1) * (n - 2))
        + mean_x
        - 2.0 * (between - xy.sum(dim=0)) / (m * (n - 1))
    )
    return float(value), math.sqrt(_jackknife_variance(without_x) + _jackknife_variance(without_y))


def _rows_off_diagonal(kernel: torch.Tensor) -> torch.Tensor:
    return kernel.sum(dim=1) - kernel.diagonal()


def _jackknife_variance(without: torch.Tensor) -> float:
    count = len(without)
    return float((without - without.mean()).square().sum() * (count - 1) / count)
