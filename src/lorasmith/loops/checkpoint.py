"""Checkpoints that survive a crash at any moment and contain no pickles.

A checkpoint is a folder ``step-00000100`` with ``tensors.safetensors``, ``state.json`` and,
written last, ``manifest.json`` with the SHA-256 of both. It is built in a temporary folder and
renamed, so a folder with a matching manifest is complete; anything else is ignored.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorasmith.core.errors import LorasmithWarning, OutputError, WeightsError
from lorasmith.core.files import (
    fsync_file,
    fsync_folder,
    remove_temporary_files,
    sha256_file,
    temporary_path,
)
from lorasmith.core.regular_files import read_regular_file
from lorasmith.core.safetensors_io import Tensors, load_tensors, save_tensors
from lorasmith.core.text.json_text import parse_json_object

SCHEMA = 1
CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints."""
PREVIEWS = "previews"
"""The folder of a run's previews."""
MANIFEST = "manifest.json"
_CONTENTS = ("tensors.safetensors", "state.json")
"""The files that a manifest vouches for."""
_MAX_JSON_BYTES = 2**26
"""Longer JSON is not a checkpoint's."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step."""

    step: int
    tensors: Tensors
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Save a checkpoint, verify it, then prune all but the newest ``keep``.

    Checkpoints of later steps are removed as well: the run was resumed from an earlier one.

    Args:
        folder: of the run's checkpoints.
        step: steps done.
        tensors: all finite.
        state: further values, as JSON.
        keep: how many checkpoints to keep, at least 1.

    Raises:
        OutputError: the disk refused; earlier checkpoints are untouched.
        WeightsError: a tensor is not finite, or the written files do not verify.
    """
    target = folder / f"step-{step:08d}"
    temporary = temporary_path(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_contents(temporary, tensors, {"step": step, **state})
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        fsync_folder(folder)
    except OSError as error:
        raise OutputError(f"cannot write checkpoint {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    verify_checkpoint(target)
    _prune(folder, target, keep)
    return target


def _write_contents(
    folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Write the files of a checkpoint, the manifest last."""
    folder.mkdir()
    save_tensors(folder / "tensors.safetensors", tensors, {"schema": str(SCHEMA)})
    _write_synced(folder / "state.json", json.dumps(state))
    digests = {name: sha256_file(folder / name) for name in _CONTENTS}
    manifest = {"schema": SCHEMA, "sha256": digests}
    _write_synced(folder / MANIFEST, json.dumps(manifest))
    fsync_folder(folder)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all checkpoints but the last ``keep`` up to ``newest``."""
    saved = list_checkpoints(folder)
    index = saved.index(newest)
    for outdated in [*saved[index + 1 :], *saved[: max(0, index + 1 - keep)]]:
        _remove(outdated)


def _remove(path: Path) -> None:
    """Remove a checkpoint, its manifest first, so that half of one does not count."""
    with suppress(OSError):
        (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of a killed process from a run's folder; its lock must be held.

    Raises:
        OSError: one cannot be removed.
    """
    previews = folder / PREVIEWS
    for parent in (folder, folder / CHECKPOINTS, previews, *previews.glob("step-*")):
        remove_temporary_files(parent)


def list_checkpoints(folder: Path) -> list[Path]:
    """List checkpoint folders that have a manifest, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def load_latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest intact checkpoint and warn about newer ones; None if there is none at all.

    Raises:
        WeightsError: there are checkpoints but none of them can be read.
    """
    failures: list[WeightsError] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            checkpoint = load_checkpoint(path)
        except WeightsError as error:
            failures.append(error)
            continue
        for failure in failures:
            message = f"{failure}; continuing from step {checkpoint.step}"
            warnings.warn(message, LorasmithWarning, stacklevel=2)
        return checkpoint
    if failures:
        raise failures[0]
    return None


def load_checkpoint_at(folder: Path, step: int) -> Checkpoint:
    """Load the checkpoint of one step.

    Raises:
        WeightsError: there is no such checkpoint (the existing steps are named), or it is damaged.
    """
    path = folder / f"step-{step:08d}"
    if not path.is_dir():
        steps = [
            str(int(checkpoint.name.removeprefix("step-")))
            for checkpoint in list_checkpoints(folder)
        ]
        hint = f"there are steps {', '.join(steps)}" if steps else "there are none"
        raise WeightsError(f"{folder}: no checkpoint of step {step}; {hint}")
    return load_checkpoint(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Load one checkpoint folder.

    Raises:
        WeightsError: a file is missing or altered, or a newer lorasmith wrote it.
    """
    verify_checkpoint(path)
    try:
        state = _read_json(path / "state.json")
        step = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"checkpoint {path}: state.json is damaged; use an earlier one"
        ) from error
    return Checkpoint(step, load_tensors(path / "tensors.safetensors"), state)


def verify_checkpoint(path: Path) -> None:
    """Check a checkpoint's files against its manifest.

    Raises:
        WeightsError: a file is missing or altered, or a newer lorasmith wrote it.
    """
    try:
        manifest = _read_json(path / MANIFEST)
        if manifest["schema"] > SCHEMA:
            raise WeightsError(
                f"checkpoint {path}: written by a newer lorasmith; update to read it"
            )
        for name in _CONTENTS:
            if not (path / name).is_file():  # opening a pipe would wait forever
                raise OSError(f"{name} is missing or no file")
            if sha256_file(path / name) != manifest["sha256"][name]:
                raise WeightsError(
                    f"checkpoint {path}: {name} is damaged; use an earlier checkpoint"
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"checkpoint {path}: incomplete ({error}); use an earlier one"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint.

    Raises:
        OSError: it is missing, no file, or too long.
        ValueError: it is no JSON object.
    """
    return parse_json_object(read_regular_file(path, _MAX_JSON_BYTES).decode("utf-8"))


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    fsync_file(path)
