"""Training from Python: what the commands ``train`` and ``sweep`` do, with settings in any form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.config.features import FeaturesConfig, require_single_feature, to_train_config
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.reports.sweep_results import SweepResult
    from lorasmith.training.callbacks import Callback
    from lorasmith.training.losses import LossFn


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    *,
    resume: str | None = None,
    callbacks: "Sequence[Callback]" = (),
    loss_fn: "LossFn | None" = None,
    break_lock: bool = False,
) -> Path:
    """Train a LoRA and return its file.

    Args:
        config: the settings: a `TrainConfig`; the same as nested dictionaries, ``{"data": {"path":
            "pictures", "tag": "ink"}, "output": {"name": "ink"}, "train": {"steps": 400}}``; or
            the path of a TOML file.
        resume: continue the run of this name from its ``latest`` checkpoint, or from ``step-120``
            and no other.
        callbacks: `lorasmith.Callback` objects, called during the training.
        loss_fn: a function of a `lorasmith.training.losses.LossContext` (prediction, target,
            noise, timesteps, latents, weights, mask) that returns the loss of each image, float32
            ``[B]``; left out, the weighted mean squared error. Steps run eagerly, without CUDA
            graphs, unless it is marked with ``@lorasmith.capturable``.
        break_lock: take over the lock of a run on another machine that did not renew its lock for
            two minutes.

    Raises:
        ConfigError: a setting is unknown, missing or out of range, or does not fit the model; or
            ``loss_fn`` returns another shape.
        LorasmithError: see `lorasmith.training.trainer.train`.
    """
    from lorasmith.training.losses import diffusion_loss
    from lorasmith.training.trainer import train as train_lora

    _check_hooks(callbacks, loss_fn)
    single = require_single_feature(to_train_config(config))
    return train_lora(single, resume, callbacks, loss_fn or diffusion_loss, break_lock)


def train_features(
    config: FeaturesConfig | Mapping[str, Any] | str | Path,
    *,
    resume: str | None = None,
    callbacks: "Sequence[Callback]" = (),
    loss_fn: "LossFn | None" = None,
    break_lock: bool = False,
) -> dict[str, Path]:
    """Train a LoRA for each feature and return their files by their trigger words.

    Args:
        config: the settings, with ``feature`` tables, in one of the forms that `train` takes.
        resume: as in `train`.
        callbacks: as in `train`, called for each LoRA.
        loss_fn: as in `train`.
        break_lock: as in `train`.

    Raises:
        ConfigError: a setting is unknown, missing or out of range, or there are no features.
        LorasmithError: see `lorasmith.training.multi.features.train_features`.
    """
    from lorasmith.training.losses import diffusion_loss
    from lorasmith.training.multi.features import train_features as train_all

    _check_hooks(callbacks, loss_fn)
    features = to_train_config(config)
    if not isinstance(features, FeaturesConfig):
        raise ConfigError("the settings have no [[feature]] tables: use lorasmith.train")
    files = train_all(features, resume, callbacks, loss_fn or diffusion_loss, break_lock)
    return {feature.tag: file for feature, file in zip(features.feature, files, strict=True)}


def sweep(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    vary: Mapping[str, Sequence[Any]] | None = None,
    *,
    max_parallel: int | None = None,
    resume: str | None = None,
    callbacks: "Sequence[Callback]" = (),
    loss_fn: "LossFn | None" = None,
    break_lock: bool = False,
) -> list["SweepResult"]:
    """Train a LoRA for each combination of some settings, jointly; return the results.

    They come in the order of their validation gains, the best first, where there are validation
    images; each has its file, its settings and its metrics.

    Args:
        config: the settings that all have in common, in one of the forms that `train` takes.
        vary: the settings that differ, by their dotted names, each with its values:
            ``{"train.learning_rate": [1e-4, 2e-4], "lora.rank": [8, 16]}``. They replace those of
            the ``vary`` table in the settings, which may have them as well.
        max_parallel: how many LoRAs are trained at the same time at most; left out, 8.
        resume: as in `train`.
        callbacks: as in `train`, called for each LoRA.
        loss_fn: as in `train`.
        break_lock: as in `train`.

    Raises:
        ConfigError: a setting is unknown, missing or out of range, may not vary, or does not fit
            the model; or nothing varies.
        LorasmithError: see `lorasmith.training.multi.sweep.train_sweep`.
    """
    from lorasmith.config.sweep import load_sweep
    from lorasmith.training.losses import diffusion_loss
    from lorasmith.training.multi.sweep import train_sweep

    _check_hooks(callbacks, loss_fn)
    path, base = None, None
    if isinstance(config, TrainConfig | FeaturesConfig):
        base = config.model_dump(exclude_unset=True, by_alias=True)
    elif isinstance(config, Mapping):
        base = dict(config)
    elif isinstance(config, str | Path):
        path = Path(config).expanduser()
    else:
        to_train_config(config)  # raises an error that names the possible forms
    sweep_config = load_sweep(path, (), vary, max_parallel, base)
    return train_sweep(sweep_config, resume, callbacks, loss_fn or diffusion_loss, break_lock)


def _check_hooks(callbacks: Any, loss_fn: Any) -> None:
    """Refuse what cannot be called during a training, before it starts.

    Raises:
        ConfigError: the callbacks are no sequence of `Callback` objects, or ``loss_fn`` is no
            function.
    """
    from lorasmith.training.callbacks import Callback

    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks: give a list, not {type(callbacks).__name__}")
    for callback in callbacks:
        if isinstance(callback, type):
            raise ConfigError(f"callbacks: give an object, {callback.__name__}(), not the class")
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks: {type(callback).__name__} is no subclass of lorasmith.Callback"
            )
    if loss_fn is not None and not callable(loss_fn):
        raise ConfigError(f"loss_fn: give a function, not {type(loss_fn).__name__}")
