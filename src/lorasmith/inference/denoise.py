"""The denoising loop: from noise to latents under classifier-free guidance.

Latents and the sampler's arithmetic stay float32 whatever the network computes in; only the
network's inputs are cast.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.inference.samplers import Scheduler

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Called with scaled latents and a timestep; returns the prediction."""

StepCallback = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""Called after each step with its index from 0, its timestep and the latents; returns the latents
to go on with."""


@dataclass(frozen=True)
class AddedConditioning:
    """What SDXL's U-Net reads besides the text (arXiv:2307.01952, section 2.2)."""

    pooled_prompt_embeds: torch.Tensor
    """``[B, P]``."""
    negative_pooled_prompt_embeds: torch.Tensor
    """``[B, P]``."""
    time_ids: torch.Tensor
    """Original height and width, top and left of the crop, target height and width, ``[B, 6]``; the
    refiner has an aesthetic score in place of the target, ``[B, 5]``."""
    negative_time_ids: torch.Tensor
    """The same for the negative prompts."""


@dataclass(frozen=True)
class CFGDenoiser:
    """The U-Net under classifier-free guidance (arXiv:2207.12598), one batched call a step."""

    unet: "UNet2DConditionModel"
    prompt_embeds: torch.Tensor
    """``[B, L, width]``."""
    negative_prompt_embeds: torch.Tensor
    """``[B, L, width]``."""
    guidance_scale: float
    """Exactly 1 leaves the negative half of the batch out."""
    guidance_rescale: float = 0.0
    """Share phi of the rescaled prediction, see `rescale_noise_cfg`."""
    added_conditioning: AddedConditioning | None = None
    """For SDXL."""
    inpaint_cond: torch.Tensor | None = None
    """For inpainting models: the mask and the masked image's latents, ``[B, 1 + C, h, w]``."""

    @property
    def uses_guidance(self) -> bool:
        """Whether the network's batch holds every image twice, the negative half first."""
        return self.guidance_scale != 1.0

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the guided prediction, float32, shaped as ``latents`` ``[B, C, h, w]``.

        Args:
            latents: scaled for the network by the scheduler.
            timestep: a scalar tensor.
        """
        if not self.uses_guidance:
            return self._call_unet(latents, timestep, self.prompt_embeds)
        embeds = torch.cat([self.negative_prompt_embeds, self.prompt_embeds])
        prediction = self._call_unet(torch.cat([latents, latents]), timestep, embeds)
        negative, positive = prediction.chunk(2)
        guided = negative + self.guidance_scale * (positive - negative)
        if not self.guidance_rescale:
            return guided
        return rescale_noise_cfg(guided, positive, self.guidance_rescale)

    def _call_unet(
        self, latents: torch.Tensor, timestep: torch.Tensor, embeds: torch.Tensor
    ) -> torch.Tensor:
        dtype = self.unet.dtype
        if self.inpaint_cond is not None:
            halves = len(latents) // len(self.inpaint_cond)
            latents = torch.cat([latents, torch.cat([self.inpaint_cond] * halves)], dim=1)
        prediction: torch.Tensor = self.unet(
            latents.to(dtype),
            timestep,
            encoder_hidden_states=embeds.to(dtype),
            return_dict=False,
            **self._added_kwargs(dtype),
        )[0]
        return prediction.float()

    def _added_kwargs(self, dtype: torch.dtype) -> dict[str, Any]:
        added = self.added_conditioning
        if added is None:
            return {}
        pooled, time_ids = added.pooled_prompt_embeds, added.time_ids
        if self.uses_guidance:
            pooled = torch.cat([added.negative_pooled_prompt_embeds, pooled])
            time_ids = torch.cat([added.negative_time_ids, time_ids])
        return {
            "added_cond_kwargs": {"text_embeds": pooled.to(dtype), "time_ids": time_ids.to(dtype)}
        }


class ScheduledDenoiser:
    """The U-Net for a batch whose texts and gates change at some of the steps."""

    def __init__(
        self,
        make_denoiser: Callable[[int], Denoiser],
        phase_starts: Collection[int],
        calls_per_step: int = 1,
    ) -> None:
        """Prepare for one denoising loop.

        Args:
            make_denoiser: returns the U-Net for the phase that begins with a step.
            phase_starts: first steps of all phases; 1 is one of them.
            calls_per_step: the scheduler's order; the last step may have fewer calls.
        """
        self._make_denoiser, self._phase_starts = make_denoiser, phase_starts
        self._calls_per_step = calls_per_step
        self._num_calls = 0

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the prediction of the next call; see `CFGDenoiser`."""
        steps_done, call_in_step = divmod(self._num_calls, self._calls_per_step)
        self._num_calls += 1
        if call_in_step == 0 and steps_done + 1 in self._phase_starts:
            self._denoiser = self._make_denoiser(steps_done + 1)
        return self._denoiser(latents, timestep)


def rescale_noise_cfg(
    guided: torch.Tensor, positive: torch.Tensor, guidance_rescale: float
) -> torch.Tensor:
    """Bring a guided prediction's spread back to the conditional one's (arXiv:2305.08891).

    Equations 14 to 16: ``x = phi * guided * std(positive) / std(guided) + (1 - phi) * guided``,
    standard deviations over everything but the batch.

    Args:
        guided: the prediction after guidance, ``[B, C, h, w]``.
        positive: the conditional prediction, same shape.
        guidance_rescale: phi, from 0 (``guided`` as it is) to 1.
    """
    dims = list(range(1, guided.ndim))
    factor = positive.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guidance_rescale * guided * factor + (1.0 - guidance_rescale) * guided


def sample_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device
) -> torch.Tensor:
    """Draw one noise per generator: float32 ``[len(generators), *shape]``, mean 0, variance 1.

    Each image has its own generator, so its noise does not depend on the rest of the batch. The
    noise is drawn on the generators' device (the CPU) and then moved.
    """
    noise = [
        torch.randn(shape, generator=generator, device=generator.device) for generator in generators
    ]
    return torch.stack(noise).to(device)


def denoise(
    denoiser: Denoiser,
    scheduler: Scheduler,
    noise: torch.Tensor,
    generators: Sequence[torch.Generator],
    on_step_end: StepCallback | None = None,
    image_latents: torch.Tensor | None = None,
    first_step: int = 0,
) -> torch.Tensor:
    """Denoise pure noise, or given latents with noise added.

    Args:
        denoiser: the network.
        scheduler: a fresh one from `make_scheduler`.
        noise: float32 ``[B, C, h, w]``.
        generators: one per image, for samplers that add noise at each step.
        on_step_end: called after each step.
        image_latents: these get noise of the first step's level; None starts from pure noise.
        first_step: how many steps are skipped at the beginning.

    Returns:
        Latents, float32 ``[B, C, h, w]``, still multiplied by the VAE's scaling factor.
    """
    order = scheduler_order(scheduler)
    latents: torch.Tensor = noise * scheduler.init_noise_sigma
    timesteps = scheduler.timesteps[first_step * order :]
    # Looked up by the timestep, the first step is wrong where two round to one timestep.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first_step * order)
    if image_latents is not None:
        latents = scheduler.add_noise(image_latents, noise, timesteps[:1].repeat(len(noise)))
    step_kwargs: dict[str, Any] = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_kwargs["generator"] = list(generators)
    for call, timestep in enumerate(timesteps, start=1):
        prediction = denoiser(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction, timestep, latents, **step_kwargs)[0]
        if on_step_end is not None and (call % order == 0 or call == len(timesteps)):
            latents = on_step_end((call - 1) // order, timestep, latents)
    return latents


def scheduler_order(scheduler: Scheduler) -> int:
    """Return how many times a scheduler calls the network in a step."""
    return int(getattr(scheduler, "order", 1))
