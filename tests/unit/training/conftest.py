"""Tiny models with adapters, and batches for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import open_model
from helpers.training.joint_loras import JointLoras
from lorasmith.adapters.injection.trainable import TrainableLora, inject_trainable
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.train_config import LoraConfig, LossConfig, TrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.models.load import load_model
from lorasmith.models.model import Model
from lorasmith.training.data.batch import Batch
from lorasmith.training.losses import Noise, build_noise_process, sample_noise
from lorasmith.training.step.denoiser import Denoiser
from lorasmith.training.step.train_step import DiffusionLoss


@dataclass
class TrainingFixture:
    """A tiny model with adapters, and batches for its training steps."""

    model: Model
    trainable: TrainableLora

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.trainable.parameters()

    def objective(self, prediction: str = "epsilon", **loss: Any) -> DiffusionLoss:
        settings = LossConfig(**{"min_snr_gamma": 0.0, **loss})
        config = {**self.model.scheduler_config, "prediction_type": prediction}
        process = build_noise_process(config, settings, torch.device("cpu"))
        return DiffusionLoss(Denoiser(self.model), process, settings)

    def batch(self, size: int = 2, seed: int = 0, mask: bool = False, **more: Any) -> Batch:
        generator = make_generator(7, seed)
        return Batch(
            latents=torch.randn(size, 4, 8, 8, generator=generator),
            loss_weights=torch.ones(size),
            indices=torch.arange(size),
            context=torch.randn(size, 77, 16, generator=generator),
            loss_mask=torch.rand(size, 1, 8, 8, generator=generator) if mask else None,
            **more,
        )

    def part(self, objective: DiffusionLoss, size: int = 2, seed: int = 0) -> tuple[Batch, Noise]:
        batch = self.batch(size, seed)
        rng = BatchRng(make_generator(8, seed), size)
        return batch, sample_noise(objective.process, objective.settings, batch, rng)


@pytest.fixture
def tiny_training(tiny_model: Path) -> Iterator[TrainingFixture]:
    model = open_model(tiny_model)
    lora = LoraConfig(rank=2)
    targets = resolve_targets(model, lora, TrainerConfig(learning_rate=2e-3, text_encoder_lr=1e-3))
    trainable = inject_trainable(targets, lora, seed=0)
    yield TrainingFixture(model, trainable)
    trainable.detach()


@pytest.fixture
def joint_loras(tiny_model: Path) -> Iterator[JointLoras]:
    loras = JointLoras(load_model(tiny_model))
    yield loras
    for lora in loras.loras:
        lora.detach()
