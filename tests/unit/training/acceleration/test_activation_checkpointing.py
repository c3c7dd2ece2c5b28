"""Activation checkpointing: which blocks, how many, and the same gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.training.datasets import write
from lorasmith.config.optimization import parse_memory_size
from lorasmith.config.train_config import TrainConfig, TrainerConfig
from lorasmith.core.errors import ConfigError
from lorasmith.models.load import load_model
from lorasmith.training.acceleration.activation_checkpointing import (
    ActivationCheckpointer,
    bisect_min,
    measure_saved_bytes,
)
from lorasmith.training.run_step import JointTrainStep
from lorasmith.training.setup.setup import open_trainer


@given(st.integers(0, 200), st.integers(0, 201))
def test_bisect_min_finds_the_fewest_that_fit_with_few_tries(count: int, needed: int) -> None:
    tried: list[int] = []

    def fits(candidate: int) -> bool:
        tried.append(candidate)
        return candidate >= needed

    assert bisect_min(count, fits) == (needed if needed <= count else None)
    assert len(tried) <= 2 + count.bit_length()


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("12GB", 12 * 2**30), ("0.5 GiB", 2**29), ("800MB", 800 * 2**20), ("24g", 24 * 2**30)],
)
def test_memory_limits_are_parsed(text: str, bytes_: int) -> None:
    assert parse_memory_size(text) == bytes_
    assert TrainerConfig(vram_limit=text).vram_limit == text


@pytest.mark.parametrize("text", ["much", "12", "-1GB", "0GB", "12TB"])
def test_invalid_memory_limits_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="12GB"):
        TrainerConfig(vram_limit=text)


def predict(unet: Any, x: torch.Tensor) -> torch.Tensor:
    steps = torch.tensor([500] * len(x))
    context = torch.ones(len(x), 7, unet.config.cross_attention_dim)
    return unet(x, steps, context, return_dict=False)[0]


def test_checkpointed_blocks_give_the_same_gradients_and_save_less(tiny_model: Path) -> None:
    unet = load_model(tiny_model).unet
    unet.requires_grad_(True)
    x = torch.randn(2, 4, 8, 8)
    checkpointer = ActivationCheckpointer(unet)
    grads, saved = {}, {}
    for count in (0, 3, len(checkpointer.blocks)):
        checkpointer.select(checkpointer.blocks[:count])
        assert len(checkpointer) == count
        unet.zero_grad()
        saved_bytes = 0

        def count_bytes(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved_bytes
            saved_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            loss = predict(unet, x).square().sum()
        loss.backward()
        grads[count] = torch.cat([weight.grad.flatten() for weight in unet.parameters()])
        saved[count] = saved_bytes
    first, *others = grads.values()
    for other in others:
        torch.testing.assert_close(other, first)
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    assert saved[len(checkpointer.blocks)] < saved[0] / 2


def test_blocks_are_sorted_by_saved_bytes(tiny_model: Path) -> None:
    unet = load_model(tiny_model).unet
    checkpointer = ActivationCheckpointer(unet)
    unet.requires_grad_(True)
    checkpointer.select_all()  # must not hide what the blocks save
    order = checkpointer.sort_by_saved_bytes(lambda: predict(unet, torch.randn(1, 4, 16, 16)))
    assert len(checkpointer) == 0
    assert sorted(map(id, order)) == sorted(map(id, checkpointer.blocks))
    names = {id(module): name for name, module in unet.named_modules()}
    # The first level has four times the positions of the second and as many channels.
    assert names[id(order[0])].startswith(("up_blocks.3", "down_blocks.0"))
    assert "mid_block" in names[id(order[-1])] or "down_blocks.3" in names[id(order[-1])]


def test_backward_pass_ends_the_measurement(tiny_model: Path) -> None:
    unet = load_model(tiny_model).unet
    unet.requires_grad_(True)
    blocks = ActivationCheckpointer(unet).blocks
    reached = []

    def step(train: bool) -> None:
        loss = predict(unet, torch.randn(1, 4, 8, 8)).square().sum()
        if train:
            loss.backward()
            reached.append("the optimizer")

    torch.manual_seed(0)
    forward_only = measure_saved_bytes(blocks, lambda: step(False))
    assert measure_saved_bytes(blocks, lambda: step(True)) == forward_only
    assert min(forward_only.values()) > 0
    assert not reached


def test_other_errors_in_the_measured_step_are_raised(tiny_model: Path) -> None:
    def step() -> None:
        raise RuntimeError("something else")

    blocks = ActivationCheckpointer(load_model(tiny_model).unet).blocks
    with pytest.raises(RuntimeError, match="something else"):
        measure_saved_bytes(blocks, step)


def test_run_with_gradient_checkpointing_trains_the_same_weights(
    tiny_model: Path, tmp_path: Path
) -> None:
    def weights(checkpointing: bool) -> torch.Tensor:
        settings = {
            "data": {"path": data, "tag": "ink", "validation_split": 0.0},
            "output": {"name": str(tmp_path / f"out-{checkpointing}" / "lora")},
            "model": {"path": tiny_model},
            "train": {"batch_size": 2, "gradient_checkpointing": checkpointing, "device": "cpu"},
            "validation": {"every_n_steps": 0},
            "track": {"tensorboard": False},
        }
        with open_trainer(TrainConfig.model_validate(settings), None) as session:
            steps = JointTrainStep([session])
            for _ in range(3):
                steps.step()
            return torch.cat(
                [weight.detach().flatten() for weight in session.trainable.parameters()]
            )

    data = write(tmp_path / "p", [(64, 64)] * 4)
    torch.testing.assert_close(weights(True), weights(False), atol=1e-6, rtol=1e-4)
