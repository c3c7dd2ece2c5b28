"""Blocks that compute their activations twice: which, how many, and the same gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from training_sets import write

from lorasmith.config.train_config import TrainConfig, TrainerConfig
from lorasmith.config.train_settings import parse_memory_size
from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.load import load_model
from lorasmith.training.acceleration.activation_checkpointing import (
    ActivationCheckpointer,
    bisect_min,
)
from lorasmith.training.acceleration.plan import ExecutionPlan
from lorasmith.training.joint_step import JointTrainStep
from lorasmith.training.setup import open_trainer


@given(st.integers(0, 200), st.integers(0, 201))
def test_the_fewest_that_fit_are_found_with_few_tries(count: int, needed: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number >= needed

    assert bisect_min(count, fits) == (needed if needed <= count else None)
    assert len(tried) <= 2 + count.bit_length()


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("12GB", 12 * 2**30), ("0.5 GiB", 2**29), ("800MB", 800 * 2**20), ("24g", 24 * 2**30)],
)
def test_amounts_of_memory(text: str, bytes_: int) -> None:
    assert parse_memory_size(text) == bytes_
    assert TrainerConfig(vram_limit=text).vram_limit == text


@pytest.mark.parametrize("text", ["much", "12", "-1GB", "0GB", "12TB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ValidationError, match="12GB"):
        TrainerConfig(vram_limit=text)


def predict(unet: Any, x: torch.Tensor) -> torch.Tensor:
    steps = torch.tensor([500] * len(x))
    context = torch.ones(len(x), 7, unet.config.cross_attention_dim)
    return unet(x, steps, context, return_dict=False)[0]


def test_recomputed_blocks_give_the_same_gradients_and_keep_less(tiny_model: Path) -> None:
    unet = load_model(tiny_model).unet
    unet.requires_grad_(True)
    x = torch.randn(2, 4, 8, 8)
    recomputing = ActivationCheckpointer(unet)
    found, kept = {}, {}
    for count in (0, 3, len(recomputing.blocks)):
        recomputing.select(recomputing.blocks[:count])
        assert len(recomputing) == count
        unet.zero_grad()
        held = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = predict(unet, x).square().sum()
        loss.backward()
        found[count] = torch.cat([one.grad.flatten() for one in unet.parameters()])
        kept[count] = held
    first, *others = found.values()
    for other in others:
        torch.testing.assert_close(other, first)
    assert list(kept.values()) == sorted(kept.values(), reverse=True)
    assert kept[len(recomputing.blocks)] < kept[0] / 2


def test_blocks_are_ordered_by_what_they_keep(tiny_model: Path) -> None:
    unet = load_model(tiny_model).unet
    recomputing = ActivationCheckpointer(unet)
    unet.requires_grad_(True)
    recomputing.select_all()  # what those keep that compute again is not seen
    order = recomputing.sort_by_saved_bytes(lambda: predict(unet, torch.randn(1, 4, 16, 16)))
    assert len(recomputing) == 0
    assert sorted(map(id, order)) == sorted(map(id, recomputing.blocks))
    names = {id(one): name for name, one in unet.named_modules()}
    # The first level has four times the latents of the second and as many channels.
    assert names[id(order[0])].startswith(("up_blocks.3", "down_blocks.0"))
    assert "mid_block" in names[id(order[-1])] or "down_blocks.3" in names[id(order[-1])]


def test_a_run_that_computes_twice_learns_the_same(tiny_model: Path, tmp_path: Path) -> None:
    def weights(twice: bool) -> torch.Tensor:
        settings = {
            "data": {"path": data, "tag": "ink", "validation_split": 0.0},
            "output": {"name": str(tmp_path / f"out-{twice}" / "lora")},
            "model": {"path": tiny_model},
            "train": {"batch_size": 2, "gradient_checkpointing": twice, "device": "cpu"},
            "validation": {"every_n_steps": 0},
            "track": {"tensorboard": False},
        }
        with open_trainer(TrainConfig.model_validate(settings), None) as session:
            steps = JointTrainStep([session])
            for _ in range(3):
                steps.step()
            return torch.cat([one.detach().flatten() for one in session.trainable.parameters()])

    data = write(tmp_path / "p", [(64, 64)] * 4)
    torch.testing.assert_close(weights(True), weights(False), atol=1e-6, rtol=1e-4)


def test_a_cpu_neither_records_nor_compiles(tiny_model: Path, tmp_path: Path) -> None:
    from lorasmith.training.acceleration.plan import plan_execution

    settings = {
        "data": {
            "path": write(tmp_path / "p", [(64, 64)] * 2),
            "tag": "ink",
            "validation_split": 0.0,
        },
        "output": {"name": str(tmp_path / "out" / "lora")},
        "model": {"path": tiny_model},
        "train": {"compile": "on", "vram_limit": "12GB", "device": "cpu"},
        "track": {"tensorboard": False},
    }
    with open_trainer(TrainConfig.model_validate(settings), None) as session:
        with pytest.warns(LorasmithWarning, match="no effect on a CPU") as told:
            assert plan_execution([session]) == ExecutionPlan(False, False)
        assert [str(one.message).split()[0] for one in told] == [
            "train.vram_limit",
            "train.compile",
        ]
