"""Image to image and inpainting give the images of diffusers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from helpers.doubles import RecordingPipeline
from helpers.tiny_models import open_model
from lorasmith.core.errors import ConfigError, DataError
from lorasmith.inference.init_image import InitImage
from lorasmith.inference.pipeline import Pipeline, load_pipeline

Tiny = Callable[[str], Path]


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def mask_of(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).ellipse((10, 5, width - 20, height - 9), fill=255)
    return mask


def theirs(folder: Path, kind: str, seeds: Sequence[int], sampler: str, **more: Any) -> np.ndarray:
    """Draw with a pipeline of diffusers, one image at a time."""
    import diffusers

    pipe = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if sampler != "ddim":
        loaded_pipe = load_pipeline(folder, "cpu")
        from lorasmith.inference.samplers import make_scheduler

        pipe.scheduler = make_scheduler(
            sampler, loaded_pipe.model.scheduler_config, 10, torch.device("cpu")
        )
    drawn = [
        pipe(
            "a red apple", negative_prompt="blurry", num_inference_steps=10, guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed), output_type="np", **more,
        ).images[0]
        for seed in seeds
    ]  # fmt: skip
    return np.stack(drawn)


def ours(folder: Path, seeds: Sequence[int], sampler: str, **more: Any) -> np.ndarray:
    pipe = RecordingPipeline(open_model(folder))
    pipe(
        ["a red apple"] * len(seeds), seed=list(seeds), negative_prompt="blurry",
        num_inference_steps=10, guidance_scale=4.0, sampler=sampler, **more,
    )  # fmt: skip
    return pipe.decoded.permute(0, 2, 3, 1).numpy()


IMG2IMG = {
    "sd1": "StableDiffusionImg2ImgPipeline",
    "sd2": "StableDiffusionImg2ImgPipeline",
    "sdxl": "StableDiffusionXLImg2ImgPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}


@pytest.mark.parametrize(
    ("family", "sampler", "strength"),
    [
        ("sd1", "ddim", 0.5), ("sd1", "euler", 0.75), ("sd1", "euler_a", 0.5),
        ("sd1", "dpmpp_2m", 0.6), ("sd1", "ddpm", 1.0), ("sd2", "ddim", 0.5), ("sdxl", "ddim", 0.5),
        ("sdxl-refiner", "ddim", 0.3),
    ],
)  # fmt: skip
def test_image_to_image_matches_diffusers(
    tiny_of: Tiny, family: str, sampler: str, strength: float
) -> None:
    folder, image = tiny_of(family), noise_picture(64, 96)
    expected = theirs(folder, IMG2IMG[family], [3, 8], sampler, image=image, strength=strength)
    actual = ours(folder, [3, 8], sampler, image=image, strength=strength)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert abs(actual[0] - actual[1]).max() > 0.01


INPAINT = {
    "sd1-inpainting": "StableDiffusionInpaintPipeline",
    "sd2-inpainting": "StableDiffusionInpaintPipeline",
    "sdxl-inpainting": "StableDiffusionXLInpaintPipeline",
}


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("family", INPAINT)
def test_inpainting_matches_diffusers(tiny_of: Tiny, family: str, strength: float) -> None:
    folder, image, mask = tiny_of(family), noise_picture(96, 64), mask_of(96, 64)
    expected = theirs(
        folder, INPAINT[family], [3, 8], "ddim", image=image, mask_image=mask, width=96,
        height=64, strength=strength,
    )  # fmt: skip
    actual = ours(folder, [3, 8], "ddim", image=image, mask_image=mask, strength=strength)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    second = ours(folder, [3, 8], "ddim", image=image, strength=strength)
    assert abs(actual - second).max() > 0.01, "the mask matters"


def test_inpainting_model_generates_from_text_alone(tiny_of: Tiny) -> None:
    """The init image is grey and its mask white."""
    folder = tiny_of("sd1-inpainting")
    grey, white = Image.new("RGB", (64, 64), "black"), Image.new("L", (64, 64), 255)
    expected = theirs(
        folder, INPAINT["sd1-inpainting"], [3], "ddim", image=grey, mask_image=white, width=64,
        height=64, strength=1.0,
    )  # fmt: skip
    np.testing.assert_allclose(ours(folder, [3], "ddim"), expected, atol=1e-4)


def test_batch_of_init_images_equals_single_images(tiny_of: Tiny) -> None:
    pipe = load_pipeline(tiny_of("sd1-inpainting"), "cpu")
    more = {
        "image": noise_picture(64, 64),
        "mask_image": mask_of(64, 64),
        "num_inference_steps": 4,
        "num_images_per_prompt": 3,
    }
    single, batched = (pipe("an apple", batch_size=size, **more) for size in (1, 3))
    for first, second in zip(single, batched, strict=True):
        assert abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1
    assert "Denoising strength: 1" in single[0].info["parameters"]


def test_size_is_that_of_the_init_image_or_the_options(tiny_model: Path) -> None:
    pipe = load_pipeline(tiny_model, "cpu")
    image = noise_picture(88, 64).resize((90, 71))
    drawn = pipe("an apple", image=image, num_inference_steps=2)[0]
    assert drawn.size == (88, 64)
    assert "Denoising strength: 0.75" in drawn.info["parameters"]
    assert pipe("an apple", image=image, num_inference_steps=2, width=64, height=96)[0].size == (
        64,
        96,
    )
    with pytest.raises(ConfigError, match="give a size, such as 88x40"):
        pipe("an apple", image=Image.new("RGB", (400, 200)), num_inference_steps=2)
    assert pipe(
        "an apple", image=Image.new("RGB", (400, 200)), num_inference_steps=2, width=64, height=64
    )


def test_lora_steps_count_from_the_first_step_taken(tiny_model: Path, pipe: Pipeline) -> None:
    """A LoRA that starts at step 3 is active when half of ten steps remain."""
    more: dict[str, Any] = {
        "image": noise_picture(64, 64),
        "num_inference_steps": 10,
        "strength": 0.5,
    }
    base = np.asarray(pipe("an apple", **more)[0]).astype(int)
    late = np.asarray(pipe("an apple <lora:one:2:start=5>", **more)[0]).astype(int)
    assert abs(base - late).max() > 0
    with pytest.warns(UserWarning, match="it is to start at step 6 and there are 5"):
        pipe("an apple <lora:one:2:start=6>", **more)


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("sd1", {"mask_image": "m.png", "image": "p.png"}, "is not for inpainting"),
        ("sd1", {"mask_image": "m.png"}, "mask: .* give the image"),
        ("sd1", {"strength": 0.5}, "strength: .* give the image"),
        ("sd1", {"image": "p.png", "strength": 0.0}, "strength: 0.0 is not possible"),
        (
            "sd1",
            {"image": "p.png", "strength": 0.1, "num_inference_steps": 4},
            "take at least 10 steps",
        ),
        ("sd1", {"image": "none.png"}, r"image: .*none\.png: cannot be read"),
        ("sdxl-refiner", {}, "this is an SDXL refiner"),
        (
            "sd1-inpainting",
            {"image": "p.png", "mask_image": "tall.png"},
            "tall.png: the mask is 64 x 128",
        ),
        ("sd1-inpainting", {"image": "text.png"}, "text.png: cannot be decoded"),
    ],
)
def test_impossible_init_image_is_refused(
    tiny_of: Tiny, tmp_path: Path, family: str, more: dict[str, Any], message: str
) -> None:
    noise_picture(64, 64).save(tmp_path / "p.png")
    mask_of(64, 64).save(tmp_path / "m.png")
    mask_of(64, 128).save(tmp_path / "tall.png")
    (tmp_path / "text.png").write_text("no picture")
    files = {key: tmp_path / more[key] for key in ("image", "mask_image") if key in more}
    pipe = load_pipeline(tiny_of(family), "cpu")
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        pipe("an apple", **{"num_inference_steps": 2, **more, **files})
    assert "\n" not in str(caught.value)


def test_mask_in_memory_must_have_the_shape_of_its_image() -> None:
    with pytest.raises(DataError, match="the mask is 64 x 128 and its image 64 x 64"):
        InitImage.load(noise_picture(64, 64), mask_of(64, 128))
    canvas = InitImage.load(noise_picture(64, 64), mask_of(128, 128))
    assert canvas is not None
    assert canvas.mask is not None
    assert canvas.mask.size == (64, 64)


def test_image_in_memory_equals_its_file(tmp_path: Path) -> None:
    """Transparent parts are white, and black in masks."""
    image = noise_picture(64, 64).convert("RGBA")
    image.putalpha(mask_of(64, 64))
    mask = Image.new("LA", (64, 64), (255, 255))
    mask.putalpha(mask_of(64, 64))
    image.save(tmp_path / "p.png")
    mask.save(tmp_path / "m.png")
    memory, file = (
        InitImage.load(image, mask),
        InitImage.load(tmp_path / "p.png", tmp_path / "m.png"),
    )
    assert memory is not None
    assert file is not None
    assert memory.image.getpixel((0, 0)) == (255, 255, 255)
    assert torch.equal(memory.image_tensor((64, 64)), file.image_tensor((64, 64)))
    assert torch.equal(memory.mask_tensor((64, 64)), file.mask_tensor((64, 64)))
    assert torch.equal(
        memory.mask_tensor((64, 64))[0] == 255, torch.from_numpy(np.array(mask_of(64, 64)) == 255)
    )
