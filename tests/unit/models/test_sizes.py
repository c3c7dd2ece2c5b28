"""The picture sizes of a model, from its configs alone."""

import json
from pathlib import Path

import pytest

from lorasmith.core.errors import WeightsError
from lorasmith.models.load import load_model
from lorasmith.models.sizes import ModelSizes


def test_sizes_are_those_of_the_opened_model(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    sizes = ModelSizes.read(tiny_model)
    assert sizes.default == model.default_size == 64
    assert sizes.multiple == 64
    assert ModelSizes.read() == ModelSizes(default=128, multiple=64)


@pytest.mark.parametrize(
    ("part", "config", "message"),
    [
        ("unet", {"block_out_channels": [8, 8]}, "has no sample_size"),
        ("unet", {"block_out_channels": 3, "sample_size": 8}, "has no block_out_channels"),
        ("vae", {}, "vae/config.json has no block_out_channels"),
    ],
)
def test_a_config_that_does_not_say_is_named(
    tmp_path: Path, part: str, config: dict[str, object], message: str
) -> None:
    good = {"block_out_channels": [8, 8], "sample_size": 8}
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config if name == part else good))
    with pytest.raises(WeightsError, match=message):
        ModelSizes.read(tmp_path)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="unet"):
        ModelSizes.read(tmp_path)
