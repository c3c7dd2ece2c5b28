"""The noise process of Stable Diffusion: schedule, noising, prediction targets, loss weights.

Symbols as in Ho et al. 2020 (arXiv:2006.11239): ``a`` is the cumulative product of 1 - beta,
``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps``. Everything is gathered from tensors on the device
without synchronising with it, so that a step can be captured as a CUDA graph.
"""

import math
from dataclasses import dataclass

import torch

from lorasmith.core.errors import ConfigError
from lorasmith.models.families.family import PREDICTION_TYPES, PredictionType
from lorasmith.models.scheduler_config import (
    BETA_SCHEDULES_TEXT,
    IMPOSSIBLE_PREDICTION,
    ZERO_SNR,
    needs_impossible_prediction,
)

_MAX_BETA = 0.999
"""Largest beta of squaredcos_cap_v2."""


def compute_alphas_cumprod(
    beta_schedule: str, beta_start: float, beta_end: float, steps: int = 1000
) -> torch.Tensor:
    """Return the cumulative signal power a_t, float32 ``[steps]``, computed in float64.

    ``squaredcos_cap_v2`` (arXiv:2102.09672, eq. 17) is the same whatever the betas.

    Raises:
        ConfigError: the beta schedule is not one that Stable Diffusion models use.
    """
    if beta_schedule == "scaled_linear":  # latent diffusion, arXiv:2112.10752
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    elif beta_schedule == "squaredcos_cap_v2":
        shares = torch.arange(steps + 1, dtype=torch.float64) / steps
        powers = torch.cos((shares + 0.008) / 1.008 * math.pi / 2).square()
        betas = (1.0 - powers[1:] / powers[:-1]).clamp(max=_MAX_BETA)
    else:
        raise ConfigError(
            f"beta_schedule {beta_schedule!r} is not supported; use {BETA_SCHEDULES_TEXT}"
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


def convert_prediction(
    prediction: torch.Tensor,
    noisy: torch.Tensor,
    alpha: torch.Tensor,
    source: PredictionType,
    target: PredictionType,
) -> torch.Tensor:
    """Return what a network that predicts ``target`` would say where one said ``prediction``.

    From epsilon it divides by the signal's root, so that nothing finite follows at a level without
    any signal; from v it never divides, from sample by the noise's root, which is never zero.

    Args:
        prediction: of the type ``source``, ``[B, ...]``.
        noisy: the network's input x_t, likewise.
        alpha: the signal power a_t, in a shape that broadcasts to these.
        source: what is given.
        target: what is wanted.
    """
    if source == target:
        return prediction
    signal, sigma = alpha.sqrt(), (1.0 - alpha).sqrt()
    if source == "epsilon":
        clean, noise = (noisy - sigma * prediction) / signal, prediction
    elif source == "sample":
        clean, noise = prediction, (noisy - signal * prediction) / sigma
    else:
        clean, noise = signal * noisy - sigma * prediction, sigma * noisy + signal * prediction
    if target == "v_prediction":
        return signal * noise - sigma * clean
    return noise if target == "epsilon" else clean


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
            ConfigError: a beta schedule or prediction type that is not supported, noise prediction
                at a level of pure noise, or betas after which no signal is left.
        """
        prediction = str(scheduler_config.get("prediction_type", "epsilon"))
        check_prediction_type(prediction)
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
        check_signal(alphas)
        if scheduler_config.get(ZERO_SNR):
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
        """Return the target of the prediction: the noise, v (arXiv:2202.00512, eq. D.1), or the
        clean latents."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        a = self._alpha_at(timesteps, clean)
        return a.sqrt() * noise - (1.0 - a).sqrt() * clean

    def convert(
        self,
        prediction: torch.Tensor,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        target: PredictionType,
    ) -> torch.Tensor:
        """Return the noise, v or clean latents that a prediction of the U-Net means.

        Args:
            prediction: what the U-Net said, ``[B, ...]``.
            noisy: its input x_t, likewise.
            timesteps: int64 ``[B]``.
            target: what is wanted; see `convert_prediction`.
        """
        alpha = self._alpha_at(timesteps, noisy)
        return convert_prediction(prediction, noisy, alpha, self.prediction_type, target)

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio a_t / (1 - a_t), ``[B]``."""
        a = self.alphas_cumprod[timesteps]
        return a / (1.0 - a)

    def min_snr_weight(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return min-SNR-gamma loss weights (arXiv:2303.09556), ``[B]``.

        min(SNR, gamma) for the clean latents (sample), min(SNR, gamma) / SNR for epsilon and
        min(SNR, gamma) / (SNR + 1) for v: the same weight of the same error in the clean latents.
        At a level without any signal that for epsilon is 1, its limit.
        """
        snr = self.snr(timesteps)
        if self.prediction_type == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        capped = snr.clamp(max=gamma)
        return capped if self.prediction_type == "sample" else capped / (snr + 1.0)


def check_signal(alphas: torch.Tensor) -> None:
    """Refuse a schedule whose last level has no signal, though it is not made for that.

    Raises:
        ConfigError: there is none, or less than float32 computes with.
    """
    if alphas[-1] < torch.finfo(torch.float32).tiny:
        raise ConfigError(
            "the betas are so large that float32 holds no signal at the last noise level; use "
            "a smaller beta_end, or fewer num_train_timesteps"
        )


def check_prediction_type(prediction: object) -> None:
    """Refuse a prediction type that is none of `PREDICTION_TYPES`.

    Raises:
        ConfigError: it is not supported.
    """
    if prediction not in PREDICTION_TYPES:
        raise ConfigError(
            f"prediction_type {prediction!r} is not supported; use {', '.join(PREDICTION_TYPES)}"
        )
