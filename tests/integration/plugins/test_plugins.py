"""Loss weightings and initialisations from outside the package, used through the command line.

The other registries have theirs beside what they extend: samplers (test_generate), optimizers and
schedules (test_registered_optimizer), adapter kinds (test_adapter_kinds), families
(test_registered_family), caption sources and rules (test_check_plugins), training methods
(test_train_extensions), report sections (unit/reports/test_report_sections).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training.train_commands import sets, train
from lorasmith.adapters.nn.init import AdapterInit
from lorasmith.core.safetensors_io import load_tensors
from lorasmith.registries import ADAPTER_INITS, LOSS_WEIGHTINGS


@pytest.fixture
def registered() -> Iterator[list[int]]:
    """A weighting that ignores all images, and an init of ones; yields the weighting's calls."""
    calls: list[int] = []

    def ignore_everything(process: object, timesteps: torch.Tensor, loss: object) -> torch.Tensor:
        calls.append(len(timesteps))
        return torch.zeros(timesteps.shape)

    def draw_ones(*arguments: Any) -> Any:
        factors = ADAPTER_INITS.get("gaussian").draw_factors(*arguments)
        return factors._replace(down=torch.ones_like(factors.down))

    LOSS_WEIGHTINGS.register("ignore", ignore_everything)
    ADAPTER_INITS.register("ones", AdapterInit(draw_ones))
    yield calls
    LOSS_WEIGHTINGS.unregister("ignore")
    ADAPTER_INITS.unregister("ones")


def test_registered_init_starts_a_training(
    tiny_model: Path, pictures: Path, tmp_path: Path, registered: list[int]
) -> None:
    options = sets("lora.init=ones", "train.learning_rate=1e-4")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *options) == 0
    tensors = load_tensors(tmp_path / "ink.safetensors")
    downs = [tensor for name, tensor in tensors.items() if "lora_down" in name]
    assert downs
    assert all(torch.allclose(t.float(), torch.ones(()), atol=0.01) for t in downs)


def test_registered_loss_weighting_is_used(
    tiny_model: Path, pictures: Path, tmp_path: Path, registered: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With a weight of 0 for every image nothing is learned, and there is no LoRA to save."""
    options = sets("train.loss.weighting=ignore", "train.weight_decay=0")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *options) == 1
    assert len(registered) == 6
    assert "layers are zero" in capsys.readouterr().err


def test_unknown_names_are_refused_with_the_registered_ones(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *sets("lora.init=gausian")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no adapter initialisation 'gausian'; did you mean 'gaussian'?" in error
