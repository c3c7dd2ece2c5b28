"""The command ``train`` on every family of models, and its LoRAs in diffusers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.doubles import RecordingPipeline
from helpers.tiny_models import open_model
from helpers.training.train_commands import last_error, sets, train
from lorasmith.cli import run

pytest.importorskip("peft", reason="diffusers needs peft to load LoRA files")

Tiny = Callable[[str], Path]
STEPS = 4
VALIDATION = (
    "validation.every_n_steps=2",
    f"validation.num_inference_steps={STEPS}",
    "validation.num_images=1",
    "validation.guidance_scale=1",
    "validation.loss_timesteps=1",
)
QUICK = (
    "train.learning_rate=0.1",
    "train.lr_warmup_steps=0",
    "train.batch_size=2",
    "lora.rank=2",
    "lora.targets=attention+text-encoder",
)
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "sd1-inpainting": "StableDiffusionInpaintPipeline",
    "sd2-inpainting": "StableDiffusionInpaintPipeline",
    "sdxl-inpainting": "StableDiffusionXLInpaintPipeline",
}
VERSIONS = {
    "sd1": "sd_v1",
    "sd2": "sd_v2_v",
    "sdxl": "sdxl_base_v1-0",
    "sdxl-refiner": "sdxl_refiner_v1-0",
    "sd1-inpainting": "sd_v1",
    "sd2-inpainting": "sd_v2",
    "sdxl-inpainting": "sdxl_base_v1-0",
}
QUICK_FAMILIES = ("sd2", "sdxl", "sd1-inpainting")
"""Tested by `make test`; the others are slow tests."""


@pytest.fixture
def masked(pictures: Path) -> Path:
    """The six images; two of them have masks."""
    for number in range(2):
        mask = Image.new("L", (64, 64), 0)
        ImageDraw.Draw(mask).rectangle((4 + 4 * number, 8, 30 + 4 * number, 50), fill=255)
        mask.save(pictures / f"ball{number}.mask.png")
    return pictures


def init_images(family: str, pictures: Path) -> dict[str, Path]:
    """Return the init images that a family needs."""
    files = {}
    if family == "sdxl-refiner" or "inpainting" in family:
        files["image"] = pictures / "ball0.png"
    if "inpainting" in family:
        files["mask_image"] = pictures / "ball0.mask.png"
    return files


def our_pictures(folder: Path, lora: Path, files: dict[str, Path]) -> list[np.ndarray]:
    """Return the image of the base model, and the image with the LoRA."""
    pipe = RecordingPipeline(open_model(folder))
    strength = None if not files else 0.75
    drawn = []
    for loras in ((), (lora,)):
        for lora in loras:
            pipe.load_lora(lora)
        pipe(
            "ball, inkmono style",
            seed=3,
            negative_prompt="blurry",
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            strength=strength,
            **files,
        )
        drawn.append(pipe.decoded[0].permute(1, 2, 0).numpy())
    return drawn


def their_picture(family: str, folder: Path, lora: Path, files: dict[str, Path]) -> np.ndarray:
    import diffusers

    pipe = getattr(diffusers, PIPELINES[family]).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(lora)
    more: dict[str, Any] = {}
    if files:
        more = {"image": Image.open(files["image"]), "strength": 0.75}
    if "mask_image" in files:
        more |= {"mask_image": Image.open(files["mask_image"]), "width": 64, "height": 64}
    images = pipe(
        "ball, inkmono style",
        negative_prompt="blurry",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        **more,
    ).images
    return np.asarray(images[0])


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK_FAMILIES else pytest.mark.slow)
        for name in PIPELINES
    ],
)
def test_family_is_trained_and_used_elsewhere(
    tiny_of: Tiny, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    folder, out = tiny_of(family), tmp_path / "ink"
    # Previews of the other families work like those of SD 1.x.
    has_previews = family in ("sdxl-refiner", "sd1-inpainting")
    more = sets(*QUICK, *(VALIDATION if has_previews else ()))
    assert train(folder, masked, str(out), *more, "--steps", "2") == 0, capsys.readouterr().err
    lora = out.with_suffix(".safetensors")
    with safe_open(lora, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == VERSIONS[family]
        texts = {name.split("_")[1] for name in file.keys() if name.startswith("lora_te")}  # noqa: SIM118
    expected = {"te1", "te2"} if family.startswith("sdxl") else {"te"}
    assert texts == ({"te2"} if family == "sdxl-refiner" else expected)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["family"] == family.removesuffix("-inpainting")
    assert len(list(out.glob("previews/step-000002/*.png"))) == has_previews

    files = init_images(family, masked)
    base, ours = our_pictures(folder, lora, files)
    assert abs(ours - base).max() > 0.01, "the LoRA changes the picture"
    np.testing.assert_allclose(ours, their_picture(family, folder, lora, files), atol=1e-4)


@pytest.mark.parametrize("family", ["sdxl-refiner", "sd1-inpainting"])
def test_resumed_run_equals_an_uninterrupted_run(
    tiny_of: Tiny, masked: Path, tmp_path: Path, family: str
) -> None:
    """Embeddings, sizes and masks come from the cache or are drawn again, and are the same."""
    out = str(tmp_path / "ink")
    more = [
        *sets("train.checkpoint_every_n_steps=1", "train.batch_size=2", "data.flip_aug=true"),
        "--steps",
    ]
    assert train(tiny_of(family), masked, out, *more, "2") == 0
    expected = load_file(f"{out}.safetensors")
    Path(f"{out}.safetensors").unlink()
    assert train(tiny_of(family), masked, out, *more, "2", "--resume", "step-1") == 0
    parts = load_file(f"{out}.safetensors")
    assert all(torch.equal(expected[name], parts[name]) for name in expected)


def test_generation_from_images_and_masks(
    tiny_of: Tiny, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = (str(masked / f"ball0.{end}") for end in ("png", "mask.png"))
    quick = ["--steps", "4", "-n", "1", "--device", "cpu", "--out", str(tmp_path / "out")]

    def generate(family: str, *more: str) -> int:
        return run(["generate", "a ball", "-m", str(tiny_of(family)), *quick, *more])

    assert generate("sd1-inpainting", "--image", image, "--mask", mask) == 0
    assert generate("sdxl-refiner", "--image", image, "--strength", "0.5") == 0
    assert generate("sd1", "--image", image) == 0
    parameters = Image.open(tmp_path / "out/0000.png").info["parameters"]
    assert "Denoising strength: 0.75" in parameters
    capsys.readouterr()
    for family, more, message in (
        ("sd1", ["--mask", mask], "--mask goes with --image FILE"),
        ("sd1", ["--strength", "0.5"], "--strength goes with --image FILE"),
        ("sd1", ["--image", image, "--mask", mask], "is not for inpainting"),
        ("sd1-inpainting", ["--image", image, "--mask", "no.png"], "no.png: cannot"),
        ("sd1", ["--image", image, "--strength", "2"], "strength: 2.0 is not possible"),
        ("sdxl-refiner", [], "this is an SDXL refiner"),
    ):
        assert generate(family, *more) != 0
        assert message in last_error(capsys)


def test_previews_of_a_refiner_need_a_few_steps(
    tiny_of: Tiny, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = sets("validation.every_n_steps=1", "validation.num_inference_steps=2")
    assert train(tiny_of("sdxl-refiner"), masked, str(tmp_path / "ink"), *more) != 0
    assert (
        "validation.num_inference_steps: 2 times the strength 0.3 is less than one"
        in last_error(capsys)
    )
