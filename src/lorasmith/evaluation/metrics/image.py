"""Plain measures on tensors. Each states its formula."""

import torch


def psnr(pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each picture in dB, float32 ``[B]``.

    10 log10(2^2 / MSE) for pictures ``[B, 3, H, W]`` in -1..1, over all their values.
    """
    error = (pictures.float() - others.float()).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(4.0 / error.clamp_min(1e-10))


def pooled_psnr(pictures: torch.Tensor, others: torch.Tensor) -> float:
    """Return the PSNR of the whole set's mean squared error, in dB.

    Lower than the mean of single values, which flatters sets with some nearly blank pictures.
    """
    error = (pictures.float() - others.float()).square().mean()
    return float(10.0 * torch.log10(4.0 / error.clamp_min(1e-10)))


def retrieval_ranks(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Return how many candidates are nearer to query i than its own candidate i, int64 ``[N]``.

    Args:
        queries: unit-length embeddings, ``[N, D]``.
        candidates: unit-length embeddings, ``[M, D]`` with M >= N; the first N belong to the
            queries, further ones are distractors. Equal candidates count as one.
    """
    similarity = queries @ candidates.T
    own = similarity.diagonal().unsqueeze(1)
    mine = candidates[: len(queries)].unsqueeze(1)
    same = (mine == candidates.unsqueeze(0)).all(dim=-1)
    return ((similarity > own) & ~same).sum(dim=1)


def top_k_accuracy(rank: torch.Tensor, k: int) -> float:
    """Return the share of ranks below ``k``."""
    return float((rank < k).float().mean())
