"""The noise schedule that a pretraining run trains with and stores in its model."""

import warnings
from typing import Any

from lorasmith.config.pretrain import UnetPretrainConfig
from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.read_json import read_json
from lorasmith.models.scheduler_config import SCHEDULER_FILE, check_scheduler_config

_DIFFUSERS_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
"""What a scheduler config means that leaves these out."""


def make_scheduler_config(run: UnetPretrainConfig) -> dict[str, Any]:
    """Return the arguments of the DDIM scheduler that is stored in a run's model.

    With zero terminal SNR diffusers is told to start at the last level (``trailing``), too.
    """
    spacing = "trailing" if run.noise.rescale_betas_zero_snr else "leading"
    return {
        **run.noise.model_dump(),
        "prediction_type": run.prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": spacing,
    }


def warn_of_unweighted_level(run: UnetPretrainConfig) -> None:
    """Warn where min-SNR weighting leaves out the level without signal, where drawing starts."""
    if run.noise.rescale_betas_zero_snr and run.min_snr_gamma > 0:
        warnings.warn(
            "min_snr_gamma: min-SNR weighting gives the last noise level the weight 0, as it has "
            "no signal, and drawing starts there; set it to 0 with noise.rescale_betas_zero_snr",
            LorasmithWarning,
            stacklevel=2,
        )


def warn_of_other_noise(run: UnetPretrainConfig) -> None:
    """Warn where a run starts from a model with another noise schedule or prediction type.

    Raises:
        WeightsError: that model's scheduler config is damaged.
    """
    folder = run.train.start_from
    if folder is None or not (folder / SCHEDULER_FILE).is_file():
        return
    before = _DIFFUSERS_DEFAULTS | check_scheduler_config(read_json(folder, SCHEDULER_FILE))
    after = make_scheduler_config(run)
    changes = [
        f"{key} {before[key]} (this run: {after[key]})"
        for key in _DIFFUSERS_DEFAULTS
        if (before[key] or False) != after[key]
    ]
    if changes:
        warnings.warn(
            f"{folder} was trained with {', '.join(changes)}: its U-Net has to learn this again; "
            "set [noise] and prediction_type as there to go on as before",
            LorasmithWarning,
            stacklevel=2,
        )
