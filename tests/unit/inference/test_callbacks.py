"""Callbacks between denoising steps, and generators in place of seeds."""

import numpy as np
import pytest
import torch
from PIL import Image

from lorasmith.inference.pipeline import Pipeline


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_callback_sees_every_step_of_every_batch(pipe: Pipeline) -> None:
    calls = []

    def callback(
        pipeline: Pipeline, step: int, timestep: torch.Tensor, kwargs: dict[str, torch.Tensor]
    ) -> None:
        assert pipeline is pipe
        calls.append((step, int(timestep), tuple(kwargs["latents"].shape)))

    options = {"num_inference_steps": 4, "num_images_per_prompt": 3, "batch_size": 2}
    watched = pipe("an apple", callback_on_step_end=callback, **options)
    steps = [(0, 751), (1, 501), (2, 251), (3, 1)]
    assert calls == [
        *((*step, (2, 4, 8, 8)) for step in steps),
        *((*step, (1, 4, 8, 8)) for step in steps),
    ]
    assert (pixels(watched) == pixels(pipe("an apple", **options))).all()


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_callback_replaces_latents(pipe: Pipeline, sampler: str) -> None:
    def callback(
        pipeline: Pipeline, step: int, timestep: torch.Tensor, kwargs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {"latents": torch.zeros_like(kwargs["latents"])} if step == 2 else kwargs

    image = pipe("a pear", num_inference_steps=3, sampler=sampler, callback_on_step_end=callback)
    expected = pipe.decode(torch.zeros(1, 4, 8, 8))[0].permute(1, 2, 0) * 255
    assert (pixels(image)[0] == expected.round().numpy().astype(int)).all()


def test_generator_draws_the_same_image_as_its_seed(pipe: Pipeline) -> None:
    options = {"num_images_per_prompt": 2, "num_inference_steps": 3, "sampler": "euler_a"}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    images = pipe("an apple", generator=generators, **options)
    assert (pixels(images) == pixels(pipe("an apple", seed=[3, 9], **options))).all()
    assert "Seed: 9," in images[1].info["parameters"]
