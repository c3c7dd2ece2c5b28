"""Drawing for measurements: the pipeline that users call, which also keeps the final latents."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from lorasmith.core.errors import LorasmithWarning
from lorasmith.inference.image_jobs import make_image_jobs
from lorasmith.inference.options import SamplingOptions
from lorasmith.inference.pipeline import Pipeline, Progress
from lorasmith.inference.prompts.parser import make_plain_prompt

if TYPE_CHECKING:
    from lorasmith.models.load import Model

_STAYS_OFF = ".*stays off.*"
"""A gate that stays shut is what is measured here, not something to warn about."""


@dataclass(frozen=True)
class GeneratedImages:
    """Pictures of one call."""

    latents: torch.Tensor
    """What they were decoded from, float32 ``[N, C, h, w]`` on the CPU."""
    images: list[Image.Image]
    """The same, RGB."""


class _LatentCapturingPipeline(Pipeline):
    """Keeps what it decodes."""

    def __init__(self, model: "Model") -> None:
        super().__init__(model)
        self.latents: list[torch.Tensor] = []

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.latents.append(latents.float().cpu())
        return super().decode(latents)


class ImageGenerator:
    """Draws the same prompts from the same seeds with different LoRAs."""

    def __init__(
        self, model: "Model", options: SamplingOptions, progress: Progress | None = None
    ) -> None:
        """Make one.

        Args:
            model: on its device.
            options: how pictures are drawn; whether gates are obeyed is said call by call.
            progress: called with the number of picture-steps just done.
        """
        self.model = model
        self.options = options
        self._pipe = _LatentCapturingPipeline(model)
        self._progress = progress
        self._cache: dict[tuple[object, ...], GeneratedImages] = {}

    @property
    def image_side(self) -> int:
        """Longer side of the pictures in pixels."""
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
        """Draw one picture per prompt and seed; what was drawn before is not drawn again.

        Args:
            prompts: as many as seeds.
            seeds: of each picture.
            files: LoRAs that are loaded; none is the base model.
            gate: whether their gates are obeyed.
            batch_size: if not that of the options.

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
        size = batch_size or self.options.batch_size
        options = replace(self.options, gate=gate, batch_size=size)
        try:
            for file in files:
                pipe.load_lora(file)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", _STAYS_OFF, LorasmithWarning)
                # Prompts are made of captions, in which brackets are brackets.
                jobs = make_image_jobs([make_plain_prompt(one) for one in prompts], list(seeds), 1)
                pictures = pipe.generate(jobs, options, self._progress)
        finally:
            pipe.unload_lora()
        return GeneratedImages(torch.cat(pipe.latents), pictures)
