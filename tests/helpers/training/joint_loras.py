"""Two LoRAs that are trained jointly on a tiny model."""

import torch

from lorasmith.adapters.injection.trainable import TrainableLora, inject_trainable
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.train_config import LoraConfig, LossConfig, TrainerConfig
from lorasmith.core.device import make_generator
from lorasmith.models.model import Model
from lorasmith.models.text.encode import tokenize_texts
from lorasmith.training.data.batch import Batch
from lorasmith.training.losses import Noise, build_noise_process
from lorasmith.training.step.denoiser import Denoiser
from lorasmith.training.step.gating import GateRouting
from lorasmith.training.step.train_step import DiffusionLoss, LossInput, backward, compute_losses

RATES = TrainerConfig(learning_rate=1e-3, text_encoder_lr=1e-3)
TARGETS = ("all-linear+conv+text-encoder", "cross-attention")


class JointLoras:
    """Two LoRAs in one model, in float64, with adapters that change the output."""

    def __init__(self, model: Model) -> None:
        self.model = model.to(torch.device("cpu"), torch.float64)
        configs = [LoraConfig(rank=2, targets=targets) for targets in TARGETS]
        targets = [resolve_targets(model, lora, RATES) for lora in configs]
        self.loras = [
            inject_trainable(target, lora, seed)
            for seed, (target, lora) in enumerate(zip(targets, configs, strict=True))
        ]
        for index, lora in enumerate(self.loras):
            for adapter in lora.adapters.values():
                adapter.double()
                generator = make_generator(4, index)
                adapter.up.data = 0.2 * torch.randn(
                    adapter.up.shape, generator=generator, dtype=torch.float64
                )
        gates = [lora.attached.gate for lora in self.loras]
        self.routings = [
            GateRouting(gates[0], joint=gates[1:]),
            GateRouting(gates[1], joint=gates[:1]),
        ]

    def loss_input(
        self, index: int, size: int, seed: int = 0, routing: GateRouting | None = None
    ) -> LossInput:
        generator = make_generator(9, index, seed)
        process = build_noise_process(
            self.model.scheduler_config, LossConfig(), torch.device("cpu")
        )
        batch = Batch(
            latents=torch.randn(size, 4, 8, 8, generator=generator, dtype=torch.float64),
            loss_weights=torch.ones(size),
            indices=torch.arange(size),
            input_ids=tokenize_texts(
                self.model, [f"picture {seed + k} of {index}" for k in range(size)]
            ).ids,
        )
        noise = Noise(
            torch.randint(1000, (size,), generator=generator),
            torch.randn(size, 4, 8, 8, generator=generator, dtype=torch.float64),
        )
        loss = DiffusionLoss(
            Denoiser(self.model), process, LossConfig(), routing or self.routings[index]
        )
        return LossInput(loss, batch, noise)

    def gradients(self, *inputs: LossInput) -> list[torch.Tensor]:
        """Return each LoRA's gradient of the sum of the mean losses."""
        for lora in self.loras:
            for parameter in lora.parameters():
                parameter.grad = None
        backward(torch.stack([losses.mean() for losses in compute_losses(inputs)]).sum())
        return [flat_gradient(lora) for lora in self.loras]


def flat_gradient(lora: TrainableLora) -> torch.Tensor:
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in lora.parameters()
        ]
    )
