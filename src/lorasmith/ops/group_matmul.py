"""Products of G matrices ``[n, k]`` and ``[k, m]``; a single pair has faster kernels."""

import torch


def split_groups(flat: torch.Tensor, groups: int) -> torch.Tensor:
    """Return rows ``[T, n]`` as ``[G, T / G, n]``."""
    return flat.view(groups, -1, flat.shape[-1])


def group_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product of each pair."""
    return (a[0] @ b[0]).unsqueeze(0) if len(a) == 1 else torch.bmm(a, b)


def add_group_matmul(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add the product of each pair to ``out``, in place."""
    if len(a) == 1:
        out[0].addmm_(a[0], b[0])
    else:
        out.baddbmm_(a, b)


def group_matmul_fp32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product of each pair in float32, never rounded to half precision."""
    if a.dtype not in (torch.float16, torch.bfloat16):
        return group_matmul(a, b)
    if not a.is_cuda:
        return group_matmul(a.float(), b.float())
    if len(a) == 1:
        return torch.mm(a[0], b[0], out_dtype=torch.float32).unsqueeze(0)
    return torch.bmm(a, b, out_dtype=torch.float32)
