"""The image sizes of a model, from its configs alone."""

import json
import shutil
from pathlib import Path

import pytest

from lorasmith.core.errors import WeightsError
from lorasmith.models.image_sizes import ImageSizes
from lorasmith.models.load import load_model


def test_sizes_equal_those_of_the_loaded_model(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    sizes = ImageSizes.read(tiny_model)
    assert sizes.default == model.default_size == 64
    assert sizes.multiple == 64
    assert sizes == ImageSizes.from_model(model)
    assert ImageSizes.read() == ImageSizes(default=128, multiple=64)


@pytest.mark.parametrize(
    ("part", "config", "message"),
    [
        ("unet", {"block_out_channels": [8, 8]}, "has no sample_size"),
        ("unet", {"block_out_channels": 3, "sample_size": 8}, "has no block_out_channels"),
        ("vae", {}, "vae/config.json has no block_out_channels"),
    ],
)
def test_config_without_sizes_is_named(
    tiny_model: Path, tmp_path: Path, part: str, config: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / part / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        ImageSizes.read(folder)


def test_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a diffusers model folder"):
        ImageSizes.read(tmp_path)
