"""How well a tag works as a switch: plain functions on embeddings, latents and predictions.

Everything is computed in float64. `docs/evaluation.md` has each formula in words.
"""

from collections.abc import Sequence
from typing import Literal

import torch

Space = Literal["prediction", "latent", "image"]
"""Where two pictures, or two predictions, are compared."""


def fidelity(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Return how like drawn pictures are to the real ones nearest to them.

    F = 1 / N sum_i max_j <f(x_i), f(r_j)>. The mean over all pairs would not do: pictures of a
    feature in several styles are hardly alike, and a set that is always the same scores best.

    Args:
        drawn: unit-length embeddings, ``[N, D]``.
        real: likewise of the feature's pictures, ``[M, D]``.
    """
    return float((drawn.double() @ real.double().T).max(dim=1).values.mean())


def ceiling(real: torch.Tensor) -> float:
    """Return how like real pictures ``[M, D]`` are to the nearest other one, M at least 2."""
    similar = real.double() @ real.double().T
    similar.fill_diagonal_(-1.0)
    return float(similar.max(dim=1).values.mean())


def gain(value: float, base: float, best: float) -> float | None:
    """Return the way from the base to the ceiling that was gone, (F - F_0) / (C - F_0).

    None where the base is at the ceiling already.
    """
    return (value - base) / (best - base) if best > base else None


def changes(ours: torch.Tensor, base: torch.Tensor, space: Space) -> torch.Tensor:
    """Return how far each of ours is from the base's, float64 ``[N]``.

    Latents and predictions: ||a - b||^2 / ||b||^2 over everything but the first dimension.
    Embeddings of pictures (unit length): 1 - <a, b>, the cosine distance.
    """
    a, b = ours.double().flatten(1), base.double().flatten(1)
    if space == "image":
        # Half the squared distance of unit vectors: exactly 0 for equal ones, unlike 1 - <a, b>.
        return (a - b).square().sum(dim=1) / 2
    return (a - b).square().sum(dim=1) / b.square().sum(dim=1)


def leak_ratio(absent: torch.Tensor, present: torch.Tensor) -> float | None:
    """Return d(tag absent) / d(tag present), the means of `changes`; None where nothing changes."""
    whole = float(present.double().mean())
    return float(absent.double().mean()) / whole if whole > 0 else None


def bleeding(
    drawn: Sequence[torch.Tensor], base: Sequence[torch.Tensor], real: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return what each tag does to the likeness to each feature, float64 ``[K, K]``.

    M[i, j] = F(pictures with tag i, real pictures of j) - F(base's of the same prompts, same).

    Args:
        drawn: embeddings of pictures that were drawn with tag i, ``[N_i, D]``.
        base: the base model's, same prompts and seeds.
        real: embeddings of the real pictures of feature j, ``[M_j, D]``.
    """
    rows = [
        [fidelity(own, other) - fidelity(plain, other) for other in real]
        for own, plain in zip(drawn, base, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def bleeding_share(matrix: torch.Tensor) -> float | None:
    """Return the largest |M[i, j]| / M[j, j] of i != j: what a tag brings of another's feature.

    None where a feature's own tag does not bring it, or for a single tag.
    """
    own = matrix.diagonal()
    if len(matrix) < 2 or not bool((own > 0).all()):
        return None
    shares = matrix.abs() / own
    shares.fill_diagonal_(0.0)
    return float(shares.max())


def forgetting(before: float, after: float, base: float) -> float | None:
    """Return the share of a tag's fidelity gain that is lost.

    (F_before - F_after) / (F_before - F_0). None where there was no gain to lose. Negative where
    the tag works better than before.
    """
    return (before - after) / (before - base) if before > base else None


def interaction(
    both: torch.Tensor, first: torch.Tensor, second: torch.Tensor, base: torch.Tensor
) -> float | None:
    """Return how far two LoRAs together are from the sum of their effects.

    || D_AB - D_A - D_B || / || D_AB ||, D the difference from the base, norms over everything.

    Args:
        both: predictions or latents with both at work, ``[N, ...]``.
        first: with the first alone, same prompts, seeds and noise.
        second: with the second alone.
        base: with neither.

    Returns:
        0 where they add up; None where both together change nothing.
    """
    plain = base.double()
    together = both.double() - plain
    rest = together - (first.double() - plain) - (second.double() - plain)
    whole = float(together.norm())
    return float(rest.norm()) / whole if whole > 0 else None


def text_alignment(pictures: torch.Tensor, texts: torch.Tensor) -> float:
    """Return the CLIP score (arXiv:2104.08718), 100 max(cos, 0), mean over pairs.

    Args:
        pictures: unit-length embeddings, ``[N, D]``.
        texts: of each picture's own text, ``[N, D]``.
    """
    cosines = (pictures.double() * texts.double()).sum(dim=1)
    return 100.0 * float(cosines.clamp(min=0.0).mean())
