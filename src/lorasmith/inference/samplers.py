"""Samplers: functions from a model's scheduler config to a diffusers scheduler.

What a model was trained with (betas, prediction type, zero terminal SNR) comes from its scheduler
config; how the noise is removed belongs to the sampler. The settings below follow what the same
name means in A1111 and in the "Schedulers" table of diffusers' documentation.

Another package adds a sampler with ``registries.SAMPLERS.register("name", function)``.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lorasmith.core.errors import ConfigError
from lorasmith.models.scheduler_config import (
    IMPOSSIBLE_PREDICTION,
    ZERO_SNR,
    needs_impossible_prediction,
)
from lorasmith.registries import SAMPLERS

if TYPE_CHECKING:
    import torch

Scheduler = Any
"""A diffusers scheduler (the library ships no usable types)."""

SchedulerConfig = Mapping[str, Any]
"""The content of a model's ``scheduler_config.json``."""

Sampler = Callable[[SchedulerConfig], Scheduler]
"""What the registry `SAMPLERS` holds."""

_LABELS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_karras": "DPM++ 2M SDE Karras",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "unipc": "UniPC",
}
"""A1111's names, which image metadata use."""

_OTHER_NAMES = {
    "ddimscheduler": "ddim",
    "ddpmscheduler": "ddpm",
    "dpmsolvermultistepscheduler": "dpmpp_2m",
    "eulerdiscretescheduler": "euler",
    "eulerancestraldiscretescheduler": "euler_a",
    "heundiscretescheduler": "heun",
    "unipcmultistepscheduler": "unipc",
    "euler_ancestral": "euler_a",
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "k_euler_ancestral": "euler_a",
    "k_heun": "heun",
    "k_dpmpp_2m": "dpmpp_2m",
    "uni_pc": "unipc",
}
"""Diffusers' class names, ComfyUI's and kohya's names, in lower case."""

_MISSING = {
    "dpm2", "dpm2_a", "dpm2_karras", "dpm2_a_karras", "dpmpp_sde", "dpmpp_sde_karras",
    "dpmpp_3m_sde", "dpmpp_3m_sde_karras", "dpmpp_2s_a", "dpmpp_2s_a_karras",
    "dpmpp_2s_ancestral",
}  # fmt: skip
"""Samplers of A1111 and ComfyUI that resemble those here in their names only."""

_LEAST_ALPHA_OF_HEUN = 1e-6
"""Least signal power at the last level for Heun's method; Stable Diffusion has 5e-3."""

_MODEL_SETTINGS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


def resolve_sampler(name: str) -> str:
    """Return the registered name of a sampler.

    A1111's and diffusers' names are accepted in any case: ``DPM++ 2M Karras``, ``Euler a``,
    ``EulerAncestralDiscreteScheduler``.

    Raises:
        ConfigError: there is no such sampler; a close name or all names are given.
    """
    text = str(name)
    key = re.sub(r"[\s_-]+", "_", text.strip().lower()).replace("++", "pp")
    key = _OTHER_NAMES.get(key, key)
    if key in _MISSING:
        raise ConfigError(
            f"there is no sampler {text!r} (choose from {', '.join(SAMPLERS.names())})"
        )
    return SAMPLERS.check(key if key in SAMPLERS else text)


def sampler_label(name: str) -> str:
    """Return the name that image metadata use: A1111's, or the registered one."""
    return _LABELS.get(name, name)


def make_scheduler(
    name: str, config: SchedulerConfig, num_inference_steps: int, device: "torch.device"
) -> Scheduler:
    """Return a fresh diffusers scheduler with its timesteps set on ``device``.

    A scheduler keeps the state of one denoising loop: make one for every batch.

    Raises:
        ConfigError: unknown sampler or prediction type, noise prediction at a level of pure
            noise, betas that leave no signal, or more steps than noise levels.
    """
    sampler = SAMPLERS.get(resolve_sampler(name))
    levels = int(config.get("num_train_timesteps", 1000))
    if not 1 <= num_inference_steps <= levels:
        raise ConfigError(
            f"num_inference_steps: {num_inference_steps} is not possible; "
            f"use a whole number, 1 to {levels}"
        )
    from lorasmith.models.noise_schedule import check_prediction_type, check_signal

    check_prediction_type(config.get("prediction_type", "epsilon"))
    if needs_impossible_prediction(config):
        raise ConfigError(IMPOSSIBLE_PREDICTION)
    scheduler = sampler(config)
    if not config.get(ZERO_SNR) and hasattr(scheduler, "alphas_cumprod"):
        check_signal(scheduler.alphas_cumprod)
    if num_inference_steps == levels and scheduler.config.get("steps_offset"):
        scheduler.register_to_config(steps_offset=0)  # an offset would pass the last level
    scheduler.set_timesteps(num_inference_steps, device=device)
    return scheduler


def ddim(config: SchedulerConfig) -> Scheduler:
    set_alpha_to_one = bool(config.get("set_alpha_to_one", False))
    return _build(
        "DDIMScheduler", config, "leading", clip_sample=False, set_alpha_to_one=set_alpha_to_one
    )


def ddpm(config: SchedulerConfig) -> Scheduler:
    return _build("DDPMScheduler", config, "leading", clip_sample=False)


def dpmpp_2m(config: SchedulerConfig) -> Scheduler:
    return _build_dpmpp(config)


def dpmpp_2m_karras(config: SchedulerConfig) -> Scheduler:
    return _build_dpmpp(config, use_karras_sigmas=True)


def dpmpp_2m_sde(config: SchedulerConfig) -> Scheduler:
    return _build_dpmpp(config, algorithm_type="sde-dpmsolver++")


def dpmpp_2m_sde_karras(config: SchedulerConfig) -> Scheduler:
    return _build_dpmpp(config, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)


def euler(config: SchedulerConfig) -> Scheduler:
    return _build("EulerDiscreteScheduler", config, "linspace")


def euler_a(config: SchedulerConfig) -> Scheduler:
    if config.get("prediction_type") != "sample":
        return _build("EulerAncestralDiscreteScheduler", config, "linspace")
    from lorasmith.inference.euler_ancestral import EulerAncestralSampleScheduler

    as_v = {**config, "prediction_type": "v_prediction"}
    return _build_class(EulerAncestralSampleScheduler, as_v, "linspace")


def heun(config: SchedulerConfig) -> Scheduler:
    """Return Heun's sampler.

    Its first step averages two directions over a length of sigma, which is in the thousands at a
    level of almost pure noise: any error of the second direction grows as much.
    """
    ends_in_noise = bool(config.get(ZERO_SNR))
    if not ends_in_noise:
        scheduler = _build("HeunDiscreteScheduler", config, "linspace")
        ends_in_noise = bool(scheduler.alphas_cumprod[-1] < _LEAST_ALPHA_OF_HEUN)
    if ends_in_noise:
        raise ConfigError(
            "the model's noise levels end in pure noise, or nearly so, from where Heun's steps are "
            "too long to be right; use the sampler euler"
        )
    return scheduler


def unipc(config: SchedulerConfig) -> Scheduler:
    return _build("UniPCMultistepScheduler", config, "linspace", final_sigmas_type="zero")


def _build_dpmpp(config: SchedulerConfig, **settings: Any) -> Scheduler:
    settings = {"algorithm_type": "dpmsolver++", **settings}
    return _build(
        "DPMSolverMultistepScheduler", config, "linspace",
        solver_order=2, final_sigmas_type="zero", **settings,
    )  # fmt: skip


def _build(class_name: str, config: SchedulerConfig, spacing: str, **settings: Any) -> Scheduler:
    """Return a scheduler with a model's settings and a sampler's.

    Args:
        class_name: in diffusers.
        config: the model's.
        spacing: where the timesteps lie (table 2 of arXiv:2305.08891). k-diffusion's samplers start
            at the last timestep, hence linspace. Models that need the last level get trailing.
        settings: of the sampler. Latents are not bounded to [-1, 1], so predicted ones are never
            clipped.
    """
    import diffusers

    return _build_class(getattr(diffusers, class_name), config, spacing, **settings)


def _build_class(
    scheduler_class: Any, config: SchedulerConfig, spacing: str, **settings: Any
) -> Scheduler:
    """Do what `_build` does with a class of diffusers, or one that extends it."""
    model_settings = {key: config[key] for key in _MODEL_SETTINGS if key in config}
    if not model_settings.get(ZERO_SNR):
        model_settings.pop(ZERO_SNR, None)
    if config.get(ZERO_SNR) or config.get("timestep_spacing") == "trailing":
        spacing = "trailing"
    # Stable Diffusion's DDIM visits 1, 51, ..., not 0, 50, ...
    steps_offset = 1 if spacing == "leading" else 0
    return scheduler_class(
        **model_settings, timestep_spacing=spacing, steps_offset=steps_offset, **settings
    )
