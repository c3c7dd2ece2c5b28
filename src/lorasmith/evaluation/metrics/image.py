"""PSNR and retrieval metrics."""

import torch


def psnr(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, float32 ``[B]``.

    10 log10(2^2 / MSE) for images ``[B, 3, H, W]`` in -1..1, over all their values.
    """
    error = (images.float() - references.float()).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(4.0 / error.clamp_min(1e-10))


def pooled_psnr(images: torch.Tensor, references: torch.Tensor) -> float:
    """Return the PSNR of the mean squared error over all images, in dB.

    Lower than the mean of single values, which is high for sets with some nearly blank images.
    """
    error = (images.float() - references.float()).square().mean()
    return float(10.0 * torch.log10(4.0 / error.clamp_min(1e-10)))


def retrieval_ranks(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Return how many candidates are nearer to query i than its own candidate i, int64 ``[N]``.

    Args:
        queries: unit-length embeddings, ``[N, D]``.
        candidates: unit-length embeddings, ``[M, D]`` with M >= N; the first N belong to the
            queries, the others are distractors. Equal candidates count as one.
    """
    similarity = queries @ candidates.T
    target = similarity.diagonal().unsqueeze(1)
    targets = candidates[: len(queries)].unsqueeze(1)
    same = (targets == candidates.unsqueeze(0)).all(dim=-1)
    return ((similarity > target) & ~same).sum(dim=1)


def top_k_accuracy(ranks: torch.Tensor, k: int) -> float:
    """Return the share of ranks below ``k``."""
    return float((ranks < k).float().mean())
