"""Optimizers for the training loops."""

from collections.abc import Iterable

import torch
from torch import nn


def adamw(
    modules: Iterable[nn.Module],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and kernels but not biases, gains and scalars.

    The learning rate is a tensor on the parameters' device, so that changing it costs no
    recompilation or re-recording; on CUDA the fused kernel is used and can be recorded.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    device = parameters[0].device
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=torch.tensor(learning_rate, device=device),
        betas=betas,
        fused=device.type == "cuda",
        capturable=device.type == "cuda",
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set every group's learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
