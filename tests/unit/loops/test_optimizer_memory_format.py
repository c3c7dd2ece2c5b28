"""Moments come back in the memory format of their parameters: fused optimizers insist on it."""

import pytest
import torch
from torch import nn

from lorasmith.loops.optimization.optimizer_state import (
    pack_optimizer_state,
    unpack_optimizer_state,
)
from lorasmith.pretraining.optimizer import adamw


def take_steps(device: str) -> tuple[nn.Conv2d, torch.optim.AdamW]:
    conv = nn.Conv2d(4, 8, 3).to(device, memory_format=torch.channels_last)
    optimizer = adamw([conv], 0.1, 0.0)
    step(conv, optimizer)
    return conv, optimizer


def step(conv: nn.Conv2d, optimizer: torch.optim.AdamW) -> None:
    optimizer.zero_grad()
    conv(torch.ones(1, 4, 8, 8, device=conv.weight.device)).square().mean().backward()
    optimizer.step()


def restored(device: str) -> tuple[nn.Conv2d, torch.optim.AdamW]:
    conv, optimizer = take_steps(device)
    tensors, plain = pack_optimizer_state(optimizer)
    rows = {name: value.cpu().contiguous() for name, value in tensors.items()}  # as files do
    unpack_optimizer_state(optimizer, rows, plain)
    return conv, optimizer


def test_restored_moments_have_the_parameters_strides() -> None:
    conv, optimizer = restored("cpu")
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[conv.weight][name]
        assert moment.stride() == conv.weight.stride()
        assert not moment.is_contiguous()


@pytest.mark.gpu
def test_fused_optimizer_continues_after_a_resume() -> None:
    step(*restored("cuda"))
