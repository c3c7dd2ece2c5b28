"""On a GPU, a whole step of a run must not make the host wait for the device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from helpers.training.datasets import write
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError
from lorasmith.loops.memory import limit_gpu_memory
from lorasmith.training.acceleration.execution_plan import ExecutionPlan
from lorasmith.training.run_step import JointTrainStep
from lorasmith.training.setup.setup import open_trainer

pytestmark = pytest.mark.gpu


@pytest.fixture
def waiting_fails() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
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
        "data": {
            "path": write(tmp_path / "p", [(64, 64)] * 5),
            "tag": "ink",
            "validation_split": 0.0,
        },
        "output": {"name": str(tmp_path / "out" / "lora")},
        "model": {"path": tiny_of(family)},
        "train": {
            "mixed_precision": precision,
            "batch_size": 4,
            "ema_decay": 0.9,
            "device": "cuda",
        },
        "validation": {"every_n_steps": 0},
        "track": {"tensorboard": False},
    }
    with open_trainer(TrainConfig.model_validate(settings), None) as session:
        before = [parameter.detach().clone() for parameter in session.trainable.parameters()]
        steps = JointTrainStep([session], ExecutionPlan(use_cuda_graphs=record))
        # The first steps allocate optimizer state and workspaces, and are captured.
        for _ in range(3):
            steps.step()
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            figures = steps.step()[0]
        torch.cuda.set_sync_debug_mode("default")
        assert figures.loss.device.type == "cuda"
        assert session.failed_step() is None
        after = session.trainable.parameters()
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_run_on_the_gpu_writes_its_lora(tmp_path: Path, tiny_model: Path, precision: str) -> None:
    from lorasmith.training.trainer import train

    settings = {
        "data": {
            "path": write(tmp_path / "p", [(64, 64)] * 5),
            "tag": "ink",
            "validation_split": 0.3,
        },
        "output": {"name": str(tmp_path / "out" / "lora")},
        "model": {"path": tiny_model},
        "lora": {"rank": 2},
        "train": {
            "mixed_precision": precision,
            "batch_size": 2,
            "steps": 6,
            "checkpoint_every_n_steps": 3,
        },
        "validation": {"every_n_steps": 3, "num_inference_steps": 2, "num_images": 1},
        "track": {"tensorboard": False},
    }
    assert train(TrainConfig.model_validate(settings)).is_file()


def settings_of(tmp_path: Path, model: Path, name: str, **train: object) -> TrainConfig:
    data = tmp_path / "p"
    if not data.is_dir():
        write(data, [(64, 64)] * 6)
    return TrainConfig.model_validate(
        {
            "data": {"path": data, "tag": "ink", "validation_split": 0.0},
            "output": {"name": str(tmp_path / name / "lora")},
            "model": {"path": model},
            "lora": {"targets": "all-linear"},
            "train": {"batch_size": 2, "learning_rate": 1e-3, "device": "cuda", **train},
            "validation": {"every_n_steps": 0},
            "track": {"tensorboard": False},
        }
    )


def weights_after(run: TrainConfig, steps: int, plan: ExecutionPlan | None = None) -> torch.Tensor:
    with open_trainer(run, None) as session:
        joint_step = JointTrainStep([session], plan)
        for _ in range(steps):
            joint_step.step()
        if plan is not None:
            assert (joint_step.graph_count > 0) == plan.use_cuda_graphs
        assert session.failed_step() is None
        return torch.cat(
            [parameter.detach().flatten() for parameter in session.trainable.parameters()]
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_train_the_same_weights_as_eager_steps(
    tmp_path: Path, tiny_model: Path, precision: str
) -> None:
    weights = [
        weights_after(
            settings_of(tmp_path, tiny_model, f"{record}", mixed_precision=precision),
            8,
            ExecutionPlan(use_cuda_graphs=record),
        )
        for record in (False, True)
    ]
    torch.testing.assert_close(weights[0], weights[1], atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_steps_of_every_precision_and_optimizer_give_finite_weights(
    tmp_path: Path, tiny_model: Path, optimizer: str, precision: str
) -> None:
    run = settings_of(tmp_path, tiny_model, "x", mixed_precision=precision, optimizer=optimizer)
    if optimizer != "adamw":
        pytest.importorskip("pytorch_optimizer")
    assert weights_after(run, 6).isfinite().all()


def test_compiled_blocks_train_the_same_weights_as_eager_blocks(
    tmp_path: Path, tiny_model: Path
) -> None:
    plain = weights_after(settings_of(tmp_path, tiny_model, "a", mixed_precision="bf16"), 6)
    compiled = weights_after(
        settings_of(tmp_path, tiny_model, "b", mixed_precision="bf16"),
        6,
        ExecutionPlan(compile_blocks=True),
    )
    torch.testing.assert_close(plain, compiled, atol=1e-3, rtol=5e-2)


def test_memory_limit_is_kept_or_refused(tmp_path: Path, tiny_model: Path) -> None:
    try:
        roomy = settings_of(tmp_path, tiny_model, "a", mixed_precision="bf16", vram_limit="4GB")
        assert weights_after(roomy, 4).isfinite().all()
        tight = settings_of(tmp_path, tiny_model, "b", mixed_precision="bf16", vram_limit="720MB")
        with pytest.raises(ConfigError, match=r"720MB is too little, about \d"):
            weights_after(tight, 1)
    finally:
        limit_gpu_memory(torch.device("cuda"), None)


def test_captured_step_that_is_not_finite_moves_nothing_and_is_named(
    tmp_path: Path, tiny_model: Path
) -> None:
    with open_trainer(
        settings_of(tmp_path, tiny_model, "a", mixed_precision="bf16"), None
    ) as session:
        joint_step = JointTrainStep([session], ExecutionPlan())
        for _ in range(6):
            joint_step.step()
        assert joint_step.graph_count > 0
        assert session.failed_step() is None
        broken, *others = session.trainable.parameters()
        with torch.no_grad():
            broken.fill_(float("nan"))
        before = [other.detach().clone() for other in others]
        for _ in range(3):
            joint_step.step()
        assert session.failed_step() == 6
        assert all(torch.equal(a, b) for a, b in zip(before, others, strict=True))
