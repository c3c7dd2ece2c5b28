"""Saving a modified model as a new diffusers folder."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.core.files import atomic_folder, check_not_existing
from lorasmith.models.files.build import canonical_state_dict
from lorasmith.models.files.convert import read_contents, save_folder
from lorasmith.models.files.open import open_source
from lorasmith.models.files.source import INDEX
from lorasmith.models.files.stored_tensors import wrap_tensor
from lorasmith.models.suppress_logs import suppress_logs

if TYPE_CHECKING:
    from lorasmith.models.model import Model


def save_modified_model(
    model: "Model", parts: Iterable[str], folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model to a new folder, atomically; unchanged parts are copied.

    Args:
        model: the model.
        parts: the modified ones of ``unet``, ``text_encoder``, ``text_encoder_2``.
        folder: must not exist.
        dtype: of the modified parts.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    check_not_existing(folder)
    changed = set(parts)
    if model.path.is_file():
        _save_changed_file(model, changed, folder, dtype)
        return
    with atomic_folder(folder) as temporary:
        shutil.copy(model.path / INDEX, temporary)
        for part in _list_parts(model.path):
            if part in changed:
                with suppress_logs():
                    network = getattr(model, part).to(dtype)
                    network.save_pretrained(temporary / part)
            elif (model.path / part).is_dir():
                shutil.copytree(model.path / part, temporary / part)


def _save_changed_file(model: "Model", changed: set[str], folder: Path, dtype: torch.dtype) -> None:
    """Write a model that was read from a single file as a folder."""
    prediction = model.scheduler_config["prediction_type"]  # measured where the file was silent
    contents = read_contents(open_source(model.path), prediction)
    tensors = dict(contents.tensors)
    for part in changed:
        state = canonical_state_dict(getattr(model, part))
        tensors[part] = {name: wrap_tensor(value.to(dtype)) for name, value in state.items()}
    save_folder(replace(contents, tensors=tensors), folder)


def _list_parts(folder: Path) -> list[str]:
    """Return the parts that the model's index names; other folders there are not its own."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    named = [name for name, value in index.items() if isinstance(value, list)]
    return [name for name in named if name.isidentifier()]
