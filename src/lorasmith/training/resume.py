"""Going on with a run: which checkpoint, and whether the settings are still those of the run."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorasmith.config.base import list_fields
from lorasmith.config.old_keys import upgrade
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError, LorasmithWarning, OutputError
from lorasmith.loops.checkpoint import Checkpoint, load_checkpoint_at, load_latest_checkpoint

LATEST = "latest"

_BATCH = ("train.batch_size", "train.gradient_accumulation_steps")
"""Settings whose change needs no word where their product stays."""
_FIXED = (
    "lora", "train.optimizer", "train.optimizer_args", "train.ema_decay", "train.loraplus_lr_ratio",
)  # fmt: skip
"""Settings that a run cannot change: its weights and the optimizer's state depend on them."""
_FREE = (
    "output", "validation", "track", "model.path", "data.path", "data.cache", "data.cache_dir",
    "data.reg_data_dir", "train.device", "train.log_every_n_steps",
    "train.checkpoint_every_n_steps",
    "train.keep_checkpoints", "train.save_every_n_steps", "train.early_stopping_patience",
    "train.gradient_checkpointing", "train.vram_limit", "train.cuda_graph", "train.compile",
)  # fmt: skip
"""Settings whose change needs no word: they do not change what is learned, or are seen at once."""

_DEFAULTS = {name: default for name, default, _ in list_fields(TrainConfig)}


def find_checkpoint(folder: Path, wanted: str) -> Checkpoint:
    """Load the checkpoint that was asked for.

    Args:
        folder: the run's checkpoints.
        wanted: ``latest`` for the newest that verifies (with a warning for newer ones that do
            not), or ``step-120`` for that one and no other.

    Raises:
        ConfigError: it is neither.
        WeightsError: it is missing or damaged.
        OutputError: there is none at all.
    """
    if wanted == LATEST:
        found = load_latest_checkpoint(folder)
        if found is None:
            raise OutputError(f"{folder} holds no checkpoint to resume from")
        return found
    match = re.fullmatch(r"(?:step-)?(\d{1,12})", wanted)
    if match is None:
        raise ConfigError(f"--resume {wanted}: write --resume, or --resume step-120 for one step")
    return load_checkpoint_at(folder, int(match[1]))


def check_settings(before: Mapping[str, Any], run: TrainConfig) -> None:
    """Compare a run's settings with those that its checkpoint was made with.

    What changes the course of the training is allowed and warned about.

    Args:
        before: the settings that the checkpoint holds, of this version or an earlier one.
        run: its settings now.

    Raises:
        ConfigError: one differs that a run cannot change.
    """
    before, _ = upgrade(before)
    now = run.model_dump(mode="json")
    changed = list(_differences(before, now))
    if _batch(before) == _batch(now):
        changed = [change for change in changed if change[0] not in _BATCH]
    for name, old, new in changed:
        if _within(name, _FIXED):
            raise ConfigError(
                f"{name}: this run was started with {old!r} and cannot go on with {new!r}; leave "
                "it as it was or start a new run"
            )
    told = [f"{name} {old!r} -> {new!r}" for name, old, new in changed if not _within(name, _FREE)]
    if told:
        warnings.warn(
            f"the run goes on with other settings: {', '.join(told)}",
            LorasmithWarning,
            stacklevel=2,
        )


def _batch(settings: Mapping[str, Any]) -> int | None:
    """Return how many images a process gives to an optimizer step."""
    train = settings.get("train", {})
    sizes = [train.get(name.removeprefix("train.")) for name in _BATCH]
    return None if None in sizes else math.prod(sizes)


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys((*before, *now)):
        if key not in before and now[key] == _DEFAULTS.get(prefix + key):
            continue  # the checkpoint is older than this setting
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and key != "optimizer_args":
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield prefix + key, old, new
