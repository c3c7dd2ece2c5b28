"""Checkpoints that survive a crash at any moment, and never pickle anything.

A checkpoint is a folder ``step-00000100`` with ``tensors.safetensors``, ``state.json`` and,
written last, ``manifest.json`` with the SHA-256 of both. It is built in a temporary folder and
renamed, so that a folder with a manifest that matches is whole, and anything else is ignored.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorasmith.core.errors import LorasmithWarning, OutputError, WeightsError
from lorasmith.core.files import TEMPORARY_PREFIX, sha256_of, sync_file, sync_folder
from lorasmith.core.weights import Tensors, load_tensors, save_tensors

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at one step."""

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

    Raises:
        OutputError: the disk refused; earlier checkpoints are untouched.
        WeightsError: a tensor is not finite, or the written files do not verify.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_tensors(temporary / "tensors.safetensors", tensors, {"schema": str(SCHEMA)})
        _write_synced(temporary / "state.json", json.dumps({"step": step, **state}))
        names = ("tensors.safetensors", "state.json")
        manifest = {
            "schema": SCHEMA,
            "sha256": {name: sha256_of(temporary / name) for name in names},
        }
        _write_synced(temporary / "manifest.json", json.dumps(manifest))
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        sync_folder(folder)
    except OSError as error:
        raise OutputError(f"cannot write checkpoint {final}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    verify(final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """List checkpoint folders that have a manifest, oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/manifest.json"))


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint that verifies, with a warning for newer ones that do not.

    None means that there is no checkpoint.

    Raises:
        WeightsError: there are checkpoints but none of them can be read.
    """
    failures: list[WeightsError] = []
    for path in reversed(checkpoints(folder)):
        try:
            found = load_checkpoint(path)
        except WeightsError as error:
            failures.append(error)
            continue
        for failure in failures:
            message = f"{failure}; going on from step {found.step}"
            warnings.warn(message, LorasmithWarning, stacklevel=2)
        return found
    if failures:
        raise failures[0]
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Load one checkpoint folder.

    Raises:
        WeightsError: a file is missing or altered, or a newer lorasmith wrote it.
    """
    verify(path)
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(int(state["step"]), load_tensors(path / "tensors.safetensors"), state)


def verify(path: Path) -> None:
    """Check a checkpoint's files against its manifest.

    Raises:
        WeightsError: a file is missing or altered, or a newer lorasmith wrote it.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["schema"] > SCHEMA:
            raise WeightsError(
                f"checkpoint {path}: written by a newer lorasmith; update to read it"
            )
        for name, digest in manifest["sha256"].items():
            if sha256_of(path / name) != digest:
                raise WeightsError(
                    f"checkpoint {path}: {name} is damaged; use an earlier checkpoint"
                )
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"checkpoint {path}: incomplete ({error}); use an earlier one"
        ) from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Split an optimizer's state into tensors and JSON, without pickling."""
    state = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, Any] = {"groups": [_plain_group(group) for group in state["param_groups"]]}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value)
    return tensors, plain


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Tensors, plain: dict[str, Any]
) -> None:
    """Put back what ``pack_optimizer`` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, number, name = key.split("/", 2)
            state.setdefault(int(number), {})[name] = value
    groups = [
        {**group, "betas": tuple(group["betas"]), "lr": torch.tensor(group["lr"])}
        if isinstance(live["lr"], torch.Tensor)
        else group
        for group, live in zip(plain["groups"], optimizer.param_groups, strict=True)
    ]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, torch.Tensor):  # keep the tensor on the device that the loop fills
            rate.fill_(float(group["lr"]))
            group["lr"] = rate


def _plain_group(group: dict[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in group.items()}


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync_file(path)
