"""Checkpoints of runs: saving, finding them for ``--resume``, and comparing their settings."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from lorasmith.config.fields import list_fields
from lorasmith.config.reading.old_keys import upgrade
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError, LorasmithWarning, OutputError
from lorasmith.core.safetensors_io import Tensors
from lorasmith.loops.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint_at,
    load_latest_checkpoint,
    save_checkpoint,
)
from lorasmith.loops.optimization.optimized_module import select_prefix
from lorasmith.runs.paths import RunPaths

if TYPE_CHECKING:
    from lorasmith.training.state import TrainerState

LATEST = "latest"

_JOINT_KEY = "features"
"""Where a joint checkpoint has the states of its LoRAs; sweeps use the same key."""

_BATCH_SETTINGS = ("train.batch_size", "train.gradient_accumulation_steps")
"""Settings whose change needs no warning if their product stays."""
_FIXED_SETTINGS = (
    "lora", "train.method", "train.optimizer", "train.optimizer_args", "train.ema_decay",
    "train.loraplus_lr_ratio",
)  # fmt: skip
"""Settings that a run cannot change: its weights and the optimizer's state depend on them."""
_FREE_SETTINGS = (
    "output", "validation", "track", "model.path", "data.path", "data.cache", "data.cache_dir",
    "data.reg_data_dir", "train.device", "train.log_every_n_steps",
    "train.checkpoint_every_n_steps", "train.keep_checkpoints", "train.save_every_n_steps",
    "train.early_stopping_patience", "train.gradient_checkpointing", "train.vram_limit",
    "train.cuda_graph", "train.compile",
)  # fmt: skip
"""Settings whose change needs no warning: it does not change what is learned, or shows at once."""


# --- saving -----------------------------------------------------------------------------------


def save_checkpoints(states: "Sequence[TrainerState]", paths: RunPaths, is_joint: bool) -> Path:
    """Save a checkpoint of one LoRA, or of several as one; return its folder.

    The main process writes; the others wait.

    Args:
        states: the LoRAs.
        paths: of the run.
        is_joint: whether the format is that of several LoRAs.

    Raises:
        OutputError: it cannot be written, or another run has taken the folder over.
        WeightsError: a weight is not finite.
    """
    step = max(state.step for state in states)
    if states[0].is_main:
        states[0].lock.check()
        tensors, values = _pack_jointly(states) if is_joint else states[0].state_dict()
        keep = states[0].train.keep_checkpoints
        save_checkpoint(paths.checkpoints, step, tensors, values, keep)
    states[0].accelerator.wait_for_everyone()
    return paths.checkpoints / f"step-{step:08d}"


def _pack_jointly(states: "Sequence[TrainerState]") -> tuple[Tensors, dict[str, Any]]:
    tensors: Tensors = {}
    values: dict[str, Any] = {}
    for state in states:
        name = state.paths.name
        own_tensors, values[name] = state.state_dict()
        tensors |= {f"{name}/{key}": tensor for key, tensor in own_tensors.items()}
    return tensors, {_JOINT_KEY: values}


# --- finding ----------------------------------------------------------------------------------


def find_checkpoint(folder: Path, resume: str) -> Checkpoint:
    """Load the checkpoint to resume from.

    Args:
        folder: the run's checkpoints.
        resume: ``latest`` for the newest that verifies (with a warning for newer ones that do
            not), or ``step-120`` for that one and no other.

    Raises:
        ConfigError: ``resume`` is neither.
        WeightsError: the checkpoint is missing or damaged.
        OutputError: there is none at all.
    """
    if resume == LATEST:
        checkpoint = load_latest_checkpoint(folder)
        if checkpoint is None:
            raise OutputError(f"{folder} holds no checkpoint to resume from")
        return checkpoint
    match = re.fullmatch(r"(?:step-)?(\d{1,12})", resume)
    if match is None:
        raise ConfigError(f"--resume {resume}: write --resume, or --resume step-120 for one step")
    return load_checkpoint_at(folder, int(match[1]))


def find_joint_checkpoint(paths: RunPaths, resume: str | None) -> Checkpoint | None:
    """Return the checkpoint that LoRAs continue from jointly; None if they start anew.

    Raises:
        OutputError, WeightsError: see `find_checkpoint`.
    """
    if resume is None or (resume == LATEST and not list_checkpoints(paths.checkpoints)):
        return None
    return find_checkpoint(paths.checkpoints, resume)


def select_state(checkpoint: Checkpoint | None, paths: RunPaths) -> Checkpoint | None:
    """Return one LoRA's part of a joint checkpoint.

    Raises:
        OutputError: it has none.
    """
    if checkpoint is None:
        return None
    state = checkpoint.state.get(_JOINT_KEY, {}).get(paths.name)
    if state is None:
        raise OutputError(
            f"{paths.parent_folder}: the run in it has no {paths.name}; start a new one"
        )
    tensors = select_prefix(f"{paths.name}/", checkpoint.tensors)
    return Checkpoint(int(state["progress"]["done"]), tensors, state)


# --- settings ---------------------------------------------------------------------------------


def check_settings(saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Compare a run's settings with those of its checkpoint.

    Changes of what is learned are allowed with a warning.

    Args:
        saved: the settings in the checkpoint, of this version or an earlier one.
        config: the settings now.

    Raises:
        ConfigError: a setting differs that a run cannot change.
    """
    before, _ = upgrade(saved)
    now = config.model_dump(mode="json")
    changes = list(_differences(before, now, _defaults()))
    if _images_per_process(before) == _images_per_process(now):
        changes = [change for change in changes if change[0] not in _BATCH_SETTINGS]
    for name, old, new in changes:
        if _is_within(name, _FIXED_SETTINGS):
            raise ConfigError(
                f"{name}: this run was started with {old!r} and cannot go on with {new!r}; leave "
                "it as it was or start a new run"
            )
    notable = [
        f"{name} {old!r} -> {new!r}"
        for name, old, new in changes
        if not _is_within(name, _FREE_SETTINGS)
    ]
    if notable:
        warnings.warn(
            f"the run goes on with other settings: {', '.join(notable)}",
            LorasmithWarning,
            stacklevel=2,
        )


def _defaults() -> dict[str, Any]:
    """Return the defaults of all settings by their dotted names, as JSON."""
    return {name: to_jsonable_python(default) for name, default, _ in list_fields(TrainConfig)}


def _images_per_process(settings: Mapping[str, Any]) -> int | None:
    """Return how many images each process gives to an optimizer step."""
    train = settings.get("train", {})
    sizes = [train.get(name.removeprefix("train.")) for name in _BATCH_SETTINGS]
    return None if None in sizes else math.prod(sizes)


def _is_within(name: str, sections: tuple[str, ...]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield changed settings with their old and new values.

    A setting that is newer than the checkpoint counts as having had its default.
    """
    for key in dict.fromkeys((*before, *now)):
        name = prefix + key
        old, new = before.get(key, defaults.get(name)), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and key != "optimizer_args":
            yield from _differences(old, new, defaults, f"{name}.")
        elif old != new:
            yield name, old, new
