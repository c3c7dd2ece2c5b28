"""Optimizers and learning rate schedules of other packages, through the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.training.train_commands import last_error, sets, train
from lorasmith.loops.optimization.optimizers import OptimizerSpec
from lorasmith.registries import LR_SCHEDULERS, OPTIMIZERS


class ToySgd(torch.optim.SGD):
    """Counts its instances."""

    created = 0

    def __init__(self, params: object, **arguments: object) -> None:
        super().__init__(params, **arguments)
        ToySgd.created += 1


def toy_steps(progress: float) -> float:
    """Half the learning rate from the middle of the run."""
    return 1.0 if progress < 0.5 else 0.5


@pytest.fixture
def toys() -> Iterator[None]:
    OPTIMIZERS.register("toy_sgd", OptimizerSpec(ToySgd, lr_multiplier=10.0, moments=0))
    LR_SCHEDULERS.register("toy_steps", toy_steps)
    yield
    OPTIMIZERS.unregister("toy_sgd")
    LR_SCHEDULERS.unregister("toy_steps")


@pytest.mark.usefixtures("toys")
def test_registered_optimizer_and_schedule_train_a_lora(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    settings = sets(
        "train.optimizer=Toy_SGD",
        "train.lr_scheduler=toy_steps",
        "train.lr_warmup_steps=0",
        "train.lr_scheduler_min_lr_ratio=0",
        "train.log_every_n_steps=1",
    )
    before = ToySgd.created
    assert train(tiny_model, pictures, str(out), *settings) == 0
    assert out.is_file()
    assert ToySgd.created == before + 1
    (log,) = tmp_path.rglob("log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [row["lr"] for row in rows]
    assert rates[-1] == pytest.approx(rates[0] / 2)
    assert rates[0] == pytest.approx(6e-2)  # ten times AdamW's rate for miniatures


def test_unknown_optimizer_and_schedule_are_refused(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.safetensors")
    assert train(tiny_model, pictures, out, *sets("train.optimizer=toy_sgd")) == 1
    assert "train.optimizer: there is no optimizer 'toy_sgd'" in last_error(capsys)
    assert train(tiny_model, pictures, out, *sets("train.lr_scheduler=toy_steps")) == 1
    assert "there is no learning rate schedule 'toy_steps'" in last_error(capsys)
