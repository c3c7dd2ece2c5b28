"""Our LoRA files in diffusers: `load_lora_weights` draws the images that we draw."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.doubles import RecordingPipeline
from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.model import Model

pytest.importorskip("peft", reason="diffusers needs peft to load LoRA files")

STEPS = 4


def our_picture(model: Model, path: Path | None) -> np.ndarray:
    pipe = RecordingPipeline(model)
    attached = attach_lora(model, load_lora_file(path)) if path else None
    pipe(
        "a red apple",
        seed=3,
        negative_prompt="blurry",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
    )
    if attached:
        attached.detach()
    return pipe.decoded[0].permute(1, 2, 0).numpy()


def their_picture(folder: Path, side: int, path: Path) -> np.ndarray:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(path)
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    images = pipe(
        "a red apple",
        negative_prompt="blurry",
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        output_type="np",
    ).images
    return np.asarray(images[0])


def compare(folder: Path, path: Path, changes: dict[str, Any], size: float) -> None:
    model = open_model(folder)
    make_lora(model, path, changes, size)
    ours = our_picture(model, path)
    base = our_picture(model, None)
    assert abs(ours - base).max() > 0.02, "the LoRA changes the picture"
    side = int(model.unet.config.sample_size)
    np.testing.assert_allclose(ours, their_picture(folder, side, path), atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": "attention"},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"targets": "attention+ff", "rslora": True},
                {"targets": "all-linear+conv"},
                {"targets": "attention+text-encoder", "init": "compensated"},
                {"targets": "all-linear+conv+text-encoder", "init": "pissa"},
                {
                    "targets": "attention",
                    "overrides": ({"targets": "up.1", "rank": 8, "alpha": 1.0},),
                },
            )
        ),
    ],
    ids=str,
)
def test_embedded_model_matches_diffusers_with_a_lora(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    compare(EMBEDDED, tmp_path / "ink.safetensors", changes, size=0.03)


FAMILIES = ("tiny_model", "tiny_sd2", "tiny_sdxl")
INITS = ("gaussian", "compensated", "pissa")
TARGETS = ("attention", "all-linear+conv+text-encoder")
QUICK = {
    ("tiny_model", "compensated", TARGETS[1]),
    ("tiny_sd2", "pissa", TARGETS[0]),
    ("tiny_sdxl", "gaussian", TARGETS[1]),
}
"""One of each; all other combinations are slow tests."""


@pytest.mark.parametrize(
    ("family", "init", "targets"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(FAMILIES, INITS, TARGETS)
    ],
)
def test_every_family_matches_diffusers_with_a_lora(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, init: str, targets: str
) -> None:
    folder = request.getfixturevalue(family)
    changes = {"targets": targets, "init": init}
    compare(folder, tmp_path / "ink.safetensors", changes, size=0.2)
