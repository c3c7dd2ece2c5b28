"""What a network predicts for the same noisy latents under different words or adapters.

Nothing is drawn: pictures are noised to a few fixed levels with fixed noise, and the network is
asked once for each. Two answers to the same question differ by the words and the weights alone,
which shows differences that pictures of a few seeds do not.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lorasmith.core.device import make_generator
from lorasmith.inference.denoise import CFGDenoiser
from lorasmith.inference.init_latents import make_blank_inpaint_cond
from lorasmith.inference.options import Size
from lorasmith.inference.unet_inputs import make_added_conditioning
from lorasmith.models.family import FAMILIES, detect_family
from lorasmith.models.noise import NoiseSchedule
from lorasmith.models.text.encode import Conditioning
from lorasmith.models.text.long_prompts import encode_to_equal_length

if TYPE_CHECKING:
    from lorasmith.models.load import Model

LEVELS = 4
"""Noise levels, evenly spread."""
_STREAM = 5
"""Position in a seed's stream of random numbers that nothing else has."""


@torch.no_grad()
def encode_images(model: "Model", images: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
    """Return latents as the U-Net knows them, float32 ``[N, C, h, w]`` on the CPU.

    The mean of the VAE's distribution times its scaling factor.

    Args:
        model: on its device.
        pictures: float ``[N, 3, H, W]`` in -1..1, sides multiples of the VAE's.
        batch_size: pictures encoded at once.
    """
    vae = model.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    parts = []
    for part in torch.split(images, batch_size):
        mean = vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mean.float()
        parts.append(((mean - shift) * vae.config.scaling_factor).cpu())
    return torch.cat(parts)


class FixedNoisePredictor:
    """Pictures at fixed noise levels with fixed noise."""

    def __init__(
        self,
        model: "Model",
        latents: torch.Tensor,
        levels: int = LEVELS,
        seed: int = 0,
        batch_size: int = 8,
    ) -> None:
        """Noise the pictures.

        Args:
            model: on its device; what is in it when it is asked counts.
            latents: from `encode_pictures`, or final ones of the pipeline, ``[N, C, h, w]``.
            levels: T, how many noise levels.
            seed: of the noise.
            batch_size: rows that go through the network at once.
        """
        self._model = model
        self._batch_size = batch_size
        process = NoiseSchedule.from_scheduler(model.scheduler_config, torch.device("cpu"))
        self._process = replace(process, max_timesteps=FAMILIES[detect_family(model)].num_timesteps)
        steps = self._process.num_timesteps
        every = torch.tensor([int((k + 0.5) * steps / levels) for k in range(levels)])
        self._pictures = torch.arange(len(latents)).repeat_interleave(levels)
        self._timesteps = every.repeat(len(latents))
        self._clean = latents.float()[self._pictures]
        self._noise = torch.stack(
            [
                torch.randn(
                    latents.shape[1:], generator=make_generator(seed, _STREAM, picture, level)
                )
                for picture in range(len(latents))
                for level in range(levels)
            ]
        )
        self._noisy = self._process.add_noise(self._clean, self._noise, self._timesteps)

    def __len__(self) -> int:
        return len(self._timesteps)

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the predictions, float32 ``[N * T, C, h, w]`` on the CPU, picture by picture.

        Args:
            texts: one for each picture. The text encoders read them as they are now.
        """
        distinct = list(dict.fromkeys(texts))
        words = encode_to_equal_length(self._model, distinct)
        read = dict(zip(distinct, words, strict=True))
        parts = []
        for rows in torch.split(torch.arange(len(self)), self._batch_size):
            wanted = [read[texts[picture]] for picture in self._pictures[rows].tolist()]
            parts.append(self._ask(rows, wanted))
        return torch.cat(parts)

    def losses(self, predictions: torch.Tensor) -> torch.Tensor:
        """Return each picture's loss, float64 ``[N]``: the mean square of its error, all levels.

        Args:
            predictions: from `predict`.
        """
        target = self._process.training_target(self._clean, self._noise, self._timesteps)
        errors = (predictions - target).double().square().flatten(1).mean(dim=1)
        return errors.view(int(self._pictures[-1]) + 1, -1).mean(dim=1)

    def _ask(self, rows: torch.Tensor, words: Sequence[Conditioning]) -> torch.Tensor:
        unet = self._model.unet
        context = torch.stack([one.context for one in words])
        noisy = self._noisy[rows].to(unet.device)
        height, width = (side * self._model.vae_scale_factor for side in noisy.shape[-2:])
        added = make_added_conditioning(self._model, words, words, (width, height))
        around = self._around(len(noisy), (width, height))
        guided = CFGDenoiser(
            unet, context, context, 1.0, added_conditioning=added, inpaint_cond=around
        )
        return guided(noisy, self._timesteps[rows].to(unet.device)).cpu()

    def _around(self, count: int, size: Size) -> torch.Tensor | None:
        """Return what an inpainting model reads besides: that all is painted anew."""
        return (
            make_blank_inpaint_cond(self._model, size, count) if self._model.is_inpainting else None
        )
