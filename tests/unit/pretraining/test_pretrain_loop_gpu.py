"""On a GPU, captured pretraining steps train the same weights as eager ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasmith.config.pretrain import PretrainTrainerConfig
from lorasmith.pretraining.loop import Microbatch, PretrainLoop

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def restored_matmul_precision() -> Iterator[None]:
    """The loop allows TensorFloat-32 for the process; other tests compute in float32."""
    previous = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(previous)


def train(output_dir: Path, cuda_graph: bool) -> tuple[torch.Tensor, list[float]]:
    """Return the weights and the losses of a run whose second half is another variant."""
    settings = PretrainTrainerConfig(
        output_dir=output_dir, steps=12, batch_size=4, gradient_accumulation_steps=2,
        learning_rate=0.05, lr_warmup_steps=0, ema_decay=0.9, log_every_n_steps=1,
        tensorboard=False, cuda_graph=cuda_graph,
    )  # fmt: skip
    loop = PretrainLoop(settings, "test")
    torch.manual_seed(0)
    model = loop.add_module("model", nn.Linear(5, 2), ema=True)
    scale = 1.0

    def compute_gradients(microbatch: Microbatch) -> None:
        noise = microbatch.rng.normal(5) + microbatch.indices[:, None]
        loss = scale * (model(noise) - 1.0).square().mean()
        loop.backward(loss)
        loop.record_metrics(loss=loss)

    losses = []
    for step in loop.steps():
        scale = 1.0 if step < 6 else 0.5
        loop.train_step(step, torch.arange(8) + step, compute_gradients, variant=step < 6)
        losses.append(loop.metric("loss"))
    weights = [parameter.detach().flatten() for parameter in loop.module("model").parameters()]
    return torch.cat(weights), losses


def test_captured_steps_train_the_same_weights(tmp_path: Path) -> None:
    eager, eager_losses = train(tmp_path / "eager", cuda_graph=False)
    captured, captured_losses = train(tmp_path / "captured", cuda_graph=True)
    torch.testing.assert_close(captured, eager, atol=1e-5, rtol=1e-4)
    assert captured_losses == pytest.approx(eager_losses, rel=1e-3)
