"""Checking datasets from Python: what ``lorasmith check`` does, with settings in any form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasmith.config.features import FeaturesConfig, require_single_feature, to_train_config
from lorasmith.config.reading.load import load_config
from lorasmith.config.train_config import TrainConfig
from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.scan.scan import no_bar
from lorasmith.evaluation.checks.dataset import DatasetReport
from lorasmith.evaluation.checks.dataset import check_dataset as check_data
from lorasmith.evaluation.checks.features import FeaturesReport
from lorasmith.evaluation.checks.features import check_features as check_all

_NO_TAG = "tag"


def check(
    path: str | Path | TrainConfig | Mapping[str, Any],
    tag: str | None = None,
    *,
    model: str | Path | None = None,
    caption: str | None = None,
    **data: Any,
) -> DatasetReport:
    """Check a dataset before training on it; the folder is only read.

    Findings are returned, never raised: ``report.errors`` are those that would stop training,
    ``report.findings`` all of them, and ``report.to_dict()`` everything for JSON.

    Args:
        path: a folder of captioned images or a packed tar; or the settings of a run, in one of
            the forms that `lorasmith.train` takes.
        tag: the trigger word; None skips the rules about it.
        model: the base model, which determines the image sizes: a folder, a ``.safetensors`` file
            or a cached id; None is that of the settings, or the embedded one.
        caption: for images that have none; without it they are errors.
        data: further settings of ``[data]``, such as ``resolution=512`` or ``max_aspect=3``.

    Raises:
        DataError: the folder is missing, or has no images.
        ConfigError: a setting is unknown or out of range, or does not fit the model; the settings
            are of several features.
        WeightsError: there is no such model.
    """
    model_path = None if model is None else Path(model).expanduser()
    if isinstance(path, str | Path) and not is_settings_file(path):
        settings = make_data_config(Path(path).expanduser(), tag, data)
        return check_data(settings, tag is None, model_path, caption, no_bar)
    if tag is not None or caption is not None or data:
        raise ConfigError(
            "check: tag, caption and data settings go with a folder; settings have their own"
        )
    run = require_single_feature(to_train_config(path), "lorasmith.check_features")
    return check_data(run.data, False, model_path or run.model.path, None, no_bar)


def check_features(config: FeaturesConfig | Mapping[str, Any] | str | Path) -> FeaturesReport:
    """Check the datasets of several features, each alone and all together.

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


def is_settings_file(path: str | Path) -> bool:
    """Return whether a path names settings, not a dataset."""
    return Path(path).suffix == ".toml" and not Path(path).expanduser().is_dir()


def make_data_config(
    path: Path, tag: str | None, data: Mapping[str, Any], overrides: tuple[str, ...] = ()
) -> DataConfig:
    """Return the settings of a dataset without a run.

    Args:
        path: the dataset.
        tag: None is replaced by a placeholder.
        data: further settings of ``[data]``; those that are None are left out.
        overrides: ``section.key=value``.

    Raises:
        ConfigError: one is unknown (with close matches) or invalid.
    """
    given = {**data, "path": str(path), "tag": tag or _NO_TAG}
    present = {key: value for key, value in given.items() if value is not None}
    base = {"data": present, "output": {"name": "none"}}
    return load_config(TrainConfig, None, overrides, base).data
