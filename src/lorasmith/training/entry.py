"""Training from Python: what the command ``train`` does, with settings in whatever form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasmith.config.features import FeaturesRun, settings_of, single
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

    return train_lora(single(settings_of(config)), resume)


def train_features(
    config: FeaturesRun | Mapping[str, Any] | str | Path, *, resume: str | None = None
) -> dict[str, Path]:
    """Train a LoRA for each feature and return their files by their tags.

    Args:
        config: the settings, with ``feature`` tables, in one of the forms that `train` takes.
        resume: as in `train`.

    Raises:
        ConfigError: a setting is unknown, missing or out of range, or there are no features.
        LorasmithError: see `lorasmith.training.features.train_features`.
    """
    from lorasmith.training.features import train_features as train_all

    run = settings_of(config)
    if not isinstance(run, FeaturesRun):
        raise ConfigError("the settings have no [[feature]] tables: use lorasmith.train")
    files = train_all(run, resume)
    return {feature.tag: file for feature, file in zip(run.feature, files, strict=True)}
