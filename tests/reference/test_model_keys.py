"""The tables of single files against the naming tables inside diffusers.

diffusers' own conversion code (diffusers.loaders.single_file_utils, version 0.42.1) is run on the
names and shapes that our tables give, for the true configs of published models on the meta device,
and on the values of tiny random models.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file

from helpers.published_files import VARIANTS, empty_parts, file_shapes, folder_shapes
from lorasmith.models.files.configs import component_config
from lorasmith.models.files.convert import read_contents, save_single_file
from lorasmith.models.files.open import open_source

TYPES = {
    "sd1": "v1",
    "sd1-inpainting": "inpainting",
    "sd2-base": "v2",
    "sd2-v": "v2",
    "sd2-inpainting": "inpainting_v2",
    "sdxl": "xl_base",
    "sdxl-inpainting": "xl_inpaint",
    "sdxl-refiner": "xl_refiner",
}
"""What diffusers calls each."""
TEXT_PREFIXES = {
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
    ("sdxl-refiner", "text_encoder_2"): "conditioner.embedders.0.model.",
}


def in_folder(checkpoint: dict[str, Any], name: str, part: str, network: Any) -> dict[str, Any]:
    """Convert one part with diffusers' code; text encoders' names without ``text_model.``."""
    variant = VARIANTS[name]
    if part == "unet":
        return theirs.convert_ldm_unet_checkpoint(checkpoint, component_config(variant, part))
    if part == "vae":
        return theirs.convert_ldm_vae_checkpoint(checkpoint, component_config(variant, part))
    prefix = TEXT_PREFIXES.get((variant.family_name, part))
    if prefix:
        converted = theirs.convert_open_clip_checkpoint(network, checkpoint, prefix)
    else:
        converted = theirs.convert_ldm_clip_checkpoint(checkpoint)
    return {key.removeprefix("text_model."): value for key, value in converted.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_those_of_published_models(name: str) -> None:
    with torch.device("meta"):
        checkpoint = {key: torch.empty(shape) for key, shape in file_shapes(name).items()}
    assert theirs.infer_diffusers_model_type(checkpoint) == TYPES[name]
    networks = empty_parts(VARIANTS[name])
    for part, expected in folder_shapes(name).items():
        converted = in_folder(checkpoint, name, part, networks[part])
        assert {key: value.shape for key, value in converted.items()} == expected, part
    known = [*theirs.LDM_CLIP_PREFIX_TO_REMOVE, *TEXT_PREFIXES.values()]
    starts = (theirs.LDM_UNET_KEY, theirs.LDM_VAE_KEYS[0], *known)
    assert all(key.startswith(starts) for key in checkpoint)


def test_no_two_tensors_share_a_name() -> None:
    for name in VARIANTS:
        parts = folder_shapes(name)
        # Three stacked tensors are one in the file, their weights and their biases.
        stacked = sum(".q_proj." in key for (family, part) in TEXT_PREFIXES
                      if family == VARIANTS[name].family_name for key in parts[part])  # fmt: skip
        assert len(file_shapes(name)) == sum(map(len, parts.values())) - 2 * stacked


FAMILIES = {"sd1": "tiny_model", "sd2-v": "tiny_sd2", "sdxl": "tiny_sdxl"}


@pytest.mark.parametrize("name", FAMILIES)
def test_values_of_tiny_models_equal_diffusers(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = request.getfixturevalue(FAMILIES[name])
    source = open_source(folder)
    contents = read_contents(source)
    save_single_file(contents, tmp_path / "model.safetensors")
    checkpoint = load_file(tmp_path / "model.safetensors")
    monkeypatch.setattr(f"{__name__}.component_config", lambda _, part: contents.configs[part])
    for part, tensors in contents.tensors.items():
        width = contents.configs.get(part, {}).get("hidden_size", 0)
        converted = in_folder(checkpoint, name, part, _Sized(width))
        assert converted.keys() == tensors.keys()
        for key, value in converted.items():
            torch.testing.assert_close(value, tensors[key].read(), rtol=0, atol=0)


class _Sized:
    """What diffusers' code reads of a text encoder: the width by which it cuts stacked tensors."""

    def __init__(self, width: int) -> None:
        self.config = type("Config", (), {"hidden_size": width})
