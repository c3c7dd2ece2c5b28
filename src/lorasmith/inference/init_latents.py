"""What the images of a call start from: noise, or the latents of init images.

Random numbers are drawn from each image's generator in the order of diffusers' pipelines, so that
equal seeds give equal images: the sample of the init image's latents, the noise, the sample of the
masked image's latents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lorasmith.core.errors import ConfigError
from lorasmith.data.images.masks import blank_masked, masks_to_latent_size
from lorasmith.data.images.square_images import uint8_to_signed
from lorasmith.inference.denoise import sample_noise
from lorasmith.inference.image_jobs import ImageJob
from lorasmith.inference.init_image import InitImage, full_mask
from lorasmith.inference.options import SamplingOptions, Size
from lorasmith.models.families.family import detect_family
from lorasmith.models.latents import encode_images
from lorasmith.models.model import Model

REFINER_STRENGTH, _IMAGE_STRENGTH, _INPAINT_STRENGTH = 0.3, 0.75, 1.0
"""Strengths where none is given: of the SDXL refiner, of other models, and under a mask."""


@dataclass(frozen=True)
class InitLatents:
    """Where a batch of B images starts."""

    noise: torch.Tensor
    """Unit noise, float32 ``[B, C, h, w]``."""
    image_latents: torch.Tensor | None
    """Latents of the init images, likewise; None starts from pure noise."""
    inpaint_cond: torch.Tensor | None
    """What an inpainting model reads besides the noisy latents, ``[B, 1 + C, h, w]``: the mask, 1
    where it inpaints, and the masked image's latents."""


class _LatentDistribution(NamedTuple):
    """A distribution of latents, float32 ``[C, h, w]`` each."""

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Return a sample, float32 ``[1, C, h, w]``."""
        shape = (self.mean.shape[0], self.mean.shape[1], self.mean.shape[2])
        return self.mean + self.std * sample_noise([generator], shape, self.mean.device)


class LatentPreparer:
    """Prepares the latents that the images of one call start from.

    Each init image is encoded once.
    """

    def __init__(self, model: Model, options: SamplingOptions, jobs: Sequence[ImageJob]) -> None:
        """Find the size of the images and the step that they start at.

        Raises:
            ConfigError: the model cannot do what is asked, or size and strength are not possible.
        """
        init_images = [job.init_image for job in jobs if job.init_image is not None]
        self._model = model
        _check_init_images(model, options, init_images, len(init_images) < len(jobs))
        self.size = _choose_size(model, options, init_images)
        """Width and height of the images in pixels."""
        self.strength = _choose_strength(model, options, init_images[0]) if init_images else None
        """Share of the steps that are taken; None without init images."""
        self.num_steps = count_steps(
            options.num_inference_steps, 1.0 if self.strength is None else self.strength
        )
        """How many steps are taken."""
        self.first_step = options.num_inference_steps - self.num_steps
        """How many are skipped before them."""
        self._distributions: dict[tuple[int, bool], _LatentDistribution] = {}

    def prepare(
        self, jobs: Sequence[ImageJob], generators: Sequence[torch.Generator]
    ) -> InitLatents:
        """Return what one batch starts from; the generators are those of its images."""
        model, (width, height) = self._model, self.size
        channels, scale = int(model.vae.config.latent_channels), model.vae_scale_factor
        images = [job.init_image for job in jobs]
        image_latents = inpaint_cond = None
        if self.strength is not None and (self.strength < 1.0 or not model.is_inpainting):
            image_latents = self._sample_latents(images, generators, is_masked=False)
        shape = (channels, height // scale, width // scale)
        noise = sample_noise(generators, shape, model.unet.device)
        if model.is_inpainting:
            masks = torch.stack([self._mask_of(image) for image in images])
            latent_masks = masks_to_latent_size(masks, scale).to(noise.device)
            masked_latents = self._sample_latents(images, generators, is_masked=True)
            inpaint_cond = torch.cat([latent_masks, masked_latents], dim=1)
        return InitLatents(noise, image_latents, inpaint_cond)

    def _sample_latents(
        self,
        images: Sequence[InitImage | None],
        generators: Sequence[torch.Generator],
        is_masked: bool,
    ) -> torch.Tensor:
        samples = [
            self._encode(image, is_masked).sample(generator)
            for image, generator in zip(images, generators, strict=True)
        ]
        return torch.cat(samples)

    def _encode(self, image: InitImage | None, is_masked: bool) -> _LatentDistribution:
        key = id(image), is_masked
        if key not in self._distributions:
            mask = self._mask_of(image)
            grey = torch.zeros(3, *mask.shape[1:])
            pixels = grey if image is None else uint8_to_signed(image.image_tensor(self.size))
            if is_masked:
                pixels = blank_masked(pixels, mask)
            moments = encode_images(self._model.vae, pixels.unsqueeze(0))
            device = self._model.unet.device
            self._distributions[key] = _LatentDistribution(
                *(part[0].to(device) for part in moments)
            )
        return self._distributions[key]

    def _mask_of(self, image: InitImage | None) -> torch.Tensor:
        return full_mask(self.size) if image is None else image.mask_tensor(self.size)


def count_steps(num_inference_steps: int, strength: float) -> int:
    """Return how many steps are taken at a strength, as diffusers counts them.

    Raises:
        ConfigError: none.
    """
    num_steps = int(num_inference_steps * strength)
    if num_steps < 1:
        raise ConfigError(
            f"num_inference_steps: {num_inference_steps} times the strength {strength:g} is less "
            f"than one; take at least {math.ceil(1 / strength)} steps, or a higher strength"
        )
    return num_steps


def make_blank_inpaint_cond(model: Model, size: Size, count: int) -> torch.Tensor:
    """Return what an inpainting model reads where it inpaints everything, ``[count, 1 + C, h, w]``.

    The latents are the mean of a grey image's.
    """
    width, height = size
    mean, _ = encode_images(model.vae, torch.zeros(1, 3, height, width))
    cond = torch.cat([torch.ones_like(mean[:, :1]), mean], dim=1).to(model.unet.device)
    return cond.expand(count, *cond.shape[1:])


def _check_init_images(
    model: Model, options: SamplingOptions, images: Sequence[InitImage], some_start_from_noise: bool
) -> None:
    if detect_family(model).requires_init_image and some_start_from_noise:
        raise ConfigError(
            f"model {model.path}: this is an SDXL refiner, which only finishes images; give it "
            "an image (generate --image), or use an SDXL base model"
        )
    if not model.is_inpainting and any(image.mask is not None for image in images):
        raise ConfigError(
            f"mask: the model {model.path} is not for inpainting (its U-Net has "
            f"{model.unet.config.in_channels} input channels, not 9); use one that is, or "
            "leave the mask out"
        )
    if options.strength is not None and some_start_from_noise:
        raise ConfigError(
            "strength: says how much of an image is changed; give the image (--image), or "
            "leave it out"
        )


def _choose_size(model: Model, options: SamplingOptions, images: Sequence[InitImage]) -> Size:
    default = model.default_size, model.default_size
    if images and options.width is None and options.height is None:
        default = images[0].default_size(model.default_size, model.vae_scale_factor)
    return options.resolve_size(default, model.vae_scale_factor)


def _choose_strength(model: Model, options: SamplingOptions, image: InitImage) -> float:
    if options.strength is not None:
        return options.strength
    if image.mask is not None:
        return _INPAINT_STRENGTH
    return REFINER_STRENGTH if detect_family(model).requires_init_image else _IMAGE_STRENGTH
