"""Images from SD 2.x and SDXL are those that diffusers draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.doubles import RecordingPipeline
from helpers.tiny_models import open_model
from lorasmith.core.errors import WeightsError
from lorasmith.inference.pipeline import Pipeline, load_pipeline
from lorasmith.models.load import load_model

FOLDERS = {"sd2": "tiny_sd2", "sdxl": "tiny_sdxl"}


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("size", ["64x64", "64x128"])
@pytest.mark.parametrize("family", FOLDERS)
def test_image_matches_diffusers(
    request: pytest.FixtureRequest, family: str, size: str, guidance: float
) -> None:
    from diffusers import DiffusionPipeline

    folder = request.getfixturevalue(FOLDERS[family])
    width, height = map(int, size.split("x"))
    theirs = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    shape = (1, 4, height // 8, width // 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = theirs(
        "a red apple",
        negative_prompt="blurry",
        latents=noise,
        width=width,
        height=height,
        num_inference_steps=8,
        guidance_scale=guidance,
        output_type="np",
    ).images[0]

    pipe = RecordingPipeline(open_model(folder))
    pipe(
        "a red apple",
        seed=3,
        negative_prompt="blurry",
        num_inference_steps=8,
        guidance_scale=guidance,
        width=width,
        height=height,
    )

    actual = pipe.decoded[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert actual.std() > 0.02


def test_batch_size_does_not_change_sdxl_images(tiny_sdxl: Path) -> None:
    pipe = load_pipeline(tiny_sdxl, device="cpu")
    prompts = ["an apple", "a pear", "a plum"]
    single = [
        np.asarray(image).astype(int)
        for image in pipe(prompts, num_inference_steps=3, batch_size=1)
    ]
    batched = [
        np.asarray(image).astype(int)
        for image in pipe(prompts, num_inference_steps=3, batch_size=3)
    ]
    assert max(abs(a - b).max() for a, b in zip(single, batched, strict=True)) <= 1
    assert abs(single[0] - single[1]).max() > 5


def test_mixed_families_are_refused(tiny_model: Path, tiny_sdxl: Path) -> None:
    xl, small = load_model(tiny_sdxl), load_model(tiny_model)
    for mixed in (replace(xl, text_encoder_2=None), replace(small, unet=xl.unet)):
        with pytest.raises(WeightsError, match="unet and text encoders are not of one family"):
            Pipeline(mixed)


def test_sdxl_vae_stays_float32_in_half_precision(tiny_sdxl: Path, tiny_model: Path) -> None:
    wide = load_model(tiny_sdxl).to(torch.device("cpu"), torch.float16)
    assert (wide.vae.dtype, wide.unet.dtype) == (torch.float32, torch.float16)
    half = load_model(tiny_model).to(torch.device("cpu"), torch.float16)
    assert half.vae.dtype == torch.float16
