"""Samplers by the names that people use, as diffusers schedulers.

What a model was taught (betas, prediction type, zero terminal SNR) comes from its scheduler's
config; how the noise is walked down belongs to the sampler. Choices below follow what the same
name means in A1111 and in the "Schedulers" table of diffusers' documentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorasmith.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

Scheduler = Any
"""A diffusers scheduler (the library ships no usable types)."""


@dataclass(frozen=True)
class Sampler:
    """One way of walking from noise to a picture."""

    label: str
    """The name in A1111 and in picture metadata."""
    scheduler: str
    """Name of the class in diffusers."""
    spacing: str
    """Where the timesteps lie (table 2 of arXiv:2305.08891)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the class."""


SAMPLERS: Mapping[str, Sampler] = {
    # Latents are not bounded to [-1, 1], so predicted ones are never clipped.
    "ddim": Sampler("DDIM", "DDIMScheduler", "leading", {"clip_sample": False}),
    "ddpm": Sampler("DDPM", "DDPMScheduler", "leading", {"clip_sample": False}),
    "dpm++": Sampler(
        "DPM++ 2M",
        "DPMSolverMultistepScheduler",
        "linspace",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
    # k-diffusion's samplers start at the last timestep, hence linspace.
    "euler": Sampler("Euler", "EulerDiscreteScheduler", "linspace"),
    "euler-a": Sampler("Euler a", "EulerAncestralDiscreteScheduler", "linspace"),
}

_OF_THE_MODEL = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


def check_sampler(name: str) -> Sampler:
    """Return the sampler of that name.

    Raises:
        ConfigError: unknown name; close matches, else all names, are given.
    """
    sampler = SAMPLERS.get(name)
    if sampler is None:
        hint = did_you_mean(str(name).lower().replace("_", "-"), SAMPLERS)
        raise ConfigError(
            f"sampler: {name!r} is unknown{hint or '; use one of ' + ', '.join(SAMPLERS)}"
        )
    return sampler


def make_scheduler(
    name: str, scheduler_config: Mapping[str, Any], steps: int, device: "torch.device"
) -> Scheduler:
    """Return a fresh diffusers scheduler whose ``steps`` timesteps are set on ``device``.

    A scheduler carries the state of one walk: make one for every batch.

    Raises:
        ConfigError: unknown sampler, a prediction type other than epsilon or v_prediction, or
            more steps than the model has noise levels.
    """
    import diffusers

    sampler = check_sampler(name)
    levels = int(scheduler_config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= levels:
        raise ConfigError(f"steps: {steps} is not possible; use a whole number, 1 to {levels}")
    kind = getattr(diffusers, sampler.scheduler)
    scheduler = kind(**_arguments(name, sampler, scheduler_config, steps))
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def _arguments(
    name: str, sampler: Sampler, config: Mapping[str, Any], steps: int
) -> dict[str, Any]:
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"prediction_type {prediction!r} is not supported; use epsilon or v_prediction"
        )
    arguments: dict[str, Any] = {key: config[key] for key in _OF_THE_MODEL if key in config}
    spacing = _spacing(sampler, config)
    arguments |= {"timestep_spacing": spacing, **sampler.extra}
    levels = int(config.get("num_train_timesteps", 1000))
    # Stable Diffusion's DDIM visits 1, 51, ..., not 0, 50, ... With one step per level the offset
    # would pass the last one.
    arguments["steps_offset"] = 1 if spacing == "leading" and steps < levels else 0
    if name == "ddim":
        arguments["set_alpha_to_one"] = bool(config.get("set_alpha_to_one", False))
    return arguments


def _spacing(sampler: Sampler, config: Mapping[str, Any]) -> str:
    """Return the sampler's own spacing unless the model needs one that reaches the last level."""
    if config.get("rescale_betas_zero_snr") or config.get("timestep_spacing") == "trailing":
        return "trailing"
    return sampler.spacing
