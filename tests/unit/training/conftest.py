"""A tiny model with untrained adapters, and an encoded dataset for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lorasmith.adapters.targets import resolve
from lorasmith.adapters.trainable import Trainable
from lorasmith.config.run import LoraSettings, TrainSettings
from lorasmith.data.rows import Row
from lorasmith.models.load import Model, load_model
from lorasmith.models.noise import NoiseProcess
from lorasmith.training.dataset import Dataset
from lorasmith.training.loop import injected


@dataclass
class Bench:
    """What a training step needs."""

    model: Model
    attached: Trainable
    process: NoiseProcess
    data: Dataset

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for one in self.attached.adapters.values() for p in one.parameters()]


@pytest.fixture
def bench(tiny_model: Path) -> Iterator[Bench]:
    model = load_model(tiny_model).to(torch.device("cpu"), torch.float32)
    process = NoiseProcess.from_scheduler(model.scheduler_config, torch.device("cpu"))
    rows = [Row(f"{n}.png", (f"picture {n}",), {}, Path("none")) for n in range(5)]
    draws = torch.Generator().manual_seed(0)
    data = Dataset(
        rows,
        torch.randn(5, 4, 8, 8, generator=draws),
        torch.rand(5, 4, 8, 8, generator=draws) * 0.1,
        torch.randn(3, 77, 16, generator=draws),
        torch.tensor([0, 1, 2, 1, 0]),
    )
    lora = LoraSettings(rank=2)
    targets = resolve(model, lora, TrainSettings(learning_rate=2e-3))
    with injected(targets, lora, seed=0) as attached:
        yield Bench(model, attached, process, data)
