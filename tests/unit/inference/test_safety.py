"""Latents as output, and images that the safety checker rejects."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.inference.image_jobs import make_image_jobs
from lorasmith.inference.options import SamplingOptions
from lorasmith.inference.outputs.save import PARAMETERS_KEY
from lorasmith.inference.pipeline import Pipeline, load_pipeline, tensor_to_pil
from lorasmith.inference.safety import load_safety_checker, preprocess_for_clip

SIDE = 32


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker of a small CLIP; every image is like its first concept."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": SIDE,
        "num_attention_heads": 2, "patch_size": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    folder = tmp_path_factory.mktemp("model") / "safety_checker"
    network.concept_embeds_weights.data.fill_(-2.0)  # similarity is never that low
    network.save_pretrained(folder)
    return folder


def test_latents_decode_to_the_images(pipe: Pipeline) -> None:
    jobs, options = (
        make_image_jobs(["a", "a BREAK b", "c"], 5, 1),
        SamplingOptions(num_inference_steps=2),
    )
    latents = pipe.generate_latents(jobs, options)
    assert latents.shape == (3, 4, 8, 8)
    assert latents.dtype == torch.float32
    with torch.no_grad():
        actual = tensor_to_pil(pipe.decode(latents))
    for first, second in zip(actual, pipe.generate(jobs, options), strict=True):
        difference = np.asarray(first).astype(int) - np.asarray(second).astype(int)
        assert abs(difference).max() <= 1


def test_unsafe_image_is_blackened(tiny_model: Path) -> None:
    calls: list[int] = []

    def second(images: list[Image.Image]) -> list[bool]:
        calls.append(len(images))
        return [False, True]

    judged = load_pipeline(tiny_model, device="cpu", safety_checker=second)
    with pytest.warns(LorasmithWarning, match="1 of 2 images were blackened"):
        first, two = judged("a pear", num_images_per_prompt=2, num_inference_steps=1)
    assert calls == [2]
    assert np.asarray(first).any()
    assert not np.asarray(two).any()
    assert two.info[PARAMETERS_KEY].startswith("a pear")


def test_safety_checker_is_loaded_from_a_folder(
    checker: Path, tiny_model: Path, tmp_path: Path
) -> None:
    safety_checker = load_safety_checker(checker, torch.device("cpu"))
    assert safety_checker([Image.new("RGB", (40, 60), "red"), Image.new("RGB", (32, 32))]) == [
        True,
        True,
    ]
    judged = load_pipeline(tiny_model, device="cpu", safety_checker=checker)
    with pytest.warns(LorasmithWarning, match="blackened"):
        assert not np.asarray(judged("a pear", num_inference_steps=1)[0]).any()
    with pytest.raises(WeightsError):
        load_safety_checker(tmp_path / "nothing", torch.device("cpu"))


def test_clip_input_is_the_centre() -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste("white", (32, 0, 64, 32))
    pixels = preprocess_for_clip(image, SIDE)
    assert pixels.shape == (3, SIDE, SIDE)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(pixels[:, 16, 16], white)
