"""Euler's ancestral sampler for models that predict the clean latents, which diffusers lacks."""

from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler

from lorasmith.models.noise_schedule import convert_prediction


class EulerAncestralSampleScheduler(EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """Takes clean latents (``sample``), and steps as with the v that they mean.

    Its config must say ``v_prediction``. Going through v is exact at every noise level; through
    the noise, digits would be lost where there is little of it.
    """

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """Return what diffusers' own step does.

        Args:
            model_output: predicted clean latents, ``[B, C, h, w]``.
            timestep: one of its ``timesteps``.
            sample: the latents so far, before they are scaled for the network, likewise.
            generator: of the noise that is added; one, or one for each image.
            return_dict: False returns a tuple, the next latents first.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        alpha = 1.0 / (self.sigmas[self.step_index].double() ** 2 + 1.0)
        velocity = convert_prediction(
            model_output, sample * alpha.sqrt(), alpha, "sample", "v_prediction"
        )
        return super().step(velocity, timestep, sample, generator, return_dict)
