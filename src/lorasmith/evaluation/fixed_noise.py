"""What a network predicts for the same noisy latents under different prompts or adapters.

Images are noised to a few fixed levels with fixed noise, and the network predicts once for each.
Two predictions then differ by the prompts and the weights alone, which shows differences that
sampling a few images does not.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lorasmith.core.device import make_generator
from lorasmith.inference.denoise import CFGDenoiser
from lorasmith.inference.init_latents import make_blank_inpaint_cond
from lorasmith.inference.unet_inputs import make_added_conditioning
from lorasmith.models.families.family import detect_family
from lorasmith.models.noise_schedule import NoiseSchedule
from lorasmith.models.text.encode import Conditioning
from lorasmith.models.text.long_prompts import encode_to_equal_length

if TYPE_CHECKING:
    from lorasmith.models.model import Model

NOISE_LEVELS = 4
"""Number of noise levels, evenly spaced."""
_RNG_STREAM = 5
"""Position in a seed's stream of random numbers that nothing else uses."""


@torch.no_grad()
def encode_images(model: "Model", images: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
    """Return scaled latents as the U-Net takes them, float32 ``[N, C, h, w]`` on the CPU.

    The mean of the VAE's distribution times its scaling factor.

    Args:
        model: on its device.
        images: float ``[N, 3, H, W]`` in -1..1, sides multiples of the VAE's factor.
        batch_size: images encoded at once.
    """
    vae = model.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = []
    for batch in torch.split(images, batch_size):
        mean = vae.encode(batch.to(vae.device, vae.dtype)).latent_dist.mean.float()
        latents.append(((mean - shift) * vae.config.scaling_factor).cpu())
    return torch.cat(latents)


class FixedNoisePredictor:
    """Predicts the noise of images at fixed noise levels with fixed noise."""

    def __init__(
        self,
        model: "Model",
        latents: torch.Tensor,
        levels: int = NOISE_LEVELS,
        seed: int = 0,
        batch_size: int = 8,
    ) -> None:
        """Add noise to the images.

        Args:
            model: on its device; adapters count that are attached when `predict` is called.
            latents: from `encode_images`, or final ones of the pipeline, ``[N, C, h, w]``.
            levels: T, how many noise levels.
            seed: of the noise.
            batch_size: rows in one forward pass.
        """
        self._model = model
        self._batch_size = batch_size
        schedule = NoiseSchedule.from_scheduler(model.scheduler_config, torch.device("cpu"))
        num_timesteps = detect_family(model).num_timesteps
        self._schedule = replace(schedule, max_timesteps=num_timesteps)
        steps = self._schedule.num_timesteps
        timesteps = torch.tensor([int((k + 0.5) * steps / levels) for k in range(levels)])
        self._image_indices = torch.arange(len(latents)).repeat_interleave(levels)
        self._timesteps = timesteps.repeat(len(latents))
        self._clean = latents.float()[self._image_indices]
        self._noise = torch.stack(
            [
                torch.randn(
                    latents.shape[1:], generator=make_generator(seed, _RNG_STREAM, image, level)
                )
                for image in range(len(latents))
                for level in range(levels)
            ]
        )
        self._noisy = self._schedule.add_noise(self._clean, self._noise, self._timesteps)

    def __len__(self) -> int:
        return len(self._timesteps)

    @torch.no_grad()
    def predict(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the predictions, float32 ``[N * T, C, h, w]`` on the CPU, image by image.

        Args:
            prompts: one for each image, encoded by the text encoders as they are now.
        """
        distinct = list(dict.fromkeys(prompts))
        encoded = dict(zip(distinct, encode_to_equal_length(self._model, distinct), strict=True))
        predictions = []
        for rows in torch.split(torch.arange(len(self)), self._batch_size):
            images = self._image_indices[rows].tolist()
            predictions.append(self._forward(rows, [encoded[prompts[image]] for image in images]))
        return torch.cat(predictions)

    def losses(self, predictions: torch.Tensor) -> torch.Tensor:
        """Return each image's loss, float64 ``[N]``: the mean squared error over all levels.

        Args:
            predictions: from `predict`.
        """
        target = self._schedule.training_target(self._clean, self._noise, self._timesteps)
        errors = (predictions - target).double().square().flatten(1).mean(dim=1)
        return errors.view(int(self._image_indices[-1]) + 1, -1).mean(dim=1)

    def _forward(self, rows: torch.Tensor, conditionings: Sequence[Conditioning]) -> torch.Tensor:
        model = self._model
        context = torch.stack([conditioning.context for conditioning in conditionings])
        noisy = self._noisy[rows].to(model.unet.device)
        height, width = (side * model.vae_scale_factor for side in noisy.shape[-2:])
        added = make_added_conditioning(model, conditionings, conditionings, (width, height))
        inpaint_cond = None
        if model.is_inpainting:  # inpaint everything
            inpaint_cond = make_blank_inpaint_cond(model, (width, height), len(noisy))
        denoiser = CFGDenoiser(
            model.unet, context, context, 1.0, added_conditioning=added, inpaint_cond=inpaint_cond
        )
        return denoiser(noisy, self._timesteps[rows].to(model.unet.device)).cpu()
