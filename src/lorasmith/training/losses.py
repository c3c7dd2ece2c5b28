"""What is minimised: the error of the network's prediction at random noise levels.

Everything stays on the device and has the shape of the batch, so that a step can be recorded.
"""

import warnings
from dataclasses import replace
from typing import NamedTuple

import torch

from lorasmith.config.train_settings import LossConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.noise import NoiseSchedule, rescale_zero_terminal_snr
from lorasmith.training.data.batch import Batch

_NO_MASK = 1e-6
"""A mask that lets less through than this counts as black."""


class Noise(NamedTuple):
    """What is random about a step besides its latents; B pictures, latents ``[B, C, h, w]``."""

    timesteps: torch.Tensor
    """Noise levels, int64 ``[B]``."""
    noise: torch.Tensor
    """Noise like the latents, float32."""


def build_noise_process(
    scheduler_config: dict[str, object],
    settings: LossConfig,
    device: torch.device,
    known: int | None = None,
) -> NoiseSchedule:
    """Return the noise process of a model, rescaled where the settings say so.

    Warns where the settings ask for a rescaling that the model does not fit.

    Args:
        scheduler_config: of the model.
        settings: of the loss.
        device: where it is wanted.
        known: how many noise levels, from the lowest, the model is for; None for all.
    """
    process = replace(NoiseSchedule.from_scheduler(scheduler_config, device), max_timesteps=known)
    if not settings.zero_terminal_snr or scheduler_config.get("rescale_betas_zero_snr"):
        return process
    warnings.warn(_misfit(process), LorasmithWarning, stacklevel=2)
    return replace(process, alphas_cumprod=rescale_zero_terminal_snr(process.alphas_cumprod))


def _misfit(process: NoiseSchedule) -> str:
    """Say what a model whose own last level holds some signal makes of one that holds none."""
    if process.prediction_type == "epsilon":
        return (
            "train.loss.zero_terminal_snr: the model predicts the noise, and a level that is "
            "nothing but noise teaches it nothing; leave this off, or use a model with v-prediction"
        )
    return (
        "train.loss.zero_terminal_snr: previews and `generate` still draw with the model's own "
        "noise levels; set rescale_betas_zero_snr to true in the model's "
        "scheduler/scheduler_config.json to draw as it is trained"
    )


def sample_noise(
    process: NoiseSchedule, settings: LossConfig, batch: Batch, draws: BatchRng
) -> Noise:
    """Draw noise levels uniformly among those of the model, and unit noise with its offset."""
    shape = batch.latents.shape[1:]
    timesteps = draws.integers(process.num_timesteps)
    noise = draws.normal(*shape)
    if settings.noise_offset > 0:
        noise = noise + settings.noise_offset * draws.normal(shape[0], 1, 1)
    return Noise(timesteps.to(batch.latents.device), noise.to(batch.latents.device))


def per_image_losses(
    process: NoiseSchedule,
    settings: LossConfig,
    batch: Batch,
    drawn: Noise,
    predicted: torch.Tensor,
) -> torch.Tensor:
    """Return each picture's loss, float32 ``[B]``, without its weight.

    ||f(x_t, t, text) - target||^2, averaged over the latent (Ho et al. 2020, eq. 14; Salimans and
    Ho 2022): over what its mask lets through where there is one, so that a small subject counts
    as much as a large one. Then min-SNR weighting.
    """
    target = process.training_target(batch.latents, drawn.noise, drawn.timesteps)
    error = (predicted.float() - target).square()
    if batch.loss_mask is not None and settings.masked:
        counted = batch.loss_mask.expand_as(error)
        losses = (error * counted).sum(dim=(1, 2, 3))
        losses = losses / counted.sum(dim=(1, 2, 3)).clamp(min=_NO_MASK)
    else:
        losses = error.mean(dim=(1, 2, 3))
    if settings.min_snr_gamma > 0:
        losses = losses * process.min_snr_weight(drawn.timesteps, settings.min_snr_gamma)
    return losses


def weighted_mean(losses: torch.Tensor, weight: torch.Tensor, whole: int) -> torch.Tensor:
    """Return a part's contribution to the loss of a batch of ``whole`` pictures, a scalar.

    The sum of all parts' contributions is sum(weight * loss) / whole.
    """
    return (losses * weight).sum() / whole
