"""One call of a pipeline: everything that its batches share, and denoising a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorasmith.core.device import make_generator
from lorasmith.inference.denoise import (
    CFGDenoiser,
    ScheduledDenoiser,
    StepCallback,
    denoise,
    scheduler_order,
)
from lorasmith.inference.image_jobs import ImageJob
from lorasmith.inference.init_latents import LatentPreparer
from lorasmith.inference.loras.encoded_prompts import EncodedPrompts
from lorasmith.inference.loras.router import LoraRouter
from lorasmith.inference.options import SamplingOptions
from lorasmith.inference.prompts.parse_prompt import Prompt
from lorasmith.inference.samplers import make_scheduler
from lorasmith.inference.unet_inputs import make_added_conditioning
from lorasmith.models.model import Model

Progress = Callable[[int], Any]
"""Called with the number of image-steps just done; a call makes images x steps of them."""


@dataclass(frozen=True)
class Generation:
    """What all batches of one call share."""

    model: Model
    options: SamplingOptions
    preparer: LatentPreparer
    router: LoraRouter
    encoded: EncodedPrompts
    progress: Progress | None = None
    on_step_end: StepCallback | None = None

    def denoise_batch(self, jobs: Sequence[ImageJob]) -> torch.Tensor:
        """Return the latents of one batch, float32 ``[B, C, h, w]``."""
        options, config = self.options, self.model.scheduler_config
        scheduler = make_scheduler(
            options.sampler, config, options.num_inference_steps, self.model.unet.device
        )
        generators = [job.generator or make_generator(job.seed) for job in jobs]
        start = self.preparer.prepare(jobs, generators)
        prompts = [job.prompt for job in jobs]

        def make_denoiser(phase: int) -> CFGDenoiser:
            return self._make_denoiser(prompts, phase, start.inpaint_cond)

        def on_step_end(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            if self.on_step_end is not None:
                latents = self.on_step_end(step, timestep, latents)
            if self.progress is not None:
                self.progress(len(jobs))
            return latents

        return denoise(
            ScheduledDenoiser(make_denoiser, self.router.phase_starts, scheduler_order(scheduler)),
            scheduler,
            start.noise,
            generators,
            on_step_end,
            start.image_latents,
            self.preparer.first_step,
        )

    def prompt_with_loras(self, prompt: Prompt) -> str:
        """Return a prompt with a mention of every LoRA that was active for it."""
        active = self.router.active_loras(prompt)
        more = [lora.request for lora in active if lora.requested_by in ("call", "library")]
        return " ".join([prompt.source, *map(str, more)])

    def _make_denoiser(
        self, prompts: list[Prompt], phase: int, inpaint_cond: torch.Tensor | None
    ) -> CFGDenoiser:
        """Return the U-Net for a batch in a phase, and set the gates."""
        pairs = [self.encoded.embeds[prompt, phase] for prompt in prompts]
        negative, positive = zip(*pairs, strict=True)
        denoiser = CFGDenoiser(
            self.model.unet,
            torch.stack([text.context for text in positive]),
            torch.stack([text.context for text in negative]),
            self.options.guidance_scale,
            self.options.guidance_rescale,
            make_added_conditioning(self.model, positive, negative, self.preparer.size),
            inpaint_cond,
        )
        texts = self.encoded.batch_texts(prompts, denoiser.uses_guidance)
        self.router.set_gates(prompts, texts, self.encoded.batch_token_ids(texts), phase)
        return denoiser
