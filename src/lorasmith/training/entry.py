"""Training from Python: what the command ``train`` does, with settings in whatever form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasmith.config.load import load_settings
from lorasmith.config.run import TrainRun
from lorasmith.core.errors import ConfigError


def train(config: TrainRun | Mapping[str, Any] | str | Path, *, resume: str | None = None) -> Path:
    """Train a LoRA and return its file.

    Args:
        config: the settings: a `TrainRun`; the same as nested dictionaries, ``{"data": {"path":
            "pictures", "tag": "ink"}, "output": {"name": "ink"}, "train": {"steps": 400}}``; or
            the path of a TOML file.
        resume: go on with the run of this name from its ``latest`` checkpoint, or from
            ``step-120`` and no other.

    Raises:
        ConfigError: a setting is unknown, missing or out of range, or does not fit the model.
        LorasmithError: see `lorasmith.training.loop.train`.
    """
    from lorasmith.training.loop import train as train_lora

    return train_lora(settings_of(config), resume)


def settings_of(config: TrainRun | Mapping[str, Any] | str | Path) -> TrainRun:
    """Return settings that were given in one of several forms.

    Raises:
        ConfigError: they are unknown, missing or out of range, or in no such form.
    """
    if isinstance(config, TrainRun):
        return config
    if isinstance(config, Mapping):
        return load_settings(TrainRun, base=config)
    if isinstance(config, str | Path):
        return load_settings(TrainRun, Path(config).expanduser())
    raise ConfigError(
        f"train takes a TrainRun, a dictionary of settings or the path of a TOML file, not "
        f"{type(config).__name__}"
    )
