"""The loss: how far the U-Net's prediction is from its target at random noise levels.

`diffusion_loss` is the built-in loss function. ``lorasmith.train(config, loss_fn=...)`` takes any
other function of a `LossContext`. The built-in one stays on the device and has no shapes that
depend on values, so that a training step can be captured as a CUDA graph.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch

from lorasmith.config.optimization import LossConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.noise_schedule import NoiseSchedule, rescale_zero_terminal_snr
from lorasmith.registries import LOSS_WEIGHTINGS
from lorasmith.training.data.batch import Batch

_MIN_MASK_SUM = 1e-6
"""Below this sum a mask counts as black."""


class Noise(NamedTuple):
    """The random part of a training step: B images with latents ``[B, C, h, w]``."""

    timesteps: torch.Tensor
    """Noise levels, int64 ``[B]``."""
    noise: torch.Tensor
    """Gaussian noise, float32, in the shape of the latents."""


@dataclass(frozen=True)
class LossContext:
    """Everything a loss function may use, for B images with latents ``[B, C, h, w]``."""

    prediction: torch.Tensor
    """The U-Net's output, ``[B, C, h, w]`` in its dtype; the only tensor with gradients."""
    target: torch.Tensor
    """What it should be, float32 ``[B, C, h, w]``: the noise, v, or the clean latents, as the model
    predicts."""
    noise: torch.Tensor
    """The noise that was added, float32 ``[B, C, h, w]``."""
    timesteps: torch.Tensor
    """The noise levels, int64 ``[B]``."""
    latents: torch.Tensor
    """The clean latents, float32 ``[B, C, h, w]``."""
    weights: torch.Tensor
    """Weight of each image, float32 ``[B]``: 1, or ``data.prior_loss_weight`` for regularisation
    images. Losses are multiplied by it afterwards."""
    mask: torch.Tensor | None
    """How much each latent pixel counts, float32 0..1 ``[B, 1, h, w]``; None without masks."""
    process: NoiseSchedule
    """The model's noise schedule: signal-to-noise ratios, and what a prediction means as noise, v
    or clean latents (`NoiseSchedule.convert`)."""
    settings: LossConfig
    """The section ``train.loss`` of the settings."""


LossFn = Callable[[LossContext], torch.Tensor]
"""Returns the loss of each image, float32 ``[B]``."""

LossWeighting = Callable[[NoiseSchedule, torch.Tensor, LossConfig], torch.Tensor]
"""Takes the noise schedule, timesteps int64 ``[B]`` and the loss settings; returns a weight for
each image's loss, float32 ``[B]``."""

_Function = TypeVar("_Function", bound=Callable[..., object])


def capturable(loss_fn: _Function) -> _Function:
    """Mark a loss function as fit for CUDA graph capture.

    Such a function reads no tensor's value on the host, and its Python code does the same at every
    step: a replay does not run it. Steps with an unmarked loss function run eagerly.
    """
    loss_fn.is_capturable = True  # type: ignore[attr-defined]
    return loss_fn


def is_capturable(loss_fn: LossFn) -> bool:
    """Return whether a loss function is marked with `capturable`."""
    return bool(getattr(loss_fn, "is_capturable", False))


@capturable
def diffusion_loss(context: LossContext) -> torch.Tensor:
    """Return the loss of each image, float32 ``[B]``.

    ``||f(x_t, t, text) - target||^2``, averaged over the latent (Ho et al. 2020, eq. 14; Salimans
    and Ho 2022) and weighted by ``train.loss.weighting``. With a mask, the average is over what
    the mask lets through, so that a small subject counts as much as a large one.
    """
    error = (context.prediction.float() - context.target).square()
    if context.mask is not None and context.settings.masked:
        mask = context.mask.expand_as(error)
        losses = (error * mask).sum(dim=(1, 2, 3))
        losses = losses / mask.sum(dim=(1, 2, 3)).clamp(min=_MIN_MASK_SUM)
    else:
        losses = error.mean(dim=(1, 2, 3))
    weighting: LossWeighting = LOSS_WEIGHTINGS.get(context.settings.weighting)
    return losses * weighting(context.process, context.timesteps, context.settings)


def min_snr_weights(
    process: NoiseSchedule, timesteps: torch.Tensor, settings: LossConfig
) -> torch.Tensor:
    """Return the weights of min-SNR-gamma (arXiv:2303.09556); all 1 where gamma is 0."""
    if settings.min_snr_gamma == 0:
        return constant_weights(process, timesteps, settings)
    return process.min_snr_weight(timesteps, settings.min_snr_gamma)


def constant_weights(
    process: NoiseSchedule, timesteps: torch.Tensor, settings: LossConfig
) -> torch.Tensor:
    """Return 1 for all noise levels."""
    return torch.ones(timesteps.shape, device=timesteps.device)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return a microbatch's contribution to the loss of a batch, a scalar.

    The contributions of all microbatches add up to ``sum(weights * losses) / batch_size``.
    """
    return (losses * weights).sum() / batch_size


# --- noise ------------------------------------------------------------------------------------


def build_noise_process(
    scheduler_config: dict[str, object],
    settings: LossConfig,
    device: torch.device,
    num_timesteps: int | None = None,
) -> NoiseSchedule:
    """Return the noise schedule that a model is trained with.

    Warns where the settings ask for zero terminal SNR and the model does not fit that.

    Args:
        scheduler_config: the model's ``scheduler_config.json``.
        settings: ``train.loss``.
        device: where its tensors are.
        num_timesteps: how many noise levels, from the lowest, the model is for; None for all.
    """
    process = NoiseSchedule.from_scheduler(scheduler_config, device)
    process = replace(process, max_timesteps=num_timesteps)
    if not settings.zero_terminal_snr or scheduler_config.get("rescale_betas_zero_snr"):
        return process
    warnings.warn(_describe_terminal_snr_misfit(process), LorasmithWarning, stacklevel=2)
    return replace(process, alphas_cumprod=rescale_zero_terminal_snr(process.alphas_cumprod))


def _describe_terminal_snr_misfit(process: NoiseSchedule) -> str:
    if process.prediction_type == "epsilon":
        return (
            "train.loss.zero_terminal_snr: the model predicts the noise and learns nothing from a "
            "level that is pure noise; set this to false, or use a model that predicts v or x0"
        )
    return (
        "train.loss.zero_terminal_snr: previews and `generate` still sample with the model's own "
        "noise levels; set rescale_betas_zero_snr to true in the model's "
        "scheduler/scheduler_config.json to sample as it is trained"
    )


def sample_noise(
    process: NoiseSchedule, settings: LossConfig, batch: Batch, rng: BatchRng
) -> Noise:
    """Return uniformly sampled noise levels, and Gaussian noise with ``noise_offset``."""
    shape = batch.latents.shape[1:]
    timesteps = rng.integers(process.num_timesteps)
    noise = rng.normal(*shape)
    if settings.noise_offset > 0:
        noise = noise + settings.noise_offset * rng.normal(shape[0], 1, 1)
    return Noise(timesteps.to(batch.latents.device), noise.to(batch.latents.device))
