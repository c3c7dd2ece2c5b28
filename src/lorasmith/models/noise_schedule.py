"""The noise process of Stable Diffusion: schedule, noising, prediction targets, loss weights.

Symbols as in Ho et al. 2020 (arXiv:2006.11239): ``a`` is the cumulative product of 1 - beta,
``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps``. Everything is gathered from tensors on the device
without synchronising with it, so that a step can be captured as a CUDA graph.
"""

from dataclasses import dataclass

import torch

from lorasmith.core.errors import ConfigError
from lorasmith.models.families.family import PredictionType
from lorasmith.models.scheduler_config import IMPOSSIBLE_PREDICTION, needs_impossible_prediction


def compute_alphas_cumprod(
    beta_schedule: str, beta_start: float, beta_end: float, steps: int = 1000
) -> torch.Tensor:
    """Return the cumulative signal power a_t, float32 ``[steps]``, computed in float64.

    Raises:
        ConfigError: the beta schedule is not one that Stable Diffusion models use.
    """
    if beta_schedule == "scaled_linear":  # latent diffusion, arXiv:2112.10752
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    else:
        raise ConfigError(
            f"beta_schedule {beta_schedule!r} is not supported; use scaled_linear or linear"
        )
    return torch.cumprod(1.0 - betas, dim=0).float()


def rescale_zero_terminal_snr(alphas: torch.Tensor) -> torch.Tensor:
    """Rescale a schedule to zero signal at its last level (arXiv:2305.08891, algorithm 1).

    The square roots are shifted so that the last is zero, and scaled so that the first stays.

    Args:
        alphas: cumulative signal power a_t, falling, ``[T]``.

    Returns:
        The new a_t, float32 ``[T]``, computed in float64.
    """
    roots = alphas.double().sqrt()
    shifted = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    return shifted.square().to(torch.float32)


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule and prediction type that a model was trained with."""

    alphas_cumprod: torch.Tensor
    """Cumulative signal power a_t, float32 ``[T]``."""
    prediction_type: PredictionType
    """What the U-Net predicts."""
    max_timesteps: int | None = None
    """How many of the levels, from the lowest, the U-Net is for; None for all."""

    @classmethod
    def from_scheduler(
        cls, scheduler_config: dict[str, object], device: torch.device
    ) -> "NoiseSchedule":
        """Read the schedule from a diffusers scheduler's config.

        ``rescale_betas_zero_snr`` holds for training as it does for sampling.

        Raises:
            ConfigError: a beta schedule or prediction type that is not Stable Diffusion's, or
                noise prediction at a level of pure noise.
        """
        prediction = str(scheduler_config.get("prediction_type", "epsilon"))
        if prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"prediction_type {prediction!r} is not supported; use epsilon or v_prediction"
            )
        if scheduler_config.get("trained_betas") is not None:
            raise ConfigError(
                "the model's scheduler lists its noise levels one by one (trained_betas), which "
                "is not supported; use a model with a beta_schedule"
            )
        if needs_impossible_prediction(scheduler_config):
            raise ConfigError(IMPOSSIBLE_PREDICTION)
        alphas = compute_alphas_cumprod(
            str(scheduler_config.get("beta_schedule", "linear")),
            float(str(scheduler_config.get("beta_start", 1e-4))),
            float(str(scheduler_config.get("beta_end", 0.02))),
            int(str(scheduler_config.get("num_train_timesteps", 1000))),
        )
        if scheduler_config.get("rescale_betas_zero_snr"):
            alphas = rescale_zero_terminal_snr(alphas)
        return cls(alphas.to(device), prediction)  # type: ignore[arg-type]

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps that the U-Net is for, from 0."""
        return (
            len(self.alphas_cumprod)
            if self.max_timesteps is None
            else min(self.max_timesteps, len(self.alphas_cumprod))
        )

    def _alpha_at(self, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return self.alphas_cumprod[timesteps].view(-1, *[1] * (like.ndim - 1))

    def add_noise(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return x_t. ``clean`` and ``noise`` are ``[B, ...]``, ``timesteps`` int64 ``[B]``."""
        a = self._alpha_at(timesteps, clean)
        return a.sqrt() * clean + (1.0 - a).sqrt() * noise

    def training_target(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return the target of the prediction: the noise, or v of arXiv:2202.00512 (eq. D.1)."""
        if self.prediction_type == "epsilon":
            return noise
        a = self._alpha_at(timesteps, clean)
        return a.sqrt() * noise - (1.0 - a).sqrt() * clean

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio a_t / (1 - a_t), ``[B]``."""
        a = self.alphas_cumprod[timesteps]
        return a / (1.0 - a)

    def min_snr_weight(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return min-SNR-gamma loss weights (arXiv:2303.09556), ``[B]``.

        min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v prediction. At a
        level without any signal the first is 1, its limit.
        """
        snr = self.snr(timesteps)
        if self.prediction_type == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        return snr.clamp(max=gamma) / (snr + 1.0)
