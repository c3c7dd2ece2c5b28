"""An adapter kind from outside the package, through every command that reads LoRA files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.kinds.base import Tensors
from lorasmith.adapters.kinds.lycoris import LycorisLayer
from lorasmith.cli import run
from lorasmith.registries import ADAPTER_KINDS


class OuterSumLayer(LycorisLayer):
    """A toy kind: one number for each row plus one for each column."""

    required_suffixes = frozenset({"toy_rows", "toy_columns"})

    @property
    def kind(self) -> str:
        return "OuterSum"

    @property
    def rank(self) -> int:
        return 2

    def unscaled_delta(self, parts: Tensors) -> torch.Tensor:
        return parts["toy_rows"][:, None] + parts["toy_columns"][None]


@pytest.fixture
def toy_kind() -> Iterator[None]:
    ADAPTER_KINDS.register("outer-sum", OuterSumLayer)
    yield
    ADAPTER_KINDS.unregister("outer-sum")


@pytest.fixture
def toy_file(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA file of the toy kind for the attention of the tiny model."""
    model = open_model(tiny_model)
    plain = load_lora_file(
        make_lora(model, tmp_path / "plain.safetensors", {"targets": "attention"}, 0.1)
    )
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, layer in plain.layers.items():
        rows, columns = layer.matrix_shape
        tensors[f"{name}.toy_rows"] = 0.1 * torch.randn(rows, generator=generator)
        tensors[f"{name}.toy_columns"] = 0.1 * torch.randn(columns, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    path = tmp_path / "toy.safetensors"
    save_file(tensors, path, {"ss_base_model_version": "sd_v1"})
    return path


def draw(model: Path, out: Path, *loras: Path) -> np.ndarray:
    options = [option for path in loras for option in ("--lora", str(path))]
    settings = ["--steps", "2", "--seed", "3", "--size", "64x64", "--device", "cpu"]
    arguments = ["-m", str(model), "--out", str(out), *settings, *options]
    assert run(["generate", "a red apple", *arguments]) == 0
    image = next(path for path in sorted(out.rglob("*.png")) if "grid" not in path.name)
    return np.asarray(Image.open(image)).astype(int)


@pytest.mark.usefixtures("toy_kind")
def test_toy_kind_works_in_every_command(
    tiny_model: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lora", "info", str(toy_file)]) == 0
    assert "OuterSum" in capsys.readouterr().out

    copy, merged = tmp_path / "copy.safetensors", tmp_path / "merged.safetensors"
    assert run(["lora", "convert", str(toy_file), str(copy)]) == 0
    before, after = load_file(toy_file), load_file(copy)
    assert all(torch.equal(before[key], after[key]) for key in before)

    assert run(["lora", "merge", str(toy_file), "--out", str(merged), "--precision", "fp32"]) == 0
    for name, layer in load_lora_file(toy_file).layers.items():
        delta = load_lora_file(merged).layers[name].delta()
        torch.testing.assert_close(delta, layer.delta(), rtol=1e-4, atol=1e-5)

    drawn = draw(tiny_model, tmp_path / "toy", toy_file)
    assert abs(drawn - draw(tiny_model, tmp_path / "base")).max() > 2
    assert abs(drawn - draw(tiny_model, tmp_path / "sum", merged)).max() <= 1


def test_toy_kind_is_unknown_without_registration(
    toy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lora", "info", str(toy_file)]) != 0
    assert "keys are no LoRA keys" in capsys.readouterr().err
