"""Generating images for measurements, with the final latents and a cache."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from lorasmith.core.errors import InactiveLoraWarning
from lorasmith.inference.image_jobs import make_image_jobs
from lorasmith.inference.options import SamplingOptions
from lorasmith.inference.pipeline import Pipeline, Progress
from lorasmith.inference.prompts.parse_prompt import make_plain_prompt

if TYPE_CHECKING:
    from lorasmith.models.model import Model


@dataclass(frozen=True)
class GeneratedImages:
    """The images of one call."""

    latents: torch.Tensor
    """The final latents, float32 ``[N, C, h, w]`` on the CPU."""
    images: list[Image.Image]
    """The decoded images, RGB."""


class _LatentCapturingPipeline(Pipeline):
    """Keeps the latents that it decodes."""

    def __init__(self, model: "Model") -> None:
        super().__init__(model)
        self.latents: list[torch.Tensor] = []

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.latents.append(latents.float().cpu())
        return super().decode(latents)


class ImageGenerator:
    """Generates images from the same prompts and seeds with different LoRAs."""

    def __init__(
        self,
        model: "Model",
        options: SamplingOptions,
        progress: Progress | None = None,
        strict: bool = True,
    ) -> None:
        """Create a generator.

        Args:
            model: on its device.
            options: of all images; ``gate`` is given with each call instead.
            progress: called with the number of image steps just done.
            strict: refuse LoRAs that fit only in part, or are not understood completely.
        """
        self.model = model
        self.options = options
        self._pipe = _LatentCapturingPipeline(model)
        self._pipe.strict = strict
        self.strict = strict
        self._progress = progress
        self._cache: dict[tuple[object, ...], GeneratedImages] = {}

    @property
    def image_side(self) -> int:
        """Longer side of the images in pixels."""
        side = self.model.default_size
        return max(self.options.resolve_size((side, side), self.model.vae_scale_factor))

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        files: Sequence[Path] = (),
        gate: bool = True,
        batch_size: int | None = None,
    ) -> GeneratedImages:
        """Generate one image for each prompt and its seed; repeated calls return the same result.

        Args:
            prompts: as many as seeds.
            seeds: of each image.
            files: LoRAs to load; none is the base model.
            gate: whether to apply their trigger gating.
            batch_size: None is that of the options.

        Raises:
            WeightsError: a file does not fit the model.
            ConfigError: a prompt is malformed.
        """
        key = (tuple(prompts), tuple(seeds), tuple(files), gate or not files, batch_size)
        if key not in self._cache:
            self._cache[key] = self._generate(prompts, seeds, files, gate, batch_size)
        return self._cache[key]

    def _generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        files: Sequence[Path],
        gate: bool,
        batch_size: int | None,
    ) -> GeneratedImages:
        pipe, self._pipe.latents = self._pipe, []
        options = replace(self.options, gate=gate, batch_size=batch_size or self.options.batch_size)
        try:
            for file in files:
                pipe.load_lora(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InactiveLoraWarning)  # closed gates are measured
                # The prompts are captions, in which brackets have no special meaning.
                plain_prompts = [make_plain_prompt(prompt) for prompt in prompts]
                jobs = make_image_jobs(plain_prompts, list(seeds), 1)
                images = pipe.generate(jobs, options, self._progress)
        finally:
            pipe.unload_lora()
        return GeneratedImages(torch.cat(pipe.latents), images)
