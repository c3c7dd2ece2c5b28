"""Checking a model's scheduler config: the noise schedule that it was trained with."""

import math
from collections.abc import Mapping
from typing import Any

from lorasmith.core.errors import WeightsError
from lorasmith.models.families.family import PREDICTION_TYPES

SCHEDULER_FILE = "scheduler/scheduler_config.json"
ZERO_SNR = "rescale_betas_zero_snr"
MAX_TIMESTEPS = 10_000
"""Noise levels, at most; Stable Diffusion has 1,000."""
_SPACINGS = ("leading", "trailing", "linspace")
_FLAGS = (ZERO_SNR, "set_alpha_to_one", "clip_sample")
_MAX_TEXT = 60
BETA_SCHEDULES_TEXT = "scaled_linear, linear or squaredcos_cap_v2"


def check_scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's config if every value that is used can be one.

    Entries that are neither numbers nor texts nor lists of them are left out.

    Raises:
        WeightsError: a value is of the wrong kind, not finite or out of range; says which.
    """
    steps = config.get("num_train_timesteps", 1000)
    _check(config, "num_train_timesteps", _is_whole(steps) and 1 <= steps <= MAX_TIMESTEPS,
           f"use a whole number, 1 to {MAX_TIMESTEPS:,}")  # fmt: skip
    for key, default in (("beta_start", 1e-4), ("beta_end", 0.02)):
        beta = config.get(key, default)
        _check(config, key, _is_number(beta) and 0 < beta < 1, "use a number between 0 and 1")
    if config.get("beta_start", 1e-4) > config.get("beta_end", 0.02):
        raise WeightsError("beta_start is larger than beta_end; noise must grow with the timestep")
    for key in _FLAGS:
        _check(config, key, config.get(key) in (None, True, False), "use true or false")
    _check(config, ZERO_SNR, not config.get(ZERO_SNR) or steps > 1,
           "it takes at least two num_train_timesteps")  # fmt: skip
    schedule = config.get("beta_schedule", "linear")
    _check(config, "beta_schedule", isinstance(schedule, str), f"use {BETA_SCHEDULES_TEXT}")
    prediction = config.get("prediction_type", "epsilon")
    _check(config, "prediction_type", prediction in PREDICTION_TYPES,
           f"lorasmith reads {', '.join(PREDICTION_TYPES)}")  # fmt: skip
    spacing = config.get("timestep_spacing", "leading")
    _check(config, "timestep_spacing", spacing in _SPACINGS, f"use {', '.join(_SPACINGS)}")
    offset = config.get("steps_offset", 0)
    _check(config, "steps_offset", _is_whole(offset) and 0 <= offset < steps,
           "use a whole number from 0")  # fmt: skip
    betas = config.get("trained_betas")
    if betas is not None and not (isinstance(betas, list) and len(betas) == steps):
        raise WeightsError(f"trained_betas are not a list of {steps:,} numbers, one a timestep")
    for beta in betas or ():
        _check({"trained_betas": beta}, "trained_betas", _is_number(beta) and 0 < beta < 1,
               "use numbers between 0 and 1")  # fmt: skip
    return {key: value for key, value in config.items() if _is_plain(value)}


def needs_impossible_prediction(config: Mapping[str, Any]) -> bool:
    """Tell a schedule that ends in pure noise of a model that predicts the noise.

    There the noise is the input itself: a prediction of it says nothing about the image, and the
    image that follows from it is divided by zero (arXiv:2305.08891, section 3.2).
    """
    prediction = config.get("prediction_type", "epsilon")
    return bool(config.get(ZERO_SNR)) and prediction == "epsilon"


IMPOSSIBLE_PREDICTION = (
    f"the model's scheduler says {ZERO_SNR} (the last noise level is pure noise) and that the "
    "model predicts the noise (epsilon), which says nothing about the image there: every picture "
    f"would be black; in {SCHEDULER_FILE} set {ZERO_SNR} to false, or prediction_type to "
    "v_prediction or sample if the model was trained so (a single file becomes a folder by "
    "`lorasmith model convert`)"
)
"""What is wrong with such a model, and what to do."""


def _check(config: Mapping[str, Any], key: str, is_fine: bool, advice: str) -> None:
    if not is_fine:
        shown = repr(config.get(key))
        shown = shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}..."
        raise WeightsError(f"{key} is {shown}; {advice}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: Any) -> bool:
    """Tell whether a value is a number, a text, nothing, or a list of them."""
    if isinstance(value, list | tuple):
        return len(value) <= MAX_TIMESTEPS and all(_is_plain(item) for item in value)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return value is None or is_number or isinstance(value, str)
