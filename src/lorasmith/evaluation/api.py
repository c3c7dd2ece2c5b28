"""Checking pictures from Python: what the command ``check`` does, with settings in any form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasmith.config.features import FeaturesConfig, require_single_feature, to_train_config
from lorasmith.config.load import load_config
from lorasmith.config.train_config import TrainConfig
from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.scan.scan import no_bar
from lorasmith.evaluation.dataset_check import DatasetReport
from lorasmith.evaluation.dataset_check import check_dataset as check_data
from lorasmith.evaluation.features_check import FeaturesReport
from lorasmith.evaluation.features_check import check_features as check_all

_NO_TAG = "tag"


def check(
    path: str | Path | TrainConfig | Mapping[str, Any],
    tag: str | None = None,
    *,
    model: str | Path | None = None,
    caption: str | None = None,
    **data: Any,
) -> DatasetReport:
    """Look pictures over before training on them; the folder is only read.

    Findings are returned, never raised: ``report.errors`` are those that would stop training,
    ``report.findings`` all of them, and ``report.as_tree()`` everything for JSON.

    Args:
        path: a folder of captioned pictures or a packed tar; or the settings of a run, in one of
            the forms that `lorasmith.train` takes.
        tag: the words that shall call the LoRA; None leaves the rules about them out.
        model: whose sizes count: a folder, a ``.safetensors`` file or a cached id; None is the
            embedded model, or that of the settings.
        caption: of pictures that have none; without it they are errors.
        data: further settings of ``[data]``, such as ``resolution=512`` or ``max_aspect=3``.

    Raises:
        DataError: nothing there, or nothing that looks like pictures.
        ConfigError: a setting is unknown or out of range, or does not suit the model; the settings
            are of several features.
        WeightsError: no such model.
    """
    chosen = None if model is None else Path(model).expanduser()
    if isinstance(path, str | Path) and not names_settings(path):
        settings = data_settings(Path(path).expanduser(), tag, data)
        return check_data(settings, tag is None, chosen, caption, no_bar)
    if tag is not None or caption is not None or data:
        raise ConfigError("check: tag, caption and the like go with a folder; settings say them")
    run = require_single_feature(to_train_config(path), "lorasmith.check_features")
    return check_data(run.data, False, chosen or run.model.path, None, no_bar)


def check_features(config: FeaturesConfig | Mapping[str, Any] | str | Path) -> FeaturesReport:
    """Look the pictures of several features over, each by itself and side by side.

    Args:
        config: the settings, in one of the forms that `lorasmith.train_features` takes.

    Raises:
        ConfigError: a setting is unknown or out of range, or there are no features.
        LorasmithError: as from `check`.
    """
    run = to_train_config(config)
    if not isinstance(run, FeaturesConfig):
        raise ConfigError("the settings have no [[feature]] tables: use lorasmith.check")
    return check_all(run, no_bar)


def names_settings(path: str | Path) -> bool:
    """Tell whether a path is that of settings, not of pictures."""
    return Path(path).suffix == ".toml" and not Path(path).expanduser().is_dir()


def data_settings(
    path: Path, tag: str | None, data: Mapping[str, Any], overrides: tuple[str, ...] = ()
) -> DataConfig:
    """Return the settings of pictures that no run is for yet.

    Args:
        path: where they are.
        tag: None puts something in its place that is not to be used.
        data: further settings of ``[data]``; None leaves one out.
        overrides: ``section.key=value``.

    Raises:
        ConfigError: one is unknown (with close matches) or invalid.
    """
    given = {**data, "path": str(path), "tag": tag or _NO_TAG}
    known = {key: value for key, value in given.items() if value is not None}
    base = {"data": known, "output": {"name": "none"}}
    return load_config(TrainConfig, None, overrides, base).data
