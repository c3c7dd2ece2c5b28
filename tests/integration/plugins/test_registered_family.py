"""A model family of another package, through the command line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.training.train_commands import sets, train
from lorasmith.cli import run
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.models.families.builtin import SD1
from lorasmith.models.families.family import TextEncoderLayout, UnetLayout
from lorasmith.registries import MODEL_FAMILIES

TOY = replace(
    SD1,
    name="toy",
    title="Toy diffusion",
    unet=UnetLayout((8, 8, 16, 16), (1, 1, 1, 0), 16, num_heads=2, use_linear_projection=False),
    text_encoders={"text_encoder": TextEncoderLayout("toy CLIP", False, 16, 2, 2, 16)},
    native_sizes=(64, 64),
    kohya_versions=("toy_v1", "toy_v1"),
    modelspec_architectures=("toy-diffusion-v1", "toy-diffusion-v1"),
    matches_unet=None,  # by its widths
)
"""SD 1.x with the widths of the tests' tiny model."""


@pytest.fixture
def toy_family() -> Iterator[None]:
    MODEL_FAMILIES.register("toy", TOY)
    yield
    MODEL_FAMILIES.unregister("toy")


@pytest.mark.usefixtures("toy_family")
def test_registered_family_is_opened_trained_and_drawn_with(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "info", str(tiny_model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "toy"

    lora = tmp_path / "toy.safetensors"
    assert train(tiny_model, pictures, str(lora), *sets("lora.targets=attention")) == 0
    metadata = load_metadata(lora)
    assert metadata["ss_base_model_version"] == "toy_v1"
    assert metadata["modelspec.architecture"] == "toy-diffusion-v1/lora"

    images = tmp_path / "images"
    drawing = ["--lora", str(lora), "--steps", "2", "--out", str(images)]
    assert run(["generate", "inkmono style ball", "-m", str(tiny_model), *drawing]) == 0
    assert (images / "0000.png").is_file()


def test_unknown_family_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora, out = str(tmp_path / "toy.safetensors"), str(tmp_path / "x.safetensors")
    assert run(["lora", "convert", lora, out, "--family", "toy"]) == 1
    assert "there is no model family 'toy'" in capsys.readouterr().err
