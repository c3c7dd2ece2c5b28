"""On a GPU, a whole step of a run must not make the host wait for the device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from training_sets import write

from lorasmith.config.run import TrainRun
from lorasmith.training.opening import opened
from lorasmith.training.pace import Pace
from lorasmith.training.together import Together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def waiting_fails() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sdxl-refiner", "sd1-inpainting"])
def test_steps_do_not_wait_for_the_device(
    family: str,
    precision: str,
    record: bool,
    tmp_path: Path,
    tiny_of: Callable[[str], Path],
    waiting_fails: None,
) -> None:
    settings = {
        "data": {"path": write(tmp_path / "p", [(64, 64)] * 5), "tag": "ink", "held_out": 0.0},
        "output": {"name": str(tmp_path / "out" / "lora")},
        "model": {"path": tiny_of(family)},
        "train": {"precision": precision, "batch_size": 4, "ema": 0.9, "device": "cuda"},
        "preview": {"every": 0},
        "track": {"tensorboard": False},
    }
    with opened(TrainRun.model_validate(settings), None) as session:
        before = [one.detach().clone() for one in session.trainable.parameters()]
        steps = Together([session], Pace(record=record))
        # Optimizers make their state at first, libraries their workspaces, and steps are recorded.
        for _ in range(3):
            steps.advance()
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            figures, _ = steps.advance()[0]
        torch.cuda.set_sync_debug_mode("default")
        assert figures.loss.device.type == "cuda"
        assert session.failed_step() is None
        after = session.trainable.parameters()
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_on_the_gpu_writes_its_lora(tmp_path: Path, tiny_model: Path, precision: str) -> None:
    from lorasmith.training.loop import train

    settings = {
        "data": {"path": write(tmp_path / "p", [(64, 64)] * 5), "tag": "ink", "held_out": 0.3},
        "output": {"name": str(tmp_path / "out" / "lora")},
        "model": {"path": tiny_model},
        "lora": {"rank": 2},
        "train": {"precision": precision, "batch_size": 2, "steps": 6, "checkpoint_every": 3},
        "preview": {"every": 3, "steps": 2, "count": 1},
        "track": {"tensorboard": False},
    }
    assert train(TrainRun.model_validate(settings)).is_file()
