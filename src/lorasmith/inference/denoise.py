"""The denoising loop: from noise to latents under classifier-free guidance.

Plain functions over tensors. Latents and the sampler's arithmetic stay float32 whatever the
network computes in; only the network's inputs are cast.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.inference.samplers import Scheduler

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

OnStep = Callable[[int], None]
"""Called after each step with its index, from 0."""


@dataclass(frozen=True)
class AddedConditioning:
    """What SDXL's U-Net is told besides the words (arXiv:2307.01952, section 2.2)."""

    pooled_prompt_embeds: torch.Tensor
    """Summaries of the prompts, ``[B, P]``."""
    negative_pooled_prompt_embeds: torch.Tensor
    """Summaries of the negative prompts, ``[B, P]``."""
    time_ids: torch.Tensor
    """Original height and width, top and left of the crop, target height and width, ``[B, 6]``; the
    refiner has a score of how good it shall look in place of the target, ``[B, 5]``."""
    negative_time_ids: torch.Tensor
    """The same for the negative prompts."""


@dataclass(frozen=True)
class CFGDenoiser:
    """The U-Net under classifier-free guidance (arXiv:2207.12598), one batched call a step."""

    unet: "UNet2DConditionModel"
    """The network."""
    prompt_embeds: torch.Tensor
    """Embedded prompts, ``[B, 77, width]``."""
    negative_prompt_embeds: torch.Tensor
    """Embedded negative prompts, ``[B, 77, width]``."""
    guidance_scale: float
    """Scale; exactly 1 leaves the negative half of the batch out."""
    guidance_rescale: float = 0.0
    """Share phi of the rescaled prediction."""
    added_conditioning: AddedConditioning | None = None
    """For SDXL."""
    inpaint_cond: torch.Tensor | None = None
    """For inpainting models: the mask and the latents of the rest, ``[B, 1 + C, h, w]``."""

    @property
    def uses_guidance(self) -> bool:
        """Whether a call of the network holds every picture twice, the negative half first."""
        return self.guidance_scale != 1.0

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the guided prediction, float32, shaped as ``latents`` ``[B, C, h, w]``.

        Args:
            latents: scaled for the network by the scheduler.
            timestep: a scalar tensor.
        """
        if not self.uses_guidance:
            return self._call(latents, timestep, self.prompt_embeds, self._kwargs(both=False))
        texts, kwargs = (
            torch.cat([self.negative_prompt_embeds, self.prompt_embeds]),
            self._kwargs(both=True),
        )
        both = self._call(torch.cat([latents, latents]), timestep, texts, kwargs)
        negative, positive = both.chunk(2)
        guided = negative + self.guidance_scale * (positive - negative)
        return (
            rescale_noise_cfg(guided, positive, self.guidance_rescale)
            if self.guidance_rescale
            else guided
        )

    def _call(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        dtype = self.unet.dtype
        if self.inpaint_cond is not None:
            halves = len(latents) // len(self.inpaint_cond)
            latents = torch.cat([latents, torch.cat([self.inpaint_cond] * halves)], dim=1)
        prediction: torch.Tensor = self.unet(
            latents.to(dtype),
            timestep,
            encoder_hidden_states=context.to(dtype),
            return_dict=False,
            **kwargs,
        )[0]
        return prediction.float()

    def _kwargs(self, both: bool) -> dict[str, Any]:
        """Return SDXL's further arguments, for the prompts or for negative and positive ones."""
        if self.added_conditioning is None:
            return {}
        pooled, sizes = (
            self.added_conditioning.pooled_prompt_embeds,
            self.added_conditioning.time_ids,
        )
        if both:
            pooled = torch.cat([self.added_conditioning.negative_pooled_prompt_embeds, pooled])
            sizes = torch.cat([self.added_conditioning.negative_time_ids, sizes])
        dtype = self.unet.dtype
        return {"added_cond_kwargs": {"text_embeds": pooled.to(dtype), "time_ids": sizes.to(dtype)}}


class ScheduledDenoiser:
    """The U-Net for a batch whose texts and gates change at some of the steps."""

    def __init__(self, begin: Callable[[int], CFGDenoiser], phases: Collection[int]) -> None:
        """Prepare for one walk.

        Args:
            begin: returns the U-Net for the phase that begins with a step.
            phases: first steps of all phases; 1 is one of them.
        """
        self._begin, self._phases = begin, phases
        self._step = 0

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the prediction of the next step; see `Guided`. One call is one step."""
        self._step += 1
        if self._step in self._phases:
            self._guided = self._begin(self._step)
        return self._guided(latents, timestep)


def rescale_noise_cfg(guided: torch.Tensor, positive: torch.Tensor, share: float) -> torch.Tensor:
    """Bring a guided prediction's spread back to the conditional one's (arXiv:2305.08891).

    Equations 14 to 16: ``x = phi * guided * std(positive) / std(guided) + (1 - phi) * guided``,
    standard deviations over everything but the batch.

    Args:
        guided: the prediction after guidance, ``[B, C, h, w]``.
        positive: the conditional prediction, same shape.
        share: phi, from 0 (``guided`` as it is) to 1.
    """
    dims = list(range(1, guided.ndim))
    factor = positive.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return share * guided * factor + (1.0 - share) * guided


def sample_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device
) -> torch.Tensor:
    """Draw one noise per generator: float32 ``[len(generators), *shape]``, mean 0, variance 1.

    Each picture has a generator of its own, so what it gets does not depend on its neighbours.
    The draw happens on the generators' device (the CPU) and is then moved.
    """
    noise = [torch.randn(shape, generator=one, device=one.device) for one in generators]
    return torch.stack(noise).to(device)


def denoise(
    denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: Scheduler,
    noise: torch.Tensor,
    generators: Sequence[torch.Generator],
    on_step: OnStep | None = None,
    init_latents: torch.Tensor | None = None,
    first_step: int = 0,
) -> torch.Tensor:
    """Walk unit noise down to latents, or given latents that are noised half way.

    Args:
        predict: the network, called with scaled latents and a timestep.
        scheduler: a fresh one from `make_scheduler`.
        noise: float32 ``[B, C, h, w]``.
        generators: one per picture, for samplers that add noise on the way.
        on_step: called after each step.
        clean: latents that are noised to the level of the first step; None starts from noise.
        first: how many steps are left out at the beginning.

    Returns:
        Latents, float32 ``[B, C, h, w]``, still multiplied by the VAE's scaling factor.
    """
    latents: torch.Tensor = noise * scheduler.init_noise_sigma
    if init_latents is not None:
        if hasattr(scheduler, "set_begin_index"):  # others look it up by the timestep
            scheduler.set_begin_index(first_step)
        level = scheduler.timesteps[first_step : first_step + 1].repeat(len(init_latents))
        latents = scheduler.add_noise(init_latents, noise, level)
    for index, timestep in enumerate(scheduler.timesteps[first_step:]):
        prediction = denoiser(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(
            prediction, timestep, latents, generator=list(generators), return_dict=False
        )[0]
        if on_step is not None:
            on_step(index)
    return latents
