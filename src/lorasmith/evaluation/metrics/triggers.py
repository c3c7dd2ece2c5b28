"""How well trigger words work: functions of embeddings, latents and predictions.

Everything is computed in float64. `docs/evaluation.md` explains each formula.
"""

from collections.abc import Sequence
from typing import Literal

import torch

Space = Literal["prediction", "latent", "image"]
"""In which two images, or two predictions, are compared."""


def fidelity(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Return the mean similarity of generated images to the nearest real ones.

    F = 1 / N sum_i max_j <f(x_i), f(r_j)>. The mean over all pairs would not do: images of a
    concept in several styles are hardly similar, and a set of equal images would score best.

    Args:
        generated: unit-length embeddings, ``[N, D]``.
        real: of the concept's images, ``[M, D]``.
    """
    return float((generated.double() @ real.double().T).max(dim=1).values.mean())


def ceiling(real: torch.Tensor) -> float:
    """Return the mean similarity of real images ``[M, D]`` to the nearest other, M at least 2."""
    similar = real.double() @ real.double().T
    similar.fill_diagonal_(-1.0)
    return float(similar.max(dim=1).values.mean())


def gain(value: float, base: float, best: float) -> float | None:
    """Return the share of the way from base to ceiling, (F - F_0) / (C - F_0).

    None if the base is at the ceiling already.
    """
    return (value - base) / (best - base) if best > base else None


def changes(lora: torch.Tensor, base: torch.Tensor, space: Space) -> torch.Tensor:
    """Return how far each of the LoRA's is from the base model's, float64 ``[N]``.

    Latents and predictions: ||a - b||^2 / ||b||^2 over everything but the first dimension.
    Embeddings of images (unit length): 1 - <a, b>, the cosine distance.
    """
    a, b = lora.double().flatten(1), base.double().flatten(1)
    if space == "image":
        # Half the squared distance of unit vectors is exactly 0 for equal ones, unlike 1 - <a, b>.
        return (a - b).square().sum(dim=1) / 2
    return (a - b).square().sum(dim=1) / b.square().sum(dim=1)


def leak_ratio(absent: torch.Tensor, present: torch.Tensor) -> float | None:
    """Return d(tag absent) / d(tag present), the means of `changes`; None if nothing changes."""
    mean_present = float(present.double().mean())
    return float(absent.double().mean()) / mean_present if mean_present > 0 else None


def bleeding(
    generated: Sequence[torch.Tensor], base: Sequence[torch.Tensor], real: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return what each tag does to the similarity to each concept, float64 ``[K, K]``.

    M[i, j] = F(images with tag i, real images of j) - F(base model's of the same prompts, same).

    Args:
        generated: embeddings of images generated with tag i, ``[N_i, D]``.
        base: of the base model, with the same prompts and seeds.
        real: embeddings of the real images of concept j, ``[M_j, D]``.
    """
    rows = [
        [
            fidelity(lora_images, real_images) - fidelity(base_images, real_images)
            for real_images in real
        ]
        for lora_images, base_images in zip(generated, base, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def bleeding_share(matrix: torch.Tensor) -> float | None:
    """Return the largest |M[i, j]| / M[j, j] of i != j: what a tag brings of another's concept.

    None if a concept's own tag does not bring it, or for a single tag.
    """
    diagonal = matrix.diagonal()
    if len(matrix) < 2 or not bool((diagonal > 0).all()):
        return None
    shares = matrix.abs() / diagonal
    shares.fill_diagonal_(0.0)
    return float(shares.max())


def forgetting(before: float, after: float, base: float) -> float | None:
    """Return the share of a tag's fidelity gain that is lost.

    (F_before - F_after) / (F_before - F_0). None if there was no gain to lose. Negative if
    the tag works better than before.
    """
    return (before - after) / (before - base) if before > base else None


def interaction(
    both: torch.Tensor, first: torch.Tensor, second: torch.Tensor, base: torch.Tensor
) -> float | None:
    """Return how far two LoRAs together are from the sum of their effects.

    || D_AB - D_A - D_B || / || D_AB ||, D the difference from the base, norms over everything.

    Args:
        both: predictions or latents with both attached, ``[N, ...]``.
        first: with the first alone, same prompts, seeds and noise.
        second: with the second alone.
        base: with neither.

    Returns:
        0 if they add up; None if both together change nothing.
    """
    base = base.double()
    joint = both.double() - base
    residual = joint - (first.double() - base) - (second.double() - base)
    norm = float(joint.norm())
    return float(residual.norm()) / norm if norm > 0 else None


def text_alignment(images: torch.Tensor, texts: torch.Tensor) -> float:
    """Return the CLIP score (arXiv:2104.08718), 100 max(cos, 0), mean over pairs.

    Args:
        images: unit-length embeddings, ``[N, D]``.
        texts: of each image's own text, ``[N, D]``.
    """
    cosines = (images.double() * texts.double()).sum(dim=1)
    return 100.0 * float(cosines.clamp(min=0.0).mean())
