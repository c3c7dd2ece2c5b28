"""Networks with their optimizers, and a loss scaler that they share."""

import torch
from torch import nn

from lorasmith.loops.optimization.optimized_module import OptimizedModule
from lorasmith.pretraining.optimizer import adamw


def test_two_networks_share_a_loss_scaler() -> None:
    def make(seed: int) -> OptimizedModule:
        torch.manual_seed(seed)
        module = nn.Linear(3, 1)
        return OptimizedModule(module, module, adamw([module], 0.1, 0.0), 0.1, None)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled, plain = [make(0), make(1)], [make(0), make(1)]
    for step in range(3):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for with_scaler, without in zip(scaled, plain, strict=True):
            scaler.scale(with_scaler.module(inputs).square().mean()).backward()
            without.module(inputs).square().mean().backward()
        norms = [(with_scaler.clip_and_step(0.5, scaler), without.clip_and_step(0.5, None))
                 for with_scaler, without in zip(scaled, plain, strict=True)]  # fmt: skip
        scaler.update()
        for scaled_norm, norm in norms:
            torch.testing.assert_close(scaled_norm, norm)
    for with_scaler, without in zip(scaled, plain, strict=True):
        torch.testing.assert_close(with_scaler.module.weight, without.module.weight)
