"""What the pictures of a call start from: noise, or the latents of pictures that are given.

Random numbers are drawn from each picture's generator in the order of diffusers' pipelines, so that
equal seeds give equal pictures: the sample of the given picture's latents, the noise, the sample of
the latents around what is painted anew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lorasmith.core.errors import ConfigError
from lorasmith.data.images.masks import at_latents, without_hole
from lorasmith.data.images.square_images import to_signed
from lorasmith.inference.denoise import sample_noise
from lorasmith.inference.image_jobs import ImageJob
from lorasmith.inference.init_image import InitImage
from lorasmith.inference.options import SamplingOptions, Size
from lorasmith.models.family import detect_family
from lorasmith.models.latents import encode_images
from lorasmith.models.load import Model

REFINER_STRENGTH, _CHANGES, _ANEW = 0.3, 0.75, 1.0
"""Strengths where none is given: of the SDXL refiner, of other models, and under a mask."""


@dataclass(frozen=True)
class InitLatents:
    """Where a batch of B pictures starts."""

    noise: torch.Tensor
    """Unit noise, float32 ``[B, C, h, w]``."""
    image_latents: torch.Tensor | None
    """Latents of the pictures that are changed, likewise; None where noise is all there is."""
    inpaint_cond: torch.Tensor | None
    """What an inpainting model reads beside the noisy latents, ``[B, 1 + C, h, w]``: 1 where it is
    to paint anew, and the latents of the rest."""


class _Moments(NamedTuple):
    """A distribution of latents, float32 ``[C, h, w]`` each."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def sample(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        shape = (self.mean.shape[0], self.mean.shape[1], self.mean.shape[2])
        unit = sample_noise(generators, shape, self.mean.device)
        return self.mean + self.deviation * unit


class LatentPreparer:
    """The starts of one call; each given picture is encoded once."""

    def __init__(self, model: Model, options: SamplingOptions, jobs: Sequence[ImageJob]) -> None:
        """Find out at which step and in which size the pictures start.

        Raises:
            ConfigError: the model cannot do that, or size and strength are not possible.
        """
        canvases = [job.init_image for job in jobs if job.init_image is not None]
        self._model = model
        self._check(canvases, len(canvases) < len(jobs), options)
        self.size = _size(model, options, canvases)
        """Width and height of the pictures in pixels."""
        self.strength = _strength(model, options, canvases[0]) if canvases else None
        """Share of the steps that are taken; None where nothing is given to start from."""
        self.num_steps = count_steps(
            options.num_inference_steps, 1.0 if self.strength is None else self.strength
        )
        """How many steps are taken."""
        self.first_step = options.num_inference_steps - self.num_steps
        """How many are left out before them."""
        self._known: dict[tuple[int, bool], _Moments] = {}

    def prepare(
        self, jobs: Sequence[ImageJob], generators: Sequence[torch.Generator]
    ) -> InitLatents:
        """Return the start of one batch; the generators are those of its pictures."""
        model, (width, height) = self._model, self.size
        channels, scale = int(model.vae.config.latent_channels), model.vae_scale_factor
        canvas_of = [job.init_image for job in jobs]
        clean = surroundings = None
        if self.strength is not None and (self.strength < 1.0 or not model.is_inpainting):
            clean = self._sampled(canvas_of, generators, holed=False)
        shape = (channels, height // scale, width // scale)
        noise = sample_noise(generators, shape, model.unet.device)
        if model.is_inpainting:
            holes = [_hole(canvas, self.size) for canvas in canvas_of]
            mask = at_latents(torch.stack(holes), scale).to(noise.device)
            rest = self._sampled(canvas_of, generators, holed=True)
            surroundings = torch.cat([mask, rest], dim=1)
        return InitLatents(noise, clean, surroundings)

    def _sampled(
        self,
        canvases: Sequence[InitImage | None],
        generators: Sequence[torch.Generator],
        holed: bool,
    ) -> torch.Tensor:
        rows = [
            self._moments(canvas, holed).sample([one])
            for canvas, one in zip(canvases, generators, strict=True)
        ]
        return torch.cat(rows)

    def _moments(self, canvas: InitImage | None, holed: bool) -> _Moments:
        key = id(canvas), holed
        if key not in self._known:
            hole = _hole(canvas, self.size)
            blank = torch.zeros(3, *hole.shape[1:])
            signed = blank if canvas is None else to_signed(canvas.image_tensor(self.size))
            shown = without_hole(signed, hole) if holed else signed
            found = encode_images(self._model.vae, shown.unsqueeze(0))
            self._known[key] = _Moments(*(one[0].to(self._model.unet.device) for one in found))
        return self._known[key]

    def _check(
        self, canvases: Sequence[InitImage], some_blank: bool, options: SamplingOptions
    ) -> None:
        model = self._model
        if detect_family(model) == "sdxl-refiner" and some_blank:
            raise ConfigError(
                f"model {model.folder}: this is an SDXL refiner, which finishes pictures and does "
                "not draw by itself; give it a picture (generate --image), or use an SDXL base "
                "model"
            )
        if not model.is_inpainting and any(canvas.mask is not None for canvas in canvases):
            raise ConfigError(
                f"mask: the model {model.folder} is not for inpainting (its U-Net has "
                f"{model.unet.config.in_channels} input channels, not 9); use one that is, or "
                "leave the mask out"
            )
        if options.strength is not None and some_blank:
            raise ConfigError(
                "strength: says how much of a picture is changed; give the picture (--image), or "
                "leave it out"
            )


def count_steps(steps: int, strength: float) -> int:
    """Return how many steps a strength is, as diffusers counts them.

    Raises:
        ConfigError: it is none.
    """
    taken = int(steps * strength)
    if taken < 1:
        raise ConfigError(
            f"steps: {steps} times the strength {strength:g} is less than one; take at least "
            f"{math.ceil(1 / strength)} steps, or a higher strength"
        )
    return taken


def make_blank_inpaint_cond(model: Model, size: Size, count: int) -> torch.Tensor:
    """Return what an inpainting model reads where all is painted anew, ``[count, 1 + C, h, w]``.

    The latents of a grey picture, their mean.
    """
    width, height = size
    mean, _ = encode_images(model.vae, torch.zeros(1, 3, height, width))
    one = torch.cat([torch.ones_like(mean[:, :1]), mean], dim=1).to(model.unet.device)
    return one.expand(count, *one.shape[1:])


def _hole(canvas: InitImage | None, size: Size) -> torch.Tensor:
    if canvas is None:
        return torch.full((1, size[1], size[0]), 255, dtype=torch.uint8)
    return canvas.mask_tensor(size)


def _size(model: Model, options: SamplingOptions, canvases: Sequence[InitImage]) -> Size:
    if options.size is None and canvases:
        return canvases[0].size_for(model.default_size, model.vae_scale_factor)
    return options.size_for(model.default_size, model.vae_scale_factor)


def _strength(model: Model, options: SamplingOptions, canvas: InitImage) -> float:
    if options.strength is not None:
        return options.strength
    if canvas.mask is not None:
        return _ANEW
    return REFINER_STRENGTH if detect_family(model) == "sdxl-refiner" else _CHANGES
